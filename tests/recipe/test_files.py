"""Reading, overriding and saving recipes, and the errors in words."""

import math
from pathlib import Path

import pytest

from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.classifier import ProbeRecipe
from swav_tf.recipe.files import bundled_recipes, load_any_recipe, load_recipe, load_recipe_of, save_recipe
from swav_tf.recipe.pretraining import Recipe

MINIMAL = """
name: mine
crops:
  - {count: 2, size: 32, scale: [0.4, 1.0]}
optimizer: {peak_learning_rate: 1e-1}
train: {epochs: 3, batch_size: 8}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def errors_of(file: Path | str, *overrides: str) -> list[str]:
    """The lines of the error below its heading."""
    with pytest.raises(RecipeError) as caught:
        load_any_recipe(file, overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


# === Reading ===


# Bug caught: a reader of YAML 1.1, for which 1e-6 is a string, `no` is false and 12:30 is 750.
def test_words_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    numbers = {
        "1e-6": 1e-6,
        "1E-6": 1e-6,
        "1.5e3": 1500.0,
        "5e+2": 500.0,
        ".5": 0.5,
        "1.": 1.0,
        "2": 2.0,
        "+0.25": 0.25,
    }
    for written, number in numbers.items():
        file = write(tmp_path, MINIMAL.replace("1e-1", written))
        assert load_recipe(file).optimizer.peak_learning_rate == number
    for name in ("no", "yes", "on", "12:30", "2024-01-01", "o.k."):
        assert load_recipe(write(tmp_path, MINIMAL.replace("mine", name, 1))).name == name
    assert load_recipe(write(tmp_path, MINIMAL)).augment.std == (0.228, 0.224, 0.225)


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "notes").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").name == "demo"
    assert load_recipe("notes").name == "mine"


@pytest.mark.parametrize(
    ("requested", "part"),
    [
        (
            "swav_800",
            "no recipe 'swav_800': it is neither a file nor a bundled recipe. Did you mean 'swav_800ep'?\n",
        ),
        ("folder/passl_4node.yaml", "Did you mean 'passl_4nodes'?\nBundled recipes: "),
        ("qqqqqq", "neither a file nor a bundled recipe.\n"),
        ("auto", "chosen for the images. Print it: `swav-tf config auto DATA`."),
    ],
)
def test_a_missing_recipe_names_the_nearest(requested: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(requested)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must be a mapping of settings, such as `name: my_run`; got nothing"),
        ("- 1\n- 2", "must be a mapping of settings, such as `name: my_run`; got [1, 2]"),
        ("name: [1", "is not readable YAML: expected ',' or ']'"),
        ("name: !!python/object:os.system {}", "is not readable YAML: could not determine a constructor"),
        ("data: &d {path: *d}", "is not readable YAML: "),
        ("[1]: 2", "is not readable YAML: "),
        ("name: a\x07b", "is not readable YAML: "),
        (MINIMAL + "name: other\n", 'is not readable YAML: found duplicate key "name"'),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, text: str, part: str) -> None:
    [line] = errors_of(write(tmp_path, text))
    assert part in line


# Bug caught: an invisible character, or the bytes between those of UTF-16, in the first setting.
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_from_editors_of_other_systems(tmp_path, encoding):
    path = tmp_path / "own.yaml"
    path.write_bytes("base: demo\r\nname: own\r\n".encode(encoding))
    assert load_recipe(path).name == "own"


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="must be UTF-8 text; byte 6 is not"):
        load_recipe(tmp_path / "x.yaml")


# === Errors ===


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epoch=3", "train.epoch: no such setting (value 3). Did you mean 'train.epochs'?"),
        ("trian.epochs=3", "trian: no such setting (value {\"epochs\": 3}). Did you mean 'train'?"),
        ("epochs=3", "epochs: no such setting (value 3). Did you mean 'train.epochs'?"),
        ("method.queue.size=3", "method.queue.size: no such setting (value 3). Did you mean 'crops.N.size'?"),
        ("method.queue.zzz=3", "method.queue.zzz: no such setting (value 3). Settings here: length, from_epoch."),
        (
            "train.batch_size=1",
            "train.batch_size: must be greater than or equal to 2, got 1 "
            "(images of one optimizer step over all replicas (global))",
        ),
        ("train.epochs=2.5", "train.epochs: must be a valid integer, got 2.5 (passes over the images)"),
        ("train.epochs=1e2", "train.epochs: must be a valid integer, got 100.0; write 100 (passes over the images)"),
        ("train.epochs=ten", 'train.epochs: must be a valid integer, got "ten" (passes'),
        ("train.epochs='3'", 'train.epochs: must be a valid integer, got "3"; write it without quotes (passes'),
        ("train.epochs=true", "train.epochs: must be a valid integer, got true"),
        ("train.epochs=", "train.epochs: must be a valid integer, got nothing"),
        ("train=", "train: must be a mapping, got nothing (duration"),
        ("train={epochs: 3}", "train.batch_size: must be set (images of one optimizer step"),
        ("method.epsilon=.nan", "method.epsilon: must be a finite number, got NaN"),
        ("method.epsilon=0", "method.epsilon: must be greater than 0, got 0"),
        ("monitor.tensorboard=yes", 'monitor.tensorboard: must be a valid boolean, got "yes"'),
        ("train.precision=fp16", "train.precision: must be 'float32', 'mixed_float16' or 'mixed_bfloat16', got \"fp16\""),
        ("name=5", "name: must be a valid string, got 5; write it in quotes"),
        ("data=5", "data: must be a mapping, got 5 (where the images come from)"),
        ("crops=[]", "crops: must have at least 1 item, got [] (groups of crops"),
        ("crops.0.scale=[0.1]", "crops.0.scale: must have 2 values, got [0.1]"),
        ("crops.0.scale=[0.1, 0.2, 0.3]", "crops.0.scale: must have 2 values, got [0.1, 0.2, 0.3]"),
        ("crops.0.size=4", "crops.0.size: must be greater than or equal to 8, got 4"),
        ("kind=prob", "kind: must be 'probe' or 'finetune', or omitted, got \"prob\""),
        ("crops.7.size=40", "override 'crops.7.size=40': crops is a list of 2; its items are 0 to 1"),
        ("crops.x=1", "override 'crops.x=1': crops is a list of 2; its items are 0 to 1"),
        ("crops.0.size.x=1", "override 'crops.0.size.x=1': crops.0.size is 32; it has no 'x' below it"),
        (
            "augment.blur.sigma.0=1",
            "override 'augment.blur.sigma.0=1': the recipe does not set augment.blur.sigma; give the complete list",
        ),
        ("train.epochs", "override 'train.epochs': must be PATH=VALUE, for example train.epochs=10"),
        ("=3", "override '=3': must be PATH=VALUE"),
        ("train..epochs=3", "override 'train..epochs=3': must be PATH=VALUE"),
        ("crops=[{", "override 'crops=[{': is not readable YAML: "),
        ("data={path: a, path: b}", "override 'data={path: a, path: b}': is not readable YAML: found duplicate key"),
    ],
)  # fmt: skip
def test_one_wrong_override_is_one_error(override: str, line: str) -> None:
    [error] = errors_of("demo", override)
    assert error.startswith(line)


def test_wrong_types_unknown_keys_and_impossible_values_are_reported_together() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", ["train.batch_size=abc", "train.epoch=3", "crops.0.count=1"])
    heading, *errors = str(caught.value).splitlines()
    assert heading == "recipe 'demo' with -o has 3 errors:"
    assert [error.strip().partition(":")[0] for error in errors] == [
        "crops.0.count",
        "train.batch_size",
        "train.epoch",
    ]


def test_errors_of_file_and_overrides_are_reported_together(tmp_path: Path) -> None:
    text = """
name: mine
crops:
  - {count: 0, size: 32, scale: [0.4, 1.0]}
optimizer: {peak_learning_rate: fast, momentun: 0.9}
train: {epochs: 3}
"""
    errors = errors_of(
        write(tmp_path, text), "method.epsilon=-1", "nonsense", "train.seed=-1", "data.kind=photos"
    )
    assert [line.partition(":")[0] for line in errors] == [
        "override 'nonsense'",
        "data.kind",
        "crops.0.count",
        "method.epsilon",
        "optimizer.peak_learning_rate",
        "optimizer.momentun",
        "train.batch_size",
        "train.seed",
    ]


# Bug caught: a recipe of one kind that is taken for another.
def test_kinds_are_kept_apart() -> None:
    with pytest.raises(RecipeError, match=r"of kind pretrain is needed here. Received: probe, of kind probe"):
        load_recipe("probe")
    with pytest.raises(RecipeError, match="Recipes of this kind: probe, probe_digits"):
        load_recipe_of(ProbeRecipe, "finetune_full")
    assert load_recipe_of(ProbeRecipe, "probe_digits") == load_any_recipe("probe_digits")
    [line] = errors_of("probe", "optimizer.learning_rat=1")
    assert "Did you mean 'optimizer.learning_rate'?" in line
    [line] = errors_of("probe", "optimizer.peak_learning_rate=1")
    assert line.startswith("optimizer.peak_learning_rate: no such setting")


# === Overrides ===


def test_overrides_reach_values_lists_and_sections_in_order() -> None:
    recipe = load_recipe(
        "demo",
        [
            "train.epochs=5",
            "train.epochs=7",
            "crops.0.size=40",
            "crops.1.scale.1=0.6",
            "augment.blur={sigma: [0.5, 1.5]}",
            "optimizer.weight_decay=1e-4",
            "data.evaluation.crop=28",
            "checkpoint.every_minutes=2",
            'data.validation_split="5"',
            "data.image_key=a=b",
        ],
    )
    assert recipe.train.epochs == 7
    assert recipe.crops[0].size == 40
    assert recipe.crops[1].scale == (0.2, 0.6)
    assert recipe.augment.blur.sigma == (0.5, 1.5)
    assert recipe.augment.blur.probability == 0.5  # a complete section replaces that of the file
    assert recipe.optimizer.weight_decay == 1e-4
    assert (recipe.data.evaluation.crop, recipe.data.evaluation.resize) == (28, 32)
    assert recipe.checkpoint.every_minutes == 2.0  # a section that the file does not have
    assert recipe.data.validation_split == "5"
    assert recipe.data.image_key == "a=b"
    recipe = load_recipe("demo", ["crops=[{count: 2, size: 24, scale: [0.3, 1]}]"])
    assert (recipe.crop_count, recipe.crops[0].scale) == (2, (0.3, 1.0))


def test_an_override_changes_one_of_two_aliased_sections(tmp_path: Path) -> None:
    text = MINIMAL.replace("  - {count", "  - &large {count").replace("1.0]}", "1.0]}\n  - *large")
    recipe = load_recipe(write(tmp_path, text), ["crops.1.size=20"])
    assert [group.size for group in recipe.crops] == [32, 20]


# === Saving ===


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_saved_bundled_recipes_come_back_equal(tmp_path: Path, name: str) -> None:
    recipe = load_any_recipe(name)
    save_recipe(recipe, tmp_path / "config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert load_any_recipe(tmp_path / "config.yaml") == recipe


def test_saving_writes_every_setting(tmp_path: Path) -> None:
    save_recipe(load_recipe("demo"), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    for name in Recipe.model_fields:
        assert f"\n{name}:" in f"\n{text}"
    assert "max_non_finite_steps: 20" in text
    assert "sigma: [0.1, 2.0]" in text


@pytest.mark.parametrize(
    "text",
    ["1e-6", "1.0", "-3", "true", "null", "~", "", " a ", "no", "a: b", "ü\n\t'\"", ".5", "0o7", "a" * 200],
)
def test_saved_strings_come_back_as_strings(tmp_path: Path, text: str) -> None:
    recipe = load_recipe("demo")
    data = recipe.data.model_copy(update={"image_key": text})
    backbone = recipe.model.backbone.model_copy(
        update={"library": "keras_cv", "arguments": {"a": text, "b": [1, 2.5, None]}}
    )
    model = recipe.model.model_copy(update={"backbone": backbone})
    odd = recipe.model_copy(update={"data": data, "model": model})
    save_recipe(odd, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == odd


@pytest.mark.parametrize("value", [1e-6, 0.1 + 0.2, math.pi * 1e-300, 1e22, 5e-324, 123456789.123456789])
def test_saved_floats_come_back_to_the_bit(tmp_path: Path, value: float) -> None:
    recipe = load_recipe("demo")
    method = recipe.method.model_copy(update={"epsilon": value})
    save_recipe(recipe.model_copy(update={"method": method}), tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml").method.epsilon == value


# Bug caught: run folders of an earlier version, whose recipes were written by PyYAML, that no longer load.
def test_recipes_of_earlier_versions_load(tmp_path: Path) -> None:
    text = (
        MINIMAL.replace("mine", "2024-01-01").replace("1e-1", "1.0e-06")
        + "data:\n  path: '0x1F'\n  split: '1e-6'\n"
    )
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.name, recipe.data.path, recipe.data.split) == ("2024-01-01", "0x1F", "1e-6")
    assert recipe.optimizer.peak_learning_rate == 1e-6


@pytest.mark.parametrize("value", ["null", "10.0.0.5:5050"])
def test_a_removed_setting_of_an_earlier_version_is_dropped(tmp_path: Path, value: str) -> None:
    recipe = load_recipe(write(tmp_path, f"{MINIMAL}data: {{service: {value}, threads: 3}}"))
    assert recipe.data.threads == 3
    assert "service" not in recipe.model_dump()["data"]
