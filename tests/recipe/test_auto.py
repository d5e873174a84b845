"""The rules of `-c auto` give recipes that work, over kinds of folders and machines."""

import dataclasses

import pytest

from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.auto import CPU_SECONDS, ImageFacts, Machine, auto_name, choose, remedies
from swav_tf.recipe.files import load_recipe, recipe_of

PHOTOS = ImageFacts(
    path="a/photos", kind="images", images=2000, classes=0, short_side=400, gray=False, decode_seconds=0.005
)
CPU, GPU = Machine(2), Machine(16, gpu_gb=16, gpus=1, bfloat16=True)


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("images", [16, 61, 500, 2000, 20_000, 1_300_000])
@pytest.mark.parametrize("short_side", [8, 64, 4000])
def test_every_choice_is_a_recipe_without_remarks(machine: Machine, images: int, short_side: int) -> None:
    """Bug caught: prototypes beyond the batch, a freeze or warm-up beyond the run, a batch beyond the images."""
    facts = dataclasses.replace(PHOTOS, images=images, short_side=short_side)
    choice = choose(facts, machine)
    recipe = recipe_of(dict(choice.settings))
    remarks = check_recipe(recipe, images=images, replicas=1, on_cpu=not machine.gpus)
    short = recipe.train.epochs <= 5
    assert [remark.path for remark in remarks if not short] == []
    assert recipe.train.batch_size * 4 <= images
    assert len(choice.lines) <= 12


@pytest.mark.parametrize("gpus", range(1, 9))
def test_a_batch_is_shared_equally_by_all_gpus(gpus: int) -> None:
    """Bug caught: 256 images for three GPUs; parts as small as for one GPU, or another batch for a power of 2."""
    machine, powers = Machine(16, gpu_gb=16, gpus=gpus), gpus in (1, 2, 4, 8)
    for images in (16, 61, 500, 2000, 20_000, 1_300_000):
        choice = choose(dataclasses.replace(PHOTOS, images=images), machine)
        recipe = recipe_of(dict(choice.settings))
        check_recipe(recipe, images=images, replicas=gpus)
        assert not powers or recipe.train.batch_size.bit_count() == 1
    assert recipe.train.batch_size in range(250, 257)
    assert recipe.train.accumulation_steps == {1: 16, 2: 8, 3: 4, 4: 4}.get(gpus, 2)


@pytest.mark.parametrize("decode_seconds", [0.0001, 0.02, 0.3])
def test_two_thousand_images_of_any_size_finish_on_two_cores(decode_seconds: float) -> None:
    """Bug caught: an expected time that leaves out decoding."""
    choice = choose(dataclasses.replace(PHOTOS, decode_seconds=decode_seconds), CPU)
    assert choice.seconds is not None
    assert choice.seconds <= CPU_SECONDS
    assert choice.settings["train"]["epochs"] * 2000 * decode_seconds / 2 <= CPU_SECONDS


def test_prototypes_follow_a_given_batch() -> None:
    """Bug caught: more prototypes as the batch has images, after -o train.batch_size."""
    for batch in (4, 16, 500):
        settings = choose(PHOTOS, CPU, batch).settings
        assert settings["train"]["batch_size"] == batch
        assert 2 <= settings["model"]["prototypes"] < batch


def test_labels_and_gray_images_change_the_recipe() -> None:
    """Bug caught: a k-NN without labels, or jitter of colors that are not there."""
    assert choose(PHOTOS, CPU).settings["monitor"]["knn_every_epochs"] == 0
    gray = choose(dataclasses.replace(PHOTOS, kind="class_folders", classes=3, gray=True), CPU).settings
    assert gray["monitor"]["knn_every_epochs"] > 0
    assert gray["augment"]["jitter"]["saturation"] == gray["augment"]["grayscale_probability"] == 0
    assert gray["augment"]["flip_probability"] == 0
    with pytest.raises(DataError, match="At least 16"):
        choose(dataclasses.replace(PHOTOS, images=15), CPU)


def test_remedies_follow_from_the_recipe() -> None:
    """Bug caught: advice that the recipe follows already, a freeze longer than the run, or one that does not load."""
    settled = ["method.epsilon=0.01", "model.prototypes=12", "method.queue.length=64", "train.epochs=3"]
    recipe = load_recipe("demo", [*settled, "method.prototypes_frozen_steps=22"])
    text = "; ".join(remedy.text for remedy in remedies(recipe, 22))
    assert not any(word in text for word in ("epsilon", "freeze", "queue", "fewer"))
    recipe = load_recipe("demo", ["method.prototypes_frozen_steps=20", "method.epsilon=0.05"])
    assert "method.prototypes_frozen_steps=40 (instead of 20)" in remedies(recipe, 30)[1].text
    rates = [f"optimizer.{name}_learning_rate=0.5" for name in ("peak", "final")]
    for other in (recipe, load_recipe("demo", ["method.queue.from_epoch=500", *rates])):
        for remedy in remedies(other, 30):
            assert recipe_of(other.model_dump(mode="json"), remedy.overrides) != other


# Bug caught: a run folder with the ending of an archive, `runs/auto-signs.zip`.
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/signs.zip", "signs"),
        ("b/c.TAR.gz", "c"),
        ("photos.2024/", "photos.2024"),
        ("..", ".."),
        ("/", "images"),
        ("shards/train-*.tar", "train"),
    ],
)
def test_names_of_runs(path: str, name: str) -> None:
    assert auto_name(path) == f"auto-{name}"
