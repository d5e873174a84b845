"""Compare exported files with the reference next to them, or any two files with each other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluate.backends.checksums import PARITY, check_unchanged, read_checksums
from evaluate.backends.engine_file import SUFFIXES
from evaluate.backends.onnx_backend import OnnxBackend
from evaluate.backends.onnx_metadata import Precision
from evaluate.backends.tensorrt_backend import TensorrtBackend
from evaluate.images import ImageSet
from export.parity import GATES, LabeledFeatures, Parity, compare, parity_text, run_all
from export.reference import REFERENCE, Reference, Views, draw_images, read_reference
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.log import log

Artifact = OnnxBackend | TensorrtBackend
Result = TypeVar("Result")


def find_artifacts(paths: Sequence[Path]) -> list[Path]:
    """Return the ONNX files and engines in folders and among files."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"File or folder not found: {path}. `verify` takes ONNX files, engines or their folder."
            )
        found += sorted([*path.glob("*.onnx"), *path.glob("*.plan")]) if path.is_dir() else [path]
    found = list(dict.fromkeys(found))
    if not found:
        raise UsageError(
            f"`verify` needs at least one ONNX file or engine. Received: none in {', '.join(map(str, paths))}."
        )
    folders = {path.resolve().parent for path in found}
    if len(folders) > 1:
        raise UsageError(
            "The files must be in one folder, next to their reference. Received: files in "
            f"{', '.join(sorted(map(str, folders)))}."
        )
    return found


def verify(
    artifacts: Sequence[Path],
    *,
    provider: str = "cpu",
    threads: int = 0,
    batch_size: int = 32,
    draw: Callable[[Artifact], Views] | None = None,
) -> tuple[dict[str, tuple[Precision | None, Parity]], str]:
    """Run files on the reference's images and write parity.json next to them; warn if it cannot be written.

    Args:
        artifacts: ONNX files and engines of one folder.
        provider: of ONNX Runtime, without fallback.
        threads: that compute one batch on a CPU; 0 for one per core.
        batch_size: images at once.
        draw: returns labeled images for the fp32 file among `artifacts`. They are used for k-NN and probe instead of
            the reference's, and the other files are compared with that one, unless it fails.

    Returns:
        Precision and figures by name of the file; the precision is None if the file cannot be opened. The content of
        parity.json, also with earlier results of other files that have not changed since.

    Raises:
        UsageError: the reference or provider does not exist, or `draw` lacks an fp32 file.
        DataError: the reference or parity.json is damaged.
    """
    folder = artifacts[0].parent
    reference, checksums = read_reference(folder / REFERENCE), read_checksums(folder)
    paths, found = {path.name: path for path in artifacts}, dict[str, Parity]()
    backends = _each(paths, lambda name: _open(paths[name], provider, threads), found)
    outputs = _each(
        backends,
        lambda name: run_all(_same_model(reference, backends[name]), reference.images, batch_size=batch_size),
        found,
    )
    working = {name: backends[name] for name in outputs}
    on_labeled = {} if draw is None else _labeled_features(working, draw, batch_size, found)
    for name in outputs.keys() - found.keys():
        backend = backends[name]
        found[name] = compare(
            reference, outputs[name], gate=GATES[backend.gate], labeled=on_labeled.get(name),
            runner=backend.facts.runner,
        )  # fmt: skip
        if isinstance(backend, OnnxBackend) and found[name].passed:
            checksums[name] = backend.checksum  # equal to a recorded one, or opening the file had failed
    results = {
        name: (backends[name].metadata.precision if name in backends else None, found[name]) for name in paths
    }
    text = parity_text(reference, results, checksums, _earlier(folder, checksums.keys() - results.keys()))
    try:
        with atomic_write(folder / PARITY) as partial:
            partial.write_text(text, encoding="utf-8")
    except DataError as error:  # models on a server are mounted read-only
        log.warning(f"The results are shown, but not kept: {error}")
    return results, text


def _earlier(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the results of files in parity.json, if these are as recorded there."""
    path, kept = folder / PARITY, {}
    recorded = json.loads(path.read_bytes()).get("files", {}) if path.is_file() else {}
    for name in names:
        # Changed since, removed, or not as this program writes it.
        with contextlib.suppress(DataError, LookupError, TypeError):
            check_unchanged(folder / name)
            kept[name] = {**recorded[name]}
    return kept


def _each(
    names: Iterable[str], work: Callable[[str], Result], failed: dict[str, Parity]
) -> dict[str, Result]:
    """Return the results of `work` for each file; those that raise DataError are added to `failed` instead."""
    done = {}
    for name in names:
        try:
            done[name] = work(name)
        except DataError as error:  # ONNX Runtime opens some graphs that it cannot compute
            failed[name] = Parity(0, 0, failures=(str(error),))
    return done


def compare_files(
    file: OnnxBackend, other: OnnxBackend, images: ImageSet, *, count: int, batch_size: int = 32
) -> Parity:
    """Compare the features of a file with those of another one, by the gate of the file's precision.

    The files may be third-party, and may prepare images differently. At most `count` images are drawn; if all have
    labels, k-NN is compared too.
    """
    bad_share = file.data.max_bad_share
    drawn, features = {}, {}
    for view in {file.input_view, other.input_view}:
        drawn[view], _ = draw_images(images, (count, 0), view, seed=0, max_bad_share=bad_share)
    for backend in (file, other):
        features[backend] = run_all(backend, drawn[backend.input_view].images, batch_size=batch_size)[
            "features"
        ]
    views = drawn[other.input_view]
    reference = Reference(
        views.images, views.labels, np.ones(len(views.images), bool), {"features": features[other]},
        other.facts.weights_sha256, other.input_view, facts={},
    )  # fmt: skip
    return compare(reference, {"features": features[file]}, gate=GATES[file.gate])


def _open(path: Path, provider: str, threads: int) -> Artifact:
    """Open a file. An engine for another machine is one that fails, as a damaged file is."""
    if path.suffix not in SUFFIXES:
        return OnnxBackend(path, provider=provider, threads=threads)
    try:
        return TensorrtBackend(path)
    except UsageError as error:
        raise DataError(f"not run, features not compared: {error}") from error


def _labeled_features(
    backends: Mapping[str, Artifact],
    draw: Callable[[Artifact], Views],
    batch_size: int,
    failed: dict[str, Parity],
) -> dict[str, LabeledFeatures]:
    """Run files on the images that are drawn for the fp32 file; nothing if that one failed, or fails."""
    exact = next((name for name, file in backends.items() if file.metadata.precision == "fp32"), None)
    if exact is None:
        if failed:
            return {}
        raise UsageError(
            "--images compares the files with the fp32 file, which must be among them. Received: "
            f"{', '.join(backends)}."
        )
    views = draw(backends[exact])
    found = _each(
        backends,
        lambda name: run_all(backends[name], views.images, batch_size=batch_size)["features"],
        failed,
    )
    if exact not in found:
        return {}
    return {name: LabeledFeatures(views.labels, found[exact], own) for name, own in found.items()}


def _same_model(reference: Reference, backend: Artifact) -> Artifact:
    """Return a file of the reference's model; DataError if it is of another one, or for other images."""
    failures = []
    if backend.facts.weights_sha256 != reference.weights_sha256:
        failures.append(
            f"its weights are {backend.facts.weights_sha256[:12]}..., the reference's "
            f"{reference.weights_sha256[:12]}...: another model, or another step of the training"
        )
    if backend.input_view != reference.view:
        failures.append(f"its images are {backend.input_view}, the reference's {reference.view}")
    if failures:
        raise DataError("; ".join(failures))
    return backend
