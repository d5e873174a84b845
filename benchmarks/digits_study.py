"""What pretraining on the digits is worth: probe, cached probe, k-NN and fine-tuning, over several seeds.

    python -m benchmarks.digits_study [--seeds 31 32 33 34 35] [--folder runs/digits_study] [--run RUN ...]

Pretrains by the demo's recipe, one run a seed, unless finished runs are given by --run; then everything
after it. What is in the folder already is not done again, so that an interrupted study goes on. Prints a
Markdown table for docs/results.md and writes results.json beside the runs.

All accuracies are of the LAST epoch, on the 360 test digits. The labels of a share are drawn by the seed, as
many of each class; from scratch means the same network and the same images with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from swav_tf.data.digits import Digits
from swav_tf.data.subset import draw_subset
from swav_tf.knn import knn_accuracy
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_recipe, load_recipe_of
from swav_tf.training.build import load_swav
from swav_tf.training.features import extract_features
from swav_tf.training.finetune import finetune
from swav_tf.training.pretrain import pretrain
from swav_tf.training.probe import probe, probe_cached

NEIGHBOURS = 20
LONGER = ("train.epochs=120", "optimizer.decay_epochs=[72, 96]", "optimizer.backbone_learning_rate=0.2")
FEW = ("train.batch_size=8",)
# Name of the row, share of the labels, from scratch, other settings than finetune_digits'.
FINETUNING: list[tuple[str, float, bool, Sequence[str]]] = [
    ("fine-tuned from SwAV", 0.1, False, ()),
    ("from scratch", 0.1, True, ()),
    ("fine-tuned from SwAV, twice as long, twice the rate", 0.1, False, LONGER),
    ("from scratch, twice as long, twice the rate", 0.1, True, LONGER),
    ("fine-tuned from SwAV", 0.02, False, FEW),
    ("from scratch", 0.02, True, FEW),
]
console = Console(stderr=True, highlight=False)


def share_of_labels(path: Path, share: float, seed: int) -> Path:
    """A list of training digits: the same share of each class, drawn by the seed, at least one."""
    names = draw_subset(Digits("train"), share=share, seed=seed)
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def neighbours(run: Path) -> float:
    """20-NN accuracy of the run's features."""
    model, recipe = load_swav(run)
    sources = Digits("train"), Digits("test")
    features = [extract_features(model, source, range(len(source)), recipe.data) for source in sources]
    labels = [np.array([source.label(i) for i in range(len(source))]) for source in sources]
    return knn_accuracy(features[0], labels[0], features[1], labels[1], k=NEIGHBOURS)


def study(run: Path, folder: Path, seed: int) -> dict[str, float]:
    """All rows for one pretraining run: name to top-1 accuracy, 0 to 1."""
    found: dict[str, float] = {}

    def row(name: str, measure: Callable[[], float]) -> None:
        began = time.perf_counter()
        found[name] = measure()
        console.print(f"  {name}: {100 * found[name]:.1f} %  ({time.perf_counter() - began:.0f} s)")

    recipe = load_recipe_of(ProbeRecipe, "probe_digits", [f"train.seed={seed}"])
    row(f"{NEIGHBOURS}-NN | 100 %", lambda: neighbours(run))
    row(
        "linear probe, SGD on crops | 100 %",
        lambda: float(probe(recipe, model=run, run_dir=folder / "probe", quiet=True).summary["last"]["top1"]),
    )
    row(
        "linear probe, cached features | 100 %",
        lambda: float(
            probe_cached(recipe, model=run, run_dir=folder / "cached", quiet=True).summary["last"]["top1"]
        ),
    )
    for number, (name, share, from_scratch, changes) in enumerate(FINETUNING):
        subset = share_of_labels(folder / f"labels-{share:g}.txt", share, seed)
        tuning = load_recipe_of(
            FinetuneRecipe,
            "finetune_digits",
            [
                f"train.seed={seed}",
                f"subset={json.dumps(str(subset))}",
                "monitor.tensorboard=false",
                *changes,
            ],
        )
        run_dir = folder / f"finetune-{number}"

        def tuned(
            tuning: FinetuneRecipe = tuning, run_dir: Path = run_dir, from_scratch: bool = from_scratch
        ) -> float:
            result = finetune(tuning, model=run, run_dir=run_dir, from_scratch=from_scratch, quiet=True)
            return float(result.summary["last"]["top1"])

        row(f"{name} | {100 * share:g} %", tuned)
    return found


def table(results: list[dict[str, float]]) -> str:
    """Median and range of every row, as Markdown."""
    lines = ["| | labels | median top-1 | range |", "|---|---|---|---|"]
    for name in results[0]:
        values = [100 * result[name] for result in results]
        what, labels = name.split(" | ")
        lines.append(
            f"| {what} | {labels} | {statistics.median(values):.1f} % | {min(values):.1f} to {max(values):.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33, 34, 35])
    parser.add_argument("--folder", type=Path, default=Path("runs/digits_study"))
    parser.add_argument(
        "--run", type=Path, nargs="+", help="finished runs of the demo's recipe, one for each seed"
    )
    arguments = parser.parse_args()
    if arguments.run and len(arguments.run) != len(arguments.seeds):
        parser.error("--run must name as many runs as --seeds has seeds")
    results = []
    for number, seed in enumerate(arguments.seeds):
        folder = arguments.folder / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        console.print(f"seed {seed}")
        if arguments.run:
            run = arguments.run[number]
        else:
            run = folder / "pretrain"
            pretrain(load_recipe("demo", [f"train.seed={seed}"]), run_dir=run, quiet=True)
        results.append(study(run, folder, seed))
        told = {str(s): result for s, result in zip(arguments.seeds, results, strict=False)}
        (arguments.folder / "results.json").write_text(json.dumps(told, indent=1) + "\n")
    images = len(Digits("test"))
    print(table(results))
    seeds = ", ".join(map(str, arguments.seeds))
    print(f"\n{len(results)} seed(s): {seeds}; {images} test digits, one is {100 / images:.2f} %.")


if __name__ == "__main__":
    main()
