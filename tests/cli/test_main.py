"""Start-up, help, errors and exit codes of every command."""

import os
import pkgutil
import subprocess
import sys

import click
import pytest

from cli import commands
from cli.errors import run_and_report
from cli.main import SUMMARIES, swav_tf
from swav_tf.model.startup import stderr_captured
from swav_tf.plumbing.errors import DataError, RecipeError, SwavError, TransientError
from swav_tf.training.stopping import StoppedEarly
from tests.cli.command_line import ROOT, TENSORFLOW, run_without


def all_commands():
    """Return (command line, command) of every group and command."""
    found = []

    def walk(path, command):
        found.append((path, command))
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                walk(f"{path} {name}".strip(), command.get_command(click.Context(command), name))

    walk("", swav_tf)
    return found


# === Help ===


# Bugs caught: a command that `--help` does not list; a slow `--help` that imports commands.
@pytest.mark.multiprocess
def test_help_imports_no_command():
    assert sorted(SUMMARIES) == sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    result = run_without([], "--help")
    assert all(summary in result.out for summary in SUMMARIES.values())
    assert result.out.splitlines()[-1] == "[]"


@pytest.mark.multiprocess
def test_help_needs_no_large_package():
    large = [*TENSORFLOW, "numpy", "pydantic", "ruamel", "PIL", "rich", "onnx", "onnxruntime", "matplotlib"]
    result = run_without(large, "--version", *(f"{path} --help" for path, _ in all_commands()))
    assert result.code == 0, result.err
    assert result.out.count("Usage: swav-tf") == len(all_commands())


# Bugs caught: an option without explanation; an example that was not updated.
@pytest.mark.parametrize(("path", "command"), all_commands())
def test_options_are_explained_and_examples_parse(path, command):
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []
    examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith("swav-tf ")]
    assert examples
    for example in examples:
        words, at = example.partition(" > ")[0].partition("   ")[0].split()[1:], swav_tf
        while isinstance(at, click.Group):
            at = at.get_command(click.Context(at), words.pop(0))
            assert at is not None, example
        if "--help" not in words:
            at.make_context(example, words)


# === Without optional packages ===


@pytest.mark.multiprocess
def test_no_tensorflow_needed(tmp_path):
    lines = (
        "config list",
        "config show swav_800ep",
        "config check passl_1node --images 1281167",
        "config settings",
        "doctor",
        "plan one_gpu --gpu a100",
        "data check digits --quiet",
        f"data subset digits --share 0.1 --output {tmp_path}/list.txt",
        f"crops -c demo --output {tmp_path}/crops.png",
    )
    result = run_without(TENSORFLOW, *lines)
    assert result.code == 0, result.err
    assert (tmp_path / "crops.png").exists()


@pytest.mark.multiprocess
def test_missing_tensorflow(tmp_path):
    result = run_without(TENSORFLOW, f"pretrain -c demo --run-dir {tmp_path}")
    assert (result.code, result.out) == (1, "")
    assert "is not installed. Run: pip install 'swav-tf[train]'" in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


# Bugs caught: advice to install ONNX Runtime for CPUs where a GPU was requested; a traceback.
@pytest.mark.parametrize(
    ("blocked", "provider", "code", "part"),
    [
        (["onnxruntime"], "cpu", 1, "pip install 'swav-tf[onnx]'"),
        (["onnxruntime"], "cuda", 2, "pip install 'swav-tf[onnx-gpu]'"),
        (["onnxruntime"], "tensorrt", 2, "pip install 'swav-tf[onnx-gpu]'"),
        ([], "cuda", 2, "pip uninstall onnxruntime, then pip install 'swav-tf[onnx-gpu]'"),
    ],
)
def test_missing_onnxruntime(blocked, provider, code, part, tmp_path, monkeypatch, refused):
    for name in blocked:
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "x.onnx").write_bytes(b"anything")
    line = f"features digits --model {tmp_path}/x.onnx --output {tmp_path}/x.npz --provider {provider}"
    refused(line, code, part)


# === Errors ===


def failing(error):
    """Return a command that raises this error."""

    @click.command()
    @click.option("--debug", is_flag=True)
    @click.argument("word", required=False)
    def command(debug, word):
        raise error

    return command


BUG = "This is a bug or an unexpected input. For the traceback, run: swav-tf --debug 'a b'"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SwavError("it failed"), 1, "Error: it failed"),
        (DataError("no images"), 1, "Error: no images"),
        (RecipeError("two errors:\n  a\n  b"), 2, "Error: two errors:\n  a\n  b"),
        (TransientError("a worker is lost"), 75, "Error: a worker is lost"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (StoppedEarly(15), 143, str(StoppedEarly(15))),  # the user asked for it: no error
        (ZeroDivisionError("zero"), 1, f"Error: ZeroDivisionError: zero\n{BUG}"),
        (ModuleNotFoundError("swav_tf.x", name="swav_tf.x"), 1, f"Error: ModuleNotFoundError: swav_tf.x\n{BUG}"),
        (ModuleNotFoundError("", name="keras_cv.models"), 1,
         "Error: keras_cv.models is not installed. Run: pip install 'swav-tf[train]'"),
        (OSError(28, "No space left on device", "run/x"), 1,
         "Error: run/x: No space left on device. Free some space, or choose another location. Then run the same command again."),
    ],
)  # fmt: skip
def test_errors_are_one_message(error, code, message, capsys):
    assert run_and_report(failing(error), ["a b"]) == code
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", message)


def test_debug_shows_the_traceback(capsys):
    assert run_and_report(failing(SwavError("it failed")), ["--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


# Bug caught: an export that is computed for minutes, and then cannot be written.
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("export nowhere --output BAD", 1),
        ("features digits --model nowhere --output BAD.npz", 1),
        ("predict nowhere digits --output BAD.csv", 1),
        ("plot nowhere.npz --output BAD.png", 1),
        ("weights import nowhere.pth --to BAD", 1),
        ("data shard nowhere BAD", 1),
        ("benchmark nowhere.onnx --html BAD.html", 1),
        ("pretrain -c demo --run-dir BAD", 2),
    ],
)
def test_outputs_are_checked_first(line, code, refused, tmp_path):
    (tmp_path / "file").touch()
    refused(line.replace("BAD", f"{tmp_path}/file/new/x"), code, "must be writable")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.multiprocess
def test_a_closed_pipe_is_silent():
    command = [sys.executable, "-m", "cli.main", "config", "settings"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_the_start_of_tensorflow_is_silent_unless_it_fails(capfd):
    with stderr_captured():
        os.write(2, b"greetings\n")
    assert capfd.readouterr().err == ""

    def fail():
        with stderr_captured():
            os.write(2, b"a library is missing\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "a library is missing\nafter\n"


@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("pretain", 2, "No such command 'pretain'. Did you mean 'pretrain'?"),
        ("pretrain -c demo --epochs 3", 2, "It is a setting of the recipe: -o train.epochs=..."),
        (
            "finetune -c finetune_digits --lr 1",
            2,
            "-o optimizer.backbone_learning_rate=... or -o optimizer.cl",
        ),
        ("knn a b --epochs 3", 2, "No such option '--epochs'."),
        ("pretrain", 2, "Pass DATA, the images to choose a recipe for"),
        ("pretrain -c nothing", 2, "no recipe 'nothing'"),
        ("pretrain -c one_gpu", 2, "recipe 'one_gpu' does not specify where the images are"),
        ("pretrain photos -c demo", 2, "data.path: the digits are bundled"),
        ("pretrain -c demo -o train.epochs=x", 2, "train.epochs: must be a valid integer"),
        ("pretrain -c demo -o crops.0.count=1", 2, "crops.0.count: the first two crops"),
        ("pretrain -c demo --nodes 2", 2, "--nodes, --node-rank and --master must be used together"),
        ("pretrain -c demo --nodes 2 --node-rank 2 --master a:1", 2, "--node-rank must be"),
        ("pretrain -c demo --nodes 2 --node-rank 1 --master a", 2, "--master must be"),
        ("crops -c one_gpu", 2, "Pass DATA, or"),
        ("crops -c demo --output crops.txt", 2, "A picture must end in .png"),
        ("plan probe --gpu h100", 2, "kind pretrain is needed"),
        ("profile -c demo -o train.accumulation_steps=3", 2, "cannot be split"),
        ("profile nowhere -c one_gpu", 1, "nowhere"),
        ("config check demo -o a=1", 2, "a: no such setting (value 1)"),
        ("config check demo --images 10", 2, "10 images do not fill one batch of 64"),
    ],
)
def test_refusals(line, code, part, refused):
    refused(line, code, part)
