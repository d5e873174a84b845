"""Checksums of exported files, recorded in parity.json next to them.

A graph with a flipped bit in a weight still runs, with wrong results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from evaluate.backends.onnx_metadata import WeightsFile
from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.files import file_sha256
from swav_tf.recipe.section import Section

PARITY: Final = "parity.json"
CHECKSUMS: Final = "checksums"  # the key in it


class Checksum(Section):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes with SHA-256 {self.sha256[:12]}..."


def read_checksums(folder: Path) -> dict[str, Checksum]:
    """Return the checksums recorded in a folder by file name; none if parity.json is missing or older."""
    path = folder / PARITY
    try:
        recorded = json.loads(path.read_bytes()).get(CHECKSUMS, {})
        return {name: Checksum.model_validate(checksum) for name, checksum in recorded.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        reason = "unexpected values" if isinstance(error, (ValidationError, AttributeError)) else error
        raise DataError(
            f"{path} must be JSON from `swav-tf export` or `swav-tf verify` with the checksums of the files. "
            f"Received: {reason}. Export again, or remove it and run `swav-tf verify`."
        ) from error


def check_unchanged(path: Path) -> Checksum:
    """Return a file's checksum, which must be the recorded one if parity.json has one for it; else raise DataError."""
    try:
        found = Checksum(bytes=path.stat().st_size, sha256=file_sha256(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    recorded = read_checksums(path.parent).get(path.name, found)
    if found != recorded:
        raise DataError(
            f"{path} must have the {recorded} recorded in {PARITY}. Received: {found}. The file is damaged or was "
            "replaced, and was not run. Copy it again or export again. If you changed it on purpose, remove "
            f"{PARITY} and run `swav-tf verify`."
        )
    return found


def check_weights(path: Path, weights: WeightsFile | None) -> None:
    """Check the second file of a large graph, if it has one, against the checksum in the graph's metadata."""
    if weights is None:
        return
    file = path.with_name(weights.name)
    try:
        found = file_sha256(file)
    except OSError as error:
        raise DataError(f"{path} needs its weights, {file}: {error.strerror or error}.") from error
    if found != weights.sha256:
        raise DataError(
            f"{file} must have the SHA-256 {weights.sha256[:12]}... recorded in {path.name}. Received: "
            f"{found[:12]}.... The file is damaged or was replaced, and was not run. Copy both again or export again."
        )
