"""A TensorRT engine on disk: a raw `.plan`, as trtexec loads it, and its facts in a JSON file next to it.

On a machine that it was not built for, an engine crashes or is slow without a message. So its facts are checked
before TensorRT reads it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, Field, ValidationError

from evaluate.backends.onnx_metadata import OnnxMetadata, read_metadata
from evaluate.backends.tensorrt_module import NAMES, Gpu, ModuleName, TensorRT
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_writes
from swav_tf.recipe.section import Section

FORMAT: Final = 1
SUFFIXES: Final = (".plan", ".engine")
AMPERE: Final = (8, 0)  # the oldest compute capability of engines for several GPUs


class _Facts(Section):
    """A part of the facts; keys of earlier versions are skipped."""

    model_config = ConfigDict(extra="ignore")


class Batches(_Facts):
    """The optimization profile: the smallest, the usual and the largest number of images at once."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)


class BuilderOptions(_Facts):
    """Options of the builder."""

    version_compatible: bool = False  # later TensorRT of the same major version may run the engine
    hardware_compatible: bool = False  # every GPU of Ampere and newer may run it


ProofSource = Literal["engine inspector", "the builder's list of layers"]


class Proof(_Facts):
    """The precision in which the engine convolves."""

    source: ProofSource
    convolutions: dict[str, int]  # their number by data type


class EngineFacts(_Facts):
    """The content of the JSON file."""

    format: Literal[1] = FORMAT
    plan_sha256: str
    module: ModuleName  # that built it
    version: str  # of that module
    gpu: Gpu | None  # that it was built on; None: built without one (TensorRT-RTX)
    onnx: str  # name of the file that it was built from
    onnx_sha256: str
    profile: Batches
    options: BuilderOptions
    proof: Proof
    properties: dict[str, str]  # the ONNX file's `metadata_props`

    @property
    def builder(self) -> str:
        """Return name and version of the module that built it."""
        return f"{NAMES[self.module]} {self.version}"

    def metadata(self, path: Path) -> OnnxMetadata:
        """Return the metadata of the exported ONNX file; `path` is for error messages."""
        return read_metadata(self.properties, str(path))


def sidecar_of(plan: Path) -> Path:
    """Return the path of an engine's facts."""
    return plan.with_name(f"{plan.name}.json")


def read_facts(plan: Path) -> EngineFacts:
    """Read the facts of an engine."""
    sidecar = sidecar_of(plan)
    for path in (plan, sidecar):
        if not path.is_file():
            raise UsageError(
                f"File not found: {path}. An engine is {plan.name} with {sidecar.name} next to it, as "
                "`swav-tf export --to tensorrt` writes them."
            )
    try:
        return EngineFacts.model_validate_json(sidecar.read_bytes())
    except (OSError, ValidationError) as error:
        what = f"{error.error_count()} wrong values" if isinstance(error, ValidationError) else error
        raise DataError(
            f"{sidecar} must contain an engine's facts of format {FORMAT}. Received: {what}. Build the engine again."
        ) from error


def read_engine(plan: Path) -> tuple[bytes, EngineFacts]:
    """Read an engine and its facts."""
    facts = read_facts(plan)
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise DataError(f"{plan} cannot be read: {error}.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != facts.plan_sha256:
        raise DataError(
            f"{plan} must have the SHA-256 {facts.plan_sha256[:12]}... of its JSON file. Received: {found[:12]}.... "
            "The file is damaged or another engine's. Build it again."
        )
    return data, facts


def write_engine(plan: Path, data: bytes, facts: EngineFacts) -> None:
    """Write an engine, then its facts. After a power failure in between, the old facts do not match the new engine."""
    with atomic_writes(plan, sidecar_of(plan)) as (engine, sidecar):
        engine.write_bytes(data)
        sidecar.write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")


def check_fits(plan: Path, facts: EngineFacts, tensorrt: TensorRT, gpu: Gpu) -> None:
    """Raise UsageError if an engine does not fit this machine."""
    found = []
    if facts.module != tensorrt.module_name or not _version_fits(facts, tensorrt.version):
        found.append(f"it was built by {facts.builder}, but this machine has {tensorrt}")
    if tensorrt.is_rtx or facts.options.hardware_compatible:
        if tuple(map(int, gpu.compute_capability.split("."))) < AMPERE:
            found.append(f"it is for GPUs of compute capability 8.0 and newer, but this machine has {gpu}")
    elif facts.gpu != gpu:
        found.append(f"it was built on {facts.gpu or 'no GPU'}, but this machine has {gpu}")
    if found:
        raise UsageError(
            f"{plan} must be an engine for this machine. Received: {'; '.join(found)}. It was not run. "
            f"Build it here: swav-tf export {facts.onnx} --to tensorrt --output DIR"
        )


def _version_fits(facts: EngineFacts, here: str) -> bool:
    if facts.version == here:
        return True
    built, now = (tuple(map(int, version.split(".")[:2])) for version in (facts.version, here))
    return facts.options.version_compatible and built[0] == now[0] and built <= now
