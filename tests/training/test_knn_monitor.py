"""What the k-NN accuracy says about a run, next to the accuracy of the initial weights and of raw pixels."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from swav_tf.data.bad_images import BadImages
from swav_tf.data.folders import ImageFolder
from swav_tf.data.sources import open_source
from swav_tf.knn import BASELINES, VIEWS, comparison, view_comparison
from swav_tf.recipe.data import Data
from swav_tf.recipe.pretraining import Augment, Blur, ColorJitter, CropGroup
from swav_tf.training.knn_monitor import (
    KNNEvaluator,
    early_epoch,
    evaluators,
    lost_to,
    readable_pixels,
    verdict,
    view_verdict,
)
from swav_tf.training.position import Position
from swav_tf.training.pretrain import pretrain
from tests.evaluate.models import make_class_folders
from tests.swav_models import tiny_recipe
from tests.training.runs import lines


# Bugs caught: a difference within the noise of few images that counts as learning, and a clear one that does not.
@pytest.mark.parametrize(
    ("initial", "pixels", "queries", "lost"),
    [
        (0.30, 0.30, 500, ""),
        (0.30, 0.45, 500, "raw pixels"),  # the standard error of the difference is 0.031
        (0.46, 0.45, 500, "the initial weights and raw pixels"),
        (0.46, 0.45, 50_000, ""),
        (0.60, 0.30, 50_000, "the initial weights"),
        (None, 0.30, 500, ""),
    ],
)
def test_features_must_be_clearly_better(initial, pixels, queries, lost):
    found = {"knn_top1": 0.5, "knn_top1_initial": initial, "knn_top1_pixels": pixels}
    assert lost_to(found, queries) == lost
    level, text = verdict(found, queries)
    assert (level, "not clearly better" in text) == (
        (logging.WARNING, True) if lost else (logging.INFO, False)
    )
    assert comparison(found).startswith("k-NN 50.0 % (")


# Bugs caught: a warning during freeze or warm-up, where a run that learns is no better; none in a run that never thaws.
@pytest.mark.parametrize(
    ("epochs", "frozen_steps", "warmup", "expected"),
    [
        (100, 0, 0, 10),
        (20, 0, 0, 2),
        (20, 30, 0, 4),
        (20, 31, 0, 5),
        (20, 10, 5, 6),
        (9, 0, 0, None),
        (10, 0, 9, None),
    ],
)
def test_the_early_measurement_waits_for_freeze_and_warmup(epochs, frozen_steps, warmup, expected):
    recipe = tiny_recipe(
        train__epochs=epochs, method__prototypes_frozen_steps=frozen_steps, optimizer__warmup_epochs=warmup
    )
    assert early_epoch(recipe, 10) == expected


# Bug caught: features that are not finite, taken for learned ones.
def test_features_that_are_not_finite():
    found = {"knn_top1": None, "knn_top1_initial": 0.3, "knn_top1_pixels": 0.2}
    assert verdict(found, 100)[0] == logging.WARNING
    assert "not finite" in comparison(found)


# Bugs caught: pixels of other images, or views so large that they do not fit in memory.
def test_raw_pixels_are_reduced_views(tmp_path):
    source = ImageFolder(make_class_folders(tmp_path / "images", each=3))
    large, _ = readable_pixels(
        source, np.array([4, 1]), Data(kind="images", evaluation={"resize": 64, "crop": 64})
    )
    small, _ = readable_pixels(
        source, np.array([4, 1]), Data(kind="images", evaluation={"resize": 16, "crop": 16})
    )
    assert (large.shape, small.shape) == ((2, 32 * 32 * 3), (2, 16 * 16 * 3))
    means = [features.reshape(2, -1, 3).mean(axis=1) for features in (large, small)]
    np.testing.assert_allclose(*means, atol=6)
    assert np.abs(means[0][0] - means[0][1]).max() > 0.5


# Bug caught: readable images that do not count, so that half of the first hundred seem to be bad.
def test_many_unreadable_images_of_more(tmp_path):
    source = ImageFolder(make_class_folders(tmp_path / "images", each=90))
    for number in range(0, 180, 3):
        (tmp_path / "images" / source.image_name(number)).write_bytes(b"damaged")
    tally = BadImages(tmp_path / "bad_images.txt", images=1000, max_share=0.1)
    settings = Data(kind="images", evaluation={"resize": 16, "crop": 16})
    for _ in range(2):
        rows, read = readable_pixels(source, np.arange(180), settings, tally)
        assert len(rows) == len(read) == 120
    assert (tally.count, set(read % 3)) == (60, {1, 2})


# Bug caught: the other views are of other images (equal views must find each other).
def test_views_find_each_other(tmp_path):
    folder = make_class_folders(tmp_path / "images", each=8)
    whole = CropGroup(count=2, size=16, scale=(1, 1))
    plain = Augment(
        aspect_ratio=(1, 1),
        flip_probability=0,
        jitter=ColorJitter(probability=0),
        grayscale_probability=0,
        blur=Blur(probability=0),
    )
    data = {
        "kind": "images",
        "path": str(folder),
        "validation_split": "test",
    }  # a split that folders have not
    recipe = tiny_recipe(
        monitor__view_images=512, **{f"data__{key}": value for key, value in data.items()}
    ).model_copy(update={"crops": (whole,), "augment": plain})
    summary = pretrain(recipe, run_dir=tmp_path / "run", quiet=True).summary
    [first], [last] = lines(tmp_path / "run", "views_baseline"), lines(tmp_path / "run", "views")
    assert first["step"] == 0
    assert summary["view_images"] == first["view_images"] == len(list(folder.rglob("*.*")))
    assert summary["view_retrieval_initial"] == first["view_retrieval_initial"] == 1
    assert summary["view_retrieval"] == last["view_retrieval"]
    assert view_comparison(summary) in view_verdict(summary, at_end=True)[1]


# Bug caught: a figure within the noise that counts as learning.
@pytest.mark.parametrize(
    ("retrieval", "level"), [(0.2, logging.INFO), (0.11, logging.WARNING), (None, logging.WARNING)]
)
def test_views_must_be_found_clearly_more_often(retrieval, level):
    found = {"view_retrieval": retrieval, "view_retrieval_initial": 0.1, "view_images": 500}
    assert view_verdict(found, at_end=False)[0] == level


# Bugs caught: a verdict by baselines of other images or settings, which may change when a run resumes; baselines that an
# earlier version measured, or the same settings did, forgotten.
@pytest.mark.parametrize(
    "changed",
    [
        {"monitor__knn_images": 40},
        {"monitor__knn_neighbours": 3},
        {"data__validation_split": None},
        {"monitor__knn_every_epochs": 0, "monitor__view_images": 9},
    ],
)
def test_baselines_of_another_measurement_are_forgotten(changed, logged):
    position = Position(1, 9, step=1, validation=dict.fromkeys((*BASELINES, *VIEWS), 0.2))
    job = SimpleNamespace(position=position, metrics=SimpleNamespace(write=lambda kind, figures: None))
    usual = {key: changed[key] for key in ("monitor__knn_every_epochs",) if key in changed}

    def begin(**changes):
        settings = {"data__validation_split": "test", "monitor__knn_images": 50, "monitor__view_images": 8}
        recipe = tiny_recipe(**{"monitor__knn_every_epochs": 1, **settings, **changes})
        [judge] = evaluators(job, recipe, open_source(recipe.data))
        judge.on_train_begin()
        return [position.validation[key] for key in (VIEWS if usual else BASELINES)]

    assert set(begin(**usual)) == set(begin(**usual)) == {0.2}
    assert not [text for level, text in logged if level == "WARNING"]
    assert set(begin(**changed)) == {None}
    assert [level for level, _ in logged].count("WARNING") == 1
    if not usual:
        assert "no baselines" in verdict({**position.validation, "knn_top1": 0.5}, 50)[1]


# Bug caught: the few labeled images, most of which are not drawn.
def test_images_are_drawn_among_the_labeled_ones(tmp_path):
    folder = make_class_folders(tmp_path / "images", each=50)
    names = [f"{path.parent.name}/{path.name}" for path in sorted(folder.glob("*/*"))]
    (tmp_path / "labels.csv").write_text(
        "path,label\n" + "".join(f"{name},{name[0]}\n" for name in names[:10])
    )
    data = {
        "kind": "images",
        "path": str(folder),
        "labels": str(tmp_path / "labels.csv"),
        "validation_split": None,
    }
    settings = {f"data__{key}": value for key, value in data.items()}
    recipe = tiny_recipe(monitor__knn_images=20, monitor__knn_neighbours=3, **settings)
    evaluator = KNNEvaluator(SimpleNamespace(), recipe, open_source(recipe.data))
    assert sorted([*evaluator.queries, *evaluator.known]) == list(range(10))


# Bugs caught: classes matched by position, where numbered folders sort as text or the validation images lack some.
def test_classes_of_validation_images_are_matched_by_name(tmp_path, logged):
    draw = np.random.default_rng(0)
    colors = draw.integers(0, 256, (12, 3), dtype=np.uint8)
    for part, numbers, padded in (("train", range(12), False), ("val", [11, 2, 0, 9, 1], True)):
        for number in numbers:
            folder = tmp_path / part / (f"{number:02d}" if padded else str(number))
            folder.mkdir(parents=True)
            for name in "abc":
                picture = np.broadcast_to(colors[number], (16, 16, 3))
                Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{name}.png")
    data = {
        "kind": "class_folders",
        "path": str(tmp_path / "train"),
        "validation_path": str(tmp_path / "val"),
    }
    recipe = tiny_recipe(monitor__knn_neighbours=3, **{f"data__{key}": value for key, value in data.items()})
    source = open_source(recipe.data)
    job = SimpleNamespace(bad_images=BadImages(images=len(source), max_share=0.1))
    evaluator = KNNEvaluator(job, recipe, source)
    for query, label in zip(evaluator.queries, evaluator.query_labels, strict=True):
        folder = evaluator.query_source.image_name(int(query)).split("/")[0]
        assert int(source.class_names[label]) == int(folder)
    assert evaluator._accuracy(readable_pixels) == 1
    for part in ("train/3/b.png", "val/02/c.png"):
        (tmp_path / part).write_bytes(b"damaged")
    assert evaluator._accuracy(readable_pixels) == 1
    assert list(job.bad_images.reasons) == ["3/b.png"]
    assert any("1 validation image cannot be read, such as 02/c.png" in text for _, text in logged)
