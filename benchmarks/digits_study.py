"""Accuracies of probe, cached probe, k-NN and fine-tuning after pretraining on the digits, over several seeds.

    python -m benchmarks.digits_study [--seeds 31 32 33 34 35] [--folder runs/digits_study] [--run RUN ...]

Pretrains with the demo's recipe, one run a seed, unless --run gives finished runs. Parts that are finished in the
folder are not repeated. Prints a Markdown table for docs/results.md and writes results.json into the folder.

All accuracies are of the last epoch, on the 360 test digits. The labels of a share are drawn by the seed, equally many
of each class; from scratch means the same network and images with random weights.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import documented_parser
from swav_tf.data.digits import Digits
from swav_tf.data.subset import draw_subset
from swav_tf.knn import knn_accuracy
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_recipe, load_recipe_of
from swav_tf.training.build import load_swav
from swav_tf.training.cached_probe import probe_cached
from swav_tf.training.classify import finetune, probe
from swav_tf.training.features import extract_features
from swav_tf.training.pretrain import pretrain

NEIGHBORS = 20
LONGER = ("train.epochs=120", "optimizer.decay_epochs=[72, 96]", "optimizer.backbone_learning_rate=0.2")
FEW = ("train.batch_size=8",)
# Name of the row, share of the labels, from scratch, changes to finetune_digits.
FINETUNING: list[tuple[str, float, bool, Sequence[str]]] = [
    ("fine-tuned from SwAV", 0.1, False, ()),
    ("from scratch", 0.1, True, ()),
    ("fine-tuned from SwAV, twice as long, twice the rate", 0.1, False, LONGER),
    ("from scratch, twice as long, twice the rate", 0.1, True, LONGER),
    ("fine-tuned from SwAV", 0.02, False, FEW),
    ("from scratch", 0.02, True, FEW),
]


def knn(run: Path) -> float:
    """Return the k-NN accuracy of the run's features."""
    model, recipe = load_swav(run)
    sources = Digits("train"), Digits("test")
    features = [extract_features(model, source, range(len(source)), recipe.data) for source in sources]
    labels = [np.array([source.label(i) for i in range(len(source))]) for source in sources]
    return knn_accuracy(features[0], labels[0], features[1], labels[1], k=NEIGHBORS)


def study(run: Path, folder: Path, seed: int) -> dict[str, float]:
    """Return the top-1 accuracies, 0 to 1, of all rows for one pretraining run."""
    found: dict[str, float] = {}

    def row(name: str, accuracy: float) -> None:
        found[name] = accuracy
        print(f"  {name}: {100 * accuracy:.1f} %", flush=True)

    recipe = load_recipe_of(ProbeRecipe, "probe_digits", [f"train.seed={seed}"])
    row(f"{NEIGHBORS}-NN | 100 %", knn(run))
    for name, train, place in (
        ("linear probe, SGD on crops | 100 %", probe, "probe"),
        ("linear probe, cached features | 100 %", probe_cached, "cached"),
    ):
        result = train(recipe, model=run, run_dir=folder / place, quiet=True)
        row(name, float(result.summary["last"]["top1"]))
    for number, (name, share, from_scratch, changes) in enumerate(FINETUNING):
        labels = folder / f"labels-{share:g}.txt"
        names = draw_subset(Digits("train"), share=share, seed=seed)
        labels.write_text("".join(f"{name}\n" for name in names))
        settings = [f"train.seed={seed}", f"subset={json.dumps(str(labels))}", "monitor.tensorboard=false"]
        tuning = load_recipe_of(FinetuneRecipe, "finetune_digits", [*settings, *changes])
        run_dir = folder / f"finetune-{number}"
        result = finetune(tuning, model=run, run_dir=run_dir, from_scratch=from_scratch, quiet=True)
        row(f"{name} | {100 * share:g} %", float(result.summary["last"]["top1"]))
    return found


def table(results: list[dict[str, float]]) -> str:
    """Return median and range of every row as Markdown."""
    lines = ["| | labels | median top-1 | range |", "|---|---|---|---|"]
    for name in results[0]:
        values = [100 * result[name] for result in results]
        what, labels = name.split(" | ")
        median, low, high = statistics.median(values), min(values), max(values)
        lines.append(f"| {what} | {labels} | {median:.1f} % | {low:.1f} to {high:.1f} % |")
    return "\n".join(lines)


def main() -> None:
    parser = documented_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33, 34, 35])
    parser.add_argument("--folder", type=Path, default=Path("runs/digits_study"))
    parser.add_argument("--run", type=Path, nargs="+", help="finished runs of the demo's recipe, one a seed")
    arguments = parser.parse_args()
    if arguments.run and len(arguments.run) != len(arguments.seeds):
        parser.error("--run must name as many runs as --seeds has seeds")
    results: dict[int, dict[str, float]] = {}
    for seed, run in zip(arguments.seeds, arguments.run or [None] * len(arguments.seeds), strict=True):
        folder = arguments.folder / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        print(f"seed {seed}", flush=True)
        if run is None:
            run = folder / "pretrain"
            pretrain(load_recipe("demo", [f"train.seed={seed}"]), run_dir=run, quiet=True)
        results[seed] = study(run, folder, seed)
        (arguments.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(list(results.values())))
    images = len(Digits("test"))
    print(f"\nSeeds {', '.join(map(str, results))}; {images} test digits, one is {100 / images:.2f} %.")


if __name__ == "__main__":
    main()
