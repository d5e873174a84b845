"""Did the features survive? An artifact's outputs against Keras' in float32, with a gate for each precision.

No TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from evaluate.backends.backend import Backend
from evaluate.backends.onnx_metadata import Precision
from evaluate.linear import fit_ridge
from export.reference import Reference
from swav_tf.knn import find_neighbours, vote

OVERLAP: Final = 10  # nearest images that are looked at
KNN: Final = 20
KNN_TEMPERATURE: Final = 0.07
PROBE_IMAGES: Final = 10  # a class, on average, below which a probe says nothing
CONSTANT: Final = (
    1e-6  # share of the length that differs from image to image, below which outputs are constant
)


@dataclass(frozen=True)
class Gate:
    """What a precision must keep to; None: not asked.

    Attributes:
        relative_error: greatest L2 norm of the difference over that of the reference, of each output.
        cosine: least cosine of an image's features with the reference's.
        knn_drop_points: greatest loss of k-NN accuracy, percentage points.
        random_images: whether images of random pixels must keep to it too.
    """

    relative_error: float | None
    cosine: float | None
    knn_drop_points: float | None
    random_images: bool


GATES: Final[Mapping[Precision, Gate]] = {
    "fp32": Gate(relative_error=1e-5, cosine=None, knn_drop_points=None, random_images=True),
    "fp16": Gate(relative_error=None, cosine=0.9999, knn_drop_points=None, random_images=True),
    # Calibrated on real images: random pixels lie outside of its ranges by design.
    "int8": Gate(relative_error=None, cosine=0.99, knn_drop_points=0.5, random_images=False),
}


@dataclass(frozen=True)
class Parity:
    """What was found.

    Attributes:
        images: that were compared.
        real_images: those of them that are no random pixels.
        relative_error: by output; L2 norm of the difference over that of the reference, over all images.
        cosine_min: least cosine of an image's features with the reference's.
        cosine_median: likewise.
        neighbour_overlap: share (0 to 1) of the 10 nearest images that are the same; None for too few images.
        cluster_agreement: share of images with the same prototype; None without scores.
        knn_images: labelled images that the k-NN is of; 0: none, and so no k-NN.
        knn_reference: k-NN top-1 (0 to 1) of the reference, each image classified by the others.
        knn: the same of the artifact.
        class_agreement: share of images with the same most probable class; None without logits.
        probe_images: labelled images that the probe is tested on; 0: too few of them, and so no probe.
        probe_reference: top-1 (0 to 1) of a linear classifier fitted on the reference's features of the other half
            of the labelled images.
        probe: top-1 of that same classifier on the artifact's features.
        failures: what is not as it must be; empty: passed.
    """

    images: int
    real_images: int
    relative_error: dict[str, float] = field(default_factory=dict)
    cosine_min: float | None = None
    cosine_median: float | None = None
    neighbour_overlap: float | None = None
    cluster_agreement: float | None = None
    knn_images: int = 0
    knn_reference: float | None = None
    knn: float | None = None
    class_agreement: float | None = None
    probe_images: int = 0
    probe_reference: float | None = None
    probe: float | None = None
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all is as it must be."""
        return not self.failures

    @property
    def knn_drop_points(self) -> float | None:
        """Loss of k-NN accuracy, percentage points."""
        return _drop_points(self.knn_reference, self.knn)

    @property
    def probe_drop_points(self) -> float | None:
        """Loss of the probe's accuracy, percentage points."""
        return _drop_points(self.probe_reference, self.probe)

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            **asdict(self),
            "knn_drop_points": self.knn_drop_points,
            "probe_drop_points": self.probe_drop_points,
            "passed": self.passed,
        }


def _drop_points(reference: float | None, artifact: float | None) -> float | None:
    return None if reference is None or artifact is None else 100 * (reference - artifact)


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of labelled images by the reference and by the artifact, for k-NN and probe.

    Attributes:
        labels: (n,), all >= 0.
        reference: (n, F).
        artifact: (n, F).
    """

    labels: np.ndarray
    reference: np.ndarray
    artifact: np.ndarray


def run_all(runner: Backend, images: np.ndarray, *, batch_size: int = 32) -> dict[str, np.ndarray]:
    """All outputs of a runner for uint8 images (n, crop, crop, 3), a batch at a time."""
    parts = [runner.run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(
    reference: Reference,
    outputs: Mapping[str, np.ndarray],
    *,
    gate: Gate,
    labelled: LabelledFeatures | None = None,
) -> Parity:
    """Holds an artifact's outputs against the reference's.

    Args:
        reference: images and Keras' outputs.
        outputs: the artifact's for the same images, by name.
        gate: what they must keep to.
        labelled: features for k-NN and probe; None: of the reference's real images, where all of them have labels.
    """
    counted = (
        reference.real
        if not gate.random_images and reference.real.any()
        else np.full_like(reference.real, True)
    )
    images, real_images = int(counted.sum()), int(reference.real[counted].sum())
    if images < 2:
        failure = f"at least 2 images must be compared, but there are {images}"
        return Parity(images, real_images, failures=(failure,))
    if failures := _unusable(reference, outputs):
        return Parity(images, real_images, failures=tuple(failures))
    ours = {name: np.asarray(outputs[name], np.float64)[counted] for name in reference.outputs}
    theirs = {name: np.asarray(values, np.float64)[counted] for name, values in reference.outputs.items()}
    cosines = _cosines(ours["features"], theirs["features"])
    if labelled is None:
        labelled = _own_labelled(reference, outputs)
    parity = Parity(
        images=images,
        real_images=real_images,
        relative_error={
            name: float(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]))
            for name in theirs
        },
        cosine_min=float(cosines.min()),
        cosine_median=float(np.median(cosines)),
        neighbour_overlap=_overlap(ours["features"], theirs["features"]) if images > OVERLAP else None,
        cluster_agreement=_agreement(ours, theirs, "scores"),
        class_agreement=_agreement(ours, theirs, "logits"),
        knn_images=0 if labelled is None else len(labelled.labels),
        knn_reference=None if labelled is None else leave_one_out(labelled.reference, labelled.labels),
        knn=None if labelled is None else leave_one_out(labelled.artifact, labelled.labels),
    )
    probe = _probe(labelled) if labelled is not None else {}
    return Parity(**{**vars(parity), **probe, "failures": tuple(_beyond(parity, gate))})


def _probe(labelled: LabelledFeatures) -> dict[str, Any]:
    """A linear classifier on half of the images, each class halved; nothing where a class has too few."""
    classes, labels = np.unique(labelled.labels, return_inverse=True)
    if len(classes) < 2 or len(labels) < PROBE_IMAGES * len(classes):
        return {}
    mixed = np.random.default_rng(0).permutation(len(labels))
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    fitted, tested = by_class[::2], by_class[1::2]
    classifier = fit_ridge(labelled.reference[fitted], labels[fitted])
    return {
        "probe_images": len(tested),
        "probe_reference": classifier.accuracy(labelled.reference[tested], labels[tested]),
        "probe": classifier.accuracy(labelled.artifact[tested], labels[tested]),
    }


def _agreement(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], name: str) -> float | None:
    """Share of images whose greatest value is at the same place."""
    if name not in theirs:
        return None
    return float(np.mean(ours[name].argmax(axis=1) == theirs[name].argmax(axis=1)))


def leave_one_out(features: np.ndarray, labels: np.ndarray) -> float:
    """Share (0 to 1) of images that the others' k-NN classifies rightly."""
    k = min(KNN, len(features) - 1)
    found = find_neighbours(features, features, k=k + 1)
    # Not always the first: of equal images any may be.
    others = found.indices != np.arange(len(features))[:, np.newaxis]
    others[others.all(axis=1), -1] = False
    near = found.indices[others].reshape(-1, k)
    cosines = found.cosines[others].reshape(-1, k)
    votes = vote(cosines, labels[near], classes=int(labels.max()) + 1, temperature=KNN_TEMPERATURE)
    return float(np.mean(votes.argmax(axis=1) == labels))


def _unusable(reference: Reference, outputs: Mapping[str, np.ndarray]) -> Sequence[str]:
    """What makes figures meaningless."""
    failures = []
    for name, wanted in reference.outputs.items():
        if name not in outputs:
            failures.append(f"output `{name}` is missing")
            continue
        values = outputs[name]
        if values.shape != wanted.shape:
            failures.append(f"output `{name}` must have shape {wanted.shape}, but has {values.shape}")
        elif not np.isfinite(values).all():
            failures.append(f"output `{name}` is not finite")
        elif np.linalg.norm(values - values.mean(axis=0)) <= CONSTANT * np.linalg.norm(values):
            failures.append(f"output `{name}` is the same for every image")
    return failures


def _beyond(parity: Parity, gate: Gate) -> Sequence[str]:
    failures = []
    for name, error in parity.relative_error.items():
        if gate.relative_error is not None and not error <= gate.relative_error:
            failures.append(
                f"relative error of `{name}` must be <= {gate.relative_error:g}, but is {error:.3g}"
            )
    if gate.cosine is not None and parity.cosine_min is not None and not parity.cosine_min >= gate.cosine:
        failures.append(
            f"cosine of every image must be >= {gate.cosine:g}, but the least is {parity.cosine_min:.6f}"
        )
    drop = parity.knn_drop_points
    if gate.knn_drop_points is not None and drop is not None and not drop <= gate.knn_drop_points:
        failures.append(f"k-NN accuracy may drop by {gate.knn_drop_points:g} points, but drops by {drop:.2f}")
    return failures


def _own_labelled(reference: Reference, outputs: Mapping[str, np.ndarray]) -> LabelledFeatures | None:
    real = reference.real
    if real.sum() < 2 or (reference.labels[real] < 0).any():
        return None
    return LabelledFeatures(
        reference.labels[real], reference.outputs["features"][real], np.asarray(outputs["features"])[real]
    )


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return cosines


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean share of the nearest images that both find; each image finds itself, which is left out."""
    near = [find_neighbours(features, features, k=OVERLAP + 1).indices for features in (a, b)]
    shared = [
        len((set(x) & set(y)) - {row}) for row, (x, y) in enumerate(zip(*map(_lists, near), strict=True))
    ]
    return float(np.mean(shared)) / OVERLAP


def _lists(rows: np.ndarray) -> list[list[int]]:
    found: list[list[int]] = rows.tolist()
    return found
