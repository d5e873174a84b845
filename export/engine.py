"""From exported ONNX files to TensorRT engines: built or cached, proven, and compared if there is a GPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.backends.engine_file import (
    FORMAT,
    EngineFacts,
    differences,
    read_engine,
    sidecar_of,
    write_engine,
)
from evaluate.backends.onnx_metadata import Precision
from evaluate.backends.tensorrt_backend import TensorrtBackend
from evaluate.backends.tensorrt_module import (
    INSTALL,
    Gpu,
    ModuleName,
    NoGpuError,
    TensorRT,
    find_tensorrt,
    gpu_or_none,
    the_gpu,
)
from export.engine_build import EngineSource, build_plan, read_source
from export.parity import GATES, Parity, compare, run_all
from export.reference import REFERENCE, Reference, read_reference
from export.settings import EngineSettings
from export.staging import ExportError
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write
from swav_tf.plumbing.log import log


@dataclass(frozen=True)
class Built:
    """An engine in the cache.

    Attributes:
        plan: its path.
        data: its bytes.
        facts: its facts.
        from_cache: it was not built now.
    """

    plan: Path
    data: bytes
    facts: EngineFacts
    from_cache: bool


@dataclass(frozen=True)
class ExportedEngine:
    """One exported engine.

    Attributes:
        path: of the engine.
        precision: of its backbone, proven.
        bytes: its size.
        facts: its facts.
        from_cache: it was not built now.
        parity: the comparison with Keras; None: it was not run.
        not_compared: the reason for that, or "".
    """

    path: Path
    precision: Precision
    bytes: int
    facts: EngineFacts
    from_cache: bool
    parity: Parity | None
    not_compared: str = ""


def export_engines(files: Sequence[Path], output: Path, settings: EngineSettings) -> list[ExportedEngine]:
    """Write the engine of each ONNX file, with its facts, into a folder.

    Args:
        files: by `swav-tf export`; engines are compared with the reference next to them.
        output: the folder; engines of these names are replaced.
        settings: of the builder.

    Raises:
        UsageError: TensorRT or the GPU is missing, or TensorRT lacks an option.
        DataError: a file is damaged, or the disk is full.
        ExportError: an engine cannot be built, has another precision, or misses its gate.
    """
    exported = []
    for path in files:
        built = build_engine(path, settings)
        source = path.parent / REFERENCE
        reference = read_reference(source) if source.is_file() else None
        parity, reason = _compared(built, reference)
        if parity is not None and not parity.passed:
            raise ExportError(
                f"The engine of {path.name} does not compute what Keras computes: {'; '.join(parity.failures)}."
            )
        if reference is not None and not (output / REFERENCE).exists():  # for `verify`
            with atomic_write(output / REFERENCE) as partial:
                shutil.copyfile(source, partial)
        plan = output / f"{path.stem}.plan"
        write_engine(plan, built.data, built.facts)
        precision = built.facts.metadata(plan).precision
        exported.append(
            ExportedEngine(plan, precision, len(built.data), built.facts, built.from_cache, parity, reason)
        )
    return exported


def _compared(built: Built, reference: Reference | None) -> tuple[Parity | None, str]:
    """Return the comparison of the engine in the cache with Keras, or None and the reason."""
    if built.facts.gpu is None:
        return None, "built for GPUs of Ampere and newer; not run, features not compared here: no GPU"
    if reference is None:
        return None, f"features not compared: no {REFERENCE} next to the ONNX file"
    backend = TensorrtBackend(built.plan)
    outputs = run_all(backend, reference.images, batch_size=built.facts.profile.max)
    return compare(reference, outputs, gate=GATES[backend.metadata.precision]), ""


def build_engine(path: Path, settings: EngineSettings) -> Built:
    """Return the engine of an exported ONNX file, from the cache if an undamaged one exists.

    Raises:
        UsageError: TensorRT or the GPU is missing, or TensorRT lacks an option.
        DataError: a file is damaged, or the disk is full.
        ExportError: TensorRT cannot build the engine, or built it in another precision.
    """
    settings.check()
    tensorrt, gpu = builder_here(settings.module_name)
    _check_options(tensorrt, settings)
    source = read_source(path)
    key = engine_key(source, tensorrt, gpu, settings)
    plan = settings.cache / f"{key}.plan"
    if (cached := _cached(plan, tensorrt, gpu)) is not None:
        return cached
    log.info("%s: build by %s for %s", path.name, tensorrt, gpu or "GPUs of Ampere and newer")
    data, proof = build_plan(source, tensorrt, gpu, settings)
    facts = EngineFacts(
        key=key,
        plan_sha256=hashlib.sha256(data).hexdigest(),
        module=tensorrt.module_name,
        version=tensorrt.version,
        gpu=gpu,
        onnx=path.name,
        onnx_sha256=source.sha256,
        profile=settings.profile,
        options=settings.options,
        proof=proof,
        properties=source.properties,
    )
    write_engine(plan, data, facts)
    return Built(plan, data, facts, from_cache=False)


def builder_here(module_name: ModuleName | None) -> tuple[TensorRT, Gpu | None]:
    """Return the builder and its GPU; None: it builds for every GPU from Ampere on (TensorRT-RTX).

    Raises:
        UsageError: TensorRT is missing, or it is not TensorRT-RTX and there is no GPU.
    """
    tensorrt = find_tensorrt(module_name)
    if tensorrt.is_rtx:
        return tensorrt, gpu_or_none()
    try:
        return tensorrt, the_gpu()
    except NoGpuError as error:
        raise NoGpuError(
            f"TensorRT builds an engine on the GPU that will run it. {error} "
            f"(TensorRT-RTX builds without one: {INSTALL['tensorrt_rtx']}, then --tensorrt rtx.)"
        ) from error


def engine_key(source: EngineSource, tensorrt: TensorRT, gpu: Gpu | None, settings: EngineSettings) -> str:
    """Return the SHA-256 of everything that determines an engine."""
    facts = {
        "format": FORMAT,
        "onnx_sha256": source.sha256,
        "profile": settings.profile.model_dump(),
        "options": settings.options.model_dump(),
        "module": tensorrt.module_name,
        "version": tensorrt.version,
        "gpu": None if gpu is None else gpu.model_dump(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _cached(plan: Path, tensorrt: TensorRT, gpu: Gpu | None) -> Built | None:
    """Return the engine KEY.plan of the cache; None if it does not exist, is damaged or of another key."""
    if not plan.exists() and not sidecar_of(plan).exists():
        return None
    try:
        data, facts = read_engine(plan)
    except (DataError, UsageError) as error:
        log.warning("The cached engine is not used: %s", error)
        return None
    wrong = differences(facts, tensorrt, gpu) + ([] if facts.key == plan.stem else ["its key is another"])
    if wrong:
        log.warning("The cached engine %s is not used: %s.", plan, "; ".join(wrong))
        return None
    log.info("%s: from the cache, %s", facts.onnx, plan)
    return Built(plan, data, facts, from_cache=True)


def _check_options(tensorrt: TensorRT, settings: EngineSettings) -> None:
    """Raise UsageError for options that TensorRT-RTX lacks."""
    requested = {
        "--version-compatible": settings.options.version_compatible,
        "--hardware-compatible (all its engines are)": settings.options.hardware_compatible,
        "--timing-cache": settings.timing_cache is not None,
    }
    refused = [option for option, given in requested.items() if given]
    if tensorrt.is_rtx and refused:
        raise UsageError(f"{tensorrt} does not have {', '.join(refused)}. Leave it out.")
