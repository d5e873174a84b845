import math
from pathlib import Path

import pytest

from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.files import (
    bundled_recipes,
    load_any_recipe,
    load_recipe,
    recipe_header,
    save_recipe,
)
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
        load_recipe(file, overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


# === Reading ===


@pytest.mark.parametrize("value", ["null", "10.0.0.5:5050"])
def test_a_removed_setting_of_an_earlier_version_is_dropped(tmp_path: Path, value: str) -> None:
    recipe = load_recipe(write(tmp_path, f"{MINIMAL}data: {{service: {value}, threads: 3}}"))
    assert recipe.data.threads == 3
    assert "service" not in recipe.model_dump()["data"]


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1e-6", 1e-6),
        ("1E-6", 1e-6),
        ("1.5e3", 1500.0),
        ("5e+2", 500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("2", 2.0),
        ("+0.25", 0.25),
    ],
)
def test_numbers_of_yaml_are_numbers(tmp_path: Path, written: str, number: float) -> None:
    file = write(tmp_path, MINIMAL.replace("1e-1", written))
    assert load_recipe(file).optimizer.peak_learning_rate == number


@pytest.mark.parametrize("name", ["no", "yes", "on", "12:30", "2024-01-01", "0x1F", "1_000", "o.k."])
def test_words_that_yaml_1_1_would_change_stay_words(tmp_path: Path, name: str) -> None:
    assert load_recipe(write(tmp_path, MINIMAL.replace("mine", name, 1))).name == name


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.method.temperature == 0.1
    assert recipe.augment.std == (0.228, 0.224, 0.225)
    assert recipe.crops[0].scale == (0.4, 1.0)


def test_a_bundled_name_wins_over_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").name == "demo"


def test_a_file_without_yaml_ending_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("notes").name == "mine"


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ("swav_800", ["no recipe 'swav_800'", "Did you mean 'swav_800ep'?", "Bundled recipes: demo, "]),
        ("demo.yml", ["no recipe 'demo.yml'", "Did you mean 'demo'?"]),
        ("folder/passl_4node.yaml", ["Did you mean 'passl_4nodes'?"]),
        ("qqqqqq", ["no recipe 'qqqqqq'", "neither a file nor a bundled recipe.\n"]),
    ],
)
def test_a_missing_recipe_names_the_nearest(asked: str, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(asked)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must be a mapping of settings, as `name: my_run`; got nothing"),
        ("- 1\n- 2", "must be a mapping of settings, as `name: my_run`; got [1, 2]"),
        ("name: [1", "is not readable YAML: while parsing a flow sequence"),
        ("name: !!python/object:os.system {}", "is not readable YAML: could not determine a constructor"),
        ("name: !!timestamp 2024-01-01", "is not readable YAML: could not determine a constructor"),
        ("data: &d {path: *d}", "is not readable YAML: "),
        ("[1]: 2", "is not readable YAML: "),
        ("name: a\x07b", "is not readable YAML: "),
        ("a: " + "[" * 3000 + "]" * 3000, "is not readable YAML: its sections are nested too deep"),
        # Nine lines that would be a billion values, and six that would be 10 GB.
        (
            "a0: &a0 [x, x]\n"
            + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)),
            "must have 1,048,576 letters at most once its aliases are written out",
        ),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, part: str) -> None:
    [line] = errors_of(write(tmp_path, text))
    assert part in line


# Bug caught: a picture or a log given for a recipe is parsed for minutes.
def test_a_file_far_longer_than_recipes_are_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "# " + "x" * 2**20)
    with pytest.raises(RecipeError, match="must have 1,048,576 bytes at most; it has 1,048,578"):
        load_recipe(path)


# Bug caught: an error for each key, and for each a search for what was meant: minutes without a word.
def test_of_very_many_errors_the_first_are_told(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "\n".join(f"key{number}: 1" for number in range(20_000)))
    lines = errors_of(file)
    assert len(lines) == 101
    assert lines[-1] == "and 19,900 more"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="must be UTF-8 text; byte 6 is not"):
        load_recipe(path)


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
            "(images of one optimiser step over all replicas (global))",
        ),
        ("train.epochs=2.5", "train.epochs: must be a valid integer, got 2.5 (passes over the images)"),
        ("train.epochs=1e2", "train.epochs: must be a valid integer, got 100.0; write 100 (passes over the images)"),
        ("train.epochs=ten", 'train.epochs: must be a valid integer, got "ten" (passes'),
        ("train.epochs='3'", 'train.epochs: must be a valid integer, got "3"; write it without quotes (passes'),
        ("train.epochs=true", "train.epochs: must be a valid integer, got true"),
        ("train.epochs=", "train.epochs: must be a valid integer, got nothing"),
        ("method.epsilon=.nan", "method.epsilon: must be a finite number, got NaN"),
        ("method.epsilon=0", "method.epsilon: must be greater than 0, got 0"),
        ("monitor.tensorboard=yes", 'monitor.tensorboard: must be a valid boolean, got "yes"'),
        ("train.precision=fp16", "train.precision: must be 'float32', 'mixed_float16' or 'mixed_bfloat16', got \"fp16\""),
        ("name=5", "name: must be a valid string, got 5; write it in quotes: '5'"),
        ("data=5", "data: must be a mapping, got 5 (where the images come from)"),
        ("crops=[]", "crops: must have at least 1 item, got [] (groups of crops"),
        ("crops.0.scale=[0.1]", "crops.0.scale: must have 2 values, got [0.1]"),
        ("crops.0.scale=[0.1, 0.2, 0.3]", "crops.0.scale: must have 2 values, got [0.1, 0.2, 0.3]"),
        ("crops.0.size=4", "crops.0.size: must be greater than or equal to 8, got 4"),
        ("crops.7.size=40", "override 'crops.7.size=40': crops is a list of 2; its items are 0 to 1"),
        ("crops.x=1", "override 'crops.x=1': crops is a list of 2; its items are 0 to 1"),
        ("crops.0.size.x=1", "override 'crops.0.size.x=1': crops.0.size is 32; it has no 'x' below it"),
        (
            "augment.blur.sigma.0=1",
            "override 'augment.blur.sigma.0=1': the recipe does not set augment.blur.sigma; give the whole list",
        ),
        ("train.epochs", "override 'train.epochs': must be PATH=VALUE, for example train.epochs=10"),
        ("=3", "override '=3': must be PATH=VALUE"),
        ("train..epochs=3", "override 'train..epochs=3': must be PATH=VALUE"),
        ("crops=[{", "override 'crops=[{': is not readable YAML: while parsing a flow"),
        ("data=&a {path: *a}", "override 'data=&a {path: *a}': is not readable YAML: "),
        ("data={path: a, path: b}", "override 'data={path: a, path: b}': path: stands twice in one section"),
    ],
)  # fmt: skip
def test_one_wrong_override_is_one_error(override: str, line: str) -> None:
    [told] = errors_of("demo", override)
    assert told.startswith(line)


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    text = """
name: mine
name: other
crops:
  - {count: 0, size: 32, scale: [0.4, 1.0]}
optimizer: {peak_learning_rate: fast, momentun: 0.9}
train: {epochs: 3}
"""
    told = errors_of(write(tmp_path, text), "method.epsilon=-1", "nonsense", "train.seed=-1")
    assert [line.partition(":")[0] for line in told] == [
        "name",
        "override 'nonsense'",
        "crops.0.count",
        "method.epsilon",
        "optimizer.peak_learning_rate",
        "optimizer.momentun",
        "train.batch_size",
        "train.seed",
    ]
    assert "again in line 3" in told[0]


def test_a_repeated_key_alone_is_refused(tmp_path: Path) -> None:
    [line] = errors_of(write(tmp_path, MINIMAL + "name: other\n"))
    assert line == "name: stands twice in one section, again in line 7; keep one of them"


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
    assert recipe.augment.blur.probability == 0.5  # a section given whole forgets what the file said in it
    assert recipe.optimizer.weight_decay == 1e-4
    assert (recipe.data.evaluation.crop, recipe.data.evaluation.resize) == (28, 32)
    assert recipe.checkpoint.every_minutes == 2.0  # a section that the file does not have
    assert recipe.data.validation_split == "5"
    assert recipe.data.image_key == "a=b"


def test_an_override_changes_one_of_two_aliased_sections(tmp_path: Path) -> None:
    text = MINIMAL.replace("  - {count", "  - &large {count").replace("1.0]}", "1.0]}\n  - *large")
    recipe = load_recipe(write(tmp_path, text), ["crops.1.size=20"])
    assert [group.size for group in recipe.crops] == [32, 20]


def test_an_override_can_give_all_crops() -> None:
    recipe = load_recipe("demo", ["crops=[{count: 2, size: 24, scale: [0.3, 1]}]"])
    assert recipe.crop_count == 2
    assert recipe.crops[0].scale == (0.3, 1.0)


# === Saving ===


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_saved_bundled_recipes_come_back_equal(tmp_path: Path, name: str) -> None:
    recipe = load_any_recipe(name)
    save_recipe(recipe, tmp_path / "config.yaml")
    assert load_any_recipe(tmp_path / "config.yaml") == recipe


@pytest.mark.parametrize(
    "text", ["1e-6", "1.0", "-3", "true", "null", "~", "", " a ", "no", "a: b", "ü\n\t'\"", ".5", "0o7"]
)
def test_saved_strings_come_back_as_strings(tmp_path: Path, text: str) -> None:
    recipe = load_recipe("demo")
    data = recipe.data.model_copy(update={"image_key": text})
    model = recipe.model.backbone.model_copy(update={"arguments": {"a": text, "b": [1, 2.5, None, True]}})
    odd = recipe.model_copy(
        update={"data": data, "model": recipe.model.model_copy(update={"backbone": model})}
    )
    save_recipe(odd, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == odd


@pytest.mark.parametrize("value", [1e-6, 0.1 + 0.2, math.pi * 1e-300, 1e22, 5e-324, 123456789.123456789])
def test_saved_floats_come_back_to_the_bit(tmp_path: Path, value: float) -> None:
    recipe = load_recipe("demo")
    optimizer = recipe.optimizer.model_copy(update={"peak_learning_rate": value})
    save_recipe(recipe.model_copy(update={"optimizer": optimizer}), tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml").optimizer.peak_learning_rate == value


def test_saving_names_every_setting_and_leaves_no_other_file(tmp_path: Path) -> None:
    save_recipe(load_recipe("demo"), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    for name in Recipe.model_fields:
        assert f"\n{name}:" in f"\n{text}"
    assert "max_non_finite_steps: 20" in text


# === Bundled ===


def test_bundled_recipes_have_a_one_line_summary() -> None:
    recipes = bundled_recipes()
    assert recipes["swav_800ep"] == "SwAV, ResNet-50, 800 epochs at batch 4096, crops 2x224 + 6x96"
    assert all(10 < len(summary) < 110 and not summary.startswith("#") for summary in recipes.values())


def test_the_header_is_the_opening_comment_only() -> None:
    header = recipe_header("demo")
    assert header.startswith("# SwAV on scikit-learn's handwritten digits")
    assert all(line.startswith("#") for line in header.splitlines())
