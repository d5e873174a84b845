"""An index of the features in a folder of parts, for approximate search among millions of images. FAISS does the work.

INDEX        inverted lists of vectors in float16, or of product codes if those are too large; memory-mapped
INDEX.json   facts: the features it is of, how it searches, and the recall that was measured
INDEX.work/  until it is complete: the trained lists, and the blocks of rows that are already in lists
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np

from evaluate.feature_file import FeatureFile, class_name, companion, read_feature_file
from evaluate.feature_parts import FeatureParts, all_parts, changed_facts, open_parts, part_facts, read_facts
from swav_tf.knn import Neighbors, find_neighbors, unit_rows
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write, atomic_writes, locked_folder, remove_leftovers
from swav_tf.plumbing.log import log
from swav_tf.plumbing.system import available_cores

BLOCK: Final = 131_072  # rows that are added, and kept, at once
SAMPLES: Final = 64  # training vectors for each list
# Held out to measure recall; fewer where the exact scan of more than 10^6 rows would take long.
QUERIES: Final = 1_000
K: Final = 10  # neighbors whose recall is measured
RECALL: Final = 0.99
RERANKED: Final = 100  # candidates by product codes for K neighbors, whose exact cosines are compared
MOST_RERANKED: Final = 3_200  # if the recall needs it


def choose_factory(rows: int, width: int, memory: int) -> str:
    """Return FAISS's name of an index that takes at most `memory` bytes."""
    lists = max(1, min(2 ** round(math.log2(2 * math.sqrt(rows))), rows // SAMPLES))
    overhead = 8 * rows + 4 * width * lists
    if overhead + 2 * width * rows <= memory:
        return f"IVF{lists},SQfp16"
    codes = [m for m in range(max(1, width // 8), 0, -1) if width % m == 0]
    fitting = [m for m in codes if overhead + m * rows <= memory]
    if not fitting:
        least = math.ceil((overhead + codes[-1] * rows) / 2**20)
        raise UsageError(f"An index of {rows:,} x {width} features needs more --memory, at least {least}MiB.")
    return f"IVF{lists},PQ{fitting[0]}"


@dataclass(frozen=True)
class SearchIndex:
    """An index of N images, open for search."""

    path: Path
    facts: dict[str, Any]  # those of the features, `factory`, `probes`, `candidates`, `recall_at_10`
    parts: FeatureParts
    engine: Any = field(repr=False)  # of FAISS

    def __len__(self) -> int:
        return len(self.parts.features)

    @property
    def features(self) -> np.ndarray:
        """The features (N, F), memory-mapped."""
        return cast(np.ndarray, self.parts.features)

    @property
    def width(self) -> int:
        """Number of features of an image, F."""
        return self.parts.features.shape[1]

    def entry(self, row: int) -> dict[str, Any]:
        """Return `name`, `label`, `class` and `index` (number in the source) of a row."""
        entry = self.parts.table.entry(row)
        return entry | {"class": class_name(entry["label"], self.facts["class_names"])}

    def neighbors(
        self, queries: np.ndarray, *, k: int, on_progress: Callable[[float], None] = lambda _: None
    ) -> Neighbors:
        """Find about the k features of highest cosine with each query (M, F); the cosines themselves are exact.

        `on_progress` is called with the share that is done, 0 to 1.
        """
        cosines, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        usual = RERANKED if ",PQ" in self.facts["factory"] else K  # of indexes by earlier versions
        candidates = max(k, self.facts.get("candidates", usual) * k // K)
        for start in range(0, len(queries), 1024):
            asked = unit_rows(queries[start : start + 1024])
            for row, rows in enumerate(self._candidates(asked, min(candidates, len(self)), k), start):
                exact = unit_rows(self.parts.features[rows]) @ asked[row - start]
                best = np.argsort(-exact, kind="stable")[:k]
                cosines[row], indices[row] = exact[best], rows[best]
            on_progress(min(1.0, (start + 1024) / len(queries)))
        return Neighbors(cosines, indices)

    def _candidates(self, asked: np.ndarray, count: int, k: int) -> Iterator[np.ndarray]:
        """Yield the rows in the nearest lists, at least k; all lists are searched if those have fewer."""
        found = _search(self.engine, asked, count, self.facts["probes"])
        if (found[:, k - 1] < 0).any():
            found = _search(self.engine, asked, count, self.engine.nlist)
        for rows in found:
            yield rows[rows >= 0]


Searchable: TypeAlias = FeatureFile | SearchIndex


def open_searchable(features: Path | None, index: Path | None) -> Searchable:
    """Open an index, or else a feature file or folder of parts; see `open_index` and `read_feature_file`."""
    if index is not None:
        return open_index(index, features)
    assert features is not None
    return read_feature_file(features)


def _search(engine: Any, asked: np.ndarray, count: int, probes: int) -> np.ndarray:
    import faiss

    # Threads share out queries, not lists.
    faiss.omp_set_num_threads(1 if len(asked) < 8 else available_cores())
    engine.nprobe = probes
    found: np.ndarray = engine.search(asked, count)[1]
    return found


def open_index(path: Path, features: Path | None = None) -> SearchIndex:
    """Open an index, whose folder of `features` may have moved. Nothing that grows with the images is read."""
    import faiss

    if not path.exists():
        raise UsageError(f"Index not found: {path}. Create one with `swav-tf index`.")
    try:
        facts = json.loads(companion(path, ".json").read_text(encoding="utf-8"))
        engine = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        folder, rows = features or Path(facts["features"]), facts["rows"]
        if engine.ntotal != sum(rows):
            raise ValueError(f"it has {engine.ntotal:,} of {sum(rows):,} rows")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} must be an index, with {path.name}.json next to it. It cannot be read: {error}"
        ) from error
    now = read_facts(folder)
    if changes := changed_facts(facts, now):
        listed = "; ".join(f"{key}: was {old!r}, now {new!r}" for key, (old, new) in changes.items())
        raise UsageError(
            f"{folder} must contain the features that {path} was built from. Received: {listed}."
        )
    if facts.get("features_sha256") not in (None, _sha256_of(folder, now)):
        raise UsageError(
            f"{folder} must contain the features that {path} was built from. Received: parts recomputed since. "
            "Build it again with `swav-tf index`."
        )
    return SearchIndex(path, facts, open_parts(folder, rows), engine)


def _sha256_of(folder: Path, facts: dict[str, Any]) -> str:
    """Return a hash of the features in all parts, by the one that each part records."""
    sums = (part_facts(part)["features_sha256"] for part in all_parts(folder, facts))
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def build_index(
    folder: Path,
    output: Path,
    *,
    memory: int = 8 * 2**30,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Index the features in a folder, measure the recall, and return the facts in OUTPUT.json.

    The same call after an interruption resumes. The index has at most `memory` bytes; `seed` decides the training
    sample and the queries; `on_progress` is called with the share of the rows that are added, 0 to 1.
    """
    parts = open_parts(folder)
    rows, width = parts.features.shape
    if rows < 2:
        raise UsageError(f"An index needs at least 2 images. Received: {rows}, in {folder}.")
    facts = read_facts(folder) | {
        "features": str(folder.resolve()),
        "features_sha256": _sha256_of(folder, parts.facts),
        "rows": parts.rows,
        "factory": choose_factory(rows, width, memory),
        "seed": seed,
    }
    with locked_folder(work := companion(output, ".work")):
        remove_leftovers(output)  # as large as the index
        try:
            engine = _fill(work, parts, facts, on_progress)
            facts |= _measure(engine, parts, facts)
        except ValueError as error:
            raise DataError(f"{folder}: {error}") from error
        _write(output, engine, facts)
        shutil.rmtree(work)
    return facts


def _fill(
    work: Path, parts: FeatureParts, facts: dict[str, Any], on_progress: Callable[[float], None]
) -> Any:
    """Return the filled index: the blocks in the work folder, and those that are still missing."""
    import faiss

    settings, rows = work / "settings.json", len(parts.features)
    if settings.exists() and json.loads(settings.read_text()) != facts:
        log.warning(f"{work} was started with other features or settings. Starting over.")
        for path in work.iterdir():
            if path.name != ".lock":
                path.unlink()
    with atomic_write(settings) as partial:
        partial.write_text(json.dumps(facts))
    trained = work / "trained"
    if not trained.exists():
        engine: Any = faiss.index_factory(facts["feature_dim"], facts["factory"], faiss.METRIC_INNER_PRODUCT)
        for clustering in [engine.cp] + ([engine.pq.cp] if ",PQ" in facts["factory"] else []):
            clustering.min_points_per_centroid = 1  # no warnings for small sets: the recall is measured
        sample, _ = _split(rows, engine.nlist, facts["seed"])
        engine.train(unit_rows(parts.features[sample]))
        _save(trained, engine)
    complete = faiss.read_index(str(trained))
    for start in range(0, rows, BLOCK):
        block, end = work / f"rows-{start:012d}", min(start + BLOCK, rows)
        if not block.exists():
            engine = faiss.read_index(str(trained))
            engine.add_with_ids(unit_rows(parts.features[start:end]), np.arange(start, end))
            _save(block, engine)
        complete.merge_from(faiss.read_index(str(block)), 0)
        on_progress(end / rows)
    return complete


def _save(path: Path, engine: Any) -> None:
    with atomic_write(path) as partial:
        _write_engine(engine, partial)


def _write_engine(engine: Any, path: Path) -> None:
    """Write an index; FAISS raises a RuntimeError for a full disk, which ends in the system's words in parentheses."""
    import faiss

    try:
        faiss.write_index(engine, str(path))
    except RuntimeError as error:
        raise OSError(str(error).rpartition("(")[2].rstrip(") \n")) from error


def _write(output: Path, engine: Any, facts: dict[str, Any]) -> None:
    with atomic_writes(output, companion(output, ".json")) as (index, text):
        _write_engine(engine, index)
        facts["bytes"] = index.stat().st_size
        text.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        companion(output, ".json").unlink(missing_ok=True)  # so that old facts never meet a new index


def _split(rows: int, lists: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on, sorted, and the held-out rows to ask for."""
    asked = min(QUERIES, max(100, 10**9 // rows), rows // 2)
    order = np.random.default_rng(seed).choice(
        rows, min(rows, asked + max(SAMPLES * lists, 10_000)), replace=False
    )
    return np.sort(order[asked:]), np.sort(order[:asked])


def _measure(engine: Any, parts: FeatureParts, facts: dict[str, Any]) -> dict[str, Any]:
    """Return how to search so that the recall is RECALL, the recall, and the number of queries it was measured with.

    Half of the loss is allowed to neighbors in lists that are not searched, the rest to the vectors' rounding.
    """
    _, asked = _split(len(parts.features), engine.nlist, facts["seed"])
    features = cast(np.ndarray, parts.features)
    queries, k = features[asked], min(K, len(features) - 1)
    exact = find_neighbors(features, queries, k=k + 1).without(asked)
    order = engine.quantizer.search(unit_rows(queries), engine.nlist)[1]  # lists, the nearest first
    lists = engine.quantizer.search(unit_rows(features[np.ravel(exact.indices)]), 1)[1].reshape(-1, k)
    ranks = np.take_along_axis(np.argsort(order, axis=1), lists, axis=1)
    probes = 1 + int(np.quantile(ranks, (1 + RECALL) / 2, method="higher"))
    candidates = RERANKED if ",PQ" in facts["factory"] else K
    while True:
        found_by: dict[str, Any] = {"probes": probes, "candidates": candidates}
        index = SearchIndex(Path(), facts | found_by, parts, engine)
        found = index.neighbors(queries, k=k + 1).without(asked)
        # By cosine: of exact copies, any may be found.
        recall = np.mean(found.cosines >= exact.cosines[:, -1:] - 1e-6)
        if recall >= RECALL or candidates >= min(MOST_RERANKED, len(features)):
            return found_by | {"recall_at_10": float(recall), "recall_queries": len(asked)}
        candidates *= 2
