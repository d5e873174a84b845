"""Damaged and odd recipes: each is refused with a message, or means what it specifies."""

import copy
import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.files import load_any_recipe, save_recipe
from tests.faults.harness import damage, damages, examples, randoms

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(1800)]

# Wrong types, edges of numbers, text that is almost something else.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308,
    float("inf"), float("-inf"), float("nan"), "", " ", "1", "1e-6", "true", "null", "~", "no", "0x10", "1_000",
    "12:30:00", "2001-01-01", "ü", "\u2028", "\U0001f600", "\ud800", "a" * 5000, "../../etc/passwd", "/dev/zero",
    "$(touch canary)", "{{x}}", "%s", [], [1], [0, 0], [0.1], [1, 0.1], [0.1, 1, 2], [[1]], [None], {}, {"a": 1},
    {"": 0}, [{"count": 2}], {"name": "resnet_small"},
)  # fmt: skip

# Texts that are more or less than settings.
ODD_TEXTS = {
    "alias of itself": "a: &a [*a]",
    "merge": "base: &b {name: x}\n<<: *b\n",
    "python call": "name: !!python/object/apply:os.system ['touch canary']",
    "python name": "name: !!python/name:os.system",
    "unknown tag": "name: !x y",
    "two documents": "name: a\n---\nname: b\n",
    "no text": "",
    "comment only": "# nothing",
    "nul byte": "name: \0",
    "tab": "name:\tx\n\tdata: 1",
    "list": "- a\n- b",
    "number": "3",
    "keys of other types": "1: 2\ntrue: 3\nnull: 4\n1.5: 2",
    "list as key": "? [a, b]\n: 1",
    "mapping as key": "? {a: b}\n: 1",
    "surrogate key": '"\\ud800": 1',
    "surrogate value": 'name: "\\ud800"',
    "directive": "%YAML 9.9\n---\nname: x",
    "huge integer": "name: x\ntrain: {seed: " + "9" * 6000 + "}",
    "huge exponent": "name: x\noptimizer: {peak_learning_rate: 1e999999999}",
    "long line": "name: " + "x" * 2_000_000,
    "utf-16": "name: x".encode("utf-16").decode("latin1"),
    "byte order mark": "\ufeffname: x",
}  # fmt: skip


@cache
def bundled() -> dict[str, str]:
    files = (file for file in resources.files("configs").iterdir() if file.name.endswith(".yaml"))
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files, key=lambda f: f.name)}


recipes = st.sampled_from(sorted(bundled()))


@given(name=recipes, how=damages, random=randoms)
@examples(400)
def test_damaged_recipe(tmp_path, tally, name, how, random):
    tally("recipe", load(tmp_path, damage(bundled()[name].encode(), how, random)))


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_text(tmp_path, tally, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    tally("recipe", load(tmp_path, ODD_TEXTS[name].encode("utf-8", "surrogatepass")))
    assert not (tmp_path / "canary").exists()


@given(name=recipes, random=randoms, value=st.sampled_from(ODD_VALUES), misspelled=st.booleans())
@examples(500)
def test_odd_value(tmp_path, tally, name, random, value, misspelled):
    values = YAML(typ="safe").load(bundled()[name])
    path = some_path(values, random)
    if misspelled and isinstance(path[-1], str):
        path[-1] += "x"
    put(values, path, value)
    text = json.dumps(values, indent=1)  # JSON is YAML, and contains what no emitter of YAML would write
    for word, spelled in (("Infinity", ".inf"), ("NaN", ".nan")):
        text = re.sub(rf"(?<![\w\"]){word}(?![\w\"])", spelled, text)
    tally("recipe", load(tmp_path, text.encode(), (path, value)))


def load(folder: Path, data: bytes, setting: tuple[list[Any], Any] | None = None) -> str:
    """Load a recipe and return the outcome; `setting` is the path and value that it must have."""
    file, back = folder / "recipe.yaml", folder / "back.yaml"
    file.write_bytes(data)
    try:
        recipe = load_any_recipe(file)
        check_recipe(recipe)
    except UsageError as error:
        message = str(error)
        assert message.encode(), "a message must be printable"
        assert len(message) < 20_000
        return "refused"
    save_recipe(recipe, back)
    assert load_any_recipe(back) == recipe
    if setting is not None:
        path, value = setting
        got, value = plain(at(recipe.model_dump(), path)), plain(value)
        if isinstance(value, dict):  # a section, filled up with defaults
            got = {key: got[key] for key in value}
        assert got == (float(value) if isinstance(got, float) and isinstance(value, int) else value)
    return "valid, means what it specifies"


def some_path(values: Any, random: Random) -> list[Any]:
    """Return keys that lead to a value or a section."""
    path: list[Any] = []
    while isinstance(values, dict | list) and values and not (path and random.random() < 0.15):
        path.append(random.choice(list(values) if isinstance(values, dict) else range(len(values))))
        values = values[path[-1]]
    return path


def at(values: Any, path: list[Any]) -> Any:
    for key in path:
        values = values[key]
    return values


def put(values: Any, path: list[Any], value: Any) -> None:
    at(values, path[:-1])[path[-1]] = copy.deepcopy(value)


def plain(value: Any) -> Any:
    """Return lists for tuples, and text for what JSON has no number for."""
    return (
        str(value) if isinstance(value, float) and not np.isfinite(value) else json.loads(json.dumps(value))
    )


def altered(values: Any, random: Random) -> bytes:
    """Give another value to one setting, near the old one or odd; return JSON."""
    while True:
        changed = copy.deepcopy(values)
        path = some_path(changed, random)
        old = at(changed, path)
        value = random.choice(near(old) or ODD_VALUES)
        put(changed, path, value)
        text = json.dumps(changed, indent=1)
        if value != old and not any(word in text for word in ("NaN", "Infinity", "\\ud8")):
            return text.encode()


def near(value: Any) -> tuple[Any, ...]:
    """Return values that a reader could take for this one."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1, 2 * value, 0)
    if isinstance(value, float):
        return (1.1 * value, 0.5 * value, -value, 0.0)
    if isinstance(value, str):
        return (value + "x", value[1:], "train", "float32", "digits", "resnet18_32px")
    if isinstance(value, list) and value:
        return (value[::-1], value[1:], [*value, value[0]])
    return ()
