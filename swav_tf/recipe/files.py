"""Recipes as YAML: read by file or bundled name, overridden, checked against the types, saved resolved.

All the errors of a file and its overrides are told in one `RecipeError`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Hashable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from swav_tf.plumbing.errors import RecipeError
from swav_tf.plumbing.files import atomic_write
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.fields import ERRORS_TOLD, did_you_mean, dotted, explain_errors, shown
from swav_tf.recipe.pretraining import Recipe

LONGEST_BYTES = 2**20  # of a file; the longest recipe here has 2 kB
MOST_LETTERS = 2**20  # of all values once aliases are written out: ten lines could ask for a billion

AnyRecipe = Recipe | ProbeRecipe | FinetuneRecipe
AskedFor = TypeVar("AskedFor", Recipe, ProbeRecipe, FinetuneRecipe)

# What `kind:` in a recipe may say; one that does not say it is for pretraining.
PRETRAIN = "pretrain"
KINDS: dict[str, type[Recipe] | type[ProbeRecipe] | type[FinetuneRecipe]] = {
    PRETRAIN: Recipe,
    "probe": ProbeRecipe,
    "finetune": FinetuneRecipe,
}

_CORE_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
# YAML 1.2's core schema. PyYAML follows 1.1, where `1e-6` is a string and `no` is false.
_PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):
    """Plain data only; a key that stands twice is noted, where PyYAML silently takes the last one."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- PyYAML's own class attributes
    yaml_constructors = {  # noqa: RUF012
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _CORE_TAGS
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated_keys: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                self.repeated_keys.append(
                    f"{key.value}: stands twice in one section, again in line {key.start_mark.line + 1}; "
                    "keep one of them"
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: quotes strings that it would take for numbers."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(
        self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        plain = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _PLAIN_VALUES:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def load_recipe(file_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe for pretraining, apply overrides such as `train.epochs=10`, check it whole.

    Args:
        file_or_name: a YAML file, or the name of a bundled recipe (a bare name is looked up there first).
        overrides: `path=value`, as `crops.0.size=160`; the path is dotted, a number indexes a list; the
            value is YAML.

    Raises:
        RecipeError: lists every error of file and overrides.
    """
    return load_recipe_of(Recipe, file_or_name, overrides)


def load_recipe_of(
    wanted: type[AskedFor], file_or_name: str | Path, overrides: Sequence[str] = ()
) -> AskedFor:
    """The same for a recipe of the kind that is wanted.

    Raises:
        RecipeError: it is of another kind, or lists every error of file and overrides.
    """
    recipe = load_any_recipe(file_or_name, overrides)
    if not isinstance(recipe, wanted):
        [kind] = [name for name, known in KINDS.items() if known is wanted]
        raise RecipeError(
            f"a recipe of kind {kind} is needed here. Received: {file_or_name}, of kind {kind_of(recipe)}. "
            f"Of kind {kind} are: {', '.join(name for name in bundled_recipes() if recipe_kind(name) == kind)}."
        )
    return recipe


def load_any_recipe(file_or_name: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """The same for a recipe of any kind: its `kind` says which.

    Raises:
        RecipeError: lists every error of file and overrides.
    """
    text, label = _read(file_or_name)
    values, errors = _parse(text)
    if values is None:
        raise _all_told(label, errors)
    errors += [error for override in overrides if (error := _apply(override, values))]
    kind = values.get("kind", PRETRAIN)
    if kind not in ("probe", "finetune") and "kind" in values:
        raise _all_told(
            label, [*errors, f"kind: must be 'probe' or 'finetune', or left out, got {shown(kind)}"]
        )
    recipe, more = _validate(values, KINDS[kind])
    if recipe is None or errors:
        raise _all_told(label, errors + more)
    return recipe


def kind_of(recipe: AnyRecipe) -> str:
    """`pretrain`, `probe` or `finetune`."""
    return PRETRAIN if isinstance(recipe, Recipe) else recipe.kind


def recipe_kind(file_or_name: str | Path) -> str:
    """What a recipe is for: `pretrain`, `probe` or `finetune`."""
    return kind_of(load_any_recipe(file_or_name))


def save_recipe(recipe: AnyRecipe, path: Path) -> None:
    """Write the resolved recipe; `load_any_recipe(path)` returns an equal one."""
    with atomic_write(path) as partial:
        partial.write_text(recipe_yaml(recipe), encoding="utf-8")


def recipe_yaml(recipe: AnyRecipe) -> str:
    """The resolved recipe, every setting included, as YAML."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def bundled_recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with the first line of its header."""
    files = (file for file in resources.files("configs").iterdir() if file.name.endswith(".yaml"))
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for file in sorted(files, key=lambda file: file.name)
    }


def recipe_header(file_or_name: str | Path) -> str:
    """The comment that a recipe opens with: what it reproduces, expected figure, hardware, time, command."""
    lines = _read(file_or_name)[0].splitlines()
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def _read(file_or_name: str | Path) -> tuple[str, str]:
    """The text of a recipe and what to call it in errors."""
    name, path = str(file_or_name), Path(file_or_name)
    bare = not isinstance(file_or_name, Path) and path.name == name and path.suffix not in {".yaml", ".yml"}
    bundled = resources.files("configs") / f"{name}.yaml"
    if bare and bundled.is_file():
        return bundled.read_text(encoding="utf-8"), f"recipe '{name}'"
    if path.is_file():
        if path.stat().st_size > LONGEST_BYTES:
            raise RecipeError(
                f"recipe file {name} must have {LONGEST_BYTES:,} bytes at most; it has {path.stat().st_size:,}."
            )
        try:
            return path.read_text(encoding="utf-8"), f"recipe file {name}"
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe file {name} must be UTF-8 text; byte {error.start} is not.") from error
    names = bundled_recipes()
    raise RecipeError(
        f"no recipe '{name}': it is neither a file nor a bundled recipe."
        f"{did_you_mean(path.name.removesuffix('.yaml'), names)}\n"
        f"Bundled recipes: {', '.join(names)}."
    )


def _parse(text: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The values of a recipe (None where it cannot be read) and its errors."""
    values, errors = _plain_data(text)
    if isinstance(values, dict):
        return values, errors
    return None, errors or [f"must be a mapping of settings, as `name: my_run`; got {shown(values)}"]


def _plain_data(text: str) -> tuple[Any, list[str]]:
    """The data in a YAML text and what is wrong with it; no data where it cannot be read."""
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
        if _letters(data, {}) > MOST_LETTERS:
            return None, [f"must have {MOST_LETTERS:,} letters at most once its aliases are written out"]
        # There and back through JSON: what two aliases share becomes two things that overrides can tell
        # apart, and an alias that contains itself is refused.
        data = json.loads(json.dumps(data))
    except (yaml.YAMLError, ValueError) as error:
        return None, [f"is not readable YAML: {' '.join(str(error).split())}"]
    except RecursionError:
        return None, ["is not readable YAML: its sections are nested too deep"]
    return data, loader.repeated_keys


def _letters(data: Any, known: dict[int, int]) -> int:
    """Length of the data as text, about; each thing that aliases share is looked at once."""
    if not isinstance(data, dict | list):
        return 1 + len(data) if isinstance(data, str) else 1
    if id(data) not in known:
        known[id(data)] = 0  # for an alias that contains itself
        items = [*data.keys(), *data.values()] if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_letters(item, known) for item in items)
    return known[id(data)]


def _apply(override: str, values: dict[str, Any]) -> str | None:
    """Set one `path=value` in place; returns what is wrong with it."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return f"override '{override}': must be PATH=VALUE, for example train.epochs=10"
    value, errors = _plain_data(text)
    if errors:
        return f"override '{override}': {errors[0]}"
    trouble = _set(values, keys, value)
    return f"override '{override}': {trouble}" if trouble else None


def _set(values: dict[str, Any], keys: list[str], value: Any) -> str | None:
    """Put `value` where `keys` lead, making sections on the way; returns what stands in the way."""
    place: Any = values
    for depth, key in enumerate(keys):
        where = dotted(keys[:depth])
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                return f"{where} is a list of {len(place)}; its items are 0 to {len(place) - 1}"
        elif not isinstance(place, dict):
            return f"{where} is {shown(place)}; it has no '{key}' below it"
        index = int(key) if isinstance(place, list) else key
        if depth == len(keys) - 1:
            place[index] = value
        elif isinstance(place, dict) and place.get(key) is None:
            if keys[depth + 1].isdecimal():
                return f"the recipe does not set {dotted(keys[: depth + 1])}; give the whole list"
            place[key] = {}
        place = place[index]
    return None


def _validate(
    values: dict[str, Any], kind: type[Recipe] | type[ProbeRecipe] | type[FinetuneRecipe]
) -> tuple[AnyRecipe | None, list[str]]:
    # By way of JSON: pydantic's strict JSON mode takes lists for tuples and whole numbers for floats,
    # and nothing else: no "10" for 10, no `true` for 1.
    try:
        return kind.model_validate_json(json.dumps(values), strict=True), []
    except ValidationError as invalid:
        return None, explain_errors(invalid, kind)


def _all_told(label: str, errors: Iterable[str]) -> RecipeError:
    lines = list(errors)
    count = "1 error" if len(lines) == 1 else f"{len(lines):,} errors"
    told = [f"{label} has {count}:", *(f"  {line}" for line in lines[:ERRORS_TOLD])]
    if len(lines) > ERRORS_TOLD:
        told.append(f"  and {len(lines) - ERRORS_TOLD:,} more")
    return RecipeError("\n".join(told))
