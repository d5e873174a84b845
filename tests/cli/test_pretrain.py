"""What `pretrain` and `demo` hand over, and one short run for real."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest

from cli.main import swav_tf
from swav_tf.recipe.files import load_recipe
from swav_tf.training.rendezvous import ClusterAddress
from tests.cli.command_line import ROOT, Run, Told
from tests.cli.images import write_noise

SUMMARY = {"loss_first": 4.5, "loss_last": 1.5, "ln_k": 3.9, "steps": 1234, "seconds": 83.4}
IMAGES_ALONE = ("-o", "data.kind=images", "-o", "monitor.knn_every_epochs=0")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of a trainer that trains nothing."""
    made: list[dict[str, Any]] = []

    def pretrain(recipe: Any, **arguments: Any) -> SimpleNamespace:
        made.append({"recipe": recipe, **arguments})
        return SimpleNamespace(
            summary=SUMMARY, is_chief=(cluster := arguments["cluster"]) is None or not cluster.node_rank
        )

    trainer = ModuleType("swav_tf.training.pretrain")
    trainer.pretrain = pretrain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, trainer.__name__, trainer)
    return made


def test_defaults(calls: list[dict[str, Any]], told: Told) -> None:
    assert told("pretrain", "-c", "demo") == ""
    assert calls == [
        {
            "recipe": load_recipe("demo"),
            "run_dir": Path("runs/demo"),
            "cluster": None,
            "fresh": False,
            "weights": None,
            "quiet": False,
        }
    ]


# Bugs caught: commands that do not parse or name another folder, last words where nobody wants them.
@pytest.mark.parametrize(
    ("words", "probe"),
    [
        (["-c", "demo", "--run-dir", "my run"], "swav-tf probe --model 'my run' -c probe_digits"),
        (["photos", "-c", "one_gpu", "--run-dir", "r"], "swav-tf probe photos VALIDATION --model r -c probe"),
        (
            ["photos", "-c", "one_gpu", "--run-dir", "r", *IMAGES_ALONE],
            "swav-tf probe TRAIN VALIDATION --model r -c probe",
        ),
    ],
)
def test_last_words(calls: list[dict[str, Any]], words: list[str], probe: str, run: Run) -> None:
    left = run("pretrain", *words)
    assert (left.code, left.out) == (0, "")
    done, heading, *commands = left.err.splitlines()
    assert done == f"Done in 0:01:23: {calls[0]['run_dir']}, 1,234 steps, loss 4.50 -> 1.50, ln K 3.90"
    assert heading == "Next:"
    assert commands[1].strip() == probe
    for command in commands:
        name, *arguments = shlex.split(command)[1:]
        found = swav_tf.get_command(click.Context(swav_tf), name)
        assert found is not None
        found.make_context(name, arguments)
    for silent in (["--quiet"], ["--json"], ["--nodes", "2", "--node-rank", "1", "--master", "h:1"]):
        left = run("pretrain", *words, *silent)
        assert left.code == 0
        assert "Next:" not in left.err


def test_every_option(calls: list[dict[str, Any]], told: Told) -> None:
    data = 'a folder/with "quotes" and ü: {1}'
    arguments = ["pretrain", data, "-c", "one_gpu", "-o", "train.epochs=99", "-o", "data.path=elsewhere"]
    arguments += ["--run-dir", "somewhere", "--fresh", "--json", "--weights", "."]
    arguments += ["--nodes", "4", "--node-rank", "3", "--master", "host:2222"]
    assert json.loads(told(*arguments)) == SUMMARY
    [call] = calls
    assert call["recipe"].train.epochs == 99
    assert call["recipe"].data.path == data  # the argument wins over the override
    assert call["run_dir"] == Path("somewhere")
    assert call["fresh"] is True
    assert call["weights"] == Path(".")
    assert call["quiet"] is True  # JSON alone on the terminal
    assert call["cluster"] == ClusterAddress(nodes=4, node_rank=3, master="host:2222")


def test_node_rank_0_counts_as_given(calls: list[dict[str, Any]], told: Told) -> None:
    told("pretrain", "-c", "demo", "--nodes", "1", "--node-rank", "0", "--master", "host:1")
    assert calls[0]["cluster"] == ClusterAddress(nodes=1, node_rank=0, master="host:1")


def test_nothing_is_trained_when_the_recipe_cannot_work(calls: list[dict[str, Any]], run: Run) -> None:
    assert run("pretrain", "-c", "demo", "-o", "train.accumulation_steps=5").code == 2
    assert calls == []


def test_demo_hands_over_folder_and_seed(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    made: list[dict[str, Any]] = []

    def run_demo(**arguments: Any) -> dict[str, float]:
        made.append(arguments)
        return {"knn_top1": 0.97}

    demo = ModuleType("cli.demo")
    demo.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, demo.__name__, demo)
    assert told("demo") == ""
    printed = told("demo", "--seed", "7", "--run-dir", "x", "--no-export", "--json")
    assert json.loads(printed) == {"knn_top1": 0.97}
    assert made == [
        {"run_dir": Path("runs/demo"), "seed": 31, "export": True, "quiet": False},
        {"run_dir": Path("x"), "seed": 7, "export": False, "quiet": True},
    ]


def test_a_short_run_for_real(tmp_path: Path) -> None:
    names = [f"{'ab'[index % 2]}/{index}.png" for index in range(16)]
    write_noise(tmp_path / "images", names, height=24, width=24)
    overrides = [
        "data={kind: class_folders}",
        "train.batch_size=8",
        "train.epochs=2",
        "optimizer.warmup_epochs=1",
    ]
    overrides += ["crops=[{count: 2, size: 16, scale: [0.4, 1]}]", "model.prototypes=8"]
    overrides += ["method.prototypes_frozen_steps=1", "monitor.tensorboard=false"]
    command = [sys.executable, "-m", "cli.main", "pretrain", "images", "-c", "demo"]
    run = subprocess.run(
        [
            *command,
            "--run-dir",
            "run",
            "--json",
            *(word for override in overrides for word in ("-o", override)),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    assert (summary["steps"], summary["images"]) == (4, 16)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "Traceback" not in run.stderr
    assert "cudart_stub" not in run.stderr  # TensorFlow greets with it
    recipe = load_recipe(tmp_path / "run" / "config.yaml")
    assert recipe == load_recipe("demo", [*overrides, "data.path=images"])
