"""`config`."""

import json

import pytest

from swav_tf.recipe.files import KINDS, bundled_recipes, load_recipe
from swav_tf.recipe.pretraining import Recipe


def test_list(output):
    lines = output("config list").splitlines()
    assert [line.split("  ")[0] for line in lines] == list(bundled_recipes())
    [demo] = [line for line in lines if line.split()[0] == "demo"]
    assert demo.endswith("SwAV on scikit-learn's handwritten digits, in three minutes on two CPU cores")
    document = json.loads(output("config list --json"))
    assert {name: recipe["summary"] for name, recipe in document.items()} == bundled_recipes()
    assert {document[name]["kind"] for name in ("demo", "probe", "finetune_1pct")} == set(KINDS)


def test_show_prints_a_recipe_that_loads_again(output, tmp_path):
    text = output("config show one_gpu")
    assert text.startswith("# SwAV, ResNet-50, 200 epochs at batch 256 with a queue, on one GPU\n")
    assert "sigma: [0.1, 2.0]" in text  # a default that the file does not name
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path) == load_recipe("one_gpu")
    assert output(f"config show {path}") == text
    assert "kind: probe\n" in output("config show probe")


# Bug caught: an expected figure in the header that no longer holds after an override.
def test_show_with_overrides(output):
    text = output("config show one_gpu -o train.epochs=30")
    assert text.startswith("name: one_gpu\n")
    assert "epochs: 30" in text
    document = output("config show demo --json -o train.seed=5")
    assert Recipe.model_validate_json(document, strict=True) == load_recipe("demo", ["train.seed=5"])


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("demo", []),
        ("probe --replicas 8", []),
        ("passl_1node", ["method.queue.length: 3840 is not a multiple"]),
        ("demo -o model.prototypes=100 -o method.prototypes_frozen_steps=0",
         ["model.prototypes: 100 prototypes share 64", "method.prototypes_frozen_steps: SwAV has collapsed"]),
        ("demo -o method.prototypes_frozen_steps=616 --images 1437 --replicas 2",
         ["method.prototypes_frozen_steps: the run has 616 steps"]),
    ],
)  # fmt: skip
def test_check(arguments, advice, output):
    first, *lines = output(f"config check {arguments}").splitlines()
    assert first.endswith(f": valid, {('no remarks', '1 remark', '2 remarks')[len(advice)]}")
    assert len(lines) == len(advice)
    assert all(line.startswith(f"  Advice: {start}") for line, start in zip(lines, advice, strict=True))
    document = json.loads(output(f"config check {arguments} --json"))
    assert (document["valid"], document["error"]) == (True, None)
    assert [remark["path"] for remark in document["advice"]] == [text.partition(":")[0] for text in advice]
    assert all(remark["remedy"] for remark in document["advice"])


def test_check_of_an_invalid_recipe(run):
    result = run("config check demo -o train.epochs=0 --json")
    document = json.loads(result.out)
    assert (result.code, document["valid"]) == (2, False)
    assert "train.epochs: must be greater than or equal to 1, got 0" in document["error"]


# Bugs caught: a check that stops at the first bad recipe, or whose exit code is that of the last one.
def test_check_of_several_recipes(run, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("base: demo\ntrain: {epochs: 0}\n", encoding="utf-8")
    result = run(f"config check demo {bad} probe")
    assert result.code == 2
    assert [line.partition(":")[0] for line in result.out.splitlines()] == ["demo", "probe"]
    assert "train.epochs: must be greater" in result.err
    document = json.loads(run(f"config check demo {bad} probe --json").out)
    assert {name: found["valid"] for name, found in document.items()} == {
        "demo": True,
        str(bad): False,
        "probe": True,
    }


# Bug caught: a pattern that finds no meanings, or nothing found without a word.
def test_settings_that_contain_a_pattern(run, output):
    found = json.loads(output("config settings Queue --json"))
    assert (
        {"method.queue.length", "method.queue.from_epoch"}
        <= found.keys()
        < set(json.loads(output("config settings --json")))
    )
    result = run("config settings quue")
    assert (result.code, "No setting" in result.err) == (2, True)


@pytest.mark.parametrize("kind", list(KINDS))
def test_settings(kind, output):
    document = json.loads(output(f"config settings --kind {kind} --json"))
    assert ("optimizer.backbone_learning_rate" in document) == (kind == "finetune")
    assert all(field["meaning"] != "None" for field in document.values())
    if kind == "pretrain":
        assert document["crops.N.scale"]["type"] == "list of 2 float"
        assert document["train.precision"]["type"] == "float32 | mixed_float16 | mixed_bfloat16"
        assert document["monitor.track"]["type"] == "list of mlflow | wandb"
        assert document["augment.jitter.hue"]["type"] == "float >= 0 <= 0.5"
        assert "default" not in document["train.batch_size"]
        assert document["train.seed"]["default"] == 31
        text = output("config settings")
        assert "train.seed\n    int >= 0 < 4294967296, default 31. seed of weights" in text
