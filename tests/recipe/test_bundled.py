"""The bundled recipes against the published settings, cell by cell."""

import re
from typing import Any, NamedTuple

import pytest

from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.files import (
    bundled_recipes,
    load_any_recipe,
    load_recipe,
    recipe_header,
)
from swav_tf.recipe.pretraining import Recipe
from swav_tf.runs.folder import changes

IMAGENET_IMAGES = 1_281_167
LARGE, SMALL = (0.14, 1.0), (0.05, 0.14)
MULTI_CROP = [(2, 224, LARGE), (6, 96, SMALL)]


class Row(NamedTuple):
    """A row of the table. Warm-up: epochs and start rate; queue: length and first epoch; figure: top-1, per cent."""

    devices: int
    batch_per_device: int
    crops: list[tuple[int, int, tuple[float, float]]]
    epochs: int
    figure: str
    peak: float = 4.8
    final: float = 0.0048
    warmup: tuple[int, float] = (10, 0.3)
    frozen_steps: int = 313
    queue: tuple[int, int] = (0, 0)
    hidden: int = 2048
    width: int = 1


SMALL_BATCH: dict[str, Any] = {
    "peak": 0.6,
    "final": 0.0006,
    "warmup": (0, 0.0),
    "frozen_steps": 5005,
    "queue": (3840, 15),
}
TABLE = {
    "swav_800ep": Row(64, 64, MULTI_CROP, 800, "75.3"),
    "swav_400ep": Row(64, 64, MULTI_CROP, 400, "74.6"),
    "swav_200ep": Row(64, 64, MULTI_CROP, 200, "73.9"),
    "swav_100ep": Row(64, 64, MULTI_CROP, 100, "72.1"),
    "swav_400ep_2x224": Row(64, 64, [(2, 224, (0.08, 1.0))], 400, "70.1"),
    "swav_200ep_bs256": Row(4, 64, MULTI_CROP, 200, "72.7", **SMALL_BATCH),
    "swav_400ep_bs256": Row(4, 64, MULTI_CROP, 400, "74.3", **SMALL_BATCH),
    "swav_400ep_bs256_8gpu": Row(8, 32, MULTI_CROP, 400, "74.3", **SMALL_BATCH),
    "swav_rn50w2_400ep": Row(128, 32, [(2, 224, LARGE), (4, 96, SMALL)], 400, "77.3", hidden=8192, width=2),
    "swav_rn50w4_400ep": Row(
        64, 40, [(2, 224, (0.08, 1.0)), (4, 96, (0.08, 0.14))], 400, "77.9", queue=(2560, 0), hidden=8192, width=4
    ),
    "passl_4nodes": Row(32, 128, MULTI_CROP, 800, "75.3"),
    "passl_1node": Row(8, 64, MULTI_CROP, 400, "", **SMALL_BATCH),
}  # fmt: skip
# Backbone's and classifier's rate, epochs, images in the subset, figure.
CLASSIFIERS: dict[str, tuple[tuple[float | None, float], int, int, str]] = {
    "probe": ((None, 0.3), 100, IMAGENET_IMAGES, "75.3"),
    "probe_passl": ((None, 0.3), 100, IMAGENET_IMAGES, "75.3"),
    "probe_one_gpu": ((None, 0.3), 28, IMAGENET_IMAGES, ""),
    "finetune_10pct": ((0.01, 0.2), 20, 128_116, "70.2"),
    "finetune_1pct": ((0.02, 5.0), 20, 12_811, "53.9"),
    "finetune_10pct_passl": ((0.02, 5.0), 20, 128_116, "69.0"),
    "finetune_1pct_passl": ((0.02, 5.0), 20, 12_811, "55.0"),
    "finetune_full": ((0.01, 0.2), 20, IMAGENET_IMAGES, ""),
}
IMAGES = {
    "demo": 1437,
    "photos": 3068,
    "small_images": 50_000,
    "cifar10": 50_000,
    "probe_digits": 1437,
    "finetune_digits": 144,
    "finetune": 1000,
}
PRESETS = {"one_gpu", *IMAGES}

published = pytest.mark.parametrize("name", sorted(TABLE))


# Bug caught: a recipe that is bundled and not tested.
def test_the_bundle_is_the_tables_and_the_presets() -> None:
    assert set(bundled_recipes()) == TABLE.keys() | CLASSIFIERS.keys() | PRESETS
    for name in bundled_recipes():
        kind = name.partition("_")[0]
        assert load_any_recipe(name).kind == (kind if kind in ("probe", "finetune") else "pretrain")


# Bug caught: a cell of the published table that is another number.
@published
def test_pretraining(name: str) -> None:
    recipe, row = load_recipe(name), TABLE[name]
    batch = row.devices * row.batch_per_device
    assert [(group.count, group.size, group.scale) for group in recipe.crops] == row.crops
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.accumulation_steps) == (
        row.epochs,
        batch,
        1,
    )
    rate = recipe.optimizer
    assert (rate.peak_learning_rate, rate.final_learning_rate) == (row.peak, row.final)
    assert (rate.warmup_epochs, rate.warmup_start_learning_rate) == row.warmup
    assert recipe.method.prototypes_frozen_steps == row.frozen_steps
    assert (recipe.method.queue.length, recipe.method.queue.from_epoch) == row.queue
    assert (recipe.model.head_hidden, recipe.model.backbone.width) == (row.hidden, row.width)
    if batch in {
        4096,
        256,
    }:  # the batches that the numbers of frozen steps were made for: one epoch and a step
        assert IMAGENET_IMAGES // batch + 1 == row.frozen_steps


# What all published recipes share, as {path: value}.
COMMON = {
    "model.backbone.library": "swav_tf",
    "model.backbone.name": "resnet50",
    "model.projection_dim": 128,
    "model.prototypes": 3000,
    "model.batch_norm": {"synchronised": True, "momentum": 0.9, "epsilon": 1e-5},
    "method.temperature": 0.1,
    "method.epsilon": 0.05,
    "method.sinkhorn_iterations": 3,
    "optimizer.weight_decay": 1e-6,
    "optimizer.momentum": 0.9,
    "optimizer.trust_coefficient": 0.001,
    "train.seed": 31,
    "checkpoint.keep_every_epochs": 25,
    "data.kind": "class_folders",
    "augment": {
        "aspect_ratio": (0.75, 4 / 3),
        "flip_probability": 0.5,
        "jitter": {"probability": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
        "grayscale_probability": 0.2,
        "blur": {"probability": 0.5, "sigma": (0.1, 2.0)},
        "mean": (0.485, 0.456, 0.406),
        "std": (0.228, 0.224, 0.225),
    },
}


@pytest.mark.parametrize("name", sorted({*TABLE, "one_gpu"}))
def test_what_published_recipes_share(name: str) -> None:
    values = load_recipe(name).model_dump()
    for path, expected in COMMON.items():
        found: Any = values
        for key in path.split("."):
            found = found[key]
        assert found == expected, path


def test_presets() -> None:
    for name in ("demo", "small_images"):  # frozen for three epochs
        recipe = load_recipe(name)
        assert recipe.frozen_steps(IMAGES[name] // recipe.train.batch_size) == 3 * (
            IMAGES[name] // recipe.train.batch_size
        )
    paper = load_recipe("swav_200ep_bs256", ["name=one_gpu", "train.accumulation_steps=4"])
    assert load_recipe("one_gpu") == paper


# Bug caught: a cell of the published probe or fine-tuning that is another number.
@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_classifiers(name: str) -> None:
    recipe = load_any_recipe(name)
    assert isinstance(recipe, ProbeRecipe | FinetuneRecipe)
    rates, epochs, _, _ = CLASSIFIERS[name]
    assert (recipe.learning_rates, recipe.train.epochs) == (rates, epochs)
    sgd = recipe.optimizer
    if isinstance(recipe, ProbeRecipe):
        assert (sgd.momentum, sgd.weight_decay, sgd.decay) == (0.9, 1e-6, "cosine")
    else:
        assert (sgd.momentum, sgd.weight_decay, sgd.decay) == (0.9, 0.0, "steps")
        assert (sgd.decay_epochs, sgd.decay_factor) == ((12, 16), 0.2)
    if name != "probe_one_gpu":
        assert (recipe.train.batch_size, recipe.train.accumulation_steps) == (256, 1)
    [group] = recipe.crops
    assert (group.count, group.size, group.scale) == (1, 224, (0.08, 1.0))
    augment = recipe.augment
    assert (augment.flip_probability, augment.aspect_ratio) == (0.5, (3 / 4, 4 / 3))
    assert augment.jitter.probability == augment.grayscale_probability == augment.blur.probability == 0
    assert (recipe.data.evaluation.resize, recipe.data.evaluation.crop) == (256, 224)


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_name_header_and_advice(name: str) -> None:
    recipe, header = load_any_recipe(name), recipe_header(name)
    assert recipe.name == name
    assert all(line.startswith("#") for line in header.splitlines())
    assert re.match(r"# .{10,110}\n", header)
    for label in ("Reproduces", "Expected", "Hardware", "Time", "Command"):
        assert re.search(rf"^# {label} +\S", header, re.MULTILINE), label
    row = TABLE.get(name)
    figure = row.figure if row else CLASSIFIERS[name][3] if name in CLASSIFIERS else ""
    assert f"{figure} % ImageNet top-1" in header or not figure
    if row is not None:
        assert f"{row.devices} GPUs x {row.batch_per_device} images" in header
    if name not in ("demo", "finetune"):
        assert f"-c {name}" in header
        assert "Not run by this project" in header or "digits" in name or name == "photos"
    images = CLASSIFIERS[name][2] if name in CLASSIFIERS else IMAGES.get(name, IMAGENET_IMAGES)
    advice = check_recipe(recipe, images=images, replicas=row.devices if row else 1)
    # PASSL's queue is not a multiple of its batch; lightly's epsilon is that of ImageNet.
    expected = {"passl_1node": ["method.queue.length"], "cifar10": ["method.epsilon"]}.get(name, [])
    assert [remark.path for remark in advice] == expected


@pytest.mark.parametrize("name", bundled_recipes())
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_every_recipe_takes_another_number_of_epochs_alone(name, epochs):
    """Bug caught: a warm-up, a queue or decays of a fixed number of epochs, beyond a short run."""
    recipe = load_any_recipe(name, [f"train.epochs={epochs}"])
    if isinstance(recipe, Recipe) and recipe.method.prototypes_frozen_epochs:
        assert recipe.frozen_steps(30) <= 30 * epochs // 3


def test_a_recipe_inherits_from_its_base(tmp_path):
    """Bug caught: sections replaced instead of merged, or shares of the base's epochs."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: small_images\nname: mine\ntrain: {epochs: 40}\nmodel: {prototypes: 64}\n")
    mine, base = load_any_recipe(path), load_any_recipe("small_images")
    assert (mine.name, mine.train.epochs, mine.model.prototypes) == ("mine", 40, 64)
    assert (mine.optimizer.warmup_epochs, base.optimizer.warmup_epochs) == (2, 10)
    assert mine.model.backbone == base.model.backbone
    assert mine.train.batch_size == base.train.batch_size
    path.write_text(f"base: {path.name}\n")
    with pytest.raises(RecipeError, match="inherit from each other"):
        load_any_recipe(path)


def test_a_run_may_get_more_epochs_and_not_fewer():
    """Bug caught: a finished run that cannot be trained longer, or a schedule cut short without a word."""
    before = load_recipe("demo").model_dump(mode="json")
    longer, shorter = load_recipe("demo", ["train.epochs=60"]), load_recipe("demo", ["train.epochs=20"])
    assert changes(before, longer) == []
    assert len(changes(before, longer, free=True)) == 2  # epochs and the warm-up's share of them
    assert changes(before, shorter)


def test_a_freeze_in_steps_is_the_same_in_epochs():
    """Bug caught: a run of an earlier version, whose preset had the freeze in steps, that does not resume."""
    before = load_recipe("demo", ["method.prototypes_frozen_steps=66"]).model_dump(mode="json")
    now = load_recipe("demo")
    assert changes(before, now, images=IMAGES["demo"]) == []
    assert changes(before, now, images=2 * IMAGES["demo"])
    assert changes(before, now)
