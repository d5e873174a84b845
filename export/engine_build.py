"""Build a TensorRT engine with Polygraphy and prove its precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.backends.checksums import check_unchanged, check_weights
from evaluate.backends.engine_file import Proof, ProofSource
from evaluate.backends.onnx_metadata import OnnxMetadata, read_metadata
from evaluate.backends.tensorrt_module import Gpu, TensorRT, TensorrtLog, load_engine
from export.engine_proof import expected, from_inspector, from_listing, prove
from export.settings import EngineSettings
from export.staging import ExportError
from swav_tf.plumbing.errors import DataError, UsageError


@dataclass(frozen=True)
class EngineSource:
    """An exported ONNX file.

    Attributes:
        path: of the file.
        sha256: of its content, which contains that of weights in a second file.
        properties: its `metadata_props`.
        metadata: the facts in them.
    """

    path: Path
    sha256: str
    properties: dict[str, str]
    metadata: OnnxMetadata


def read_source(path: Path) -> EngineSource:
    """Check an exported ONNX file and read its metadata.

    Raises:
        UsageError: it does not exist, or is int8 for a CPU.
        DataError: it is damaged, or was not written by `swav-tf export`.
    """
    import onnx

    if not path.is_file():
        raise UsageError(f"File not found: {path}. An engine is built from an exported ONNX file.")
    checksum = check_unchanged(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common class but this
        raise DataError(f"{path} cannot be read as an ONNX file: {error}.") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = read_metadata(properties, str(path))
    check_weights(path, metadata.weights_file)
    quantization = metadata.quantisation
    if quantization is not None and quantization.get("target") != "tensorrt":
        raise UsageError(
            f"TensorRT needs an int8 graph of its own. Received: {path}, a graph for CPUs. Export one: "
            "swav-tf export RUN --precision int8 --target tensorrt --output DIR"
        )
    return EngineSource(path, checksum.sha256, properties, metadata)


def build_plan(
    source: EngineSource, tensorrt: TensorRT, gpu: Gpu | None, settings: EngineSettings
) -> tuple[bytes, Proof]:
    """Build an engine; return its bytes and the proof of their precision.

    Args:
        source: the ONNX file.
        tensorrt: the builder.
        gpu: the present one; None: the engine cannot be loaded here, and the proof is the builder's own list.
        settings: of the builder.

    Raises:
        DataError: the timing cache is damaged, of another GPU, or cannot be written.
        ExportError: TensorRT cannot build the engine, or built it in another precision.
    """
    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath
    from polygraphy.exception import PolygraphyException

    with TensorrtLog() as log:
        try:
            # TensorRT 11 has only strongly typed networks; 10 would choose precisions itself without it.
            builder, network, parser = NetworkFromOnnxPath(str(source.path), strongly_typed=True)()
        except PolygraphyException as error:
            raise ExportError(
                f"{source.path} is not a graph that {tensorrt} takes: {log.reason()}"
            ) from error
        try:
            if settings.timing_cache is not None:
                settings.timing_cache.parent.mkdir(parents=True, exist_ok=True)
            build = EngineBytesFromNetwork(
                (builder, network, parser),
                configure(tensorrt, source.metadata.preprocessing.crop, settings),
                None if settings.timing_cache is None else str(settings.timing_cache),
            )
            data = bytes(build())
        except PolygraphyException as error:
            raise ExportError(f"{tensorrt} cannot build {source.path.name}: {log.reason()}.") from error
        except OSError as error:
            raise DataError(f"--timing-cache {settings.timing_cache} cannot be used: {error}.") from error

    trt, quantization = tensorrt.module, source.metadata.quantisation or {}
    names = [layer.name for layer in network if layer.type == trt.LayerType.CONVOLUTION]
    wanted = expected(names, source.metadata.precision, quantization.get("float32_convolutions", ()))
    listed_by: ProofSource = "engine inspector" if gpu else "the builder's list of layers"
    if gpu is None:
        layers = from_listing(log.layers)
    else:
        inspector = load_engine(tensorrt, data, source.path.name).create_engine_inspector()
        layers = from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return data, prove(layers, wanted, source=listed_by, builder=str(tensorrt))


def configure(tensorrt: TensorRT, crop: int, settings: EngineSettings) -> Callable[[Any, Any], Any]:
    """Return the function from builder and network to the configuration, which Polygraphy takes.

    The batch may vary; the side of the images is `crop`, even if the graph takes any.
    """
    from polygraphy.backend.trt import CreateConfig, Profile

    trt, options, batches = tensorrt.module, settings.options, settings.profile
    memory = {}
    if options.workspace_gib is not None:
        memory[trt.MemoryPoolType.WORKSPACE] = int(options.workspace_gib * 2**30)

    def configured(builder: Any, network: Any) -> Any:
        images = network.get_input(0)
        sides = [crop if side == -1 else side for side in tuple(images.shape)[1:]]
        shapes = ((batch, *sides) for batch in (batches.min, batches.opt, batches.max))
        config = CreateConfig(
            tf32=False,  # TensorRT's default would make an fp32 engine miss its gate
            profiles=[Profile().add(images.name, *shapes)],
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,  # for the proof; it costs no time at run time
            memory_pool_limits=memory,
            builder_optimization_level=options.builder_level,
            version_compatible=options.version_compatible,
            hardware_compatibility_level=(
                trt.HardwareCompatibilityLevel.AMPERE_PLUS if options.hardware_compatible else None
            ),
        )(builder, network)
        if settings.timing_cache is not None and settings.timing_cache.exists():
            use_timings(config, settings.timing_cache)
        return config

    return configured


def use_timings(config: Any, path: Path) -> None:
    """Give a configuration the timings in a file; Polygraphy would also take those of another GPU.

    Raises:
        DataError: the file is damaged, or of another GPU or version.
    """
    cache = config.create_timing_cache(path.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        raise DataError(
            f"--timing-cache must be a file by this TensorRT on this GPU, or a new one. Received: {path}, which is "
            "of another or damaged. Give another name."
        )
