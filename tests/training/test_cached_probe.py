import numpy as np
import pytest
from PIL import Image

from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.recipe.classifier import Cached, ProbeRecipe
from swav_tf.training import cached_probe, logistic
from swav_tf.training.cached_probe import probe_cached
from swav_tf.training.logistic import (
    best_penalty,
    choose_penalty,
    fit_path,
    for_raw_features,
    standardize,
)
from tests.classifiers import tiny_classifier_recipe
from tests.training.test_classify import accuracy_of


def problem(count=400, features=6, classes=4, seed=0):
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(classes, features)) * 1.5
    labels = draw.integers(0, classes, count)
    x = (centers[labels] + draw.normal(size=(count, features))) * draw.uniform(0.1, 9, features) + 5
    return x.astype(np.float32), labels


def fit(features, labels, classes, penalties, iterations):
    """Return penalty, kernel and bias for the raw features of each fit."""
    standardized = features.copy()
    mean, scale = standardize(standardized)
    found = fit_path(standardized, labels, classes, penalties, iterations)
    return [(penalty, *for_raw_features(kernel, bias, mean, scale)) for penalty, kernel, bias in found]


def gradient(features, labels, kernel, bias, penalty):
    """Return the gradient of mean cross-entropy + penalty / 2 x squared weights of standardized features."""
    x = features.astype(np.float64)
    scale = x.std(axis=0)[:, np.newaxis]
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = p / p.sum(axis=1, keepdims=True) - np.eye(len(bias))[labels]
    standardized = (x - x.mean(axis=0)) / scale.T
    return standardized.T @ error / len(x) + penalty * kernel * scale, error.mean(axis=0)


# Bugs caught: a penalty that is scaled by the number of images or classes or reaches the bias; features standardized in
# the fit and not in the classifier; two classes with another penalty than many.
@pytest.mark.parametrize("classes", [2, 4])
def test_the_fit_is_a_minimum(classes, monkeypatch):
    monkeypatch.setattr(logistic, "_ROWS", 150)
    features, labels = problem(classes=classes)
    found = fit(features, labels, classes, [1e-3, 1e-1], 2000)
    assert [penalty for penalty, _, _ in found] == [1e-1, 1e-3]
    for penalty, kernel, bias in found:
        for slope in gradient(features, labels, kernel, bias, penalty):
            assert np.abs(slope).max() < 1e-4


# Bugs caught: a constant feature that gives NaN; a class without images that gives an error or wins.
def test_constant_features_and_absent_classes():
    features, labels = problem(classes=3)
    features[:, 2] = 7.0
    [(_, kernel, bias)] = fit(features, labels + 1, 5, [1e-2], 200)
    assert np.isfinite(kernel).all()
    assert not kernel[2].any()
    assert ((features @ kernel + bias).argmax(axis=1) == labels + 1).mean() > 0.8


# Bugs caught: held-out images that are used in the fit; a weaker penalty where a stronger one is as good.
def test_the_penalty_is_chosen_on_held_out_images():
    draw = np.random.default_rng(1)
    noise, labels = draw.normal(size=(60, 200)).astype(np.float32), draw.integers(0, 2, 60)
    settings = Cached(penalties=(1e-4, 10.0))
    assert max(choose_penalty(noise, labels, 30, settings).values()) < 0.85  # memorized it would be 1
    assert best_penalty({1e-3: 0.9, 0.1: 0.9, 1.0: 0.8}) == 0.1


# Bugs caught: a penalty that is chosen on the validation images; figures that are not of the saved classifier.
def test_a_cached_probe_uses_the_validation_labels_only_at_the_end(tmp_path, pretrained, monkeypatch):
    recipe = tiny_classifier_recipe(ProbeRecipe, cached__penalties=(0.1, 1e-3))
    seen = []

    def choose(features, labels, held_out, settings):
        seen.append((features.shape, len(labels), held_out))
        return choose_penalty(features, labels, held_out, settings)

    monkeypatch.setattr(logistic, "choose_penalty", choose)
    summary = probe_cached(recipe, model=pretrained, run_dir=tmp_path, quiet=True).summary
    assert seen == [((1437, 16), 1437, 287)]
    assert set(summary["held_out_top1"]) == {"0.1", "0.001"}
    assert summary["last"]["top1"] == pytest.approx(accuracy_of(tmp_path, recipe))
    assert (tmp_path / "confusion.csv").exists()


# Bug caught: one unreadable image that ends the job, is left out without a word, or shifts the labels of those after it.
def test_unreadable_training_images_are_left_out(tmp_path, pretrained, logged):
    for level, name in ((40, "train/dark"), (200, "train/light"), (40, "val/dark"), (200, "val/light")):
        (tmp_path / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (20, 20), level + number).save(tmp_path / name / f"{number:02}.png")
    (tmp_path / "train" / "dark" / "00.png").write_bytes(b"damaged")
    paths = {"data__path": str(tmp_path / "train"), "data__validation_path": str(tmp_path / "val")}
    kind = {"data__kind": "class_folders", "data__validation_split": None, "data__max_bad_share": 0.1}
    recipe = tiny_classifier_recipe(ProbeRecipe, **kind, **paths)
    summary = probe_cached(recipe, model=pretrained, run_dir=tmp_path / "run", quiet=True).summary
    assert summary["bad_images"] == 1
    assert ("WARNING", "1 of 24 training images cannot be read and are left out.") in logged
    assert summary["last"]["top1"] == 1
    assert (tmp_path / "run" / "bad_images.txt").read_text().startswith("dark/00.png")


# Bug caught: an unreadable validation image that is found when the classifier has been fitted.
def test_an_unreadable_validation_image_ends_the_job_first(tmp_path, pretrained, monkeypatch):
    for name in ("train/dark", "train/light", "val/dark", "val/light"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (20, 20), 200 * name.endswith("light") + number).save(
                tmp_path / name / f"{number}.png"
            )
    (tmp_path / "val" / "dark" / "0.png").write_bytes(b"damaged")
    paths = {"data__path": str(tmp_path / "train"), "data__validation_path": str(tmp_path / "val")}
    kind = {"data__kind": "class_folders", "data__validation_split": None}
    monkeypatch.setattr(cached_probe, "fit_classifier", None)
    with pytest.raises(DataError, match=r"dark/0\.png cannot be read: .*Repair or remove it"):
        probe_cached(
            tiny_classifier_recipe(ProbeRecipe, **kind, **paths),
            model=pretrained,
            run_dir=tmp_path / "run",
            quiet=True,
        )


# Bugs caught: a machine that swaps or kills the job after hours of computing features; a network that sees images of another size
# than in pretraining without a word.
def test_features_that_do_not_fit_into_memory_are_refused(tmp_path, pretrained, monkeypatch, logged):
    monkeypatch.setattr(logistic, "available_memory", lambda: 4 * 16 * (2 * 1437 + 360) - 1)
    for module in (cached_probe, logistic):
        monkeypatch.setattr(module, "readable_features", None)
    recipe = tiny_classifier_recipe(ProbeRecipe, data__evaluation={"resize": 20, "crop": 18})
    with pytest.raises(UsageError, match=r"must fit into memory: 1,797 images.*Use --subset"):
        probe_cached(recipe, model=pretrained, run_dir=tmp_path, quiet=True)
    assert any(
        "resized to 20 and cropped to 18 pixels, but the pretraining run used 32 and 32" in text
        for _, text in logged
    )
