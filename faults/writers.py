"""Commands that write one thing at their end, and the demo: all those of the command line that are no long jobs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evaluate.backends.engine_file import read_engine
from faults.commands import Commands
from faults.jobs import PRETRAIN, Job, Made, benchmark, classifier, labelled_images
from faults.outcomes import files_of, files_trouble, run_result, run_trouble

Words = list[str | Path]


@dataclass(frozen=True)
class Inputs:
    """What these commands read.

    Attributes:
        made: a run, its export, images.
        probed: run folder of a probe.
        features: file of the test digits' features.
        figures: JSON of a benchmark.
        damaged: class folders, some of whose images are cut off.
    """

    made: Made
    probed: Path
    features: Path
    figures: Path
    damaged: Path


def make_inputs(commands: Commands, made: Made, folder: Path) -> Inputs:
    """In a new folder."""
    folder.mkdir()
    commands.must_run(classifier("probe", made.run).arguments(folder))
    features, measured = folder / "digits.npz", folder / "measured"
    commands.must_run(["features", "digits", "--split", "test", "--model", made.run, "--output", features])
    measured.mkdir()
    commands.must_run(benchmark(made.exported).arguments(measured))
    damaged = labelled_images(folder / "damaged", 120)
    for name in ("class 0/00003.png", "class 1/00004.png", "class 2/00005.png"):
        os.truncate(damaged / name, 100)
    return Inputs(made, folder / "run", features, measured / "figures.json", damaged)


def small_writers(inputs: Inputs) -> Iterator[Job]:
    """One job for each."""
    run, exported, images = inputs.made.run, inputs.made.exported, inputs.made.images

    def once(name: str, words: Callable[[Path], Words]) -> Job:
        """A command that takes new names only."""
        return Job(name, words, "*", files_of, files_trouble)

    def again(name: str, words: Callable[[Path], Words]) -> Job:
        """A command that replaces what is there."""
        return Job(name, words, "*", files_of, files_trouble, replaces=True)

    yield once(
        "weights export .safetensors", lambda f: ["weights", "export", run, "--output", f / "w.safetensors"]
    )
    yield once("weights export .pth", lambda f: ["weights", "export", run, "--output", f / "w.pth"])
    yield once("weights import, a run", lambda f: ["weights", "import", run, "--to", f / "run"])
    yield once("weights import, a file", lambda f: ["weights", "import", run, "--to", f / "w.safetensors"])
    yield again("verify", lambda f: ["verify", _copied(exported, f / "exported")])
    yield again("crops", lambda f: ["crops", "-c", "demo", "--output", f / "crops.png"])
    yield again("plot", lambda f: ["plot", inputs.features, "--output", f / "map.png", "--method", "pca"])
    yield again("clusters", lambda f: ["clusters", "--model", run, "--output", f / "clusters"])
    yield again(
        "similar",
        lambda f: [
            "similar", images / "class 0" / "00000.png", "--features", inputs.features, "--model", run,
            "--output", f / "similar.png",
        ],
    )  # fmt: skip
    yield again("predict", lambda f: ["predict", inputs.probed, images, "--output", f / "said.csv"])
    yield again("validate", lambda f: ["validate", inputs.probed, "--output", f / "validated"])
    yield again("data check", lambda f: ["data", "check", images, "--sheet", f / "sheet.png"])
    yield again(
        "data subset", lambda f: ["data", "subset", "digits", "--share", "0.1", "--output", f / "subset.txt"]
    )
    yield once(
        "features, some images damaged",
        lambda f: [
            "features", inputs.damaged, "--kind", "class_folders", "--model", run, "--output", f / "features.npz",
            "--max-bad-share", "0.1",
        ],
    )  # fmt: skip
    yield again(
        "export int8 --triton",
        lambda f: [
            "export", run, "--output", f / "exported", "--precision", "int8", "--reference-images", "64",
            "--calibration-images", "32", "--triton", f / "triton",
        ],
    )  # fmt: skip
    if importlib.util.find_spec("tensorrt_rtx") is not None:  # it builds without a GPU
        yield Job(
            "export --to tensorrt",
            lambda f: [
                "export", exported / "model-fp32.onnx", "--to", "tensorrt", "--tensorrt", "rtx",
                "--output", f / "engines",
                "--engine-cache", f / "cache",
            ],
            "*", _engine_result, files_trouble, replaces=True,
        )  # fmt: skip
    yield small_demo()


def to_stdout(inputs: Inputs) -> Iterator[Job]:
    """Commands that write nothing but what they say, which a shell puts into a file."""
    commands: dict[str, Words] = {
        "config show": ["config", "show", "demo"],
        "compare": ["compare", inputs.figures, inputs.figures],
        "benchmark --schema": ["benchmark", "--schema"],
    }
    for name, words in commands.items():
        for unbuffered, where in (("", "> file"), ("1", "> file, unbuffered")):  # as containers have it
            yield Job(
                f"{name} {where}", partial(_words, words), "*", files_of, files_trouble,
                stdout="said.txt", environment={"PYTHONUNBUFFERED": unbuffered},
            )  # fmt: skip


def _words(words: Words, folder: Path) -> Words:
    return words


def _engine_result(folder: Path) -> dict[str, Any]:
    """What the engines are, where each fits its facts; two builds are not the same bytes."""
    engines = sorted(folder.rglob("*.plan"))
    facts = {str(path.relative_to(folder)): read_engine(path)[1].model_dump() for path in engines}
    return {name: {**fact, "plan_sha256": ""} for name, fact in facts.items()}


def _copied(source: Path, target: Path) -> Path:
    """What a command writes into beside what it reads."""
    if not target.exists():
        shutil.copytree(source, target)
    return target


# === The demo ===


def small_demo() -> Job:
    """The demo with the smallest network, and cells of a moment."""
    return Job(
        "demo",
        lambda folder: ["demo", "--run-dir", folder / "run"],
        "run/metrics.jsonl",
        lambda folder: _demo_result(folder / "run"),
        lambda folder: run_trouble(folder / "run", "pretrain") or files_trouble(folder / "run" / "exported"),
        before=_make_demo_small,
    )


def _make_demo_small() -> None:
    """In the process of the demo, which has no settings for this."""
    import cli.demo
    import cli.demo_export
    from evaluate.benchmark.schema import Settings
    from swav_tf.recipe.files import load_recipe

    moment = Settings(seconds=0.05, runs=3, max_seconds=1, rounds=1, threads=1, cuda_graph=False)
    prototypes = "model.prototypes=50"  # the picture shows 24
    vars(cli.demo)["load_recipe"] = lambda name, given: load_recipe(name, [*given, *PRETRAIN, prototypes])
    vars(cli.demo)["export_and_measure"] = partial(
        cli.demo_export.export_and_measure, settings=moment, keras=False
    )
    vars(cli.demo_export)["BATCHES"] = (1,)


def _demo_result(run: Path) -> dict[str, Any]:
    """The run's and what Keras says of the images; of files that tell times, that they are there."""
    result = run_result(run, "pretrain")
    result.get("summary", {}).pop("export", None)
    pages = {name: (run / name).exists() for name in ("demo.png", "demo.html", "benchmark.json")}
    # A graph's name for itself tells how many there were before it in the process.
    exported = files_of(run / "exported")
    return result | pages | {"exported": list(exported), "reference": exported.get("reference.npz")}
