"""The fields of a recipe as a table, and what is wrong with a value in words."""

from __future__ import annotations

import difflib
import json
import math
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from swav_tf.recipe.pretraining import Recipe, Section

ERRORS_TOLD = 100  # of one recipe; a file that is no recipe at all may have many thousands


class RecipeField(NamedTuple):
    """One setting: its dotted path (`N` stands for a list index) and its definition."""

    path: str
    info: FieldInfo


def recipe_fields(section: type[Section] = Recipe, prefix: str = "") -> Iterator[RecipeField]:
    """Every setting, in the order of the recipe, sections left out."""
    for name, info in section.model_fields.items():
        below = section_of(info.annotation)
        if below is None:
            yield RecipeField(prefix + name, info)
        else:
            index = "" if isinstance(info.annotation, type) else "N."
            yield from recipe_fields(below, f"{prefix}{name}.{index}")


def section_of(annotation: Any) -> type[Section] | None:
    """The section that an annotation means: the class itself, or the element of `tuple[Class, ...]`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def describe_field(field: RecipeField) -> dict[str, str]:
    """Type with bounds, default and meaning of a setting, in words."""
    info = field.info
    bounds = [
        f"{sign} {getattr(bound, name)}"
        for bound in info.metadata
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if hasattr(bound, name)
    ]
    if info.is_required():
        default = "must be set"
    else:
        default = f"default {json.dumps(info.get_default(call_default_factory=True))}"
    return {
        "type": " ".join([_type_name(info.annotation), *bounds]),
        "default": default,
        "meaning": str(info.description),
    }


def explain_errors(invalid: ValidationError, recipe: type[Section] = Recipe) -> list[str]:
    """Pydantic's errors of a kind of recipe, each as `path: what must hold, what came, how to mend it`."""
    errors = invalid.errors()
    # A list with a wrong item is also reported as too short: only the item is worth telling.
    around = {error["loc"][:end] for error in errors for end in range(len(error["loc"]))}
    within = [error for error in errors if error["loc"] not in around]
    return [_explain(error, recipe, guess=index < ERRORS_TOLD) for index, error in enumerate(within)]


def _explain(error: ErrorDetails, recipe: type[Section], *, guess: bool) -> str:
    keys, kind, came = error["loc"], error["type"], error["input"]
    path = dotted(keys)
    if kind == "extra_forbidden":
        return (
            f"{path}: no such setting (value {shown(came)}).{_nearest_setting(keys, recipe) if guess else ''}"
        )
    meaning = _meaning(keys, recipe)
    if kind == "missing" and isinstance(keys[-1], int):
        return f"{dotted(keys[:-1])}: must have {keys[-1] + 1} values, got {shown(came)}{meaning}"
    if kind == "too_short":
        return f"{path}: must have at least {error['ctx']['min_length']} item, got {shown(came)}{meaning}"
    if kind == "too_long":
        return f"{path}: must have {error['ctx']['max_length']} values, got {shown(came)}{meaning}"
    if kind == "missing":
        return f"{path}: must be set{meaning}"
    must = (
        error["msg"]
        .replace("Input should be", "must be")
        .replace("a valid array", "a list")
        .replace("an object", "a mapping")
    )
    must = must[:1].lower() + must[1:]
    hint = ""
    if kind == "string_type" and isinstance(came, int | float):
        hint = f"; write it in quotes: '{came}'"
    elif kind in {"int_type", "float_type", "bool_type"} and isinstance(came, str) and _is_plain_value(came):
        hint = "; write it without quotes"
    elif kind in {"int_from_float", "int_type"} and isinstance(came, float) and came.is_integer():
        hint = f"; write {int(came)}"
    return f"{path}: {must}, got {shown(came)}{hint}{meaning}"


def _is_plain_value(text: str) -> bool:
    """Whether a string would be a number or a truth value without its quotes."""
    try:
        return text in ("true", "false") or math.isfinite(float(text))
    except ValueError:
        return False


def dotted(keys: Sequence[Any]) -> str:
    """`("crops", 0, "size")` as `crops.0.size`, the form that overrides take."""
    return ".".join(str(key) for key in keys)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {arguments[0].__name__}"
    if origin is tuple:
        return f"list of {len(arguments)} {arguments[0].__name__}"
    if origin is None:
        return str(annotation.__name__)
    return str(annotation).replace("typing.", "")


def _nearest_setting(keys: Sequence[Any], recipe: type[Section]) -> str:
    """The setting that was probably meant: in the same section, else one of that name elsewhere."""
    section = _section_at(keys[:-1], recipe)
    if section is None:
        return ""
    word = str(keys[-1])
    siblings = difflib.get_close_matches(word, section.model_fields, n=1)
    if siblings:
        return f" Did you mean '{dotted([*keys[:-1], siblings[0]])}'?"
    elsewhere = [field.path for field in recipe_fields(recipe) if field.path.rpartition(".")[2] == word]
    if elsewhere:
        return f" Did you mean '{elsewhere[0]}'?"
    return f" {'Settings here' if len(keys) > 1 else 'Sections'}: {', '.join(section.model_fields)}."


def _section_at(keys: Sequence[Any], recipe: type[Section]) -> type[Section] | None:
    section: type[Section] | None = recipe
    for key in keys:
        if isinstance(key, int):
            continue
        if section is None or key not in section.model_fields:
            return None
        section = section_of(section.model_fields[key].annotation)
    return section


def _meaning(keys: Sequence[Any], recipe: type[Section]) -> str:
    """` (description)` of the setting at `keys`, or of the one that contains it."""
    for end in range(len(keys), 0, -1):
        parent = _section_at(keys[: end - 1], recipe)
        if parent is not None and keys[end - 1] in parent.model_fields:
            return f" ({parent.model_fields[keys[end - 1]].description})"
    return ""


def shown(value: Any) -> str:
    """A value as it would stand in a recipe, cut short."""
    return "nothing" if value is None else json.dumps(value)[:80]
