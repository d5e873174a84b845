"""Build TensorRT engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate.backends.checksums import check_unchanged, check_weights
from evaluate.backends.engine_file import Batches, BuilderOptions, Proof, sha256_of
from evaluate.backends.onnx_metadata import OnnxMetadata, Precision, read_metadata
from evaluate.backends.tensorrt_module import Gpu, TensorRT, fresh_log, load_engine
from export.engine_proof import expected, from_listing, prove, prove_loaded
from export.staging import ExportError
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import atomic_write

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class EngineSource:
    """An exported ONNX file.

    Attributes:
        path: where it is.
        data: its bytes.
        sha256: of them.
        structure_sha256: of the graph without the values of its weights.
        convolutions: names of the graph's.
        properties: its `metadata_props`.
        metadata: what they tell.
    """

    path: Path
    data: bytes
    sha256: str
    structure_sha256: str
    convolutions: tuple[str, ...]
    properties: dict[str, str]
    metadata: OnnxMetadata

    def precisions(self, names: Sequence[str]) -> dict[str, Precision]:
        """What the convolutions of these names must be computed in."""
        quantisation = self.metadata.quantisation or {}
        return expected(names, self.metadata.precision, quantisation.get("float32_convolutions", ()))


def read_source(path: Path) -> EngineSource:
    """Reads it, and its weights where they are apart.

    Raises:
        UsageError: it is not there, or is int8 for a CPU.
        DataError: it is damaged, is not what its export recorded, or not one by `swav-tf export`.
    """
    import onnx

    if not path.is_file():
        raise UsageError(f"An engine is built from an exported ONNX file. Received: {path}, not there.")
    check_unchanged(path)
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors have no common class but this
        raise DataError(f"{path} cannot be read as an ONNX file: {error}.") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = read_metadata(properties, str(path))
    check_weights(path, metadata.weights_file)
    quantisation = metadata.quantisation
    if quantisation is not None and quantisation.get("target") != "tensorrt":
        raise UsageError(
            f"int8 for TensorRT has a graph of its own. Received: {path}, whose graph is for a CPU. Export one: "
            "swav-tf export RUN --precision int8 --target tensorrt --output DIR"
        )
    convolutions = tuple(node.name for node in model.graph.node if node.op_type == "Conv")
    structure = _structure_sha256(model)
    return EngineSource(path, data, sha256_of(data), structure, convolutions, properties, metadata)


def _structure_sha256(model: onnx.ModelProto) -> str:
    """The checksum of a graph without the values of its weights."""
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        for values in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(values)
    return sha256_of(model.SerializeToString(deterministic=True))


def read_timing_cache(config: Any, path: Path) -> None:
    """Gives a builder the timings in a file; it need not be there yet.

    Raises:
        DataError: the file is damaged, or of another GPU or version.
    """
    try:
        known = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise DataError(f"--timing-cache {path} cannot be read: {error}.") from error
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise DataError(
            f"--timing-cache must be a file by this TensorRT on this GPU, or a new one. Received: {path}, which is "
            "of another or damaged. Give another name."
        )


def write_timing_cache(config: Any, path: Path) -> None:
    """Writes the timings that a builder has now.

    Raises:
        DataError: the disk is full or refuses.
    """
    with atomic_write(path) as partial:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))


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
