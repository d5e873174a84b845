"""Nested dictionaries and lists of words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: leaf}. Lists of dictionaries are entered by index; other lists are leaves."""
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {prefix: value}
    return {
        key: leaf
        for name, item in items
        for key, leaf in flatten(item, f"{prefix}.{name}".lstrip(".")).items()
    }


def nested_diff(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old leaf, new leaf)} of all leaves that differ, sorted; a missing leaf is None."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def comma_list(text: str) -> tuple[str, ...]:
    """Split a comma-separated list into its words, without blanks and repetitions."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
