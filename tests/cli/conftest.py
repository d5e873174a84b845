import pytest

from cli.errors import run_and_report
from cli.main import swav_tf
from tests.cli.command_line import Left, Run, Told


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Left:
        code = run_and_report(swav_tf, [*map(str, arguments)])
        return Left(code, *capsys.readouterr())

    return run


@pytest.fixture
def told(run: Run) -> Told:
    """The output of a command line that succeeds."""

    def told(*arguments: object) -> str:
        left = run(*arguments)
        assert left.code == 0, left.err
        return left.out

    return told
