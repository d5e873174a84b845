"""The errors that users see as one message, without a traceback."""


class SwavError(Exception):
    """Report a failure whose reason the message explains.

    The message states what must hold, what was received and how to fix it. The command line prints it
    and exits with `exit_code`.
    """

    exit_code = 1


def report_of(error: SwavError) -> str:
    """Return the line that reports an error; a requested stop (exit codes above 128, by signal) is not one."""
    return str(error) if error.exit_code > 128 else f"Error: {error}"


class UsageError(SwavError):
    """Refuse a request that cannot be met as given (exit code 2)."""

    exit_code = 2


class TransientError(SwavError):
    """Report a failure that may not recur, such as a lost worker (exit code 75, EX_TEMPFAIL)."""

    exit_code = 75


class RecipeError(UsageError):
    """Report all wrong values of a recipe in one message."""


class DataError(SwavError):
    """Report images that are missing, unreadable or too few, or a file that cannot be written."""
