import json

import pytest

from swav_tf.recipe.files import KINDS, bundled_recipes, load_recipe
from swav_tf.recipe.pretraining import Recipe
from tests.cli.command_line import Run, Told


@pytest.fixture
def config(run: Run) -> Told:
    """The output of a `config` command that succeeds without a word on stderr."""

    def config(*arguments: str) -> str:
        left = run("config", *arguments)
        assert (left.code, left.err) == (0, "")
        return left.out

    return config


def test_list_shows_every_recipe_with_its_summary(config: Told) -> None:
    lines = config("list").splitlines()
    assert [line.split("  ")[0] for line in lines] == list(bundled_recipes())
    assert lines[0].endswith("SwAV on scikit-learn's handwritten digits, in three minutes on two CPU cores")
    told = json.loads(config("list", "--json"))
    assert {name: recipe["summary"] for name, recipe in told.items()} == bundled_recipes()
    assert {told[name]["kind"] for name in ("demo", "probe", "finetune_1pct")} == set(KINDS)


def test_show_prints_a_recipe_that_loads_again(config: Told, tmp_path: object) -> None:
    text = config("show", "one_gpu")
    assert text.startswith("# SwAV, ResNet-50, 200 epochs at batch 256 with a queue, on one GPU\n")
    assert "sigma: [0.1, 2.0]" in text  # a default that the file does not name
    path = f"{tmp_path}/mine.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    assert load_recipe(path) == load_recipe("one_gpu")
    assert config("show", path) == text


def test_show_with_overrides_drops_the_header_that_is_no_longer_true(config: Told) -> None:
    text = config("show", "one_gpu", "-o", "train.epochs=30")
    assert text.startswith("name: one_gpu\n")
    assert "epochs: 30" in text


def test_show_as_json_is_the_resolved_recipe(config: Told) -> None:
    told = config("show", "demo", "--json", "-o", "train.seed=5")
    assert Recipe.model_validate_json(told, strict=True) == load_recipe("demo", ["train.seed=5"])


@pytest.mark.parametrize(
    ("arguments", "last_line", "advice"),
    [
        (["demo"], "demo: valid, no remarks", []),
        (["probe", "--replicas", "8"], "probe: valid, no remarks", []),
        (["passl_1node"], "passl_1node: valid, 1 remark", ["method.queue.length: 3840 is not a multiple"]),
        (
            ["demo", "-o", "model.prototypes=100", "-o", "method.prototypes_frozen_steps=0"],
            "demo: valid, 2 remarks",
            ["model.prototypes: 100 prototypes share 64", "method.prototypes_frozen_steps: SwAV was seen"],
        ),
        (
            ["demo", "-o", "method.prototypes_frozen_steps=616", "--images", "1437", "--replicas", "2"],
            "demo: valid, 1 remark",
            ["method.prototypes_frozen_steps: the run has 616 steps"],
        ),
    ],
)
def test_check_tells_advice_and_succeeds(
    arguments: list[str], last_line: str, advice: list[str], config: Told
) -> None:
    *lines, last = config("check", *arguments).splitlines()
    assert last == last_line
    assert len(lines) == len(advice)
    for line, start in zip(lines, advice, strict=True):
        assert line.startswith(f"Advice: {start}")


def test_check_as_json_has_the_advice(config: Told) -> None:
    told = json.loads(config("check", "passl_1node", "--json"))
    assert told["valid"] is True
    assert told["error"] is None
    [remark] = told["advice"]
    assert remark["path"] == "method.queue.length"
    assert remark["remedy"] == "Set it to 3584 or 4096"


def test_settings_explains_every_field(config: Told) -> None:
    told = json.loads(config("settings", "--json"))
    assert told["crops.N.scale"]["type"] == "list of 2 float"
    assert told["train.batch_size"] == {
        "type": "int >= 2",
        "default": "must be set",
        "meaning": "images of one optimizer step over all replicas (global)",
    }
    assert told["train.precision"]["type"] == "float32 | mixed_float16 | mixed_bfloat16"
    assert told["augment.jitter.hue"]["type"] == "float >= 0 <= 0.5"
    assert all(field["meaning"] != "None" for field in told.values())
    assert "train.seed\n    int >= 0 < 4294967296, default 31. seed of weights" in config("settings")


@pytest.mark.parametrize("kind", ["probe", "finetune"])
def test_settings_of_another_kind(config: Told, kind: str) -> None:
    told = json.loads(config("settings", "--kind", kind, "--json"))
    assert told["optimizer.decay_epochs"]["type"] == "list of int"
    assert ("optimizer.backbone_learning_rate" in told) == (kind == "finetune")
    assert all(field["meaning"] != "None" for field in told.values())


def test_show_prints_a_probe(config: Told) -> None:
    assert "kind: probe\n" in config("show", "probe")
