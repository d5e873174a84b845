"""Versions of installed packages, for the facts that are written beside results. No TensorFlow."""

from __future__ import annotations

from importlib import metadata

UNKNOWN = "unknown"


def version_of(package: str, *others: str) -> str:
    """The version of the first of these packages that is installed; `unknown` where none is, as for a bare source tree.

    Args:
        package: its name on the package index, as `swav-tf`.
        others: names under which the same module is installed, as `onnxruntime-gpu`.
    """
    for name in (package, *others):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return UNKNOWN
