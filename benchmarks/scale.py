"""What images cost as their number grows: start, memory, rate and disk of what this project does with many of them.

    python -m benchmarks.scale DIR --images 1000000 --rows files,folder,shard,shards,vectors,index,codes

Each row runs in a process of its own and prints one line of JSON. What it makes stays in DIR for the rows after it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import documented_parser

WIDTH, CLUSTERS, PARTS = 512, 2_000, 4
_MEMORY = {"index": 8 * 2**30, "codes": 2**28}  # largest size of the index, bytes


def _peak() -> float:
    """Return the largest resident memory of this process, MiB. `getrusage` counts that of its parent."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


# === Features and search ===


def vectors(folder: Path, images: int) -> dict[str, Any]:
    """Write features as a network with a ReLU has them: clusters, of few effective dimensions, with a common mean."""
    from evaluate.feature_parts import Part, write_part

    generator, parts = np.random.default_rng(0), folder / "vectors"
    parts.mkdir(parents=True, exist_ok=True)
    scales = np.arange(1, WIDTH + 1) ** -0.5
    rotation = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0]
    mix = (scales[:, None] * rotation).astype(np.float32)
    centers = generator.normal(size=(CLUSTERS, WIDTH)).astype(np.float32) @ mix
    facts: dict[str, Any] = {
        "model": {"path": "synthetic", "weights_sha256": "0" * 64}, "view": {}, "class_names": [],
        "source": {"kind": "images", "path": str(folder), "images": images, "split": None},
        "feature_dim": WIDTH, "batch_size": 1024, "parts": PARTS, "unreadable": 0,
    }  # fmt: skip
    (parts / "features.json").write_text(json.dumps(facts))
    for number in range(1, PARTS + 1):
        part = Part(parts, number, PARTS)
        here = part.indices(images, 1024)
        found = np.empty((len(here), WIDTH), np.float32)
        for start in range(0, len(here), 65_536):
            block = found[start : start + 65_536]
            noise = generator.standard_normal(block.shape, np.float32) @ mix
            block[:] = centers[generator.integers(CLUSTERS, size=len(block))] + 0.7 * noise
        np.maximum(found + 0.1, 0, out=found)
        names = [f"{i // 1000:06d}/{i:09d}.jpg" for i in here]
        write_part(part, found, np.array(here), np.full(len(here), -1), names, facts)
    return {"bytes": sum(path.stat().st_size for path in parts.iterdir())}


def _index(folder: Path, name: str) -> dict[str, Any]:
    """Build an index, and ask it for single images in a new process."""
    from evaluate.search import build_index

    facts = build_index(folder / "vectors", folder / f"{name}.index", memory=_MEMORY[name])
    built = _peak()
    asked = subprocess.check_output(
        [sys.executable, "-m", "benchmarks.scale", str(folder), "--child", f"similar:{name}"]
    )
    kept = ("factory", "probes", "candidates", "bytes", "recall_at_10", "recall_queries")
    return {key: facts[key] for key in kept if key in facts} | {"build_peak_mib": built} | json.loads(asked)


def similar(folder: Path, name: str) -> dict[str, Any]:
    """Time the opening of an index and 200 queries, images of other clusters one after the other."""
    import faiss  # noqa: F401 -- its import does not count as opening
    import pyarrow.parquet  # noqa: F401

    from evaluate.search import open_index

    generator, path = np.random.default_rng(1), folder / f"{name}.index"
    opening = _milliseconds(lambda: open_index(path))
    index = open_index(path)
    rows = generator.integers(len(index), size=200)
    queries = index.features[rows] + 0.05 * generator.standard_normal((200, WIDTH), np.float32)
    cold = [_milliseconds(lambda query=query: index.neighbors(query[None], k=10)) for query in queries]
    warm = [_milliseconds(lambda query=query: index.neighbors(query[None], k=10)) for query in queries]
    found = index.neighbors(queries, k=10).indices
    names = [_milliseconds(lambda ten=ten: [index.entry(row) for row in ten]) for ten in found.tolist()]
    return {
        "open_ms": opening, "query_cold_ms": statistics.median(cold), "query_ms": statistics.median(warm),
        "query_p95_ms": statistics.quantiles(warm, n=20)[-1], "names_ms": statistics.median(names),
        "query_private_mib": _private() / 2**20,
    }  # fmt: skip


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


# === Images ===


def files(folder: Path, images: int) -> dict[str, Any]:
    """Write small JPEG files, a thousand in each folder, with names as ImageNet has them."""
    import cv2

    generator = np.random.default_rng(0)
    encoded = [
        cv2.imencode(".jpg", generator.integers(0, 256, (16, 16, 3), np.uint8))[1].tobytes()
        for _ in range(100)
    ]
    for i in range(images):
        path = folder / "files" / f"n{i // 1000:08d}" / f"n{i // 1000:08d}_{i % 1000:05d}.JPEG"
        if i % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[i % 100])
    return {"bytes": sum(map(len, encoded)) * images // 100}


def _crops(path: Path) -> dict[str, Any]:
    """Open images as pretraining does, and read from two epochs; return seconds, and bytes of memory an image."""
    from swav_tf.data.order import CropsByPosition
    from swav_tf.data.sources import fingerprint, open_source
    from swav_tf.recipe.data import Data
    from swav_tf.recipe.files import load_recipe

    recipe = load_recipe("photos", ())
    before, start = _private(), time.perf_counter()
    source = open_source(Data(kind="auto", path=str(path)))
    opened = time.perf_counter()
    fingerprint(source)
    named = time.perf_counter()
    crops = CropsByPosition(recipe, source, images_per_epoch=len(source))
    for epoch in (0, 1):
        crops.at(epoch * len(source))
    ordered = time.perf_counter()
    return {
        "open_s": opened - start, "names_s": named - opened, "orders_s": ordered - named,
        "bytes_an_image": (_private() - before) / len(source), "peak_mib": _peak(),
    }  # fmt: skip


def _private() -> int:
    """Return the bytes of memory that are this process's own, without files that are mapped."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def shard(folder: Path, images: int) -> dict[str, Any]:
    """Pack the files; return the rate and the memory that it adds for each image."""
    import tensorflow  # noqa: F401 -- its memory is the same for any number of images

    from swav_tf.data.folders import ClassFolders
    from swav_tf.data.sharding import write_shards

    before, start = _peak(), time.perf_counter()
    packed = write_shards(ClassFolders(folder / "files"), folder / "shards", shards=16, fresh=True)
    seconds = time.perf_counter() - start
    return {
        "images_per_s": images / seconds, "bytes_an_image": (_peak() - before) * 2**20 / images,
        "bytes": sum(shard.bytes for shard in packed.index.shards),
        "index_bytes": sum(path.stat().st_size for path in (folder / "shards").glob("index.*")),
    }  # fmt: skip


ROWS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "files": files,
    "folder": lambda folder, images: _crops(folder / "files"),
    "shard": shard,
    "shards": lambda folder, images: _crops(folder / "shards"),
    "vectors": vectors,
    "index": lambda folder, images: _index(folder, "index"),
    "codes": lambda folder, images: _index(folder, "codes"),
    "similar:index": lambda folder, images: similar(folder, "index"),
    "similar:codes": lambda folder, images: similar(folder, "codes"),
}


def main() -> None:
    parser = documented_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument(
        "--rows", default="files,folder,shard,shards,vectors,index,codes", help=f"of {', '.join(ROWS)}"
    )
    parser.add_argument("--child", help="row to measure in this process")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(ROWS[options.child](options.folder, options.images)))
        return
    for row in options.rows.split(","):
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            str(options.folder),
            "--images",
            str(options.images),
        ]
        start = time.perf_counter()
        found = json.loads(subprocess.check_output([*command, "--child", row]).splitlines()[-1])
        seconds, load = time.perf_counter() - start, os.getloadavg()[0]
        print(
            json.dumps({"row": row, "images": options.images, "seconds": seconds, "load": load} | found),
            flush=True,
        )


if __name__ == "__main__":
    main()
