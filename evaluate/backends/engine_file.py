"""A TensorRT engine on the disk: a raw `.plan`, as trtexec loads it, and beside it what it is, as JSON.

An engine runs where it was built for and nowhere else, and does not say so itself until it crashes or is
slow: so the facts are compared before a byte of it is given to TensorRT.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from evaluate.backends.onnx_metadata import OnnxMetadata, read_metadata
from evaluate.backends.tensorrt_module import NAMES, Gpu, ModuleName, TensorRT
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_writes
from swav_tf.recipe.section import Section

FORMAT: Final = 1
SUFFIXES: Final = (".plan", ".engine")
AMPERE: Final = (8, 0)  # the oldest compute capability of engines for several GPUs


class Batches(Section):
    """The optimisation profile: how many images at once.

    Attributes:
        min: the fewest.
        opt: what it is fastest for.
        max: the most.
    """

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)


class BuilderOptions(Section):
    """What the builder was told.

    Attributes:
        workspace_gib: scratch memory that a layer may use at most, GiB; None: as much as there is.
        builder_level: 0 (quick to build) to 5 (looks longest for fast kernels); None: TensorRT's own.
        version_compatible: whether later versions of TensorRT of the same major number may run it.
        hardware_compatible: whether every GPU of Ampere and newer may run it.
        refittable: whether other weights can be put into it.
    """

    workspace_gib: float | None = None
    builder_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False


ProofSource = Literal["engine inspector", "the builder's list of layers"]


class Proof(Section):
    """In which precision the engine convolves.

    Attributes:
        source: whose words these are.
        convolutions: how many of the network's, by data type.
    """

    source: ProofSource
    convolutions: dict[str, int]


class EngineFacts(Section):
    """The sidecar.

    Attributes:
        format: of these facts.
        key: of the cache, SHA-256 of all that decides what engine is built.
        plan_sha256: of the engine's bytes.
        module: that built it.
        version: of that module.
        gpu: that it was built on; None: on a machine without (TensorRT-RTX).
        onnx: name of the file that it was built from.
        onnx_sha256: of that file's bytes.
        structure_sha256: of the graph without the values of its weights; equal ones can be refitted.
        profile: images at once.
        options: of the builder.
        refitted_from: key of the engine that these weights were put into; None: it was built.
        proof: of the precision.
        properties: the ONNX file's `metadata_props`.
    """

    format: Literal[1] = FORMAT
    key: str
    plan_sha256: str
    module: ModuleName
    version: str
    gpu: Gpu | None
    onnx: str
    onnx_sha256: str
    structure_sha256: str
    profile: Batches
    options: BuilderOptions
    refitted_from: str | None = None
    proof: Proof
    properties: dict[str, str]

    @property
    def builder(self) -> str:
        """Name and version of what built it."""
        return f"{NAMES[self.module]} {self.version}"

    def metadata(self, path: Path) -> OnnxMetadata:
        """What the exported ONNX file told.

        Raises:
            DataError: it was not one by `swav-tf export`.
        """
        return read_metadata(self.properties, str(path))


def sidecar_of(plan: Path) -> Path:
    """Where an engine's facts are."""
    return plan.with_name(f"{plan.name}.json")


def sha256_of(data: bytes) -> str:
    """The checksum as text."""
    return hashlib.sha256(data).hexdigest()


def key_of(facts: Mapping[str, Any]) -> str:
    """The checksum of plain data, whatever the order of its keys."""
    return sha256_of(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())


def read_facts(plan: Path) -> EngineFacts:
    """The sidecar alone.

    Raises:
        UsageError: the engine or its sidecar is not there.
        DataError: the sidecar is damaged or of another version.
    """
    sidecar = sidecar_of(plan)
    for path in (plan, sidecar):
        if not path.is_file():
            raise UsageError(
                f"An engine is {plan.name} with {sidecar.name} beside it, as `swav-tf export --to tensorrt` writes "
                f"them. Received: no {path}."
            )
    try:
        return EngineFacts.model_validate_json(sidecar.read_bytes())
    except (OSError, ValidationError) as error:
        what = (
            f"{error.error_count()} values that do not fit" if isinstance(error, ValidationError) else error
        )
        raise DataError(
            f"{sidecar} must hold an engine's facts of format {FORMAT}. Received: {what}. Build the engine anew."
        ) from error


def read_engine(plan: Path) -> tuple[bytes, EngineFacts]:
    """An engine's bytes and facts, when both are whole.

    Raises:
        UsageError: one of the files is not there.
        DataError: one of them is damaged, or they do not belong together.
    """
    facts = read_facts(plan)
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise DataError(f"{plan} cannot be read: {error}.") from error
    if sha256_of(data) != facts.plan_sha256:
        raise DataError(
            f"{plan} must have the SHA-256 of its sidecar, {facts.plan_sha256[:12]}.... Received: "
            f"{sha256_of(data)[:12]}...: it is damaged, or another engine. Build it anew."
        )
    return data, facts


def write_engine(plan: Path, data: bytes, facts: EngineFacts) -> None:
    """Writes both files, each whole or not at all.

    The engine comes first: should the power fail in between, its old facts no longer fit it and it is refused.

    Raises:
        DataError: the disk is full or refuses; what was there before is left.
    """
    with atomic_writes(plan, sidecar_of(plan)) as (engine, sidecar):
        engine.write_bytes(data)
        sidecar.write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")


def differences(facts: EngineFacts, tensorrt: TensorRT, gpu: Gpu | None) -> list[str]:
    """Why an engine is not for this TensorRT and this GPU, a line each; empty: it is.

    Args:
        facts: of the engine.
        tensorrt: that is to run it.
        gpu: likewise; None where there is none, and only TensorRT is compared.
    """
    found = []
    if facts.module != tensorrt.module_name:
        found.append(f"it is of {facts.builder}, here is {tensorrt}")
    elif not _version_fits(facts, tensorrt.version):
        found.append(f"it was built by {facts.builder}, here is {tensorrt}")
    if gpu is None:
        return found
    if tensorrt.is_rtx or facts.options.hardware_compatible:
        if tuple(map(int, gpu.compute_capability.split("."))) < AMPERE:
            found.append(f"it is for GPUs of compute capability 8.0 and newer, here is {gpu}")
    elif facts.gpu != gpu:
        found.append(f"it was built on {facts.gpu or 'no GPU'}, here is {gpu}")
    return found


def check_fits(plan: Path, facts: EngineFacts, tensorrt: TensorRT, gpu: Gpu | None) -> None:
    """Refuses an engine that is not for this machine.

    Raises:
        UsageError: it is not; with what differs and how to build it here.
    """
    if found := differences(facts, tensorrt, gpu):
        raise UsageError(
            f"{plan} must be an engine for this machine. Received: {'; '.join(found)}. It was not run. "
            f"Build it here: swav-tf export {facts.onnx} --to tensorrt --output DIR"
        )


def _version_fits(facts: EngineFacts, here: str) -> bool:
    if facts.version == here:
        return True
    built, now = (tuple(map(int, version.split(".")[:2])) for version in (facts.version, here))
    return facts.options.version_compatible and built[0] == now[0] and built <= now
