"""Uses of every image's nearest neighbors: groups of near-duplicates, and unusual images."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluate.images import ImageSet, picture_card
from evaluate.page import write_page
from evaluate.search import Searchable
from evaluate.similar import images_found
from swav_tf.data.image_source import ImageSource
from swav_tf.knn import unit_rows
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.files import write_csv
from swav_tf.plumbing.parallel import map_ahead
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.data import Data, EvaluationView

NEAREST: Final = 10  # neighbors of each image
BLOCK: Final = 8_192  # images whose neighbors are compared at once
SAMPLE: Final = 100_000  # images of which mean and standard deviation are computed
NEAR: Final = 0.1  # of the usual distance to the tenth neighbor: near-duplicates
HIGHEST: Final = 0.9999  # cosine that equal images still reach, despite rounding


@dataclass(frozen=True)
class Graph:
    """The k nearest neighbors of each of N images, without the image itself.

    They are those of highest cosine. Cosines and distances below are of standardized features: less their mean, divided
    by their standard deviation. Plain cosines of pooled features are all near 1.
    """

    indices: np.ndarray  # (N, k) rows
    cosines: np.ndarray  # (N, k) float32
    distances: np.ndarray  # (N, k) float32, Euclidean


@dataclass(frozen=True)
class Group:
    """Rows of near-duplicates, and the cosine of each with the nearest other one."""

    rows: list[int]
    cosines: list[float]


def neighbor_graph(
    file: Searchable,
    *,
    k: int = NEAREST,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Graph:
    """Find the nearest neighbors of each image of a feature file, exactly, or of an index.

    `on_progress` is called with the share that is done, 0 to 1.
    """
    features = file.features
    total, k = len(features), min(k, len(features) - 1)
    if k < 1:
        raise UsageError(f"At least two images are needed. Received: {total}, in {file.path}.")
    sample = features[np.sort(np.random.default_rng(0).choice(total, min(total, SAMPLE), replace=False))]
    mean, scale = sample.mean(axis=0), sample.std(axis=0) + 1e-6
    indices = np.empty((total, k), np.int64)
    cosines, distances = np.empty((2, total, k), np.float32)
    for start in range(0, total, BLOCK):
        here = slice(start, min(start + BLOCK, total))
        own = np.arange(here.start, here.stop)
        indices[here] = file.neighbors(features[here], k=k + 1).without(own).indices
        cosines[here], distances[here] = _compare(features, own, indices[here], mean, scale)
        on_progress(here.stop / total)
    return Graph(indices, cosines, distances)


def _compare(
    features: np.ndarray, rows: np.ndarray, near: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and distances (n, k) of rows (n,) and their neighbors (n, k), of standardized features."""
    needed, place = np.unique(np.concatenate([rows, near.ravel()]), return_inverse=True)
    standard = (features[needed] - mean) / scale
    unit, lengths = unit_rows(standard), np.linalg.norm(standard, axis=1)
    asked, others = place[: len(rows)], place[len(rows) :].reshape(near.shape)
    columns = [np.einsum("ij,ij->i", unit[asked], unit[others[:, i]]) for i in range(near.shape[1])]
    cosines = np.stack(columns, axis=1)
    own, other = lengths[asked][:, np.newaxis], lengths[others]
    squares = (own - other) ** 2 + 2 * own * other * (1 - cosines)
    # Features that are all equal are 0 when standardized, which has no direction.
    return np.where(squares > 0, cosines, 1), np.sqrt(np.maximum(squares, 0))


def near_threshold(graph: Graph) -> float:
    """Return the cosine from which on neighbors count as near-duplicates, for features of any network.

    Networks differ in how close to each other they map all images. The distance here is 1 - cosine, and near is a tenth
    of the usual distance (median) to the last of the k neighbors, which is seldom a copy.
    """
    usual = float(np.median(1 - graph.cosines[:, -1]))
    return min(1 - NEAR * usual, HIGHEST)


def find_groups(graph: Graph, threshold: float) -> list[Group]:
    """Return the groups that neighbors of a cosine of at least `threshold` connect, the closest first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    total = len(graph.indices)
    rows, places = np.nonzero(graph.cosines >= threshold)
    others = graph.indices[rows, places]
    links = coo_array((np.ones(len(rows), bool), (rows, others)), (total, total))
    _, names = connected_components(links, directed=False)
    near = np.full(total, -1, np.float32)
    np.maximum.at(near, rows, graph.cosines[rows, places])
    np.maximum.at(near, others, graph.cosines[rows, places])
    linked = np.flatnonzero(near >= threshold)
    members = defaultdict(list)
    for row, name in zip(linked.tolist(), names[linked].tolist(), strict=True):
        members[name].append(row)
    groups = [Group(group, near[group].tolist()) for group in members.values()]
    return sorted(groups, key=lambda group: -max(group.cosines))


def outlier_scores(graph: Graph) -> np.ndarray:
    """Return how far each image is from its neighbors, (N,): the mean distance, divided by its median.

    The median is of images that are not copies of all their neighbors: where most are, it would be 0 but for rounding.
    Not by cosines: features of foreign images are small or large rather than of another direction.
    """
    scores: np.ndarray = graph.distances.mean(axis=1)
    apart = scores[scores >= 1e-3 * scores.mean()]
    return scores / (float(np.median(apart)) or 1.0)


def write_duplicates(
    folder: Path,
    file: Searchable,
    groups: Sequence[Group],
    *,
    shown: int,
    threshold: float,
    data: str | None = None,
) -> dict[str, Any]:
    """Write duplicates.csv, a row per image of each group, and index.html with the first `shown` groups.

    The page names the `threshold` by which the groups were found.

    Exact copies are recognized by their content. `data` is the place of the images if they have moved. Return the
    numbers of `groups`, of `images` in them, and of `exact_copies`, whose content is that of an earlier image.
    """
    members = [
        [file.entry(row) | {"cosine": cosine} for row, cosine in zip(group.rows, group.cosines, strict=True)]
        for group in groups
    ]
    images = open_found(file, chain.from_iterable(members), data)
    rows, cards, copies, view = [], [], 0, _view_of(file)
    for number, group in enumerate(members, start=1):
        letters = _equal_contents(group, images.source)
        repeated = Counter(filter(None, letters))
        copies += repeated.total() - len(repeated)
        for entry, letter in zip(group, letters, strict=True):
            rows.append((number, entry["name"], entry["class"], f"{entry['cosine']:.4f}", letter))
        if number <= shown:
            lines = [
                f"Group {number}",
                f"{len(group):,} images, cosine {max(e['cosine'] for e in group):.3f}",
            ]
            lines += [f"exact copies {letter}: {count:,} images" for letter, count in repeated.items()]
            captions = [f"{e['cosine']:.2f} {letter}" for e, letter in zip(group, letters, strict=True)]
            cards.append(picture_card(lines, group, captions, images, view))
    write_csv(folder / "duplicates.csv", ("group", "name", "class", "cosine", "exact"), rows)
    report = {"groups": len(groups), "images": len(rows), "exact_copies": copies}
    tiles = [
        (f"{value:,}", name)
        for value, name in zip(report.values(), ("groups", "images in groups", "exact copies"), strict=True)
    ]
    text = (
        f"Images connected by cosines of at least {threshold:g} form a group; duplicates.csv lists all groups, and "
        "this page the closest. Below each image: its cosine with the nearest image of the group; images with the "
        "same letter are exact copies."
        if groups
        else f"No two images have a cosine of at least {threshold:g}. A lower --threshold finds more."
    )
    _write_page(folder, "Near-duplicates", file, images, tiles, text, cards)
    return report


def write_outliers(
    folder: Path, file: Searchable, scores: np.ndarray, *, count: int, data: str | None = None
) -> list[dict[str, Any]]:
    """Write outliers.csv and index.html with the `count` images of highest score (N,), highest first; return them."""
    rows = np.argsort(-scores, kind="stable")[:count].tolist()
    found = [file.entry(row) | {"score": round(float(scores[row]), 4)} for row in rows]
    images = open_found(file, found, data)
    table = [(each["name"], each["class"], each["score"]) for each in found]
    write_csv(folder / "outliers.csv", ("name", "class", "score"), table)
    captions = [f"{each['score']:.2f}" for each in found]
    card = picture_card([f"The {len(found):,} highest scores"], found, captions, images, _view_of(file))
    tiles = [(f"{len(scores):,}", "images"), (f"{float(scores.max()):.2f}", "highest score")]
    text = "Score: mean distance to the ten nearest images; 1 is usual."
    _write_page(folder, "Outliers", file, images, tiles, text, [card])
    return found


def open_found(file: Searchable, found: Iterable[dict[str, Any]], data: str | None) -> ImageSet:
    """Open the images of entries, at `data` if they have moved; see `images_found`."""
    source = file.facts.get("source") or {"kind": "images", "path": None}
    like = Data.model_validate({"kind": source["kind"], "path": source["path"]})
    return images_found(list(found), file, like, data)


def _equal_contents(entries: Sequence[dict[str, Any]], source: ImageSource) -> list[str]:
    """Return a letter for each image of a group, the same for the same content; none for those that have no copy."""

    def digest(entry: dict[str, Any]) -> bytes:
        try:
            return hashlib.sha256(bytes(source.read(entry["index"]))).digest()
        except OSError:  # an image that cannot be read has no copies
            return b""

    digests = list(map_ahead(digest, entries, threads=available_cores()))
    repeated = [key for key, count in Counter(digests).items() if key and count > 1]
    letters = {key: chr(ord("A") + number % 26) * (1 + number // 26) for number, key in enumerate(repeated)}
    return [letters.get(key, "") for key in digests]


def _view_of(file: Searchable) -> EvaluationView:
    return EvaluationView.model_construct(**file.facts["view"])


def _write_page(
    folder: Path,
    title: str,
    file: Searchable,
    images: ImageSet,
    tiles: Sequence[tuple[str, str]],
    text: str,
    cards: Sequence[dict[str, Any]],
) -> None:
    subtitle = f"Features {file.path}, images {images.settings.path or images.settings.kind}"
    page = {"title": title, "subtitle": subtitle, "tiles": tiles, "text": text, "cards": cards}
    write_page(folder / "index.html", "neighbors.html.jinja", **page)
