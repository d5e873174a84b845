"""Recipes as YAML 1.2: read by file or bundled name, overridden, validated, saved with every setting.

All errors of a file and its overrides are reported in one `RecipeError`.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from swav_tf.plumbing.errors import RecipeError
from swav_tf.plumbing.files import atomic_write, decode_text
from swav_tf.recipe.classifier import FinetuneRecipe, ProbeRecipe
from swav_tf.recipe.data import Data
from swav_tf.recipe.explain import did_you_mean, dotted, explain_errors, shown
from swav_tf.recipe.pretraining import MOST, Recipe
from swav_tf.recipe.section import Section

AnyRecipe = Recipe | ProbeRecipe | FinetuneRecipe
Wanted = TypeVar("Wanted", Recipe, ProbeRecipe, FinetuneRecipe)
_Kind = TypeVar("_Kind", bound=Section)

# `kind:` in a recipe; a recipe without it is for pretraining.
KINDS: dict[str, type[AnyRecipe]] = {"pretrain": Recipe, "probe": ProbeRecipe, "finetune": FinetuneRecipe}


def load_recipe(file_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe for pretraining, apply overrides such as `train.epochs=10`, and validate it.

    Args:
        file_or_name: a YAML file, or the name of a bundled recipe (a bare name is looked up there first).
        overrides: `path=value`, such as `crops.0.size=160`; the path is dotted, a number indexes a list, the
            value is YAML.

    Raises:
        RecipeError: lists every error of file and overrides.
    """
    return load_recipe_of(Recipe, file_or_name, overrides)


def load_recipe_of(wanted: type[Wanted], file_or_name: str | Path, overrides: Sequence[str] = ()) -> Wanted:
    """Read a recipe of the given kind, as `load_recipe` does; another kind is an error."""
    recipe = load_any_recipe(file_or_name, overrides)
    if not isinstance(recipe, wanted):
        [kind] = [name for name, known in KINDS.items() if known is wanted]
        names = bundled_recipes()
        raise RecipeError(
            f"a recipe of kind {kind} is needed here. Received: {file_or_name}, of kind {recipe.kind}. "
            f"Recipes of this kind: {', '.join(name for name in names if load_any_recipe(name).kind == kind)}."
        )
    return recipe


def load_any_recipe(file_or_name: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe of any kind, as `load_recipe` does."""
    _, label = _read(file_or_name)
    try:
        values = _settings_in(file_or_name)
    except ValueError as error:
        raise _error(label, [str(error)]) from error
    return recipe_of(values, overrides, label=label)


def recipe_of(values: dict[str, Any], overrides: Sequence[str] = (), *, label: str = "recipe") -> AnyRecipe:
    """Validate settings as plain data, after applying overrides in place; `label` names the recipe in errors.

    Raises:
        RecipeError: lists every error.
    """
    if overrides:
        label += " with -o"
    errors = [f"override '{item}': {error}" for item in overrides if (error := _apply(item, values))]
    _resolve_shares(values)
    kind = values.get("kind", "pretrain")
    if kind not in ("probe", "finetune") and "kind" in values:
        raise _error(label, [*errors, f"kind: must be 'probe' or 'finetune', or omitted, got {shown(kind)}"])
    return _validated(KINDS[kind], values, errors, label=label)


class _Images(Section):
    data: Data = Data()


def data_of(overrides: Sequence[str]) -> Data:
    """Return the images that overrides name where there is no recipe yet; those of other sections are ignored.

    Raises:
        RecipeError: lists every error.
    """
    values: dict[str, Any] = {}
    given = [item for item in overrides if item.partition(".")[0].strip() == "data"]
    errors = [f"override '{item}': {error}" for item in given if (error := _apply(item, values))]
    return _validated(_Images, values, errors, label="the command").data


def _validated(kind: type[_Kind], values: dict[str, Any], errors: list[str], *, label: str) -> _Kind:
    """Return settings, unless there are errors: those known before and those of the values."""
    try:
        # Strict JSON accepts lists for tuples and integers for floats, but not "10" for 10 or `true` for 1.
        settings = kind.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as invalid:
        raise _error(label, errors + explain_errors(invalid, kind)) from None
    if errors:
        raise _error(label, errors)
    return settings


def save_recipe(recipe: AnyRecipe, path: Path) -> None:
    """Write every setting; `load_any_recipe(path)` returns an equal recipe."""
    with atomic_write(path) as partial:
        partial.write_text(recipe_yaml(recipe), encoding="utf-8")


def recipe_yaml(recipe: AnyRecipe) -> str:
    """Return every setting as YAML."""
    text = io.StringIO()
    _yaml().dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def bundled_recipes() -> dict[str, str]:
    """Return the names of the bundled recipes, each with the first line of its header."""
    files = (file for file in resources.files("configs").iterdir() if file.name.endswith(".yaml"))
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for file in sorted(files, key=lambda file: file.name)
    }


def recipe_header(file_or_name: str | Path) -> str:
    """Return the comment at the top of a recipe: what it reproduces, expected figure, hardware, time, command."""
    lines = _read(file_or_name)[0].splitlines()
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def _read(file_or_name: str | Path) -> tuple[str, str]:
    """Return the text of a recipe and its name in errors."""
    name, path = str(file_or_name), Path(file_or_name)
    bare = not isinstance(file_or_name, Path) and path.name == name and path.suffix not in {".yaml", ".yml"}
    bundled = resources.files("configs") / f"{name}.yaml"
    if bare and bundled.is_file():
        return bundled.read_text(encoding="utf-8"), f"recipe '{name}'"
    if path.is_file():
        try:
            return decode_text(path.read_bytes()), f"recipe file {name}"
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe file {name} must be UTF-8 text; byte {error.start} is not.") from error
    if name == "auto":
        raise RecipeError(
            "auto is not a file: it is chosen for the images. Print it: `swav-tf config auto DATA`."
        )
    names = bundled_recipes()
    raise RecipeError(
        f"no recipe '{name}': it is neither a file nor a bundled recipe."
        f"{did_you_mean(path.name.removesuffix('.yaml'), names)}\n"
        f"Bundled recipes: {', '.join(names)}."
    )


def _error(label: str, errors: Sequence[str]) -> RecipeError:
    count = "1 error" if len(errors) == 1 else f"{len(errors):,} errors"
    return RecipeError("\n".join([f"{label} has {count}:", *(f"  {error}" for error in errors)]))


# === Inheritance and shares of the run ===


def _settings_in(file_or_name: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a recipe's settings on top of those of the recipe that `base:` names, as plain data.

    Sections are merged, lists replaced; `above` are the recipes that inherit from this one.

    Raises:
        ValueError: it is not a mapping in YAML, or a base cannot be read.
    """
    values = _plain_data(_read(file_or_name)[0])
    if not isinstance(values, dict):
        raise ValueError(f"must be a mapping of settings, such as `name: my_run`; got {shown(values)}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"base: must be a recipe's name or file; got {shown(base)}")
    beside, seen = Path(file_or_name).parent / base, (*above, str(file_or_name))
    found = str(beside) if beside.is_file() else base
    if found in seen:
        raise ValueError(f"base: recipes inherit from each other: {' -> '.join([*seen, found])}")
    try:
        return _merged(_settings_in(found, seen), values)
    except (RecipeError, ValueError) as error:
        raise ValueError(f"base: {error}") from error


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        if isinstance(value, dict) and isinstance(below.get(key), dict)
        else value
        for key, value in above.items()
    }
    return below | both


_SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


def _resolve_shares(values: dict[str, Any]) -> None:
    """Turn shares of the run such as `10%` into whole epochs, in place. Other values are left to validation."""
    sections = [values.get(name) for name in ("train", "optimizer", "method")]
    train, optimizer, method = (section if isinstance(section, dict) else {} for section in sections)
    epochs = train.get("epochs")
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs > MOST:
        epochs = 1000  # validation reports it; its shares are not reported again

    def resolved(length: Any) -> Any:
        share = _SHARE.fullmatch(length) if isinstance(length, str) else None
        return length if share is None else round(float(share[1]) / 100 * epochs)

    queue = method.get("queue")
    for section, name in ((optimizer, "warmup_epochs"), (queue, "from_epoch")):
        if isinstance(section, dict) and name in section:
            section[name] = resolved(section[name])
    decays = optimizer.get("decay_epochs")
    if isinstance(decays, list) and any(isinstance(item, str) and _SHARE.fullmatch(item) for item in decays):
        whole = [resolved(item) for item in decays]
        kept = [item for item in whole if not isinstance(item, int) or 0 < item < epochs]
        optimizer["decay_epochs"] = list(dict.fromkeys(kept))
        if not kept:  # a single epoch has a single rate, with any decay
            optimizer["decay"] = "cosine"


# === Overrides ===


def _apply(override: str, values: dict[str, Any]) -> str | None:
    """Set one `path=value` in place, adding missing sections; return what is wrong with it."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return "must be PATH=VALUE, for example train.epochs=10"
    try:
        value = _plain_data(text)
    except ValueError as error:
        return str(error)
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
                return f"the recipe does not set {dotted(keys[: depth + 1])}; give the complete list"
            place[key] = {}
        place = place[index]
    return None


# === YAML ===


class _Constructor(SafeConstructor):
    """Read dates as text: a run may be named after one."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Write lists of plain values on one line."""

    def represent_sequence(self, tag: Any, sequence: Any, flow_style: bool | None = None) -> SequenceNode:
        nested = any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=not nested)


def _represent_float(representer: _Representer, number: float) -> ScalarNode:
    node = representer.represent_float(number)
    if "." not in node.value:
        node.value = node.value.replace("e", ".0e")  # readers of YAML 1.1 take 1e-6 for a string
    return node


_Representer.add_representer(float, _represent_float)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Representer = _Constructor, _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


@lru_cache(maxsize=128)  # a command reads its recipe and the recipe's bases several times
def _as_json(text: str) -> str:
    """Return a YAML text as JSON, whose aliases are copies that overrides can change one by one."""
    return json.dumps(_yaml().load(text))


def _plain_data(text: str) -> Any:
    """Return the data in a YAML text.

    Raises:
        ValueError: it is not readable YAML, or not plain data.
    """
    try:
        return json.loads(_as_json(text))
    except MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"is not readable YAML: {error.problem}{line}") from error
    except (YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"is not readable YAML: {' '.join(str(error).split())}") from error
