"""Reuse engines that were built before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from evaluate.backends.engine_file import (
    FORMAT,
    Batches,
    BuilderOptions,
    EngineFacts,
    Proof,
    check_fits,
    differences,
    key_of,
    read_engine,
    sidecar_of,
    write_engine,
)
from evaluate.backends.tensorrt_module import Gpu, TensorRT, fresh_log, load_engine
from export.engine_build import EngineSource
from export.engine_proof import prove_loaded
from export.staging import ExportError
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log


def read_refittable(
    plan: Path, source: EngineSource, tensorrt: TensorRT, gpu: Gpu | None
) -> tuple[bytes, EngineFacts]:
    """An old engine that the weights of an ONNX file fit into.

    Raises:
        UsageError: it is not there, not for this machine, or they do not fit.
        DataError: it is damaged.
    """
    data, facts = read_engine(plan)
    check_fits(plan, facts, tensorrt, gpu)
    if not facts.options.refittable:
        raise UsageError(f"--refit takes an engine that was built with --refittable. Received: {plan}.")
    if source.metadata.precision == "int8":
        raise UsageError(
            "int8 cannot be refitted: the ranges of its activations are part of the engine. Build it anew."
        )
    if facts.structure_sha256 != source.structure_sha256:
        raise UsageError(
            f"--refit takes an engine of the same network in the same precision. Received: {plan}, of {facts.onnx}, "
            f"whose graph is not that of {source.path}. Build it anew."
        )
    return data, facts


def refit_plan(
    old: tuple[bytes, EngineFacts], source: EngineSource, tensorrt: TensorRT
) -> tuple[bytes, Proof]:
    """Puts new weights into an old engine; its bytes, and the proof of their precision.

    Args:
        old: by `read_refittable`.
        source: of the weights.
        tensorrt: that does it.

    Raises:
        DataError: TensorRT cannot load the old engine.
        ExportError: weights find no place in it, or it computes in another precision.
    """
    trt, (data, facts) = tensorrt.module, old
    _runtime, engine = load_engine(
        tensorrt, data, version_compatible=facts.options.version_compatible, what=facts.onnx
    )
    log = fresh_log(tensorrt)
    refitter = trt.Refitter(engine, log.logger)
    taken = trt.OnnxParserRefitter(refitter, log.logger).refit_from_bytes(source.data, str(source.path))
    missing = refitter.get_missing_weights()
    if not taken or missing or not refitter.refit_cuda_engine():
        raise ExportError(
            f"All weights of {source.path.name} must find their place in the old engine. "
            f"Without one: {', '.join(map(str, missing)) or log.told()}. Build it anew."
        )
    how = engine.create_serialization_config()
    how.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):  # before 10.14 a refittable engine stays so by itself
        how.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    proof = prove_loaded(engine, source.precisions(source.convolutions), tensorrt)
    return bytes(engine.serialize_with_config(how)), proof


def default_cache() -> Path:
    """Where engines are kept: `swav-tf/engines` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "swav-tf" / "engines"


@dataclass(frozen=True)
class Built:
    """An engine.

    Attributes:
        plan: where it is in the cache.
        data: its bytes.
        facts: what it is.
        from_cache: whether it was there already.
    """

    plan: Path
    data: bytes
    facts: EngineFacts
    from_cache: bool

    def place(self, plan: Path) -> None:
        """Writes it, with its sidecar, where it is wanted.

        Raises:
            DataError: the disk is full or refuses.
        """
        write_engine(plan, self.data, self.facts)


def engine_key(
    source: EngineSource,
    tensorrt: TensorRT,
    gpu: Gpu | None,
    *,
    profile: Batches,
    options: BuilderOptions,
    refitted_from: str | None,
) -> str:
    """The checksum of all that decides what is built, see `EngineFacts` for what each is."""
    decides = {
        "format": FORMAT,
        "onnx_sha256": source.sha256,
        "profile": profile.model_dump(),
        "options": options.model_dump(),
        "module": tensorrt.module_name,
        "version": tensorrt.version,
        "gpu": None if gpu is None else gpu.model_dump(),
        "refitted_from": refitted_from,
    }
    return key_of(decides)


def cached_engine(plan: Path, tensorrt: TensorRT, gpu: Gpu | None) -> Built | None:
    """The engine of a key, if it is whole and what its name says; why it is not is told.

    Args:
        plan: KEY.plan in the cache.
        tensorrt: that is to run it.
        gpu: likewise; None where there is none.
    """
    if not plan.exists() and not sidecar_of(plan).exists():
        return None
    try:
        data, facts = read_engine(plan)
    except (DataError, UsageError) as error:
        log.info(f"The cached engine is not used and built anew: {error}")
        return None
    wrong = differences(facts, tensorrt, gpu) + ([] if facts.key == plan.stem else ["its key is another"])
    if wrong:
        log.info(f"The cached engine {plan} is not used and built anew: {'; '.join(wrong)}.")
        return None
    log.info(f"{facts.onnx}: out of the cache, {plan}")
    return Built(plan, data, facts, from_cache=True)
