"""Command lines, and the runs and files that several of them need."""

import shlex
from pathlib import Path

import pytest
from PIL import Image

from cli.errors import run_and_report
from cli.main import swav_tf
from swav_tf.data.digits import Digits
from tests.cli.command_line import Result, succeed
from tests.tiny_run import tiny_run

SHORT = "-o train.epochs=1 -o train.batch_size=512 -o monitor.tensorboard=false"


@pytest.fixture
def run(capsys):
    """Run a command line."""

    def run(line):
        code = run_and_report(swav_tf, shlex.split(line))
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def output(run):
    """Run a command line that succeeds and return its stdout."""

    def output(line):
        result = run(line)
        assert result.code == 0, result.err
        return result.out

    return output


@pytest.fixture
def refused(run):
    """Run a command line that fails with an exit code and a message on stderr alone."""

    def refused(line, code, *parts):
        result = run(line)
        assert (result.code, result.out) == (code, ""), result.err
        assert all(part in result.err for part in parts), result.err
        assert "Traceback" not in result.err
        assert "This is a bug" not in result.err

    return refused


@pytest.fixture(scope="session")
def model() -> Path:
    """Return the folder of a short pretraining run."""
    return tiny_run()


@pytest.fixture(scope="session")
def probe(model, tmp_path_factory) -> Path:
    """Return the folder of a short probe on that run."""
    folder = tmp_path_factory.mktemp("runs") / "probe"
    succeed(f"probe --model {model} -c probe_digits --run-dir {folder} --quiet {SHORT}")
    return folder


@pytest.fixture(scope="session")
def files(model, tmp_path_factory) -> Path:
    """Return a folder with the digits' features, train.npy and test.npz, and one test digit, digit.png."""
    folder = tmp_path_factory.mktemp("features")
    for split, name in (("train", "train.npy"), ("test", "test.npz")):
        succeed(f"features digits --split {split} --model {model} --output {folder / name} --quiet")
    Image.fromarray(Digits("test").read(17)).save(folder / "digit.png")
    return folder
