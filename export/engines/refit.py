"""New weights in an old engine: its kernels stay as they were chosen. No TensorFlow."""

from __future__ import annotations

from pathlib import Path

from evaluate.runners.engine_file import EngineFacts, Proof, check_fits, read_engine
from evaluate.runners.tensorrt_module import Gpu, TensorRT, fresh_log, load_engine
from export.engines.proof import prove_loaded
from export.engines.source import EngineSource
from export.errors import ExportError
from swav_tf.errors import UsageError


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
