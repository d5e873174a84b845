"""What `pretrain`, `probe`, `finetune` and `demo` pass to the library, and a short run of each for real."""

import importlib
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from cli import node_workers
from cli.closing import show_result
from cli.main import swav_tf
from cli.recipe_options import RecipeChoice
from swav_tf.recipe.files import load_any_recipe, load_recipe, save_recipe
from swav_tf.training.rendezvous import ClusterAddress
from tests.cli.command_line import ROOT, write_noise
from tests.cli.conftest import SHORT

LAST = {"epoch": 20, "step": 20, "top1": 0.379, "top5": 0.8, "loss": 2.0}
BEST = {"epoch": 19, "step": 19, "top1": 0.3936, "top5": 0.8, "loss": 2.0}
SUMMARY = {
    "loss_first": 4.5, "loss_last": 1.5, "ln_k": 3.9, "steps": 1234, "seconds": 83.4, "validation_images": 360,
    "last": LAST, "best": BEST, "origin": {"run": "m"}, "knn_top1": 0.975, "knn_top1_initial": 0.62, "knn_top1_pixels": 0.891,
}  # fmt: skip
JOBS = {
    "pretrain": "swav_tf.training.pretrain",
    "probe": "swav_tf.training.classify",
    "finetune": "swav_tf.training.classify",
    "probe_cached": "swav_tf.training.cached_probe",
}
CLUSTER = "--nodes 2 --node-rank 1 --master host:2222"
ADDRESS = ClusterAddress(nodes=2, node_rank=1, master="host:2222")
USUAL = {"cluster": None, "fresh": False, "quiet": False}
PRETRAIN = {"job": "pretrain", "weights": None, **USUAL}
CLASSIFY = {"model": "m", "from_scratch": False, **USUAL}


@pytest.fixture
def calls(monkeypatch):
    """Replace the jobs by ones that record their arguments."""
    made = []

    def replace(name):
        def job(recipe, **arguments):
            made.append({"job": name, "recipe": recipe, **arguments})
            cluster = arguments.get("cluster")
            is_chief = cluster is None or cluster.node_rank == 0
            return SimpleNamespace(summary=SUMMARY, is_chief=is_chief, run_dir=arguments["run_dir"])

        monkeypatch.setattr(importlib.import_module(JOBS[name]), name, job)

    for name in JOBS:
        replace(name)
    monkeypatch.setattr("swav_tf.training.tracking.check_installed", lambda track: None)
    return made


# Bugs caught: an option that is parsed and dropped, or reaches another parameter; arguments in the wrong order; a
# default folder that two kinds of probe share.
@pytest.mark.parametrize(
    ("line", "recipe", "arguments"),
    [
        ("pretrain -c demo", ("demo", []), PRETRAIN | {"run_dir": "runs/demo"}),
        (
            f"pretrain 'a/\"ü\": {{1}}' -c one_gpu -o train.epochs=99 -o data.path=x --run-dir r --fresh --weights . --quiet {CLUSTER}",
            ("one_gpu", ["train.epochs=99", 'data.path="a/\\"ü\\": {1}"']),  # the argument wins over the override
            PRETRAIN | {"run_dir": "r", "fresh": True, "weights": Path("."), "quiet": True, "cluster": ADDRESS},
        ),
        (
            "pretrain -c demo --track mlflow,tensorboard",
            ("demo", ['monitor.track=["mlflow"]']),
            PRETRAIN | {"run_dir": "runs/demo"},
        ),
        (
            "probe -c probe_digits --model m --track wandb",
            ("probe_digits", ["monitor.tensorboard=false", 'monitor.track=["wandb"]']),
            CLASSIFY | {"job": "probe", "run_dir": "m/probe_digits"},
        ),
        ("probe -c probe_digits --model m", ("probe_digits", []), CLASSIFY | {"job": "probe", "run_dir": "m/probe_digits"}),
        (
            "probe -c probe_digits --model m --from-scratch",
            ("probe_digits", []),
            CLASSIFY | {"job": "probe", "run_dir": "runs/probe_digits_from_scratch", "from_scratch": True},
        ),
        (
            "probe cifar10 test -c probe --model m --run-dir r -o data.kind=tfds",
            ("probe", ["data.kind=tfds", "data.path=cifar10", "data.validation_split=test"]),
            CLASSIFY | {"job": "probe", "run_dir": "r"},
        ),
        (
            "finetune train val -c finetune_1pct --model m --subset LIST --fresh --json " + CLUSTER,
            ("finetune_1pct", ["data.path=train", "data.validation_path=val", "subset='LIST'"]),
            CLASSIFY | {"job": "finetune", "run_dir": "m/finetune_1pct", "fresh": True, "quiet": True, "cluster": ADDRESS, "least_steps": 200},
        ),
    ],
)  # fmt: skip
def test_arguments(line, recipe, arguments, calls, tmp_path, output):
    subset = tmp_path / "list: 1.txt"
    subset.write_text("a.JPEG\n")
    printed = output(line.replace("LIST", shlex.quote(str(subset))))
    name, overrides = recipe
    expected = load_any_recipe(name, [override.replace("LIST", str(subset)) for override in overrides])
    assert calls == [{**arguments, "recipe": expected, "run_dir": Path(arguments["run_dir"])}]
    if "--json" in line:
        assert json.loads(printed) == SUMMARY


def test_cached_probe(calls, output):
    output("probe -c probe_digits --model m --cached")
    [call] = calls
    assert (call["job"], call["run_dir"]) == ("probe_cached", Path("m/probe_digits_cached"))


# Bugs caught: a run at 32 pixels that is probed or fine-tuned at 224; a default that is not the converged classifier, or
# does not start from it; flips of images that the pretraining does not flip.
def test_without_a_recipe(model, calls, output, tmp_path):
    output(f"probe --model {model}")
    output(f"probe t v --model {model} --sgd -o train.epochs=3 --run-dir r")
    save_recipe(load_recipe("demo", ["augment.flip_probability=0.25"]), tmp_path / "config.yaml")
    output(f"finetune --model {tmp_path}")
    own, given, tuned = calls
    assert (tuned["job"], tuned["run_dir"]) == ("finetune", tmp_path / "finetune")
    assert (tuned["recipe"].name, tuned["recipe"].init_classifier) == ("finetune", "probe")
    assert (tuned["recipe"].data.kind, tuned["recipe"].data.validation_split) == ("digits", "test")
    assert (tuned["recipe"].crop.size, tuned["recipe"].crop.flip_probability) == (32, 0.25)
    view = load_recipe(model / "config.yaml").data.evaluation
    assert (own["job"], own["run_dir"]) == ("probe_cached", model / "probe_cached")
    assert (given["job"], given["recipe"].train.epochs) == ("probe", 3)
    assert own["recipe"].data.evaluation == given["recipe"].data.evaluation == view
    data = given["recipe"].data
    assert (data.kind, data.path, data.validation_path) == ("auto", "t", "v")
    assert (own["recipe"].data.kind, own["recipe"].data.validation_split) == ("digits", "test")


def test_demo(monkeypatch, output):
    calls = []
    monkeypatch.setattr(
        "cli.demo.run_demo", lambda **arguments: calls.append(arguments) or {"knn_top1": 0.97}
    )
    output("demo")
    assert json.loads(output("demo --seed 7 --run-dir x --no-export --json")) == {"knn_top1": 0.97}
    assert calls == [
        {"run_dir": Path("runs/demo"), "data": None, "seed": 31, "export": True, "quiet": False},
        {"run_dir": Path("x"), "data": None, "seed": 7, "export": False, "quiet": True},
    ]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("pretrain -c demo -o train.accumulation_steps=5", "cannot be split"),
        ("pretrain -c demo --track mlflow,aim", "must be among tensorboard, mlflow, wandb"),
        ("probe -c probe_digits", "Missing option '--model'"),
        ("probe --model m", "--model must be the folder of a pretraining run"),
        ("probe -c demo --model m", "a recipe of kind probe is needed here"),
        ("finetune -c probe --model m", "a recipe of kind finetune is needed here"),
        ("finetune t v --model m --from-scratch", "--from-scratch needs a recipe"),
        ("probe -c probe --model m", "does not specify where the training images are"),
        ("probe t -c probe --model m", "does not specify where the validation images are"),
        ("probe t v -c probe_digits --model m", "digits are bundled and take no VALIDATION"),
        ("probe t -c probe_digits --model m", "data.path: the digits are bundled"),
        ("finetune -c finetune_digits --model m --subset no.txt", "'no.txt' does not exist"),
        (f"probe -c probe_digits --model m --cached {CLUSTER}", "--cached runs on one machine"),
    ],
)
def test_refusals(line, part, calls, refused):
    refused(line, 2, part)
    assert calls == []


# Bug caught: a tracker that is missing is noticed after the seconds that TensorFlow takes, or after the images are read.
@pytest.mark.parametrize("line", ["pretrain -c demo", "probe -c probe_digits --model m"])
def test_a_missing_tracker(line, monkeypatch, refused):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("swav_tf.model.startup.start", lambda: pytest.fail("TensorFlow is loaded"))
    refused(f"{line} --track wandb", 2, "wandb is not installed. Run: pip install 'swav-tf[wandb]'")


TRAINED = (
    "1,234 steps, loss 4.50 -> 1.50 (mean of the last epoch), ln K 3.90\n"
    "k-NN 97.5 % (the initial weights 62.0 %, raw pixels 89.1 %)"
)
CLASSIFIED = (
    "last epoch (20): top-1 37.90 %, top-5 80.00 %; best epoch (19): top-1 39.36 %, top-5 80.00 % of 360 validation "
    "images"
)


# Bugs caught: commands that do not parse or that name another folder; a summary where only JSON is expected.
@pytest.mark.parametrize(
    ("line", "result", "names"),
    [
        ("pretrain -c demo --run-dir 'my run'", TRAINED, ["report", "features", "probe", "export"]),
        ("pretrain photos -c one_gpu --run-dir r", TRAINED, ["report", "features", "export"]),
        ("pretrain photos -c one_gpu --run-dir r -o data.validation_path=val", TRAINED, ["report", "features", "probe", "export"]),
        ("pretrain photos -c one_gpu -o data.kind=images -o monitor.knn_every_epochs=0", TRAINED, ["report", "features", "export"]),
        ("probe -c probe_digits --model m --run-dir r", CLASSIFIED, ["validate", "validate", "export", "finetune"]),
        ("probe t v -c probe --model m --run-dir r", CLASSIFIED, ["validate", "validate", "predict", "export", "finetune"]),
        ("finetune t 'v w' -c finetune_full --model m", CLASSIFIED, ["validate", "validate", "predict", "export"]),
    ],
)  # fmt: skip
def test_next_commands(line, result, names, calls, run):
    ended = run(line)
    assert (ended.code, ended.out) == (0, "")
    head, _, lines = ended.err.partition("\nNext:\n")
    lines = lines.splitlines()
    assert head == f"Done in 0:01:23: {calls[0]['run_dir']}\n{result}"
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("  ")]
    if "probe" not in names and line.startswith("pretrain"):
        assert commands.pop()[:3] == [
            "probe",
            "TRAIN",
            "VALIDATION",
        ]  # after a line that says what to put there
    assert [name for name, *_ in commands] == names
    for name, *words in commands:
        swav_tf.get_command(click.Context(swav_tf), name).make_context(name, words)
    for silent in ("--quiet", "--json", CLUSTER):
        result = run(f"{line} {silent}")
        assert result.code == 0
        assert "Next:" not in result.err


# Bug caught: a crash at the end of a run of which no step was finite.
def test_closing_words_without_a_loss(capsys):
    result = SimpleNamespace(summary=SUMMARY | {"loss_last": None}, is_chief=True, run_dir="run")
    show_result(SimpleNamespace(as_json=False, quiet=True), load_recipe("demo"), result)
    assert "1,234 steps, loss not finite, ln K 3.90\n" in capsys.readouterr().err


# === For real ===


@pytest.mark.multiprocess
def test_pretrain(tmp_path):
    write_noise(tmp_path / "images", [f"{'ab'[index % 2]}/{index}.png" for index in range(16)])
    overrides = [
        "data={kind: class_folders}", "train.batch_size=8", "train.epochs=2", "optimizer.warmup_epochs=1",
        "crops=[{count: 2, size: 16, scale: [0.4, 1]}]", "model.prototypes=8", "method.prototypes_frozen_steps=1",
        "monitor.tensorboard=false",
    ]  # fmt: skip
    words = ["pretrain", "images", "-c", "demo", "--run-dir", "run", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "cli.main", *words, *(w for value in overrides for w in ("-o", value))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert (summary["steps"], summary["images"]) == (4, 16)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "cudart_stub" not in ended.stderr  # from TensorFlow's start-up messages
    assert load_recipe(tmp_path / "run" / "config.yaml") == load_recipe(
        "demo", [*overrides, "data.path=images"]
    )


# Bugs caught: training on all images instead of those of --subset; a length that is changed though -o sets it.
def test_finetune_on_a_subset(model, tmp_path, output):
    drawn = json.loads(output(f"data subset digits --share 0.1 --output {tmp_path}/list.txt --json"))
    line = f"finetune --model {model} -c finetune_digits --subset {tmp_path}/list.txt --json {SHORT}"
    settings = "-o train.batch_size=48 -o optimizer.decay=cosine -o optimizer.decay_epochs=[]"
    summary = json.loads(output(f"{line} --run-dir {tmp_path}/run {settings}"))
    assert drawn["images"] == summary["train_images"] == 144
    assert summary["epochs"] == 1  # 3 steps, as asked for
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


# Bugs caught: a figure that the commands after it do not repeat, next commands that fail.
def test_probe_without_a_recipe_and_its_next_commands(model, tmp_path, run, output):
    result = run(f"probe --model {model} --run-dir '{tmp_path}/a run'")
    summary = json.loads((tmp_path / "a run" / "summary.json").read_text())
    assert summary["last"]["top1"] > 0.5
    figures = f"top-1 {100 * summary['last']['top1']:.2f} %"
    assert f"Done in 0:00:{summary['seconds']:02.0f}: {tmp_path}/a run\n{figures}" in result.err
    validate, export, finetune = (
        line.strip().removeprefix("swav-tf ") for line in result.err.splitlines()[-3:]
    )
    assert figures in output(validate)
    output(f"{export} --reference-images 8 --quiet")
    assert (tmp_path / "a run" / "exported" / "model-fp32.onnx").is_file()
    tuned = run(f"{finetune} --run-dir {tmp_path}/tuned {SHORT}")
    assert f"probe at the start: {figures}" in tuned.err


# Bugs caught: workers of two machines at one place; GPUs or cores of two workers that overlap, or that none has; one
# recipe for each worker.
def test_workers_per_node(monkeypatch, refused):
    started, taken = [], []

    class Worker:
        def __init__(self, target, args):
            started.append(args[:2])

        start = join = lambda self: None
        exitcode = 0

    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Process=Worker))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(node_workers.Share, "take", lambda self: taken.append(self))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")

    def place(rank):
        return ClusterAddress(nodes=4, node_rank=rank, master="host:2222")

    with node_workers.node_workers(2, ADDRESS, lambda _: None) as own:
        assert (own, taken) == (place(2), [node_workers.Share(("2", "3"), (0, 1, 2, 3))])
    assert started == [(node_workers.Share(("5", "7"), (4, 5, 6, 7)), place(3))]
    refused(
        "pretrain -c demo --workers-per-node 3",
        2,
        "must divide the GPUs",
        "3 workers, 4 visible GPUs, 8 cores",
    )
    refused("pretrain photos --workers-per-node 2", 2, "-c auto chooses one")


# Bug caught: workers of srun or of TFJob that each choose a recipe.
@pytest.mark.parametrize(
    "described",
    [
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'},
    ],
)
def test_auto_in_a_cluster_of_the_environment(described, monkeypatch, calls, refused):
    for name, value in described.items():
        monkeypatch.setenv(name, value)
    refused("pretrain photos", 2, "-c auto chooses one")


# Bugs caught: a raw pydantic error; `null` taken as the name of a file.
def test_overrides_of_the_images_are_read_as_those_of_a_recipe(tmp_path, refused):
    write_noise(tmp_path / "photos", [f"{number}.png" for number in range(20)], height=16, width=16)
    refused(f"pretrain {tmp_path}/photos -o data.kind=folders", 2, "has 1 error:", "data.kind: ")
    chosen = RecipeChoice(f"{tmp_path}/photos", "auto", ("data.labels=null", "data.kind=images"))
    assert chosen.choose()[0].data.labels is None


# Bug caught: a recipe in a file of this name, refused for several workers.
def test_a_file_called_auto(calls, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    save_recipe(load_recipe("demo"), tmp_path / "auto")
    output(f"pretrain -c auto {CLUSTER}")
    assert [call["cluster"] for call in calls] == [ADDRESS]


LOST_WORKER = """
import multiprocessing, os
from cli import node_workers
from cli.closing import show_result
from swav_tf.training.rendezvous import meet

node_workers.Share.take = lambda self: os._exit(3) if multiprocessing.parent_process() else None
if __name__ == "__main__":
    with node_workers.node_workers(2, None, print) as place:
        meet(place)
"""


# Bug caught: a worker that waits ten minutes for one of the same machine that has failed before they met.
@pytest.mark.multiprocess
def test_a_worker_that_fails_before_the_meeting_ends_the_others(tmp_path):
    (tmp_path / "start.py").write_text(LOST_WORKER)
    ended = subprocess.run(
        [sys.executable, tmp_path / "start.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 3
    assert "another worker of this machine ended" in ended.stderr


# Bug caught: the recipe that was chosen for small images, taken for large ones in another folder called `train`.
def test_auto_chooses_again_for_other_images_of_the_same_name(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    for name, side in (("small", 16), ("large", 200)):
        images = [f"{number}.png" for number in range(20)]
        write_noise(tmp_path / name / "train", images, height=side, width=side)
    chosen = RecipeChoice("small/train", "auto", ("train.epochs=7",)).load_for()
    (tmp_path / "runs" / "auto-train").mkdir(parents=True)
    save_recipe(chosen, tmp_path / "runs" / "auto-train" / "config.yaml")
    for place in ("small/train", "small/train/"):
        assert RecipeChoice(place, "auto", ()).load_for().train.epochs == 7
    assert RecipeChoice("large/train", "auto", ()).load_for().train.epochs != 7
    (tmp_path / "runs" / "auto-train" / "checkpoints").mkdir()  # training refuses other images, with a remedy
    assert RecipeChoice("large/train", "auto", ()).load_for().train.epochs == 7
    assert RecipeChoice("large/train", "auto", ()).load_for(trains=False).train.epochs != 7  # as in `crops`
