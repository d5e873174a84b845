"""Accuracies of probe, k-NN and fine-tuning with few labels after pretraining, over several seeds.

    python -m benchmarks.few_labels [--seeds 31 32 33 34 35] [--folder runs/few_labels] [--run RUN ...]
    python -m benchmarks.few_labels --images TRAIN TEST --shares 0.1 0.01 --seeds 0 1 2 --run RUN RUN RUN --short

Pretrains with the demo's recipe on the digits, one run a seed, unless --run gives finished runs. --images names two
folders with one folder per class. --short leaves out the probe on crops and longer fine-tuning. Parts that are
finished in the folder are not repeated. Prints a Markdown table for docs/results.md and writes results.json into the
folder.

All accuracies are of the last epoch, on the test images. The labels of a share are drawn by the seed, equally many of
each class. "From that classifier" is the recipe `finetune`, the other rows of fine-tuning are `finetune_digits`; from
scratch means the same network and images with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from benchmarks.common import documented_parser
from evaluate.linear import linear_accuracy
from swav_tf.data.sources import open_source
from swav_tf.data.subset import draw_subset
from swav_tf.knn import knn_accuracy
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import load_recipe, load_recipe_of
from swav_tf.training.build import load_swav
from swav_tf.training.cached_probe import probe_cached
from swav_tf.training.classify import finetune, probe
from swav_tf.training.knn_monitor import readable_features
from swav_tf.training.pretrain import pretrain

NEIGHBORS = 20
LONGER = ("train.epochs=120", "optimizer.decay_epochs=[72, 96]", "optimizer.backbone_learning_rate=0.2")
FEW_IMAGES = 120
FEW = ("train.batch_size=8",)


def study(run: Path, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the top-1 accuracies, 0 to 1, of all rows for one pretraining run."""
    found: dict[str, float] = {}

    def row(name: str, accuracy: float) -> None:
        found[name] = accuracy
        print(f"  {name}: {100 * accuracy:.1f} %", flush=True)

    settings = [f"train.seed={seed}", *settings_of(options)]
    recipe = load_recipe_of(ProbeRecipe, "probe_digits", settings)
    model, pretraining = load_swav(run)
    sources = open_source(recipe.data), open_source(recipe.data, validation=True)
    features = [
        readable_features(model, source, range(len(source)), pretraining.data)[0] for source in sources
    ]
    labels = [source.labels() for source in sources]
    row(f"{NEIGHBORS}-NN | 100 %", knn_accuracy(features[0], labels[0], features[1], labels[1], k=NEIGHBORS))
    for name, train, place in (
        ("linear probe, SGD on crops | 100 %", probe, "probe"),
        ("linear probe, cached features | 100 %", probe_cached, "cached"),
    ):
        if place == "cached" or not options.short:
            result = train(recipe, model=run, run_dir=folder / place, quiet=True)
            row(name, float(result.summary["last"]["top1"]))
    for share in options.shares:
        names = draw_subset(sources[0], share=share, seed=seed)
        (folder / f"labels-{share:g}.txt").write_text("".join(f"{name}\n" for name in names))
        drawn = np.isin([sources[0].image_name(i) for i in range(len(sources[0]))], names)
        of_share = f"{100 * share:g} %"
        linear = linear_accuracy(features[0][drawn], labels[0][drawn], features[1], labels[1])
        row(f"logistic regression on features | {of_share}", linear)
        subset = f"subset={json.dumps(str(folder / f'labels-{share:g}.txt'))}"
        once = [
            f"train.seed={seed}",
            subset,
            "monitor.tensorboard=false",
            "monitor.validate_every_epochs=1000",
        ]
        flips = f"crop.flip_probability={recipe.crop.flip_probability}"
        images = [f"data={recipe.data.model_dump_json()}", f"crop.size={recipe.data.evaluation.crop}", flips]
        tuning = load_recipe_of(FinetuneRecipe, "finetune", [*images, *once])
        result = finetune(tuning, model=run, run_dir=folder / f"finetune-{share:g}", quiet=True)
        row(f"fine-tuned from that classifier | {of_share}", float(result.summary["last"]["top1"]))
        few = len(names) < FEW_IMAGES
        for remark, changes in (("", FEW if few else ()), (", twice as long, twice the rate", LONGER)):
            if remark and (few or options.short):
                continue
            for what, from_scratch in (("fine-tuned from SwAV", False), ("from scratch", True)):
                tuning = load_recipe_of(FinetuneRecipe, "finetune_digits", [*settings, *once, *changes])
                place = f"{what}-{share:g}{remark}".replace(" ", "-")
                result = finetune(
                    tuning, model=run, run_dir=folder / place, from_scratch=from_scratch, quiet=True
                )
                row(f"{what}{remark} | {of_share}", float(result.summary["last"]["top1"]))
    return found


def settings_of(options: argparse.Namespace) -> list[str]:
    """Return the settings for folders of images, none for the digits."""
    if not options.images:
        return []
    train, test = (json.dumps(str(path)) for path in options.images)
    data = ["data.kind=class_folders", f"data.path={train}", f"data.validation_path={test}"]
    return [*data, "data.validation_split=null", "crop.flip_probability=0.5"]


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
    parser.add_argument("--folder", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--images", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="default: the digits")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.02])
    parser.add_argument("--short", action="store_true")
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
        results[seed] = study(run, folder, seed, arguments)
        (arguments.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(list(results.values())))


if __name__ == "__main__":
    main()
