"""Build TensorRT engines from exported ONNX files with Polygraphy: proven, and compared if there is a GPU."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.backends.checksums import check_unchanged, check_weights
from evaluate.backends.engine_file import EngineFacts, Proof, write_engine
from evaluate.backends.onnx_metadata import OnnxMetadata, Precision, read_metadata, read_properties
from evaluate.backends.tensorrt_backend import TensorrtBackend
from evaluate.backends.tensorrt_module import (
    INSTALL,
    Gpu,
    ModuleName,
    NoGpuError,
    TensorRT,
    TensorrtLog,
    find_tensorrt,
    load_engine,
    the_gpu,
)
from export.engine_proof import from_inspector, from_listing, prove
from export.parity import GATES, Parity, compare, run_all
from export.reference import REFERENCE, Reference, read_reference
from export.settings import EngineSettings
from export.staging import ExportError, filled_folder
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log


@dataclass(frozen=True)
class Engine:
    """A built engine."""

    path: Path
    bytes: int
    facts: EngineFacts
    parity: Parity | None = None  # the comparison with Keras; None: it was not run
    not_compared: str = ""  # the reason for that


def export_engines(files: Sequence[Path], output: Path, settings: EngineSettings) -> list[Engine]:
    """Write the engine of each ONNX file, with its facts, into a folder.

    Args:
        files: ONNX files from `swav-tf export`; engines are compared with the reference next to them.
        output: the folder; engines of these names are replaced.
        settings: of the builder.

    Raises:
        UsageError: TensorRT or the GPU is missing, or TensorRT lacks an option.
        DataError: a file is damaged.
        ExportError: an engine cannot be built, has another precision, or misses its gate; or the disk is full.
    """
    exported = []
    for path in files:
        data, facts = build_engine(path, settings)
        source = path.parent / REFERENCE
        reference = read_reference(source) if source.is_file() else None
        with filled_folder(output) as folder:
            plan = folder / f"{path.stem}.plan"
            write_engine(plan, data, facts)
            parity, reason = _compared(plan, facts, reference)
            if parity is not None and not parity.passed:
                raise ExportError(
                    f"The engine of {path.name} does not reproduce Keras' outputs: {'; '.join(parity.failures)}."
                )
            if reference is not None and not (output / REFERENCE).exists():  # for `verify`
                shutil.copyfile(source, folder / REFERENCE)
        exported.append(Engine(output / plan.name, len(data), facts, parity, reason))
    return exported


def _compared(plan: Path, facts: EngineFacts, reference: Reference | None) -> tuple[Parity | None, str]:
    """Return the comparison of an engine with Keras, or None and the reason."""
    if facts.gpu is None:
        return None, "built for GPUs of Ampere and newer; not run, features not compared here: no GPU"
    if reference is None:
        return None, f"features not compared: no {REFERENCE} next to the ONNX file"
    backend = TensorrtBackend(plan)
    outputs = run_all(backend, reference.images, batch_size=facts.profile.max)
    return compare(reference, outputs, gate=GATES[backend.metadata.precision]), ""


def build_engine(path: Path, settings: EngineSettings) -> tuple[bytes, EngineFacts]:
    """Build the engine of an exported ONNX file, and prove its precision."""
    tensorrt, gpu = builder_here(settings.module_name)
    _check_options(tensorrt, settings)
    if not path.is_file():
        raise UsageError(f"File not found: {path}. An engine is built from an exported ONNX file.")
    onnx_sha256, properties = check_unchanged(path).sha256, read_properties(path)
    metadata = _checked_metadata(path, properties)
    log.info("%s: building with %s for %s", path.name, tensorrt, gpu or "GPUs of Ampere and newer")
    data, convolutions, listing = _build(path, metadata.preprocessing.crop, tensorrt, settings)
    in_float = (metadata.quantisation or {}).get("float32_convolutions", ())
    expected = {name: "fp32" if name in in_float else metadata.precision for name in convolutions}
    return data, EngineFacts(
        plan_sha256=hashlib.sha256(data).hexdigest(),
        module=tensorrt.module_name,
        version=tensorrt.version,
        gpu=gpu,
        onnx=path.name,
        onnx_sha256=onnx_sha256,
        profile=settings.profile,
        options=settings.options,
        proof=_prove(data, listing, expected, tensorrt, gpu),
        properties=properties,
    )


def builder_here(module_name: ModuleName | None) -> tuple[TensorRT, Gpu | None]:
    """Return the builder and its GPU; None: it builds for every GPU from Ampere on (TensorRT-RTX)."""
    tensorrt = find_tensorrt(module_name)
    try:
        return tensorrt, the_gpu()
    except NoGpuError as error:
        if tensorrt.is_rtx:
            return tensorrt, None
        raise NoGpuError(
            f"TensorRT builds an engine on the GPU that will run it. {error} "
            f"(TensorRT-RTX builds without one: {INSTALL['tensorrt_rtx']}, then --tensorrt rtx.)"
        ) from error


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


def _checked_metadata(path: Path, properties: Mapping[str, str]) -> OnnxMetadata:
    """Return the metadata of a graph that TensorRT can take, with intact weights."""
    metadata = read_metadata(properties, str(path))
    check_weights(path, metadata.weights_file)
    quantization = metadata.quantisation
    if quantization is not None and quantization.get("target") != "tensorrt":
        raise UsageError(
            f"TensorRT needs an int8 graph of its own. Received: {path}, a graph for CPUs. Export one: "
            "swav-tf export RUN --precision int8 --target tensorrt --output DIR"
        )
    return metadata


def _build(
    path: Path, crop: int, tensorrt: TensorRT, settings: EngineSettings
) -> tuple[bytes, list[str], str]:
    """Return an engine, the names of the graph's convolutions, and the list of layers that the builder logs."""
    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath
    from polygraphy.exception import PolygraphyException

    timings = settings.timing_cache
    with TensorrtLog() as messages:
        try:
            # TensorRT 11 has only strongly typed networks; 10 would choose precisions itself without it.
            network = NetworkFromOnnxPath(str(path), strongly_typed=True)()
        except PolygraphyException as error:
            raise ExportError(
                f"{path} is not a graph that {tensorrt} accepts: {messages.reason()}"
            ) from error
        try:
            if timings is not None:
                timings.parent.mkdir(parents=True, exist_ok=True)
            config = configure(tensorrt, crop, settings)
            data = bytes(EngineBytesFromNetwork(network, config, None if timings is None else str(timings))())
        except PolygraphyException as error:
            raise ExportError(f"{tensorrt} cannot build {path.name}: {messages.reason()}.") from error
        except OSError as error:
            raise DataError(f"--timing-cache {timings} cannot be used: {error}.") from error
    kind = tensorrt.module.LayerType.CONVOLUTION
    return data, [layer.name for layer in network[1] if layer.type == kind], messages.layers


def configure(tensorrt: TensorRT, crop: int, settings: EngineSettings) -> Callable[[Any, Any], Any]:
    """Return the function from builder and network to the configuration, which Polygraphy takes.

    The batch may vary; the side of the images is `crop`, even if the graph takes any.
    """
    from polygraphy.backend.trt import CreateConfig, Profile

    trt, options, batches = tensorrt.module, settings.options, settings.profile

    def configured(builder: Any, network: Any) -> Any:
        images = network.get_input(0)
        sides = [crop if side == -1 else side for side in tuple(images.shape)[1:]]
        shapes = ((batch, *sides) for batch in (batches.min, batches.opt, batches.max))
        config = CreateConfig(
            tf32=False,  # TensorRT's default would make an fp32 engine miss its gate
            profiles=[Profile().add(images.name, *shapes)],
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,  # for the proof; it costs no time at run time
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
    """Load timings into a configuration, if they fit this GPU; Polygraphy would load any."""
    cache = config.create_timing_cache(path.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        raise DataError(
            "--timing-cache must be written by this TensorRT on this GPU, or be a new file. "
            f"Received: {path}, which is damaged or from a different GPU or version. Give a new name."
        )


def _prove(
    data: bytes, listing: str, expected: Mapping[str, Precision], tensorrt: TensorRT, gpu: Gpu | None
) -> Proof:
    """Prove the precision of an engine: by itself on a GPU, else by the builder's list of its layers."""
    builder = str(tensorrt)
    if gpu is None:
        layers = from_listing(listing)
        return prove(layers, expected, source="the builder's list of layers", builder=builder)
    inspector = load_engine(tensorrt, data, "The new engine").create_engine_inspector()
    information = inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON)
    return prove(from_inspector(information), expected, source="engine inspector", builder=builder)
