"""A graph through TensorRT's builder: parsed strongly typed, built, and its precision proven. No TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluate.runners.engine_file import Batches, BuilderOptions, Proof
from evaluate.runners.tensorrt_module import Gpu, TensorRT, fresh_log, load_engine
from export.engines.proof import from_listing, prove, prove_loaded
from export.engines.source import EngineSource
from export.engines.timing_cache import read_timing_cache, write_timing_cache
from export.errors import ExportError


def build_plan(
    source: EngineSource,
    tensorrt: TensorRT,
    gpu: Gpu | None,
    *,
    profile: Batches,
    options: BuilderOptions,
    timing_cache: Path | None,
) -> tuple[bytes, Proof]:
    """Builds an engine; its bytes, and the proof of their precision.

    Args:
        source: what it is made of.
        tensorrt: that builds it.
        gpu: that it is built on; None: there is none, and the engine cannot be loaded here.
        profile: images at once.
        options: of the builder.
        timing_cache: file with timings of kernels; None: none.

    Raises:
        DataError: the timing cache is another's, or the disk refuses.
        ExportError: TensorRT cannot build it, or built it in another precision.
    """
    trt, log = tensorrt.module, fresh_log(tensorrt)
    builder = trt.Builder(log.logger)
    # TensorRT 11 knows nothing else; 10 would choose precisions of its own without it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(source.data, str(source.path)):
        errors = [parser.get_error(place).desc() for place in range(parser.num_errors)]
        raise ExportError(
            f"{source.path} is not a graph that {tensorrt} takes: {'; '.join(errors) or log.told()}"
        )
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the proof; it costs no time when run
    config.clear_flag(trt.BuilderFlag.TF32)  # its default: an fp32 engine would miss its gate
    _set_options(config, options, trt)
    if timing_cache is not None:
        read_timing_cache(config, timing_cache)
    config.add_optimization_profile(_profile(builder, network, source, profile))
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise ExportError(f"{tensorrt} cannot build {source.path.name}: {log.told()}.")
    data = bytes(data)
    if timing_cache is not None:
        write_timing_cache(config, timing_cache)

    layers = (network.get_layer(place) for place in range(network.num_layers))
    names = [layer.name for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    convolutions = source.precisions(names)
    if gpu is None:  # the engine cannot be loaded here, but the builder said what it made
        listing = from_listing(log.listing)
        proof = prove(listing, convolutions, source="the builder's list of layers", builder=str(tensorrt))
        return data, proof
    _runtime, engine = load_engine(
        tensorrt, data, version_compatible=options.version_compatible, what=source.path.name
    )
    return data, prove_loaded(engine, convolutions, tensorrt)


def _set_options(config: Any, options: BuilderOptions, trt: Any) -> None:
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    if options.builder_level is not None:
        config.builder_optimization_level = options.builder_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)


def _profile(builder: Any, network: Any, source: EngineSource, profile: Batches) -> Any:
    """The batch may vary; the side of the images is that of the view, also where the graph would take any."""
    images = network.get_input(0)
    crop = source.metadata.preprocessing.crop
    sides = [crop if side == -1 else side for side in tuple(images.shape)[1:]]
    made = builder.create_optimization_profile()
    made.set_shape(images.name, *((batch, *sides) for batch in (profile.min, profile.opt, profile.max)))
    return made
