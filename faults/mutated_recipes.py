"""Damaged and odd recipes: each is refused in words, or means what it says."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from faults.isolated import isolated
from faults.mutate import mutated
from faults.trial import Plan, Trial, shortened
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.files import load_any_recipe, recipe_yaml, save_recipe

# Values at which readers of settings trip: wrong types, edges of numbers, text that is nearly something else.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308,
    float("inf"), float("-inf"), float("nan"), "", " ", "1", "1e-6", "true", "null", "~", "no", "0x10", "1_000",
    "12:30:00", "2001-01-01", "ü", "\u2028", "\U0001f600", "\ud800", "a" * 5000, "../../etc/passwd", "/dev/zero",
    "$(touch canary)", "{{x}}", "%s", [], [1], [0, 0], [0.1], [1, 0.1], [0.1, 1, 2], [[1]], [None], {}, {"a": 1},
    {"": 0}, [{"count": 2}], {"name": "resnet_small"},
)  # fmt: skip

# Texts that do more than state settings.
ODD_TEXTS = {
    "deep list": "[" * 5000,
    "deep whole list": "a: " + "[" * 3000 + "]" * 3000,
    "deep mapping": "{a: " * 3000,
    "deep indents": "\n".join(" " * depth + "a:" for depth in range(2000)),
    "laughs": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)),
    "long laughs": "a0: &a0 " + "x" * 10000 + "\n"
    + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 7)),
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
    "huge whole number": "name: x\ntrain: {seed: " + "9" * 6000 + "}",
    "huge exponent": "name: x\noptimizer: {peak_learning_rate: 1e999999999}",
    "long line": "name: " + "x" * 2_000_000,
    "many keys": "\n".join(f"k{n}: {n}" for n in range(20_000)),
    "utf-16": "name: x".encode("utf-16").decode("latin1"),
    "byte order mark": "\ufeffname: x",
}  # fmt: skip


@functools.cache
def bundled() -> dict[str, str]:
    """The text of each recipe that comes with the package."""
    files = (file for file in resources.files("configs").iterdir() if file.name.endswith(".yaml"))
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files, key=lambda f: f.name)}


def damaged(plan: Plan, number: int) -> tuple[str, bytes, tuple[list[str], Any] | None]:
    """Name of the damage, the recipe's bytes, and the setting that was changed, where it was one."""
    draw = plan.draw(number)
    name = sorted(bundled())[int(draw.integers(len(bundled())))]
    text = bundled()[name]
    way = number % 4
    if way == 0:
        data, how = mutated(text.encode(), draw)
        return f"{name}: {how}", data, None
    if way == 1 and number // 4 < len(ODD_TEXTS):
        how = list(ODD_TEXTS)[number // 4]
        return how, ODD_TEXTS[how].encode("utf-8", "surrogatepass"), None
    if way == 1:
        return *_lines_mixed(name, text, draw), None
    values = YAML(typ="safe").load(text)
    path = some_path(values, draw)
    value = ODD_VALUES[int(draw.integers(len(ODD_VALUES)))]
    if way == 3 and draw.random() < 0.5:  # a setting that is none
        path = [*path[:-1], str(path[-1]) + "x"] if isinstance(path[-1], str) else path
    put(values, path, value)
    # JSON is YAML; and it writes what no emitter of YAML would.
    return f"{name}: {'.'.join(map(str, path))} = {str(value)[:40]!r}", _as_yaml(values), (path, value)


def run(plan: Plan) -> Iterator[Trial]:
    """Files, and the values in them."""
    file, canary = plan.folder / "recipe.yaml", plan.folder / "canary"

    def outcome(number: int) -> tuple[str, str]:
        _, data, changed = damaged(plan, number)
        file.write_bytes(data)
        try:
            recipe = load_any_recipe(file)
            check_recipe(recipe)
        except UsageError as error:
            message = str(error)
            message.encode()  # what cannot be printed is no message
            return "refused in words", "" if len(message) < 20_000 else f"a message of {len(message)} letters"
        back = file.with_name("back.yaml")
        save_recipe(recipe, back)
        if load_any_recipe(back) != recipe:
            return "", "is not the same when it is saved and loaded"
        if changed is not None and not _same(got := _at(recipe.model_dump(), changed[0]), _plain(changed[1])):
            return "", f"is accepted, and means {got!r}"
        return "valid, means what it says", recipe_yaml(recipe) and ""

    for answer in isolated(outcome, list(plan.numbers), limit_s=30):
        what, _, _ = damaged(plan, answer.argument)
        told, wrong = answer.value or ("", "")
        wrong = answer.broken or wrong
        if canary.exists():
            canary.unlink()
            wrong = "ran what the recipe holds"
        yield Trial(
            answer.argument,
            "recipe",
            told or "broken",
            finding=f"{what}: {shortened(wrong)}" if wrong else "",
        )


def _lines_mixed(name: str, text: str, draw: np.random.Generator) -> tuple[str, bytes]:
    """Lines lost, doubled, moved or indented, as an editor's accident has them."""
    lines = text.splitlines()
    places = [index for index, line in enumerate(lines) if line and not line.startswith("#")]
    place, other = (places[int(draw.integers(len(places)))] for _ in range(2))
    way = ("lost", "doubled", "moved", "indented", "commented", "joined")[int(draw.integers(6))]
    line = lines[place]
    if way == "lost":
        del lines[place]
    elif way == "doubled":
        lines.insert(other, line)
    elif way == "moved":
        lines.insert(other, lines.pop(place))
    elif way == "indented":
        lines[place] = " " * int(draw.integers(1, 5)) + line
    elif way == "commented":
        lines[place] = line.replace(":", " #:", 1)
    else:
        lines[place : place + 2] = ["".join(lines[place : place + 2])]
    return f"{name}: a line {way}", "\n".join(lines).encode()


def some_path(values: Any, draw: np.random.Generator) -> list[Any]:
    """Keys that lead to a value or a section."""
    path: list[Any] = []
    place = values
    while isinstance(place, (dict, list)) and place and not (path and draw.random() < 0.15):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        path.append(keys[int(draw.integers(len(keys)))])
        place = place[path[-1]]
    return path


def put(values: Any, path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = copy.deepcopy(value)


def _at(values: Any, path: list[Any]) -> Any:
    for key in path:
        values = values[key]
    return _plain(values)


def _same(got: Any, asked: Any) -> bool:
    """Whether a setting is what was asked for; a whole number may stand for a float."""
    return bool(got == (float(asked) if isinstance(got, float) and isinstance(asked, int) else asked))


def _plain(value: Any) -> Any:
    """Lists for tuples, and without the defaults that a section is filled up with."""
    return json.loads(json.dumps(value)) if not isinstance(value, float) or np.isfinite(value) else str(value)


def _as_yaml(values: Any) -> bytes:
    text = json.dumps(values, indent=1)
    for word, spelt in (("Infinity", ".inf"), ("NaN", ".nan")):
        text = re.sub(rf"(?<![\w\"]){word}(?![\w\"])", spelt, text)
    return text.encode()
