"""Settings that cannot work together are refused; settings that work badly are advised on."""

from pathlib import Path
from typing import Any

import pytest

from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.classifier import FinetuneRecipe
from swav_tf.recipe.files import load_any_recipe
from swav_tf.recipe.pretraining import BACKBONES

CV = ["model.backbone.library=keras_cv", "model.backbone.name=ResNetV2Backbone"]
# The demo's own length and k-NN may be tuned; the numbers below are for these.
FIXED = {"demo": ["train.epochs=36", "monitor.knn_every_epochs=0"]}


def advice(overrides: list[str], base: str = "demo", **facts: Any) -> list[str]:
    recipe = load_any_recipe(base, FIXED.get(base, []) + overrides)
    return [str(remark) for remark in check_recipe(recipe, **facts)]


# Overrides of a recipe, and parts of the one error.
IMPOSSIBLE: list[tuple[str, list[str], list[str]]] = [
    ("demo", ["crops.0.count=1"], ["crops.0.count: the first two crops", "got 1. Set crops.0.count=2 or more."]),
    ("demo", ["crops.0.scale=[0.9, 0.4]"], ["crops.0.scale: must have 0 < least <= greatest, got [0.9, 0.4]"]),
    ("demo", ["crops.1.scale=[0, 0.4]"], ["crops.1.scale: must have 0 < least"]),
    ("demo", ["crops.1.scale=[0.4, 1.01]"], ["crops.1.scale.1: must be less than or equal to 1, got 1.01"]),
    ("demo", ["augment.aspect_ratio=[2, 1]"], ["augment.aspect_ratio: must have 0 < least <= greatest"]),
    ("demo", ["augment.aspect_ratio=[0, 1]"], ["augment.aspect_ratio: must have 0 < least"]),
    ("demo", ["augment.blur={sigma: [2, 1]}"], ["augment.blur.sigma: must have 0 < least"]),
    ("demo", ["augment.std=[0.2, 0, 0.2]"], ["augment.std.1: must be greater than 0, got 0 "]),
    ("demo", ["data.evaluation.crop=33"], ["data.evaluation.crop: a center crop of 33 pixels", "short side of 32"]),
    ("demo", ["data.path=photos"], ["data.path: the digits are bundled", "got 'photos'", "data.kind"]),
    ("demo", ["data.kind=images", "monitor.knn_every_epochs=2"], ["monitor.knn_every_epochs: a k-NN needs labels"]),
    ("demo", ["monitor={knn_every_epochs: 1, knn_images: 10}"], ["monitor.knn_neighbours: 20 neighbors cannot be found among 10"]),
    ("demo", ["model.backbone.name=resnet51"], ["model.backbone.name: swav_tf has resnet18", "got 'resnet51'"]),
    ("demo", ["model.backbone.preset=x"], ["model.backbone.preset: is for keras_cv only"]),
    ("demo", ["model.backbone.arguments={a: 1}"], ["model.backbone.arguments: is for keras_cv only"]),
    ("demo", [*CV, "model.backbone.width=2"], ["model.backbone.width:", "got 2 for keras_cv"]),
    ("demo", [*CV, "model.backbone.preset=x", "model.backbone.arguments={a: 1}"], ["model.backbone.preset: a preset fixes"]),
    ("demo", ["train.accumulation_steps=3"], ["train.batch_size: 64 images cannot be split into 3", "Use 63 or 66."]),
    ("demo", ["train.epochs=1", "optimizer.warmup_epochs=2"], ["optimizer.warmup_epochs: a warm-up of 2 epochs is longer than the run of 1"]),
    ("demo", ["train.strategy=one_device", "train.logical_cpus=2"], ["train.logical_cpus: makes 2 replicas"]),
    ("demo", ["method.queue.length=63"], ["method.queue.length: 63 is less than one batch of 64"]),
    ("demo", ["method.queue={length: 64, from_epoch: 36}"], ["method.queue.from_epoch: the queue would start in epoch 36", "is 35"]),
    ("probe", ["crop.scale=[0.5, 0.2]"], ["crop.scale: must have 0 < least"]),
    ("probe", ["data.evaluation.crop=300"], ["data.evaluation.crop: a center crop of 300 pixels does not fit"]),
    ("probe", ["data.kind=images"], ["data.kind: a classifier needs labels"]),
    ("probe", ["data.validation_split=test"], ["data.validation_split: is not used", "Set data.validation_path"]),
    (
        "probe_digits",
        ["data.kind=class_folders", "data.validation_path=x"],
        ["data.validation_split: is not used", "Set data.validation_split=null"],
    ),
    ("probe_digits", ["data.validation_path=x"], ["data.validation_path: is not used", "Set data.validation_path=null"]),
    ("probe", ["optimizer.decay_epochs=[3]"], ["optimizer.decay_epochs: has no effect"]),
    ("finetune_full", ["optimizer.decay_epochs=[]"], ["optimizer.decay_epochs: must list the epochs"]),
    ("finetune_full", ["optimizer.decay_epochs=[16, 12]"], ["optimizer.decay_epochs: must rise"]),
    ("finetune_full", ["optimizer.decay_epochs=[0, 12]"], ["optimizer.decay_epochs: must rise"]),
    ("finetune_full", ["optimizer.decay_epochs=[12, 12]"], ["optimizer.decay_epochs: must rise"]),
    ("finetune_full", ["train.epochs=16", "optimizer.decay_epochs=[12, 16]"], ["must rise and lie between 1 and the last epoch, 15; got [12, 16]"]),
    ("finetune_full", ["train.accumulation_steps=3"], ["train.batch_size: 256 images cannot be split"]),
]  # fmt: skip


@pytest.mark.parametrize(("base", "overrides", "parts"), IMPOSSIBLE)
def test_impossible_settings_are_refused_with_the_reason(
    base: str, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_any_recipe(base, FIXED.get(base, []) + overrides)
    _, line = str(caught.value).splitlines()
    for part in parts:
        assert part in line
    assert ".." not in line


def test_impossible_settings_of_all_sections_are_reported_together() -> None:
    overrides = [
        "data.path=x",
        "data.evaluation.crop=40",
        "crops.0.count=1",
        "model.backbone={name: x, preset: y}",
    ]
    overrides += [
        "method.queue={length: 63, from_epoch: 99}",
        "optimizer.warmup_epochs=99",
        "monitor.knn_images=10",
    ]
    with pytest.raises(RecipeError) as caught:
        load_any_recipe("demo", [*overrides, "checkpoint.keep=1"])
    assert [line.strip().partition(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        *(
            "data.evaluation.crop",
            "data.path",
            "crops.0.count",
            "model.backbone.name",
            "model.backbone.preset",
        ),
        *("optimizer.warmup_epochs", "method.queue.length", "method.queue.from_epoch", "checkpoint.keep"),
        "monitor.knn_neighbours",
    ]


# What the number of images and replicas forbids.
@pytest.mark.parametrize(
    ("overrides", "facts", "parts"),
    [
        ([], {"replicas": 5}, ["64 images cannot be shared equally by 5 replicas", "multiple of 5: 60 or 65.", "resume it with 4 replicas or 8 replicas"]),
        (["train.accumulation_steps=4"], {"replicas": 32}, ["32 replicas x 4", "a multiple of 128: 128.", "with 16 replicas"]),
        (["train.logical_cpus=3"], {}, ["3 replicas"]),
        ([], {"images": 63}, ["63 images do not fill one batch of 64"]),
    ],
)  # fmt: skip
def test_the_batch_must_fit_replicas_and_images(
    overrides: list[str], facts: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        advice(overrides, **facts)
    heading, line = str(caught.value).splitlines()
    assert heading == "recipe 'demo' cannot work:"
    assert line.startswith("  train.batch_size: ")
    for part in parts:
        assert part in line


# Overrides, facts, the start of the one remark, and its remedy.
UNWISE: list[tuple[list[str], dict[str, Any], str, str]] = [
    (["model.prototypes=65"], {}, "model.prototypes: 65 prototypes share 64 samples", "Use 64 or fewer"),
    (["model.prototypes=257", "method.queue.length=192"], {}, "model.prototypes: 257 prototypes share 256", "Use 256 or fewer"),
    (["method.queue.length=200"], {}, "method.queue.length: 200 is not a multiple of the batch of 64; 192", "192 or 256"),
    (["method.epsilon=0.05"], {}, "method.epsilon: at 0.05 SwAV has collapsed on small", "Try 0.01"),
    (["method.epsilon=0.05", "data.kind=images", "crops.0.size=96"], {"images": 9_999}, "method.epsilon: at 0.05", "Try 0.01"),
    (["method.prototypes_frozen_steps=0"], {"images": 1437}, "method.prototypes_frozen_steps: SwAV has collapsed", "about an epoch (22 steps)"),
    (["method.prototypes_frozen_steps=792"], {"images": 1437}, "method.prototypes_frozen_steps: the run has 792 steps", "(22 steps)"),
    (["method.queue={length: 1408, from_epoch: 35}"], {"images": 1437}, "method.queue.from_epoch: only 22 steps", "Start it earlier"),
    (["optimizer.final_learning_rate=5"], {}, "optimizer.final_learning_rate: 5 is above the peak of 4", "below the peak"),
    (["optimizer.warmup_start_learning_rate=5"], {}, "optimizer.warmup_start_learning_rate: 5 is above", "below the peak"),
    (["train.precision=mixed_float16"], {"on_cpu": True}, "train.precision: mixed_float16 is for GPUs", "float32"),
    (["train.precision=mixed_float16", "train.logical_cpus=2"], {}, "train.precision: mixed_float16 is for GPUs", "float32"),
    ([*CV, "model.batch_norm={momentum: 0.99, epsilon: 1e-3}"], {}, "model.batch_norm.momentum: momentum and epsilon apply", "arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "facts", "start", "remedy"), UNWISE)
def test_advice(overrides: list[str], facts: dict[str, Any], start: str, remedy: str) -> None:
    [remark] = advice(overrides, **facts)
    assert remark.startswith(start)
    assert remedy in remark


def test_advice_for_fine_tuning_with_few_images() -> None:
    recipe = load_any_recipe("finetune_1pct", ["train.batch_size=20"])
    assert isinstance(recipe, FinetuneRecipe)
    steps, rate = check_recipe(recipe, images=20)
    assert (steps.path, rate.path) == ("train.epochs", "optimizer.classifier_learning_rate")
    assert "make 20 steps in 20 epochs" in str(steps)
    assert "Set it to 200 or more" in str(steps)
    assert "Set it to 0.39" in str(rate)  # 5 x 20 / 256

    longer = recipe.lengthened(33, least_steps=150)  # 20 steps before
    assert (longer.train.epochs, longer.optimizer.decay_epochs) == (160, (96, 128))
    assert longer.monitor.validate_every_epochs == 8
    assert longer.model_validate(longer.model_dump()) == longer
    assert recipe.lengthened(8 * 20, least_steps=150) == recipe.lengthened(19, least_steps=150) == recipe


def test_advice_for_classifiers() -> None:
    [remark] = advice([], "finetune_full", on_cpu=True)
    assert remark.startswith("train.precision: ")


# The nearest settings that work well: each differs by one notch from a refusal or a remark above.
@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["crops=[{count: 2, size: 32, scale: [1, 1]}]"], {}),
        (["augment={aspect_ratio: [1, 1], blur: {sigma: [1, 1]}}"], {}),
        (["data.evaluation.crop=32"], {}),
        (["data.kind=images", "data.path=photos"], {}),
        (["data.processes=4"], {}),
        (["data.kind=class_folders", "data.path=photos", "monitor.knn_every_epochs=2"], {}),
        (["monitor.knn_images=10"], {}),  # no k-NN is requested
        ([*CV, "model.backbone.arguments={a: 1}"], {}),
        ([*CV, "model.backbone.preset=x"], {}),
        (CV, {}),
        (["train.accumulation_steps=2"], {"replicas": 32}),
        (["train.logical_cpus=2", "train.strategy=mirrored"], {}),
        (["train.logical_cpus=3"], {"replicas": 2}),  # the actual number is checked
        ([], {"images": 1437}),
        (["model.prototypes=64"], {}),
        (["model.prototypes=256", "method.queue.length=192"], {}),
        (["method.epsilon=0.025"], {}),
        (["method.epsilon=0.049"], {}),
        (["method.epsilon=0.05", "data.kind=images", "crops.0.size=96"], {"images": 10_000}),
        (["method.prototypes_frozen_steps=1"], {}),
        (["method.prototypes_frozen_steps=791"], {"images": 1437}),
        (["method.queue={length: 1344, from_epoch: 35}"], {"images": 1437}),
        (["optimizer.final_learning_rate=4", "optimizer.warmup_start_learning_rate=4"], {}),
        (["train.precision=mixed_bfloat16"], {}),
        (["train.precision=mixed_float16"], {}),
        (["model.batch_norm.momentum=0.99"], {"replicas": 2}),
    ],
)
def test_working_settings_get_no_advice(overrides: list[str], facts: dict[str, Any]) -> None:
    assert advice(overrides, **facts) == []


# Bugs caught: bfloat16 on a CPU without instructions for it; a flag found inside another's name; ARM's line not read.
@pytest.mark.parametrize(
    ("cpuinfo", "remarks"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni\n", 1),
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", 0),
        ("flags\t\t: fpu xbf16\n", 1),
        ("Features\t: fp asimd\n", 1),
        ("Features\t: fp asimd bf16\n", 0),
        ("processor\t: 0\n", 0),
        (None, 0),
    ],
)
def test_bfloat16_needs_a_cpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str | None, remarks: int
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + cpuinfo)
    monkeypatch.setattr("swav_tf.plumbing.system.CPUINFO", tmp_path / "cpuinfo")
    assert len(advice(["train.precision=mixed_bfloat16"], on_cpu=True)) == remarks


def test_numbers_repeated_from_tensorflow_modules() -> None:
    from swav_tf.model import architectures

    assert set(BACKBONES) == set(architectures.ARCHITECTURES)


def test_null_turns_the_queue_off():
    assert load_any_recipe("one_gpu", ["method.queue=null"]).queue_length == 0
    assert load_any_recipe("one_gpu").queue_length > 0
