import os

import pytest

from cli.quiet import _stderr_captured


def test_what_c_code_writes_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with _stderr_captured():
        os.write(2, b"greetings\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_it_is_told_when_the_import_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with _stderr_captured():
            os.write(2, b"a library is missing\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "a library is missing\nafter\n"
