"""The bundled recipes against a table of their own: every cell of the published settings."""

import re
from typing import NamedTuple

import pytest

from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.files import bundled_recipes, load_recipe, recipe_header, recipe_kind
from swav_tf.recipe.pretraining import Recipe

IMAGENET_IMAGES = 1_281_167

LARGE, SMALL = (0.14, 1.0), (0.05, 0.14)
MULTI_CROP = [(2, 224, LARGE), (6, 96, SMALL)]


class Row(NamedTuple):
    """A row of the table. Queue: length and first epoch. Warm-up: epochs and start rate."""

    devices: int
    batch_per_device: int
    batch: int
    crops: list[tuple[int, int, tuple[float, float]]]
    epochs: int
    peak: float
    final: float
    warmup: tuple[int, float]
    frozen_steps: int
    queue: tuple[int, int]
    hidden: int
    width: int = 1


LARGE_BATCH = {"peak": 4.8, "final": 0.0048, "warmup": (10, 0.3), "frozen_steps": 313}
SMALL_BATCH = {"peak": 0.6, "final": 0.0006, "warmup": (0, 0.0), "frozen_steps": 5005, "queue": (3840, 15)}
NO_QUEUE = {"queue": (0, 0)}

TABLE = {
    "swav_800ep": Row(64, 64, 4096, MULTI_CROP, 800, **LARGE_BATCH, **NO_QUEUE, hidden=2048),
    "swav_400ep": Row(64, 64, 4096, MULTI_CROP, 400, **LARGE_BATCH, **NO_QUEUE, hidden=2048),
    "swav_200ep": Row(64, 64, 4096, MULTI_CROP, 200, **LARGE_BATCH, **NO_QUEUE, hidden=2048),
    "swav_100ep": Row(64, 64, 4096, MULTI_CROP, 100, **LARGE_BATCH, **NO_QUEUE, hidden=2048),
    "swav_400ep_2x224": Row(
        64, 64, 4096, [(2, 224, (0.08, 1.0))], 400, **LARGE_BATCH, **NO_QUEUE, hidden=2048
    ),
    "swav_200ep_bs256": Row(4, 64, 256, MULTI_CROP, 200, **SMALL_BATCH, hidden=2048),
    "swav_400ep_bs256": Row(4, 64, 256, MULTI_CROP, 400, **SMALL_BATCH, hidden=2048),
    "swav_400ep_bs256_8gpu": Row(8, 32, 256, MULTI_CROP, 400, **SMALL_BATCH, hidden=2048),
    "swav_rn50w2_400ep": Row(
        128, 32, 4096, [(2, 224, LARGE), (4, 96, SMALL)], 400, **LARGE_BATCH, **NO_QUEUE, hidden=8192, width=2
    ),
    "swav_rn50w4_400ep": Row(
        64,
        40,
        2560,
        [(2, 224, (0.08, 1.0)), (4, 96, (0.08, 0.14))],
        400,
        **LARGE_BATCH,
        queue=(2560, 0),
        hidden=8192,
        width=4,
    ),
    "passl_4nodes": Row(32, 128, 4096, MULTI_CROP, 800, **LARGE_BATCH, **NO_QUEUE, hidden=2048),
    "passl_1node": Row(8, 64, 512, MULTI_CROP, 400, **SMALL_BATCH, hidden=2048),
}
PRESETS = {"one_gpu", "small_images", "demo"}

# Top-1 by linear probe, per cent, as the paper and the releases give it.
EXPECTED_FIGURES = {
    "swav_800ep": "75.3",
    "swav_400ep": "74.6",
    "swav_200ep": "73.9",
    "swav_100ep": "72.1",
    "swav_400ep_2x224": "70.1",
    "swav_200ep_bs256": "72.7",
    "swav_400ep_bs256": "74.3",
    "swav_400ep_bs256_8gpu": "74.3",
    "swav_rn50w2_400ep": "77.3",
    "swav_rn50w4_400ep": "77.9",
    "passl_4nodes": "75.3",
}

published = pytest.mark.parametrize("name", sorted(TABLE))
bundled = pytest.mark.parametrize("name", sorted(TABLE.keys() | PRESETS))


def test_the_bundle_is_the_table_and_the_presets() -> None:
    pretraining = {name for name in bundled_recipes() if recipe_kind(name) == "pretrain"}
    assert pretraining == TABLE.keys() | PRESETS


@published
def test_every_cell_of_the_table(name: str) -> None:
    recipe, row = load_recipe(name), TABLE[name]
    assert row.devices * row.batch_per_device == row.batch
    assert [(group.count, group.size, group.scale) for group in recipe.crops] == row.crops
    assert recipe.train.epochs == row.epochs
    assert recipe.train.batch_size == row.batch
    assert recipe.train.accumulation_steps == 1
    assert recipe.optimizer.peak_learning_rate == row.peak
    assert recipe.optimizer.final_learning_rate == row.final
    assert (recipe.optimizer.warmup_epochs, recipe.optimizer.warmup_start_learning_rate) == row.warmup
    assert recipe.method.prototypes_frozen_steps == row.frozen_steps
    assert (recipe.method.queue.length, recipe.method.queue.from_epoch) == row.queue
    assert recipe.model.head_hidden == row.hidden
    assert recipe.model.backbone.width == row.width


@pytest.mark.parametrize("name", sorted({*TABLE, "one_gpu"}))
def test_what_is_common_to_all_published_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.model.backbone.library, recipe.model.backbone.name) == ("swav_tf", "resnet50")
    assert recipe.method.temperature == 0.1
    assert recipe.method.epsilon == 0.05
    assert recipe.method.sinkhorn_iterations == 3
    assert recipe.model.projection_dim == 128
    assert recipe.model.prototypes == 3000
    assert recipe.model.batch_norm.synchronised
    assert (recipe.model.batch_norm.epsilon, recipe.model.batch_norm.momentum) == (1e-5, 0.9)
    assert recipe.optimizer.weight_decay == 1e-6
    assert recipe.optimizer.momentum == 0.9
    assert recipe.optimizer.trust_coefficient == 0.001
    assert recipe.train.seed == 31
    assert recipe.checkpoint.keep_every_epochs == 25
    assert recipe.data.kind == "class_folders"


@pytest.mark.parametrize("name", sorted({*TABLE, "one_gpu"}))
def test_augmentation_is_the_papers(name: str) -> None:
    augment = load_recipe(name).augment
    assert augment.aspect_ratio == pytest.approx((0.75, 1.3333333))
    assert augment.flip_probability == 0.5
    assert augment.jitter.model_dump() == {
        "probability": 0.8,
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
    }
    assert augment.grayscale_probability == 0.2
    assert augment.blur.model_dump() == {"probability": 0.5, "sigma": (0.1, 2.0)}
    assert augment.mean == (0.485, 0.456, 0.406)
    assert augment.std == (0.228, 0.224, 0.225)


@published
def test_steps_of_an_epoch_are_those_of_the_frozen_prototypes(name: str) -> None:
    # "One epoch and a step" for the recipes whose batch the numbers were made for.
    row = TABLE[name]
    if row.batch in {4096, 256}:
        assert IMAGENET_IMAGES // row.batch + 1 == row.frozen_steps


def test_one_gpu_is_the_small_batch_recipe_in_parts() -> None:
    ours, paper = load_recipe("one_gpu").model_dump(), load_recipe("swav_200ep_bs256").model_dump()
    assert ours["train"].pop("accumulation_steps") == 4
    assert paper["train"].pop("accumulation_steps") == 1
    assert (ours.pop("name"), paper.pop("name")) == ("one_gpu", "swav_200ep_bs256")
    assert ours == paper


def test_the_demo_freezes_its_prototypes_for_three_epochs_of_digits() -> None:
    recipe = load_recipe("demo")
    assert recipe.data.kind == "digits"
    assert recipe.train.precision == "float32"
    assert recipe.method.prototypes_frozen_steps == 3 * (1437 // recipe.train.batch_size)


def test_small_images_freezes_its_prototypes_for_three_epochs_of_cifar() -> None:
    recipe = load_recipe("small_images")
    assert recipe.method.prototypes_frozen_steps == 3 * (50_000 // recipe.train.batch_size)


@bundled
def test_a_recipe_has_the_name_of_its_file(name: str) -> None:
    assert load_recipe(name).name == name


@bundled
def test_the_header_tells_figure_hardware_time_and_command(name: str) -> None:
    header = recipe_header(name)
    for label in ("Reproduces", "Expected", "Hardware", "Time", "Command"):
        assert re.search(rf"^# {label} +\S", header, re.MULTILINE), label
    if name != "demo":
        assert "Not run by this project" in header
        assert f"-c {name} --run-dir runs/{name}" in header
    if name in EXPECTED_FIGURES:
        assert f"{EXPECTED_FIGURES[name]} % ImageNet top-1" in header
    if name.startswith("swav_"):
        assert "arXiv 2006.09882" in header


@published
def test_the_header_tells_the_devices_of_the_table(name: str) -> None:
    row = TABLE[name]
    assert f"{row.devices} GPUs x {row.batch_per_device} images" in recipe_header(name)


def advice_paths(name: str) -> list[str]:
    images = {"demo": 1437, "small_images": 50_000}.get(name, IMAGENET_IMAGES)
    replicas = TABLE[name].devices if name in TABLE else 1
    recipe: Recipe = load_recipe(name)
    return [advice.path for advice in check_recipe(recipe, images=images, replicas=replicas)]


@bundled
def test_bundled_recipes_work_and_need_no_advice(name: str) -> None:
    # PASSL's own queue is no multiple of its own batch: that is worth telling.
    assert advice_paths(name) == (["method.queue.length"] if name == "passl_1node" else [])
