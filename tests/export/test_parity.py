"""The figures of a comparison and the gates: oracles in plain NumPy."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export.parity import GATES, compare, drop_by_chance, right_by_others, run_all
from export.reference import Reference
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.data import EvaluationView

N = 60


@pytest.fixture
def reference():
    """Three classes that k-NN separates; the last ten images are random pixels."""
    draw = np.random.default_rng(0)
    labels = np.arange(N) % 3
    labels[-10:] = -1
    features = np.eye(3)[np.arange(N) % 3].repeat(4, axis=1) + draw.normal(0, 0.3, (N, 12))
    return Reference(
        images=np.zeros((N, 8, 8, 3), np.uint8),
        labels=labels,
        real=np.arange(N) < 50,
        outputs={
            "features": features.astype(np.float32),
            "scores": draw.normal(size=(N, 5)).astype(np.float32),
        },
        weights_sha256="a" * 64,
        view=EvaluationView(resize=8, crop=8),
        facts={},
    )


def like(reference, **changes):
    return {name: values.copy() for name, values in reference.outputs.items()} | changes


# Bugs caught: a gate or a figure that fails on equal features; k-NN of images without labels.
def test_equal_outputs(reference):
    for gate in GATES.values():
        parity = compare(reference, like(reference), gate=gate)
        assert parity.passed
        assert parity.relative_error == {"features": 0, "scores": 0}
        assert (parity.neighbour_overlap, parity.cluster_agreement, parity.knn_drop_points) == (1, 1, 0)
        assert parity.cosine_min == pytest.approx(1)
        assert parity.knn_images == 50


# Bugs caught: a cosine over all images at once, an overlap that counts the image itself, random pixels in int8.
def test_figures(reference):
    draw = np.random.default_rng(1)
    features = reference.outputs["features"] + draw.normal(0, 0.1, (N, 12)).astype(np.float32)
    parity = compare(reference, like(reference, features=features), gate=GATES["int8"])
    a, b = features[:50].astype(float), reference.outputs["features"][:50].astype(float)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (parity.images, parity.real_images) == (50, 50)
    assert parity.cosine_min == pytest.approx(cosines.min())
    assert parity.cosine_median == pytest.approx(np.median(cosines))
    assert parity.relative_error["features"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))

    def nearest(x):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        similar = unit @ unit.T - 10 * np.eye(len(x))
        return np.argsort(-similar, axis=1)[:, :10]

    shared = [len(set(x) & set(y)) / 10 for x, y in zip(nearest(a), nearest(b), strict=True)]
    assert 0.3 < np.mean(shared) < 0.99
    assert parity.neighbour_overlap == pytest.approx(np.mean(shared))


# Bug caught: more than all neighbors kept, where many images are equal.
def test_the_overlap_of_equal_images(reference):
    features = reference.outputs["features"].copy()
    features[: N // 2] = features[0]
    same = replace(reference, outputs={"features": features}, labels=np.full(N, -1))
    assert compare(same, same.outputs, gate=GATES["fp32"]).neighbour_overlap == 1


# Bug caught: a gate that lets through what it must refuse.
@pytest.mark.parametrize(
    ("precision", "passing", "failing"), [("fp32", 1e-6, 1e-4), ("fp16", 1e-3, 3e-2), ("int8", 3e-2, 0.3)]
)
def test_gates(reference, precision, passing, failing):
    for noise in (passing, failing):
        draw = np.random.default_rng(2).normal(0, noise, (N, 12)).astype(np.float32)
        outputs = like(reference, features=reference.outputs["features"] + draw)
        assert compare(reference, outputs, gate=GATES[precision]).passed is (noise == passing)


# Bug caught: features within the cosine gate whose neighbors are of other classes.
def test_the_knn_gate(reference):
    spoilt = reference.outputs["features"].copy()
    spoilt[:50] = spoilt[:50].mean(axis=0) + 0.05 * spoilt[:50][np.random.default_rng(0).permutation(50)]
    near = replace(reference, outputs={"features": reference.outputs["features"] + 30})
    parity = compare(near, {"features": spoilt + 30}, gate=GATES["int8"])
    assert parity.cosine_min > 0.99
    assert parity.knn_drop_points > 20
    assert any("drop of the k-NN accuracy in points" in failure for failure in parity.failures)


# Bug caught: an export refused for two images of 256, a difference that the next 256 images would not show.
def test_sampling_error_of_the_knn_gate(reference):
    features = reference.outputs["features"]

    def spoiled(count):
        other = features.copy()  # the first images look like one of the next class
        other[:count] = features[1 : count + 1]
        return compare(reference, like(reference, features=other), gate=GATES["int8"])

    few, many = spoiled(2), spoiled(12)
    assert few.knn_drop_points > 0.5
    assert few.knn_p_value > 0.05 > many.knn_p_value
    named = [any("k-NN" in failure for failure in parity.failures) for parity in (few, many)]
    assert named == [False, True]


# Bugs caught: a two-sided test, ties that count, a tail without its end.
@pytest.mark.parametrize(
    ("lost", "won", "chance"), [(0, 0, 1), (2, 0, 1 / 4), (5, 0, 1 / 32), (3, 1, 5 / 16)]
)
def test_a_drop_by_chance(lost, won, chance):
    assert drop_by_chance(lost=lost, won=won) == chance


# Bugs caught: a probe fitted on the images that it is tested on, on the artifact's own features, or on images whose
# classes are not those of the test; figures from two images a class.
def test_the_probe(reference):
    # More features than images: all can be learned by heart.
    noise = np.random.default_rng(3).normal(size=(50, 200)).astype(np.float32)
    unrelated = replace(reference, outputs={"features": np.vstack([noise, noise[:10]])})
    parity = compare(unrelated, unrelated.outputs, gate=GATES["fp32"])
    assert parity.probe_images == 25
    assert parity.probe == parity.probe_reference < 0.7

    parity = compare(reference, like(reference), gate=GATES["int8"])
    assert (parity.probe_images, parity.probe_drop_points) == (25, 0)
    assert parity.probe_reference > 0.9
    swapped = reference.outputs["features"].copy()
    swapped[:, :8] = np.roll(
        swapped[:, :8], 4, axis=1
    )  # class 0 looks like class 1: a new probe would not mind
    changed = compare(reference, like(reference, features=swapped), gate=GATES["int8"])
    assert changed.probe_reference == parity.probe_reference
    assert changed.probe == pytest.approx(np.mean(np.arange(50) % 3 == 2), abs=0.15)
    drop = 100 * (changed.probe_reference - changed.probe)
    assert changed.as_dict()["probe_drop_points"] == pytest.approx(drop)

    few = replace(reference, labels=np.where(reference.real, np.arange(N) % 12, -1))
    parity = compare(few, few.outputs, gate=GATES["fp32"])
    assert (parity.probe_images, parity.probe, parity.probe_drop_points) == (0, None, None)


# Bugs caught: outputs that mean nothing and still pass.
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda outputs: outputs.pop("scores"), "output `scores` is missing"),
        (lambda outputs: outputs["features"].fill(3), "`features` is the same for every image"),
        (lambda outputs: outputs["features"].fill(0), "`features` is the same for every image"),
        (lambda outputs: outputs["scores"].__setitem__((3, 2), np.nan), "`scores` is not finite"),
        (lambda outputs: outputs.__setitem__("features", outputs["features"][:-1]), "must have shape"),
    ],
)
def test_useless_outputs(reference, spoil, message):
    outputs = like(reference)
    spoil(outputs)
    for gate in GATES.values():
        [failure] = compare(reference, outputs, gate=gate).failures
        assert message in failure


# Bug caught: a damaged reference that ended `verify` with an unexpected error.
def test_a_reference_that_is_not_finite(reference):
    outputs = like(reference)
    reference.outputs["features"][3, 2] = np.nan
    for gate in GATES.values():
        [failure] = compare(reference, outputs, gate=gate).failures
        assert failure == "the reference's output `features` is not finite: export again"


# Bug caught: a proof by no image or one.
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(reference, count):
    few = {name: values[:count] for name, values in reference.outputs.items()}
    images, labels, real = reference.images[:count], reference.labels[:count], reference.real[:count]
    small = replace(reference, images=images, labels=labels, real=real, outputs=few)
    parity = compare(small, few, gate=GATES["fp32"])
    assert any("at least 2 images" in failure for failure in parity.failures)


# Bug caught: an image that votes for itself, also where two are equal.
def test_right_by_others():
    features = np.repeat(np.random.default_rng(0).normal(size=(10, 6)), 2, axis=0)
    assert not right_by_others(features[:2], np.array([0, 1])).any()
    assert right_by_others(features[:2], np.array([1, 1])).all()
    draw = np.random.default_rng(1)
    labels, x = draw.integers(0, 3, 50), draw.normal(size=(50, 4))
    x += 1.0 * np.eye(4)[labels]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    right = []
    for i in range(50):
        cosines = unit @ unit[i]
        others = [j for j in np.argsort(-cosines) if j != i][:20]
        votes = np.bincount(labels[others], np.exp(cosines[others] / 0.07), minlength=3)
        right.append(votes.argmax() == labels[i])
    assert 0.3 < np.mean(right) < 1
    assert right_by_others(x, labels).tolist() == right


# Bug caught: an altered graph whose output shape depends on the batch ended `verify` with an unexpected error.
def test_a_shape_that_depends_on_the_batch():
    backend = SimpleNamespace(run=lambda images: {"features": np.zeros((len(images), len(images)))})
    with pytest.raises(DataError, match="one row for each image in every batch"):
        run_all(backend, np.zeros((5, 8, 8, 3), np.uint8), batch_size=3)


# Bugs caught: logits of other classes or random pixels counted; a limit that was not measured and is not named.
def test_logits_and_the_limits_that_were_applied(reference):
    logits = np.eye(3, dtype=np.float32)[np.arange(N) % 3]
    one_wrong = logits.copy()
    one_wrong[[0, 55]] = one_wrong[[1, 56]]  # the second is of random pixels
    both = replace(
        reference, outputs=reference.outputs | {"logits": logits}, facts={"labels_of_logits": True}
    )
    parity = compare(both, like(both, logits=one_wrong), gate=GATES["int8"])
    assert (parity.logits_images, parity.logits_reference, parity.logits) == (50, 1, 0.98)
    assert parity.logits_drop_points == pytest.approx(2)
    assert (len(parity.gates), parity.gates_not_applied) == (4, ())
    assert compare(replace(both, facts={}), like(both), gate=GATES["int8"]).logits is None

    unlabeled = replace(reference, labels=np.full(N, -1))
    parity = compare(unlabeled, like(unlabeled), gate=GATES["int8"])
    assert len(parity.gates) == 3
    assert "k-NN" in parity.gates_not_applied[0]


# Bug caught: noise passes that a common offset hides from the plain cosine.
def test_an_offset_does_not_hide_noise(reference):
    noise = np.random.default_rng(4).normal(0, 0.3, (N, 12)).astype(np.float32)
    shifted = replace(
        reference, outputs={"features": reference.outputs["features"] + 30}, labels=np.full(N, -1)
    )
    parity = compare(shifted, {"features": shifted.outputs["features"] + noise}, gate=GATES["int8"])
    assert parity.cosine_min > 0.999
    assert any("centered" in failure and "but is 0." in failure for failure in parity.failures)
    assert any("nearest" in failure for failure in parity.failures)
