"""What `swav-tf pretrain DIR` learns without any option: k-NN and linear accuracy of runs by `auto`, with baselines.

    python -m benchmarks.auto_study DIR [DIR ...] [--seeds 0 1 2] [--folder runs/auto_study] [-o KEY=VALUE ...]

Each DIR has one folder per class; labels are used for the figures only. Queries are the fifth of the images that the
k-NN monitor draws. Finished runs in the folder are not repeated. Prints a Markdown table for docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import documented_parser
from evaluate.linear import linear_accuracy
from swav_tf.data.sources import open_source
from swav_tf.data.survey import survey, this_machine
from swav_tf.method.swav import SwAV
from swav_tf.recipe.auto import choose
from swav_tf.recipe.data import Data
from swav_tf.recipe.files import recipe_of
from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.build import build_swav, load_swav
from swav_tf.training.knn_monitor import readable_features, readable_pixels
from swav_tf.training.rescue import pretrain_with_rescue

COLUMNS = (
    "images | seed | epochs | minutes | ln K - loss | 20-NN: pixels | initial | trained | "
    "linear: pixels | initial | trained"
)


def study(path: Path, seed: int, folder: Path, changes: Sequence[str]) -> str:
    """Train on the images, and return a row of the table."""
    facts = survey(Data(kind="class_folders", path=str(path)))
    settings = [*changes, f"train.seed={seed}", "monitor.tensorboard=false"]
    recipe = recipe_of(choose(facts, this_machine()).settings, settings)
    assert isinstance(recipe, Recipe)
    run = folder / f"{path.name}-{seed}"
    summary = pretrain_with_rescue(recipe, run_dir=run).summary
    trained, recipe = load_swav(run)
    linear = [_linear(model, recipe) for model in (None, build_swav(recipe), trained)]
    shares = [summary["knn_top1_pixels"], summary["knn_top1_initial"], summary["knn_top1"], *linear]
    cells = [f"{100 * share:.1f} %" for share in shares]
    loss = f"{summary['ln_k'] - summary['loss_last']:.2f}"
    first = [
        f"{path.name}, {facts.images:,}",
        str(seed),
        str(recipe.train.epochs),
        f"{summary['seconds'] / 60:.0f}",
    ]
    return f"| {' | '.join([*first, loss, *cells])} |"


def _linear(model: SwAV | None, recipe: Recipe) -> float:
    """Return the linear accuracy of features; without a model, of raw pixels."""
    source = open_source(recipe.data)
    drawn = np.random.default_rng(recipe.train.seed).permutation(len(source))[: recipe.monitor.knn_images]
    queries, known = np.split(drawn, [len(drawn) // 5])
    features = [
        readable_features(model, source, part, recipe.data)[0]
        if model
        else readable_pixels(source, part, recipe.data)[0]
        for part in (known, queries)
    ]
    labels = [source.labels(part) for part in (known, queries)]
    return linear_accuracy(features[0], labels[0], features[1], labels[1])


def main() -> None:
    """Run the study."""
    parser = documented_parser(__doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/auto_study"))
    parser.add_argument("-o", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    print(f"| {COLUMNS} |\n{'|---' * (COLUMNS.count('|') + 1)}|", flush=True)
    for path in options.images:
        for seed in options.seeds:
            print(study(path, seed, options.folder, options.changes), flush=True)


if __name__ == "__main__":
    main()
