"""A pretraining run as one HTML page: curves, what it learned, recipe and history."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image as PillowImage

from evaluate.backends.backend import Backend
from evaluate.clusters import Clusters, prototype_cards
from evaluate.feature_file import FeatureFile
from evaluate.feature_map import METHODS, PERPLEXITY, map_features, map_picture
from evaluate.images import ImageSet, picture_card
from evaluate.page import FAINT, SERIES, STYLE, add_legend, inline_svg, new_axes, write_page
from swav_tf.data.bad_images import BadImages
from swav_tf.data.pictures import contact_sheet
from swav_tf.data.views import ViewedImage, stack_views, view_batches
from swav_tf.knn import BASELINES, baselines_of, find_neighbors
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import printable
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import ATTEMPTS, RunFolder
from swav_tf.runs.model_facts import read_pretraining_recipe

BATCH: Final = 64
PROTOTYPES: Final = 24  # that are shown
NEAREST: Final = 10  # images of each
QUERIES: Final = 10  # images whose neighbors are shown
NEIGHBORS: Final = NEAREST - 1  # of each: with the image itself, a row
CROP_ROWS: Final = 4
BAD_IMAGES: Final = 20  # that are named


@dataclass(frozen=True)
class Run:
    """The content of a run folder, without the weights."""

    folder: Path
    recipe: Recipe
    lines: Sequence[dict[str, Any]]  # of metrics.jsonl
    summary: dict[str, Any]  # empty: the run has not ended
    attempts: Sequence[dict[str, Any]]  # that collapsed
    bad_images: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run folder."""
        recipe, own = read_pretraining_recipe(folder), RunFolder(folder, writer=False)
        attempts, bad = folder / ATTEMPTS, sorted(folder.glob("bad_images*.txt"))
        return cls(
            folder,
            recipe,
            # The last line of a run that is being written may be incomplete.
            [json.loads(line) for line in _lines(own.metrics) if line.endswith("}")],
            own.read_summary() or {},
            json.loads(attempts.read_text()) if attempts.exists() else (),
            [line for path in bad for line in _lines(path)],
        )

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of a kind."""
        return [line for line in self.lines if line["kind"] == kind]

    def last(self, kind: str) -> dict[str, Any]:
        """Return the last line of a kind, empty without one."""
        return next(iter(self.of_kind(kind)[::-1]), {})


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


@dataclass(frozen=True)
class Pictures:
    """The part of the page that needs the model and its images."""

    images: int  # whose features were computed
    prototypes: list[dict[str, Any]]
    neighbors: list[dict[str, Any]]
    crops: PillowImage.Image
    map: PillowImage.Image | None  # None: too few images
    map_method: str


def draw_pictures(
    recipe: Recipe,
    model: Backend,
    images: ImageSet,
    *,
    limit: int,
    on_progress: Callable[[int], None] = lambda images: None,
) -> Pictures:
    """Compute features and scores of at most `limit` images, chosen at random, and draw them.

    `on_progress` is called with the number of finished images.
    """
    found, scores = _outputs(model, images, limit, recipe.train.seed, on_progress)
    cards = []
    if scores is not None:
        nearest = np.argsort(-scores, axis=0, kind="stable")[:NEAREST].T
        near_scores = np.take_along_axis(scores.T, nearest, axis=1)
        names = tuple(found.class_names)
        best = scores.argmax(axis=1), scores.max(axis=1)
        clusters = Clusters(found.index, found.labels, *best, nearest, near_scores, names)
        cards = prototype_cards(clusters, images, model.input_view, prototypes=PROTOTYPES)
    method = "tsne" if len(found) >= PERPLEXITY + 2 else "pca"
    drawn = None
    if len(found) >= 3:
        places = map_features(found, method=method, limit=limit, seed=recipe.train.seed)
        drawn = map_picture(found, places, method=method)
    here = recipe.model_copy(update={"data": images.settings})
    return Pictures(
        images=len(found),
        prototypes=cards,
        neighbors=_neighbors(found, images, model, recipe.train.seed),
        crops=contact_sheet(images.source, here, rows=CROP_ROWS),
        map=drawn,
        map_method=METHODS[method],
    )


def _outputs(
    model: Backend, images: ImageSet, limit: int, seed: int, on_progress: Callable[[int], None]
) -> tuple[FeatureFile, np.ndarray | None]:
    """Return features, and scores (n, K) if the model has prototypes, of the readable images."""
    total = len(images.source)
    chosen = np.random.default_rng(seed).permutation(total)[:limit]
    shown: list[ViewedImage] = []
    features, scores, unreadable = [], [], BadImages(images=total, max_share=1)
    for batch in view_batches(
        images.source, np.sort(chosen), model.input_view, BATCH, unreadable=unreadable.bad
    ):
        outputs = model.run(stack_views(batch))
        features.append(outputs["features"])
        scores += [outputs["scores"]] if "scores" in outputs else []
        shown += batch
        on_progress(len(shown))
    if not shown:
        raise DataError(
            f"At least one image must be readable. Received: {unreadable.count} unreadable images."
        )
    file = FeatureFile(
        Path(model.facts.path),
        np.concatenate(features),
        np.array([image.label for image in shown]),
        np.array([image.index for image in shown]),
        [image.name for image in shown],
        {"class_names": list(map(printable, images.source.class_names))},
    )
    return file, np.concatenate(scores) if scores else None


def _neighbors(found: FeatureFile, images: ImageSet, model: Backend, seed: int) -> list[dict[str, Any]]:
    """Return some images, each with its nearest neighbors."""
    rows = np.random.default_rng(seed).permutation(len(found))[:QUERIES]
    k = min(NEIGHBORS + 1, len(found))
    near = find_neighbors(found.features, found.features[rows], k=k).without(rows)
    cards = []
    for query, others, cosines in zip(
        rows.tolist(), near.indices.tolist(), near.cosines.tolist(), strict=True
    ):
        entries = [found.entry(row) for row in (query, *others)]
        captions = ["image", *(f"{cosine:.3f}" for cosine in cosines)]
        lines = [entries[0]["name"], entries[0]["class"]]
        cards.append(picture_card(lines, entries, captions, images, model.input_view))
    return cards


# === The page ===


def write_run_report(path: Path, run: Run, pictures: Pictures | None, *, missing: str = "") -> None:
    """Write the page; without `pictures`, `missing` is the reason."""
    state = "complete" if run.summary else f"not complete, step {run.lines[-1]['step'] if run.lines else 0:,}"
    images = f"{run.summary['images']:,} images" if "images" in run.summary else "images"
    place = run.recipe.data.path or run.recipe.data.kind
    write_page(
        path,
        "run_report.html.jinja",
        title=f"SwAV pretraining: {run.folder.absolute().name}",
        subtitle=f"recipe {run.recipe.name} · {images} of {place} · {state}",
        cards=_cards(run),
        charts=_charts(run),
        pictures=pictures,
        missing=missing,
        attempts=run.attempts,
        facts=_facts(run),
        bad_images=run.bad_images,
        bad_shown=BAD_IMAGES,
        recipe=(run.folder / "config.yaml").read_text(encoding="utf-8"),
    )


def _cards(run: Run) -> list[tuple[str, str, str]]:
    """Return the headline figures: value, meaning, remark."""
    epoch, knn = run.last("epoch"), run.last("knn")
    count, cards = run.recipe.model.prototypes, []
    if epoch.get("loss") is not None:
        untrained = f"an untrained model has ln K = {np.log(count):.2f}"
        cards.append((f"{epoch['loss']:.2f}", "loss, mean of the last epoch", untrained))
    if knn.get("knn_top1") is not None:
        baselines = baselines_of(run.last("knn_baselines"))
        cards.append((f"{100 * knn['knn_top1']:.1f} %", "k-NN accuracy", baselines))
    if "linear_top1" in run.summary:  # of the demo
        swav, random, pixels = (
            f"{100 * run.summary[f'linear_top1{kind}']:.1f} %" for kind in ("", "_random_init", "_raw_pixels")
        )
        cards.append((swav, "linear classifier", f"random initialization {random}, raw pixels {pixels}"))
    views = run.last("views_baseline") | run.last("views")
    if views.get("view_retrieval") is not None:
        initial = views.get("view_retrieval_initial")
        remark = "" if initial is None else f"the initial weights {100 * initial:.1f} %"
        found = f"{100 * views['view_retrieval']:.1f} %"
        cards.append((found, "of views are closest to the other view of the same image", remark))
    if "prototypes_used" in epoch:
        cards.append((f"{epoch['prototypes_used']:,} of {count:,}", "prototypes used in the last epoch", ""))
    if run.summary:
        took = timedelta(seconds=round(run.summary["seconds"]))
        resumed = run.summary.get("resumed_from_step")
        cards.append((str(took), "time", f"since it resumed from step {resumed:,}" if resumed else ""))
    return cards


def _facts(run: Run) -> list[tuple[str, str]]:
    train, summary = run.recipe.train, run.summary
    facts = [
        ("training", f"{train.epochs} epochs, batch {train.batch_size}, {train.precision}"),
        ("crops", " + ".join(f"{group.count} x {group.size} px" for group in run.recipe.crops)),
        ("steps", f"{summary['steps']:,}" if "steps" in summary else ""),
        ("replicas", str(summary.get("replicas", ""))),
        ("versions", ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())),
    ]
    return [(name, value) for name, value in facts if value]


def _charts(run: Run) -> list[tuple[str, str, str]]:
    """Return heading, caption and SVG of each chart that has points."""
    import matplotlib

    last = run.last("epoch")
    steps_per_epoch = last["step"] / (last["epoch"] + 1) if last else None
    unit = "epochs" if steps_per_epoch else "steps"

    def points(kind: str, key: str) -> list[tuple[float, float]]:
        found = [(line["step"], line.get(key)) for line in run.of_kind(kind)]
        return [(step / (steps_per_epoch or 1), value) for step, value in found if value is not None]

    count, baselines = run.recipe.model.prototypes, run.last("knn_baselines")
    levels = {what: 100 * baselines[key] for key, what in BASELINES.items() if baselines.get(key) is not None}
    knn = [(x, 100 * top1) for x, top1 in points("knn", "knn_top1")]
    initial = run.last("views_baseline").get("view_retrieval_initial")
    views = [(x, 100 * share) for x, share in points("views", "view_retrieval")]
    before = {} if initial is None else {"the initial weights": 100 * initial}
    ln_k = {f"ln K, {np.log(count):.2f} (untrained)": float(np.log(count))}
    with matplotlib.rc_context(STYLE):
        charts = [
            ("Loss", "Swapped-prediction loss of single steps and means of epochs.", "loss",
             {"step": points("step", "loss"), "epoch": points("epoch", "loss")}, ln_k),
            ("k-NN accuracy", "Of labeled images, %; a falling loss alone does not show that something was learned.",
             "accuracy, %", {"k-NN": knn}, levels),
            ("View retrieval", "Share of views, %, whose nearest neighbor is the other view of the same image.",
             "views, %", {"views": views}, before),
            ("Learning rate", "By step.", "learning rate", {"rate": points("step", "learning_rate")}, {}),
            ("Prototypes used", "Prototypes with the highest score for at least one sample of the epoch.", "prototypes",
             {"prototypes": points("epoch", "prototypes_used")}, {f"all {count:,}": float(count)}),
        ]  # fmt: skip
        return [
            (heading, caption, _chart(heading, what, unit, lines, levels))
            for heading, caption, what, lines, levels in charts
            if any(lines.values())
        ]


def _chart(
    heading: str,
    what: str,
    unit: str,
    lines: dict[str, list[tuple[float, float]]],
    levels: dict[str, float],
) -> str:
    figure, axes = new_axes(3.0)
    axes.set(
        xlabel=unit, ylabel=what, xlim=(0, 1.03 * max(x for points in lines.values() for x, _ in points))
    )
    axes.locator_params(axis="x", integer=True)
    several = len(lines) > 1
    for number, (name, points) in enumerate(lines.items()):
        if points:
            thin = several and not number
            style: dict[str, Any] = {"linewidth": 0.8 if thin else 1.6, "alpha": 0.45 if thin else 1.0}
            marker = "o" if len(points) < 40 and not thin else None
            axes.plot(
                *zip(*points, strict=True), color=SERIES[0], marker=marker, markersize=3, label=name, **style
            )
    for number, (name, level) in enumerate(levels.items()):
        color = SERIES[number + 1] if len(levels) > 1 else FAINT
        axes.axhline(level, color=color, linestyle=(0, (5, 4)), linewidth=1, label=name)
    if what != "loss":
        axes.set_ylim(bottom=0)
    if several or levels:
        add_legend(figure, axes)
    return inline_svg(figure, f"{heading.lower()} by {unit}")
