"""The bundled recipes of probes and fine-tuning against the published settings, and what cannot work."""

import re

import pytest

from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.classifier_advice import check_classifier_recipe
from swav_tf.recipe.files import bundled_recipes, load_any_recipe, load_recipe, load_recipe_of, recipe_header

PROBES = {"probe", "probe_passl", "probe_one_gpu", "probe_digits"}
FINETUNING = {
    *("finetune_10pct", "finetune_10pct_passl", "finetune_1pct", "finetune_1pct_passl"),
    *("finetune_full", "finetune_digits"),
}
IMAGES = {"probe_digits": 1437, "finetune_digits": 144} | {
    f"finetune_{share}{whose}": images
    for share, images in (("10pct", 128_116), ("1pct", 12_811))
    for whose in ("", "_passl")
}

bundled = pytest.mark.parametrize("name", sorted(PROBES | FINETUNING))


# Bug caught: a recipe that is bundled and tested by nobody.
def test_the_bundle_is_these() -> None:
    kinds = {name: load_any_recipe(name) for name in bundled_recipes()}
    assert {name for name, recipe in kinds.items() if isinstance(recipe, ProbeRecipe)} == PROBES
    assert {name for name, recipe in kinds.items() if isinstance(recipe, FinetuneRecipe)} == FINETUNING


# Bug caught: a cell of the published probe that is another number.
@pytest.mark.parametrize("name", ["probe", "probe_passl"])
def test_the_published_probe(name: str) -> None:
    recipe = load_recipe_of(ProbeRecipe, name)
    assert recipe.optimizer.model_dump() == {
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "decay": "cosine",
        "decay_epochs": (),
        "decay_factor": 0.2,
        "learning_rate": 0.3,
    }
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.accumulation_steps) == (100, 256, 1)
    assert_published_images(recipe)


# Bug caught: a cell of the published fine-tuning that is another number.
@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("finetune_10pct", (0.01, 0.2)),
        ("finetune_1pct", (0.02, 5.0)),
        ("finetune_10pct_passl", (0.02, 5.0)),
        ("finetune_1pct_passl", (0.02, 5.0)),
    ],
)
def test_the_published_fine_tuning(name: str, rates: tuple[float, float]) -> None:
    recipe = load_recipe_of(FinetuneRecipe, name)
    assert recipe.learning_rates == rates
    assert (recipe.sgd.momentum, recipe.sgd.weight_decay) == (0.9, 0.0)
    assert (recipe.sgd.decay, recipe.sgd.decay_epochs, recipe.sgd.decay_factor) == ("steps", (12, 16), 0.2)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.accumulation_steps) == (20, 256, 1)
    assert_published_images(recipe)


def assert_published_images(recipe: ProbeRecipe | FinetuneRecipe) -> None:
    [group] = recipe.crops
    assert (group.count, group.size, group.scale) == (1, 224, (0.08, 1.0))
    augment = recipe.augment
    assert augment.flip_probability == 0.5
    assert augment.aspect_ratio == pytest.approx((3 / 4, 4 / 3))
    assert augment.jitter.probability == augment.grayscale_probability == augment.blur.probability == 0
    assert (recipe.data.evaluation.resize, recipe.data.evaluation.crop) == (256, 224)


@bundled
def test_the_header_tells_what_a_reader_needs(name: str) -> None:
    header = recipe_header(name)
    for label in ("Reproduces", "Expected", "Hardware", "Time", "Command"):
        assert re.search(rf"^# {label} +\S", header, re.MULTILINE), label
    assert f"-c {name}" in header
    if "digits" not in name:
        assert "Not run by this project" in header
    figures = {"probe": "75.3", "probe_passl": "75.3", "finetune_10pct": "70.2", "finetune_1pct": "53.9"}
    figures |= {"finetune_10pct_passl": "69.0", "finetune_1pct_passl": "55.0"}
    assert f"{figures.get(name, '')} % ImageNet top-1" in header or name not in figures


@bundled
def test_bundled_recipes_work_and_need_no_advice(name: str) -> None:
    recipe = load_any_recipe(name)
    assert not isinstance(recipe, type(load_recipe("demo")))
    assert recipe.name == name
    assert check_classifier_recipe(recipe, images=IMAGES.get(name, 1_281_167)) == []


# Bug caught: a recipe of one kind that is taken for another, or a word that is no kind.
def test_kinds_are_kept_apart() -> None:
    with pytest.raises(RecipeError, match=r"of kind pretrain is needed here. Received: probe, of kind probe"):
        load_recipe("probe")
    with pytest.raises(RecipeError, match="Of kind probe are: probe, probe_digits"):
        load_recipe_of(ProbeRecipe, "finetune_full")
    with pytest.raises(RecipeError, match="kind: must be 'probe' or 'finetune', or left out, got \"prob\""):
        load_any_recipe("probe", ["kind=prob"])
    with pytest.raises(
        RecipeError,
        match=r"optimizer.learning_rat: no such setting .* Did you mean 'optimizer.learning_rate'",
    ):
        load_any_recipe("probe", ["optimizer.learning_rat=1"])
    with pytest.raises(RecipeError, match=r"optimizer.peak_learning_rate: no such setting"):
        load_any_recipe("probe", ["optimizer.peak_learning_rate=1"])


# Bugs caught: settings that cannot work and are found out after an hour; a setting that is ignored without a word.
@pytest.mark.parametrize(
    ("name", "override", "told"),
    [
        ("probe", "crop.scale=[0.5, 0.2]", "crop.scale: must be shares of the area"),
        ("probe", "data.evaluation.crop=300", "data.evaluation.crop: a centre crop of 300 pixels does not fit"),
        ("probe", "data.kind=images", "data.kind: a classifier needs labels"),
        ("probe", "data.validation_split=test", "data.validation_split: plays no part"),
        ("probe_digits", "data.validation_path=x", "data.validation_path: plays no part"),
        ("probe", "optimizer.decay_epochs=[3]", "optimizer.decay_epochs: has no effect"),
        ("finetune_full", "optimizer.decay_epochs=[]", "optimizer.decay_epochs: must name the epochs"),
        ("finetune_full", "optimizer.decay_epochs=[16, 12]", "optimizer.decay_epochs: must rise"),
        ("finetune_full", "train.epochs=16", "optimizer.decay_epochs: must rise and lie between 1 and the last epoch, 15"),
        ("finetune_full", "train.accumulation_steps=3", "train.batch_size: 256 images cannot be shared equally"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(name: str, override: str, told: str) -> None:
    recipe = load_any_recipe(name, [override])
    assert isinstance(recipe, ProbeRecipe | FinetuneRecipe)
    with pytest.raises(RecipeError) as caught:
        check_classifier_recipe(recipe)
    assert told in str(caught.value)


def test_half_precision_on_a_cpu_is_advised_against() -> None:
    recipe = load_recipe_of(FinetuneRecipe, "finetune_full")
    [advice] = check_classifier_recipe(recipe, on_cpu=True)
    assert advice.path == "train.precision"
