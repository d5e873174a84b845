"""The frame of the command line: start-up, errors, exit codes."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli import commands
from cli.errors import run_and_report
from cli.main import SUMMARIES, swav_tf
from swav_tf.plumbing.errors import DataError, RecipeError, SwavError
from tests.cli.command_line import ROOT, TENSORFLOW, Run, run_without

# === Start-up ===


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in ("config", "pretrain", "crops", "demo", "doctor")),
        *([command, "--help"] for command in ("features", "knn", "clusters", "similar", "plot")),
        *(["data", command, "--help"] for command in ("shard", "check", "subset")),
        *(["config", command, "--help"] for command in ("list", "show", "check", "settings")),
    ],
)
def test_help_loads_nothing_large(arguments: list[str]) -> None:
    left = run_without([*TENSORFLOW, "numpy", "pydantic", "yaml", "PIL", "rich"], *arguments)
    assert left.code == 0, left.err
    assert left.out


# Bug caught: a new command that `--help` does not list; a command imported for `--help` of another.
def test_the_table_of_commands_is_complete() -> None:
    assert sorted(SUMMARIES) == sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


def test_help_imports_no_command() -> None:
    script = (
        "import sys; from cli.errors import run_and_report; from cli.main import swav_tf\n"
        "run_and_report(swav_tf, ['--help'])\n"
        "print([name for name in sys.modules if name.startswith('cli.commands')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "list"],
        ["config", "show", "swav_800ep"],
        ["config", "check", "passl_1node", "--images", "1281167"],
        ["config", "settings"],
        ["doctor"],
    ],
)
def test_commands_about_recipes_need_no_tensorflow(arguments: list[str]) -> None:
    left = run_without(TENSORFLOW, *arguments)
    assert left.code == 0, left.err
    assert left.out


def test_crops_needs_no_tensorflow(tmp_path: Path) -> None:
    left = run_without(TENSORFLOW, "crops", "-c", "demo", "--output", tmp_path / "crops.png")
    assert left.code == 0, left.err
    assert (tmp_path / "crops.png").exists()


def test_the_block_blocks(tmp_path: Path) -> None:
    left = run_without(TENSORFLOW, "pretrain", "-c", "demo", "--run-dir", tmp_path)
    assert left.code == 1
    assert "is not installed. Run: pip install 'swav-tf[train]'" in left.err
    assert "Traceback" not in left.err
    assert list(tmp_path.iterdir()) == []


# Bugs caught: an extra that brings ONNX Runtime for CPUs where a GPU is asked for; a traceback.
@pytest.mark.parametrize(
    ("blocked", "provider", "code", "part"),
    [
        (["onnxruntime"], "cpu", 1, "pip install 'swav-tf[onnx]'"),
        (["onnxruntime"], "cuda", 2, "pip install 'swav-tf[onnx-gpu]'"),
        (["onnxruntime"], "tensorrt", 2, "pip install 'swav-tf[onnx-gpu]'"),
        ([], "cuda", 2, "pip uninstall onnxruntime, then pip install 'swav-tf[onnx-gpu]'"),
    ],
)
def test_the_extra_is_that_of_the_provider(
    blocked: list[str], provider: str, code: int, part: str, tmp_path: Path
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"whatever")
    arguments = ["features", "digits", "--model", tmp_path / "x.onnx", "--output", tmp_path / "x.npz"]
    left = run_without(blocked, *arguments, "--provider", provider)
    assert left.code == code
    assert part in left.err
    assert "Traceback" not in left.err


# === Help ===


def all_commands() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []

    def walk(path: str, command: click.Command) -> None:
        found.append((path, command))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                walk(f"{path} {name}", below)

    walk("swav-tf", swav_tf)
    return found


@pytest.mark.parametrize(("path", "command"), all_commands())
def test_every_option_is_explained(path: str, command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.name}"


@pytest.mark.parametrize(("path", "command"), all_commands())
def test_examples_are_command_lines_that_parse(path: str, command: click.Command) -> None:
    lines = [line.strip() for line in (command.help or "").splitlines()]
    examples = [line for line in lines if line.startswith("swav-tf ")]
    assert examples
    for example in examples:
        words = example.partition(" > ")[0].partition("   ")[0].split()[1:]
        context = click.Context(swav_tf)
        at: click.Command = swav_tf
        while isinstance(at, click.Group):
            name = words.pop(0)
            below = at.get_command(context, name)
            assert below is not None, example
            at = below
        if "--help" not in words:
            at.make_context(example, words)


# === Errors ===


def failing(error: BaseException) -> click.Command:
    @click.command()
    @click.option("--debug", is_flag=True)
    @click.argument("word", required=False)
    def command(debug: bool, word: str | None) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (SwavError("it failed"), 1, "Error: it failed\n"),
        (DataError("no images"), 1, "Error: no images\n"),
        (RecipeError("two errors:\n  a\n  b"), 2, "Error: two errors:\n  a\n  b\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "Error: ZeroDivisionError: division by zero\n"
            "This is a bug or an unexpected input. For the traceback, run: swav-tf --debug 'a b'\n",
        ),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (
            ModuleNotFoundError("No module named 'keras_cv.models'", name="keras_cv.models"),
            1,
            "Error: keras_cv.models is not installed. Run: pip install 'swav-tf[train]'\n",
        ),
    ],
)
def test_errors_are_told_without_a_traceback(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_and_report(failing(error), ["a b"]) == code
    captured = capsys.readouterr()
    assert captured.err.lstrip("\n") == told
    assert captured.out == ""


def test_an_unknown_module_is_not_blamed_on_an_extra(capsys: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError("No module named 'swav_tf.nothing'", name="swav_tf.nothing")
    assert run_and_report(failing(error), []) == 1
    assert "pip install" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [SwavError("it failed"), ZeroDivisionError("zero")])
def test_debug_shows_the_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_and_report(failing(error), ["--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nothing"], ["No such command 'nothing'"]),
        (["pretrain"], ["Missing option '-c' / '--config'"]),
        (["pretrain", "-c", "nothing"], ["no recipe 'nothing'", "Bundled recipes: demo"]),
        (["pretrain", "-c", "demo", "--nodes", "2"], ["--nodes, --node-rank and --master belong together"]),
        (
            ["pretrain", "-c", "demo", "--nodes", "2", "--node-rank", "2", "--master", "a:1"],
            ["--node-rank must be", "--node-rank 2"],
        ),
        (
            ["pretrain", "-c", "demo", "--nodes", "2", "--node-rank", "1", "--master", "a"],
            ["--master must be", "'a'"],
        ),
        (["pretrain", "-c", "demo", "--nodes", "0"], ["Invalid value for '--nodes'"]),
        (["pretrain", "photos", "-c", "demo"], ["data.path: the digits are bundled", "got 'photos'"]),
        (["pretrain", "-c", "demo", "-o", "train.epochs=x"], ["train.epochs: must be a valid integer"]),
        (["pretrain", "-c", "demo", "-o", "crops.0.count=1"], ["crops.0.count: the first two crops"]),
        (["crops", "-c", "demo", "-o", "crops.0.count=1"], ["crops.0.count: the first two crops"]),
        (
            ["crops", "-c", "one_gpu"],
            ["recipe 'one_gpu' does not specify where the images are", "Give DATA, or"],
        ),
        (["pretrain", "-c", "one_gpu"], ["recipe 'one_gpu' does not specify where the images are"]),
        (["crops", "-c", "demo", "--rows", "0"], ["Invalid value for '--rows'"]),
        (["crops", "-c", "demo", "--output", "crops.txt"], ["A picture must end in .png", "crops.txt"]),
        (["demo", "--seed", "-1"], ["Invalid value for '--seed'"]),
        (["config", "show", "nothing"], ["no recipe 'nothing'"]),
        (["config", "check", "demo", "-o", "a=1"], ["a: no such setting (value 1)"]),
        (["config", "check", "demo", "--images", "10"], ["10 images do not fill one batch of 64"]),
    ],
)
def test_what_is_asked_for_wrongly_has_exit_code_2(arguments: list[str], parts: list[str], run: Run) -> None:
    left = run(*arguments)
    assert (left.code, left.out) == (2, "")
    for part in parts:
        assert part in left.err


def test_a_reader_that_leaves_early_gets_no_complaint() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "config", "settings"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_json_of_an_error_is_json(run: Run) -> None:
    left = run("config", "check", "demo", "-o", "train.epochs=0", "--json")
    assert left.code == 2
    told = json.loads(left.out)
    assert told["valid"] is False
    assert "train.epochs: must be greater than or equal to 1, got 0" in told["error"]
