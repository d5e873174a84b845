"""The errors that are told to a person without a traceback."""


class SwavError(Exception):
    """Something failed for a reason that the message explains.

    The message says what must hold, what came, and how to mend it. The command
    line prints it and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(SwavError):
    """What was asked for cannot be done as asked (exit code 2)."""

    exit_code = 2


class TryAgain(SwavError):
    """What failed may do the next time: another worker was lost, or did not come (exit code 75, EX_TEMPFAIL)."""

    exit_code = 75


class RecipeError(UsageError):
    """One or more values of a recipe are wrong; the message lists all of them."""


class DataError(SwavError):
    """The images are missing, unreadable or too few."""
