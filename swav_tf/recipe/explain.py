"""The settings of a recipe as a table, and validation errors in words."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from swav_tf.recipe.section import Section

_NUMBER_OR_BOOL = re.compile(r"true|false|[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def describe_settings(recipe: type[Section]) -> dict[str, dict[str, Any]]:
    """Return {path: type with bounds, meaning, default unless it must be set}; `N` in a path is a list index."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found: dict[str, dict[str, Any]] = {}
    for path, info in _settings(recipe):
        bounds = [
            f"{sign} {getattr(bound, name)}"
            for bound in info.metadata
            for name, sign in signs.items()
            if hasattr(bound, name)
        ]
        kind = " ".join([_type_name(info.annotation), *bounds])
        found[path] = {"type": kind, "meaning": str(info.description)}
        if not info.is_required():
            found[path]["default"] = info.get_default(call_default_factory=True)
    return found


def explain_errors(invalid: ValidationError, recipe: type[Section]) -> list[str]:
    """Return each error as `path: what must hold, what was received, how to fix it`."""
    errors = invalid.errors()
    # Pydantic also reports a list with a wrong item as too short.
    outer = {error["loc"][:end] for error in errors for end in range(len(error["loc"]))}
    return [_explain(error, recipe) for error in errors if error["loc"] not in outer]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def dotted(keys: Sequence[Any]) -> str:
    """Return `("crops", 0, "size")` as `crops.0.size`, the form of overrides."""
    return ".".join(map(str, keys))


def shown(value: Any) -> str:
    """Return a value as a recipe would contain it, shortened."""
    return "nothing" if value is None else json.dumps(value)[:80]


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section in an annotation: the class itself, or the item of `tuple[Class, ...]`."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _settings(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        below = section_of(info.annotation)
        if below is None:
            yield prefix + name, info
        else:
            index = "" if isinstance(info.annotation, type) else "N."
            yield from _settings(below, f"{prefix}{name}.{index}")


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(arguments)
    if origin is tuple:
        length = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        item = getattr(arguments[0], "__origin__", arguments[0])  # without bounds
        return f"list of {length}{_type_name(arguments[0]) if item is typing.Literal else item.__name__}"
    return str(annotation.__name__) if origin is None else str(annotation).replace("typing.", "")


def _explain(error: ErrorDetails, recipe: type[Section]) -> str:
    keys, kind, received = error["loc"], error["type"], error["input"]
    _, meaning = _follow(keys, recipe)
    if kind == "impossible":
        return str(error["ctx"]["remark"])
    if kind == "extra_forbidden":
        return f"{dotted(keys)}: no such setting (value {shown(received)}).{_nearest_setting(keys, recipe)}"
    if kind == "missing" and not isinstance(keys[-1], int):
        return f"{dotted(keys)}: must be set{meaning}"
    if kind == "missing":
        keys, must = keys[:-1], f"must have {int(keys[-1]) + 1} values"
    elif kind == "too_short":
        must = f"must have at least {error['ctx']['min_length']} item"
    elif kind == "too_long":
        must = f"must have {error['ctx']['max_length']} values"
    else:
        must = error["msg"].replace("Input should be", "must be")
        must = must.replace("a valid array", "a list").replace("an object", "a mapping")
    return f"{dotted(keys)}: {must}, got {shown(received)}{_hint(kind, received)}{meaning}"


def _hint(kind: str, received: Any) -> str:
    if kind == "string_type" and isinstance(received, int | float):
        return "; write it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(received, str):
        return "; write it without quotes" if _NUMBER_OR_BOOL.fullmatch(received) else ""
    if kind in ("int_from_float", "int_type") and isinstance(received, float) and received.is_integer():
        return f"; write {int(received)}"
    return ""


def _nearest_setting(keys: Sequence[Any], recipe: type[Section]) -> str:
    """Suggest the intended setting: a similar one in the same section, else one of that name elsewhere."""
    section, _ = _follow(keys[:-1], recipe)
    assert section is not None  # only sections refuse unknown keys
    word = str(keys[-1])
    near = [dotted([*keys[:-1], name]) for name in difflib.get_close_matches(word, section.model_fields, n=1)]
    near += [path for path, _ in _settings(recipe) if path.rpartition(".")[2] == word]
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" {'Settings here' if len(keys) > 1 else 'Sections'}: {', '.join(section.model_fields)}."


def _follow(keys: Sequence[Any], recipe: type[Section]) -> tuple[type[Section] | None, str]:
    """Return the section at `keys`, if it is one, and ` (description)` of the innermost known setting on the way."""
    section, meaning = recipe, ""
    for key in keys:
        if isinstance(key, int):
            continue
        info = section.model_fields.get(key)
        if info is None:
            return None, meaning
        meaning, below = f" ({info.description})", section_of(info.annotation)
        if below is None:
            return None, meaning
        section = below
    return section, meaning
