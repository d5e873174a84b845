"""The estimate compared with published figures, the trainer, and itself."""

import dataclasses

import pytest

from swav_tf.planning.estimate import CONTEXT_BYTES, make_plan
from swav_tf.planning.gpus import GPUS, Cluster, own_gpu
from swav_tf.plumbing.errors import RecipeError, UsageError
from swav_tf.recipe.files import load_recipe
from swav_tf.training.build import build_swav
from swav_tf.training.state import capture
from tests.swav_models import tiny_recipe


def plan(recipe="swav_100ep", *, gpu="a100", gpus=64, per_node=8, gbit=200.0, overrides=(), **more):
    return make_plan(load_recipe(recipe, list(overrides)), Cluster(GPUS[gpu], gpus, per_node, gbit), **more)


# The speed measured on an H200, and the memory that TensorFlow held there (45.9 GB without the context).
def test_the_measured_gpu_is_reproduced():
    overrides = ["train.batch_size=256", "train.precision=mixed_float16"]
    found = plan(gpu="h200", gpus=1, overrides=overrides)
    assert found.pace.images_per_second_gpu == pytest.approx(1774.5)
    assert found.memory.total - CONTEXT_BYTES / 1e9 == pytest.approx(45.9, rel=0.05)
    bfloat = plan(gpu="h200", gpus=1, overrides=["train.batch_size=256", "train.precision=mixed_bfloat16"])
    assert bfloat.pace.images_per_second_gpu == pytest.approx(1263)


# Bug caught: advice that the recipe follows already.
def test_threads_that_cannot_feed_a_node_cause_a_warning():
    [warning] = [text for text in plan(gpu="h100", gpus=8).warnings if "Python's lock" in text]
    setting = warning.partition("-o ")[2].partition(")")[0]
    assert setting.startswith("data.processes=")
    assert not [text for text in plan(gpu="h100", gpus=8, overrides=[setting]).warnings if "lock" in text]


def test_a_measured_speed_replaces_the_estimate():
    pace = plan(gpus=8, images_per_second=500.0, images=409_600).pace
    assert pace.images_per_second == pytest.approx(4000)
    assert pace.hours == pytest.approx(100 * 100 * 4096 / 4000 / 3600)


# 219 is what the traced graph of two replicas has (tests/method/test_collectives.py).
@pytest.mark.parametrize(
    ("overrides", "gpus", "collectives"),
    [
        ((), 2, 219),
        (("model.batch_norm.synchronised=false",), 2, 5),
        (("train.accumulation_steps=2",), 2, 3 * 2 * 107 + 5),
        ((), 1, 0),
    ],
)
def test_collectives(overrides, gpus, collectives):
    assert plan(gpus=gpus, overrides=overrides).communication.collectives == collectives


def test_bytes_of_a_ring():
    exchange = plan(gpus=16, overrides=["model.batch_norm.synchronised=false"]).communication
    numbers = 28_354_752 + 3 * 2 * 3000 + 3000 + 128  # gradients, Sinkhorn, diagnostics
    assert exchange.megabytes == pytest.approx(4e-6 * numbers)
    # Each of 16 sends 15/16 of them twice; two machines are joined by 25 GB/s.
    assert exchange.transfer_ms == pytest.approx(1000 * 2 * 15 / 16 * 4 * numbers / 25e9)
    inside = plan(gpus=8, overrides=["model.batch_norm.synchronised=false"]).communication
    assert inside.transfer_ms == pytest.approx(1000 * 2 * 7 / 8 * 4 * numbers / 300e9)  # NVLink, one way


# Bug caught: one momentum of Adam, which has two.
@pytest.mark.parametrize("optimizer", ["lars", "adam"])
def test_a_checkpoint_has_the_size_of_the_trainers(optimizer):
    recipe = tiny_recipe(method__queue={"length": 16}, optimizer__kind=optimizer)
    arrays = capture(build_swav(recipe), batch_size=8)
    estimate = make_plan(recipe, Cluster(GPUS["t4"], 1, 8, 1.0), images=1000)
    assert estimate.checkpoint_megabytes * 1e6 == pytest.approx(
        sum(array.nbytes for array in arrays.values()), abs=200
    )


def test_the_remedy_for_too_little_memory_fits():
    overrides = ["train.accumulation_steps=1"]
    too_much = plan("one_gpu", gpu="t4", gpus=1, overrides=overrides)
    assert not too_much.memory.fits
    [warning] = [text for text in too_much.warnings if "do not fit" in text]
    remedy = warning.rpartition("-o ")[2]
    assert plan("one_gpu", gpu="t4", gpus=1, overrides=[remedy]).memory.fits
    # The reported largest batch is the largest that fits.
    at = too_much.memory.largest_batch
    sizes = [[*overrides, f"train.batch_size={n}", "method.queue.length=0"] for n in (at - 1, at + 2)]
    assert [plan("one_gpu", gpu="t4", gpus=1, overrides=o).memory.fits for o in sizes] == [True, False]


def test_memory_of_more_precise_numbers_and_of_parts():
    half, single = plan().memory, plan(overrides=["train.precision=float32"]).memory
    assert single.activations == pytest.approx(2 * half.activations, rel=0.02)
    parts = plan(overrides=["train.accumulation_steps=4"]).memory
    assert parts.activations == pytest.approx(half.activations / 4)
    assert parts.gradients > half.gradients


# Twice the GPUs are never more than twice as fast, nor slower, and a slower link never helps.
def test_more_gpus_and_slower_links():
    slow, fast = plan(gpus=32).pace, plan(gpus=64).pace
    assert slow.hours / 2 <= fast.hours < slow.hours
    assert plan(gbit=10.0).pace.hours > plan(gbit=200.0).pace.hours


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gpus": 12}, UsageError, "multiple of --gpus-per-node"),
        ({"gpus": 24}, RecipeError, "multiple of 24"),
        ({"gpu": "v100", "overrides": ["train.precision=mixed_bfloat16"]}, UsageError, "mixed_float16"),
        ({"images": 1000}, RecipeError, "do not fill one batch"),
    ],
)
def test_impossible_plans_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        plan(**arguments)


def test_the_input_scales_with_crops_and_machines():
    many = plan(gpus=64).pace
    assert many.node_images_per_second == pytest.approx(many.images_per_second / 8)
    assert many.node_cpu_cores == pytest.approx(7e-3 * many.node_images_per_second)
    assert many.node_crop_megabytes == pytest.approx(0.466944 * many.node_images_per_second)
    small = plan(gpus=64, overrides=["crops=[{count: 2, size: 224, scale: [0.14, 1.0]}]"]).pace
    assert small.node_cpu_cores / small.node_images_per_second < 7e-3
    assert dataclasses.asdict(many)  # plain values: the JSON of the command


# Bug caught: ImageNet's images for a recipe with data of its own.
def test_images_are_those_of_the_recipe():
    found = plan("demo", gpus=1)
    assert found.images == 1437
    assert found.steps == 1437 // found.batch_size * found.epochs
    with pytest.raises(UsageError, match="--images N"):
        plan("small_images", gpus=1)
    assert plan("small_images", gpus=1, images=50_000).images == 50_000
    assert "names no data" in plan().assumptions[0]


# Bugs caught: figures with sparsity, or with sums in float16; bytes for gigabytes.
@pytest.mark.parametrize("name", GPUS)
def test_cards_are_plausible(name):
    gpu = GPUS[name]
    dense_share = gpu.half_tflops / gpu.single_tflops
    assert dense_share == pytest.approx(2, rel=0.02) or 3.9 < dense_share < 31
    if name.startswith("rtx"):
        assert dense_share == pytest.approx(2, rel=0.02)
    assert 8 <= gpu.memory_gb <= 192
    assert 300 <= gpu.bandwidth_gb <= 8000


def test_an_own_card_equals_the_named_one():
    card = own_gpu(memory_gb=24, tflops=165, bandwidth_gb=1008)
    own = make_plan(load_recipe("one_gpu", []), Cluster(card, 1, 8, 200.0))
    assert own.pace == plan("one_gpu", gpu="rtx4090", gpus=1).pace
