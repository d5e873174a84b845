"""Compare an exported file's outputs with Keras' in float32, with a gate for each precision."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.backends.checksums import CHECKSUMS, Checksum
from evaluate.backends.onnx_metadata import Precision
from evaluate.linear import fit_ridge
from export.reference import Reference
from swav_tf.knn import find_neighbors, vote
from swav_tf.plumbing.errors import DataError

OVERLAP: Final = 10  # nearest images that are compared
KNN: Final = 20
KNN_TEMPERATURE: Final = 0.07
PROBE_IMAGES: Final = 10  # a class, on average, that a probe needs
CHANCE: Final = 0.05  # a drop of k-NN accuracy that is at least as likely by chance fails no gate
CONSTANT: Final = 1e-6  # outputs are constant if their differences are a smaller share of their length


@dataclass(frozen=True)
class Gate:
    """The limits of a precision; None: no limit."""

    relative_error: float | None = None  # of each output
    cosine: float | None = None  # smallest, of an image's features with the reference's
    knn_drop_points: float | None = None  # percentage points, beyond sampling error
    centered_cosine: float | None = None  # median over images, after the reference's mean is subtracted
    centered_cosine_min: float | None = None  # the same, of every image
    neighbor_overlap: float | None = None  # share of the 10 nearest images that are the same
    random_images: bool = True  # whether it applies to images of random pixels too


GATES: Final[Mapping[Precision | Literal["bf16"], Gate]] = {
    "fp32": Gate(relative_error=1e-5),
    "fp16": Gate(cosine=0.9999),
    # A float32 file in OpenVINO, on a CPU that computes in bfloat16.
    "bf16": Gate(cosine=0.999, centered_cosine=0.995, neighbor_overlap=0.95, random_images=False),
    # It is calibrated on real images: random pixels are outside of its ranges by design.
    # docs/export.md, "The gates", has the measurements behind the limits.
    "int8": Gate(
        knn_drop_points=0.5,
        centered_cosine=0.98,
        centered_cosine_min=0.9,
        neighbor_overlap=0.9,
        random_images=False,
    ),
}


@dataclass(frozen=True)
class Parity:
    """The result of a comparison; its fields are the keys of parity.json."""

    images: int  # compared
    real_images: int  # those that are not random pixels
    runner: str | None = None  # that computed the file's outputs: "onnxruntime cpu", "openvino", ...
    # By output: L2 norm of the difference over that of the reference, over all images.
    relative_error: dict[str, float] = field(default_factory=dict)
    cosine_min: float | None = None  # of an image's features with the reference's
    cosine_median: float | None = None
    # The same after the mean of the reference's features is subtracted from both: pooled features are all alike.
    centered_cosine_min: float | None = None
    centered_cosine_median: float | None = None
    neighbour_overlap: float | None = None  # share of the 10 nearest images that are the same
    cluster_agreement: float | None = None  # share of images with the same prototype; None without scores
    # k-NN top-1 (0 to 1), each labeled image classified by the others: on the reference, on the file.
    knn_images: int = 0
    knn_reference: float | None = None
    knn: float | None = None
    knn_drop_points: float | None = None  # the difference in percentage points
    # McNemar's exact test, one-sided: the probability that as many of the images that only one of the two classifies
    # correctly are the reference's, if neither is better.
    knn_p_value: float | None = None
    class_agreement: float | None = None  # share of images with the same class; None without logits
    # Top-1 (0 to 1) of a linear classifier that is fitted on the reference's features of one half of the labeled
    # images, and tested on those of the other half: the reference's, the file's.
    probe_images: int = 0  # that it is tested on; 0: too few for a probe
    probe_reference: float | None = None
    probe: float | None = None
    probe_drop_points: float | None = None
    # Top-1 (0 to 1) of the logits themselves on the labeled images: the reference's, the file's.
    logits_images: int = 0
    logits_reference: float | None = None
    logits: float | None = None
    logits_drop_points: float | None = None
    gates: tuple[str, ...] = ()  # the limits that were applied
    gates_not_applied: tuple[str, ...] = ()  # and those that could not be, with the reason
    failures: tuple[str, ...] = ()  # the limits that are not met

    @property
    def passed(self) -> bool:
        """Return whether all limits are met."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {**asdict(self), "passed": self.passed}


class LabeledFeatures(NamedTuple):
    """Labels (n,) >= 0 of images, and their features (n, F) by the reference and by the file."""

    labels: np.ndarray
    reference: np.ndarray
    found: np.ndarray


def run_all(backend: Backend, images: np.ndarray, *, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Compute all outputs for uint8 images (n, crop, crop, 3), a batch at a time.

    Raises:
        DataError: an output's shape depends on the batch, as in a damaged graph.
    """
    parts = [backend.run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise DataError(
            f"Outputs must have one row for each image in every batch. Received: {error}."
        ) from error


def compare(
    reference: Reference,
    outputs: Mapping[str, np.ndarray],
    *,
    gate: Gate,
    labeled: LabeledFeatures | None = None,
    runner: str | None = None,
) -> Parity:
    """Compare a file's outputs for the reference's images with Keras'.

    k-NN and probe take the features in `labeled`, by default those of the reference's real images, if all of
    these have labels.
    """
    real = reference.real
    counted = real if real.any() and not gate.random_images else np.full_like(real, True)
    images, real_images = int(counted.sum()), int(real[counted].sum())
    if images < 2:
        failure = f"at least 2 images must be compared, but there are {images}"
        return Parity(images, real_images, failures=(failure,))
    if failures := _unusable(reference, outputs):
        return Parity(images, real_images, failures=tuple(failures))
    found = {name: np.asarray(outputs[name], np.float64)[counted] for name in reference.outputs}
    keras = {name: np.asarray(values, np.float64)[counted] for name, values in reference.outputs.items()}
    cosines = _cosines(found["features"], keras["features"])
    mean = keras["features"].mean(axis=0)
    centered = _cosines(found["features"] - mean, keras["features"] - mean)
    if labeled is None and real.sum() >= 2 and (reference.labels[real] >= 0).all():
        labeled = LabeledFeatures(
            reference.labels[real], reference.outputs["features"][real], np.asarray(outputs["features"])[real]
        )
    parity = Parity(
        images=images,
        real_images=real_images,
        runner=runner,
        relative_error={
            name: float(np.linalg.norm(found[name] - keras[name]) / np.linalg.norm(keras[name]))
            for name in keras
        },
        cosine_min=float(cosines.min()),
        cosine_median=float(np.median(cosines)),
        centered_cosine_min=float(centered.min()),
        centered_cosine_median=float(np.median(centered)),
        neighbour_overlap=_overlap(found["features"], keras["features"]) if images > OVERLAP else None,
        cluster_agreement=_agreement(found, keras, "scores"),
        class_agreement=_agreement(found, keras, "logits"),
        **_of_labeled(labeled),
        **_of_logits(reference, outputs),
    )
    return _with_verdict(parity, gate)


def _of_logits(reference: Reference, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the accuracy of the logits on the real images with labels, which number the classes of the logits."""
    counted = reference.real & (reference.labels >= 0)
    if "logits" not in reference.outputs or not counted.any() or not reference.facts.get("labels_of_logits"):
        return {}
    labels = reference.labels[counted]
    keras, found = (
        float(np.mean(each["logits"][counted].argmax(axis=1) == labels))
        for each in (reference.outputs, outputs)
    )
    return {"logits_images": len(labels), **_accuracies("logits", keras, found)}


def _of_labeled(labeled: LabeledFeatures | None) -> dict[str, Any]:
    """Return the figures of k-NN and of a probe; each class is halved for the probe."""
    if labeled is None:
        return {}
    reference, found = (
        right_by_others(features, labeled.labels) for features in (labeled.reference, labeled.found)
    )
    knn = {
        "knn_images": len(labeled.labels),
        **_accuracies("knn", float(np.mean(reference)), float(np.mean(found))),
        "knn_p_value": drop_by_chance(
            lost=int((reference & ~found).sum()), won=int((found & ~reference).sum())
        ),
    }
    classes, labels = np.unique(labeled.labels, return_inverse=True)
    if len(classes) < 2 or len(labels) < PROBE_IMAGES * len(classes):
        return knn
    mixed = np.random.default_rng(0).permutation(len(labels))
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    fitted, tested = by_class[::2], by_class[1::2]
    classifier = fit_ridge(labeled.reference[fitted], labels[fitted])
    scores = (classifier.score(each[tested], labels[tested]) for each in (labeled.reference, labeled.found))
    return {**knn, "probe_images": len(tested), **_accuracies("probe", *scores)}


def _accuracies(name: str, reference: float, found: float) -> dict[str, float]:
    return {f"{name}_reference": reference, name: found, f"{name}_drop_points": 100 * (reference - found)}


def _agreement(found: Mapping[str, np.ndarray], keras: Mapping[str, np.ndarray], name: str) -> float | None:
    """Return the share of images whose largest value is at the same place."""
    return None if name not in keras else float(np.mean(found[name].argmax(1) == keras[name].argmax(1)))


def drop_by_chance(*, lost: int, won: int) -> float:
    """Return the probability (0 to 1) of at least `lost` heads in `lost + won` tosses of a coin."""
    tosses = lost + won
    outcomes = sum(math.comb(tosses, heads) for heads in range(lost, tosses + 1))
    return float(outcomes / 2**tosses)


def right_by_others(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each image whether the k-NN of the others classifies it correctly, bool (n,)."""
    rows, classes = np.arange(len(features)), int(labels.max()) + 1
    found = find_neighbors(features, features, k=min(KNN + 1, len(features))).without(rows)
    votes = vote(found.cosines, labels[found.indices], classes=classes, temperature=KNN_TEMPERATURE)
    right: np.ndarray = votes.argmax(axis=1) == labels
    return right


def _unusable(reference: Reference, outputs: Mapping[str, np.ndarray]) -> Sequence[str]:
    """Return the reasons why figures would mean nothing."""
    failures = []
    for name, wanted in reference.outputs.items():
        if name not in outputs:
            failures.append(f"output `{name}` is missing")
            continue
        values = outputs[name]
        if values.shape != wanted.shape:
            failures.append(f"output `{name}` must have shape {wanted.shape}, but has {values.shape}")
        elif not np.isfinite(wanted).all():
            failures.append(f"the reference's output `{name}` is not finite: export again")
        elif not np.isfinite(values).all():
            failures.append(f"output `{name}` is not finite")
        elif np.linalg.norm(values - values.mean(axis=0)) <= CONSTANT * np.linalg.norm(values):
            failures.append(f"output `{name}` is the same for every image")
    return failures


def _with_verdict(parity: Parity, gate: Gate) -> Parity:
    """Return the figures with the limits of a gate that were applied, that could not be, and that are not met."""
    by_chance = parity.knn_p_value is not None and parity.knn_p_value >= CHANCE
    limits = [  # of what, limit, figure, what it needs to be measured
        ("cosine of every image", ">=", gate.cosine, parity.cosine_min, ""),
        ("median centered cosine", ">=", gate.centered_cosine, parity.centered_cosine_median, ""),
        ("centered cosine of every image", ">=", gate.centered_cosine_min, parity.centered_cosine_min, ""),
        (
            f"share of the {OVERLAP} nearest images kept",
            ">=",
            gate.neighbor_overlap,
            parity.neighbour_overlap,
            f"more than {OVERLAP} images",
        ),
        (
            "drop of the k-NN accuracy in points, beyond sampling error,",
            "<=",
            gate.knn_drop_points,
            0.0 if by_chance else parity.knn_drop_points,
            "labels of all images",
        ),
    ]
    for name, error in parity.relative_error.items():
        limits.append((f"relative error of `{name}`", "<=", gate.relative_error, error, ""))
    applied, not_applied, failures = [], [], []
    for what, comparison, limit, found, needs in limits:
        if limit is None:
            continue
        text = f"{what} must be {comparison} {limit:g}"
        if found is None:
            not_applied.append(f"{text}: it needs {needs}")
            continue
        applied.append(text)
        if not (found >= limit if comparison == ">=" else found <= limit):  # also if it is not a number
            failures.append(f"{text}, but is {found:.6g}")
    return replace(
        parity, gates=tuple(applied), gates_not_applied=tuple(not_applied), failures=tuple(failures)
    )


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return cosines


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean share of nearest other images that both have."""
    rows = np.arange(len(a))
    near, other = (find_neighbors(each, each, k=OVERLAP + 1).without(rows).indices for each in (a, b))
    shared = [len({*x} & {*y}) for x, y in zip(near.tolist(), other.tolist(), strict=True)]
    return float(np.mean(shared)) / OVERLAP


def parity_text(
    reference: Reference,
    results: Mapping[str, tuple[Precision | None, Parity]],
    checksums: Mapping[str, Checksum],
    earlier: Mapping[str, Any] | None = None,
) -> str:
    """Return the content of parity.json: figures, `earlier` ones of other files too, and checksums of ONNX files."""
    files = {
        **(earlier or {}),
        **{
            name: {"precision": precision, **parity.as_dict()}
            for name, (precision, parity) in results.items()
        },
    }
    document = {
        "passed": bool(results) and all(parity.passed for _, parity in results.values()),
        "reference": {
            "weights_sha256": reference.weights_sha256,
            "view": reference.view.model_dump(),
            "images": len(reference.images),
            **reference.facts,
        },
        "files": files,
        CHECKSUMS: {name: checksum.model_dump() for name, checksum in sorted(checksums.items())},
    }
    return json.dumps(document, indent=2) + "\n"
