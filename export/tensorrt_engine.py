"""From an exported ONNX file to a TensorRT engine whose precision is proven. No TensorFlow.

Engines are kept in a cache under a name that is the checksum of all that decides what is built: the graph, the
profile, the builder's options, TensorRT, the GPU and its driver. Whatever of these changes, the name changes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evaluate.runners.engine_file import (
    FORMAT,
    Batches,
    BuilderOptions,
    EngineFacts,
    Proof,
    check_fits,
    differences,
    key_of,
    read_engine,
    sha256_of,
    sidecar_of,
    write_engine,
    write_whole,
)
from evaluate.runners.onnx_metadata import OnnxMetadata, Precision, read_metadata
from evaluate.runners.tensorrt_module import (
    INSTALL,
    Gpu,
    ModuleName,
    NoGpuError,
    TensorRT,
    find_tensorrt,
    fresh_log,
    gpu_or_none,
    load_engine,
    the_gpu,
)
from export.engine_proof import expected, from_inspector, from_listing, prove
from export.errors import ExportError
from swav_tf.errors import DataError, UsageError

if TYPE_CHECKING:
    import onnx

PROFILE: Final = Batches(min=1, opt=8, max=32)
LEVELS: Final = range(6)


def default_cache() -> Path:
    """Where engines are kept: `swav-tf/engines` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "swav-tf" / "engines"


@dataclass(frozen=True)
class EngineSettings:
    """What is asked for.

    Attributes:
        profile: images at once; None: 1, 8, 32, or with `refit` the old engine's.
        options: of the builder; None: its own, or with `refit` the old engine's.
        timing_cache: file with timings of kernels, read and added to; None: none.
        refit: an old engine that the weights are put into instead of building one; None: build.
        module_name: TensorRT or TensorRT-RTX; None: whichever is here.
        cache: folder of the engines.
    """

    profile: Batches | None = None
    options: BuilderOptions | None = None
    timing_cache: Path | None = None
    refit: Path | None = None
    module_name: ModuleName | None = None
    cache: Path = field(default_factory=default_cache)

    def check(self) -> None:
        """Refuses what does not fit together.

        Raises:
            UsageError: it does not.
        """
        profile, options = self.profile or PROFILE, self.options or BuilderOptions()
        if not profile.min <= profile.opt <= profile.max:
            raise UsageError(
                "--batch must be the fewest, the usual and the most images at once, in this order. Received: "
                f"{profile.min},{profile.opt},{profile.max}."
            )
        if options.builder_level is not None and options.builder_level not in LEVELS:
            raise UsageError(f"--builder-level must be 0 to 5. Received: {options.builder_level}.")
        if options.workspace_gib is not None and not options.workspace_gib > 0:
            raise UsageError(f"--workspace-gib must be greater than 0. Received: {options.workspace_gib:g}.")
        if self.refit is not None and (self.profile, self.options, self.timing_cache) != (None, None, None):
            raise UsageError(
                "With --refit the engine stays as it was built but for its weights. Received also: options of a "
                "builder. Leave them out, or build without --refit."
            )


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


def builder_here(module_name: ModuleName | None) -> tuple[TensorRT, Gpu | None]:
    """What builds, and for which GPU; None: for every GPU that TensorRT-RTX supports from Ampere on.

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


def build_engine(path: Path, settings: EngineSettings, *, tell: Callable[[str], None]) -> Built:
    """The engine of an exported ONNX file, out of the cache if it is there and whole.

    Args:
        path: the ONNX file.
        settings: what is asked for.
        tell: called with a line about what goes on.

    Raises:
        UsageError: TensorRT or the GPU is missing, or an option cannot be honoured.
        DataError: a file is damaged, or the disk refuses.
        ExportError: TensorRT cannot build it, or built it in another precision.
    """
    settings.check()
    tensorrt, gpu = builder_here(settings.module_name)
    _check_options(tensorrt, settings)
    source = _read_onnx(path)
    old = None if settings.refit is None else _read_old(settings.refit, source, tensorrt, gpu)
    profile = settings.profile or (PROFILE if old is None else old[1].profile)
    options = settings.options or (BuilderOptions() if old is None else old[1].options)
    decides = {
        "format": FORMAT,
        "onnx_sha256": source.sha256,
        "profile": profile.model_dump(),
        "options": options.model_dump(),
        "module": tensorrt.module_name,
        "version": tensorrt.version,
        "gpu": None if gpu is None else gpu.model_dump(),
        "refitted_from": None if old is None else old[1].key,
    }
    key = key_of(decides)
    plan = settings.cache / f"{key}.plan"
    if (cached := _from_cache(plan, key, tensorrt, gpu, tell)) is not None:
        return cached

    tell(f"{path.name}: {'refit' if old else 'build'} by {tensorrt} for {gpu or 'GPUs of Ampere and newer'}")
    if old is None:
        data, proof = _build(source, profile, options, settings.timing_cache, tensorrt, gpu)
    else:
        data, proof = _refit(old, source, tensorrt)
    facts = EngineFacts(
        key=key,
        plan_sha256=sha256_of(data),
        module=tensorrt.module_name,
        version=tensorrt.version,
        gpu=gpu,
        onnx=path.name,
        onnx_sha256=source.sha256,
        structure_sha256=source.structure_sha256,
        profile=profile,
        options=options,
        refitted_from=None if old is None else old[1].key,
        proof=proof,
        properties=source.properties,
    )
    write_engine(plan, data, facts)
    return Built(plan, data, facts, from_cache=False)


# === What goes in ===


@dataclass(frozen=True)
class _Source:
    """An exported ONNX file."""

    path: Path
    data: bytes
    sha256: str
    structure_sha256: str
    properties: dict[str, str]
    metadata: OnnxMetadata

    def convolutions(self, names: list[str]) -> dict[str, Precision]:
        quantisation = self.metadata.quantisation or {}
        return expected(names, self.metadata.precision, quantisation.get("float32_convolutions", ()))


def _read_onnx(path: Path) -> _Source:
    import onnx

    if not path.is_file():
        raise UsageError(f"An engine is built from an exported ONNX file. Received: {path}, not there.")
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors have no common class but this
        raise DataError(f"{path} cannot be read as an ONNX file: {error}.") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = read_metadata(properties, str(path))
    _check_weights_file(path, metadata)
    quantisation = metadata.quantisation
    if quantisation is not None and quantisation.get("target") != "tensorrt":
        raise UsageError(
            f"int8 for TensorRT has a graph of its own. Received: {path}, whose graph is for a CPU. Export one: "
            "swav-tf export RUN --precision int8 --target tensorrt -o DIR"
        )
    return _Source(path, data, sha256_of(data), _structure_sha256(model), properties, metadata)


def _check_weights_file(path: Path, metadata: OnnxMetadata) -> None:
    """The second file of a large graph must be its own: the graph's checksum covers it only by this."""
    if metadata.weights_file is None:
        return
    beside = path.with_name(metadata.weights_file.name)
    try:
        with beside.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} needs its weights, {beside}: {error}.") from error
    if found != metadata.weights_file.sha256:
        raise DataError(f"{beside} must hold the weights of {path}. Received: others, or damaged ones.")


def _structure_sha256(model: onnx.ModelProto) -> str:
    """The checksum of a graph without the values of its weights."""
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        for values in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(values)
    return sha256_of(model.SerializeToString(deterministic=True))


def _check_options(tensorrt: TensorRT, settings: EngineSettings) -> None:
    """What TensorRT-RTX has not."""
    options = settings.options or BuilderOptions()
    if not tensorrt.is_rtx:
        return
    asked: Mapping[str, bool] = {
        "--version-compatible": options.version_compatible,
        "--hardware-compatible (every engine of TensorRT-RTX is)": options.hardware_compatible,
        "--timing-cache": settings.timing_cache is not None,
    }
    if refused := [option for option, wanted in asked.items() if wanted]:
        raise UsageError(f"{tensorrt} has not: {', '.join(refused)}. Leave out what it has not.")
    if (options.refittable or settings.refit is not None) and gpu_or_none() is None:
        raise UsageError(
            "--refittable and --refit need a GPU, with TensorRT-RTX too: weights that can be changed are laid out "
            "for it. Received: none here."
        )


# === The cache ===


def _from_cache(
    plan: Path, key: str, tensorrt: TensorRT, gpu: Gpu | None, tell: Callable[[str], None]
) -> Built | None:
    """The engine of this key, if it is whole and what its name says."""
    if not plan.exists() and not sidecar_of(plan).exists():
        return None
    try:
        data, facts = read_engine(plan)
    except (DataError, UsageError) as error:
        tell(f"The cached engine is not used and built anew: {error}")
        return None
    wrong = differences(facts, tensorrt, gpu) + ([] if facts.key == key else ["its key is another"])
    if wrong:
        tell(f"The cached engine {plan} is not used and built anew: {'; '.join(wrong)}.")
        return None
    tell(f"{facts.onnx}: out of the cache, {plan}")
    return Built(plan, data, facts, from_cache=True)


# === Building ===


def _build(
    source: _Source,
    profile: Batches,
    options: BuilderOptions,
    timing_cache: Path | None,
    tensorrt: TensorRT,
    gpu: Gpu | None,
) -> tuple[bytes, Proof]:
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
    convolutions = source.convolutions(names)
    if gpu is None:  # the engine cannot be loaded here, but the builder said what it made
        listing = from_listing(log.listing)
        proof = prove(listing, convolutions, source="the builder's list of layers", builder=str(tensorrt))
        return data, proof
    _runtime, engine = load_engine(
        tensorrt, data, version_compatible=options.version_compatible, what=source.path.name
    )
    return data, _inspect(engine, convolutions, tensorrt)


def _inspect(engine: Any, convolutions: Mapping[str, Precision], tensorrt: TensorRT) -> Proof:
    text = engine.create_engine_inspector().get_engine_information(
        tensorrt.module.LayerInformationFormat.JSON
    )
    return prove(from_inspector(text), convolutions, source="engine inspector", builder=str(tensorrt))


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


def _profile(builder: Any, network: Any, source: _Source, profile: Batches) -> Any:
    """The batch may vary; the side of the images is that of the view, also where the graph would take any."""
    images = network.get_input(0)
    crop = source.metadata.preprocessing.crop
    sides = [crop if side == -1 else side for side in tuple(images.shape)[1:]]
    made = builder.create_optimization_profile()
    made.set_shape(images.name, *((batch, *sides) for batch in (profile.min, profile.opt, profile.max)))
    return made


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        raise DataError(f"--timing-cache {path} could not be written: {error}.") from error


# === Refitting ===


def _read_old(plan: Path, source: _Source, tensorrt: TensorRT, gpu: Gpu | None) -> tuple[bytes, EngineFacts]:
    """An engine that these weights fit into."""
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


def _refit(old: tuple[bytes, EngineFacts], source: _Source, tensorrt: TensorRT) -> tuple[bytes, Proof]:
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
    names = _convolutions_of(source)
    return bytes(engine.serialize_with_config(how)), _inspect(engine, source.convolutions(names), tensorrt)


def _convolutions_of(source: _Source) -> list[str]:
    import onnx

    graph = onnx.load_model_from_string(source.data).graph
    return [node.name for node in graph.node if node.op_type == "Conv"]
