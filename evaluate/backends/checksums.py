"""Is an exported ONNX file still what was written? Its checksum lies beside it, in parity.json.

A flipped bit in a weight leaves a graph that can be run: it only computes something else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from evaluate.backends.onnx_metadata import WeightsFile
from swav_tf.plumbing.errors import DataError
from swav_tf.recipe.pretraining import Section

PARITY: Final = "parity.json"
CHECKSUMS: Final = "checksums"  # the key in it


class Checksum(Section):
    """What the bytes of a file must be.

    Attributes:
        bytes: how many there are.
        sha256: of all of them.
    """

    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes with SHA-256 {self.sha256[:12]}..."


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checksums(folder: Path) -> dict[str, Checksum]:
    """What the export of a folder recorded, by name of the file; nothing where there was none or an older one.

    Raises:
        DataError: parity.json is there and cannot be read.
    """
    path = folder / PARITY
    try:
        recorded = json.loads(path.read_bytes()).get(CHECKSUMS, {})
        return {name: Checksum.model_validate(checksum) for name, checksum in recorded.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        what = "another form" if isinstance(error, (ValidationError, AttributeError)) else error
        raise DataError(
            f"{path} must be JSON by `swav-tf export` or `swav-tf verify`, with the checksums of the files beside it. "
            f"Received: {what}. Export anew; or remove it, and prove the files again with swav-tf verify."
        ) from error


def check_unchanged(path: Path) -> Checksum:
    """Refuses an ONNX file whose bytes are not those that parity.json beside it tells of.

    A file that it does not tell of is taken as it is: another's, or of an export before there were checksums.

    Returns:
        The checksum that the file has.

    Raises:
        DataError: the file is another, or it or parity.json cannot be read.
    """
    try:
        found = Checksum(bytes=path.stat().st_size, sha256=file_sha256(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    recorded = read_checksums(path.parent).get(path.name, found)
    if found != recorded:
        raise DataError(
            f"{path} must be the {recorded} that {PARITY} beside it tells of. Received: {found}: it is damaged, or "
            f"another file, and was not run. Copy it here again or export anew. If it was changed on purpose, remove "
            f"{PARITY} and prove it with swav-tf verify."
        )
    return found


def check_weights(path: Path, weights: WeightsFile | None) -> None:
    """Refuses a large graph whose second file is not the one that it was written with.

    Args:
        path: of the graph.
        weights: what its metadata tell of the second file; None: it has none.

    Raises:
        DataError: the second file is another, or cannot be read.
    """
    if weights is None:
        return
    beside = path.with_name(weights.name)
    try:
        found = file_sha256(beside)
    except OSError as error:
        raise DataError(f"{path} needs its weights, {beside}: {error.strerror or error}.") from error
    if found != weights.sha256:
        raise DataError(
            f"{beside} must have the SHA-256 {weights.sha256[:12]}... that {path.name} was written with. Received: "
            f"{found[:12]}...: it is damaged, or another's, and was not run. Copy both here again or export anew."
        )
