"""Build TensorRT engines from exported ONNX files with Polygraphy: proven, and compared if there is a GPU.

A builder may leave a layer in another precision than requested, and a tool may set a flag without effect: the name of
an engine proves nothing. The proof compares every convolution of the graph with the engine's own list of layers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evaluate.backends.checksums import check_unchanged, check_weights
from evaluate.backends.engine_file import EngineFacts, Proof, ProofSource, write_engine
from evaluate.backends.foreign import weight_files
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
from export.parity import GATES, Parity, compare, run_all
from export.reference import REFERENCE, Reference, read_reference
from export.settings import EngineSettings
from export.staging import ExportError, filled_folder
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.files import file_sha256
from swav_tf.plumbing.log import log

TYPES: Final[Mapping[Precision, str]] = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}
# Kinds of layers that can contain a convolution: TensorRT's own kernels (CaskConvolution), its compiler's
# (correlation; gemm for a 1x1), and those fused with others (fusion). Copies and generated pointwise
# kernels also name the convolution that they prepare data for.
CONVOLVES: Final = re.compile("conv|correlation|gemm|fusion", re.IGNORECASE)
# How lists of layers write a type: `Half`, or words such as "Channel major FP16 format".
WRITTEN: Final = {"Float": "float|fp32", "Half": "half|fp16", "Int8": "int8"}
LISTED: Final = 5  # wrong convolutions in a message


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
    for path in files:  # before the builds, which take minutes
        _refuse_another(path, output / path.name)
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
            others = weight_files(path) + ([source] if reference is not None else [])
            for other in others:  # for `verify` and Triton
                if not (output / other.name).exists():
                    shutil.copyfile(other, folder / other.name)
        exported.append(Engine(output / plan.name, len(data), facts, parity, reason))
    return exported


def _refuse_another(path: Path, there: Path) -> None:
    """Raise UsageError if another file has the name of the ONNX file: `verify` and Triton read that of the engine."""
    if there.is_file() and path.is_file() and file_sha256(there) != file_sha256(path):
        raise UsageError(
            f"An engine is written next to the ONNX file that it was built from. {there} differs from {path}: "
            "remove it, or choose another --output."
        )


def _compared(plan: Path, facts: EngineFacts, reference: Reference | None) -> tuple[Parity | None, str]:
    """Return the comparison of an engine with Keras, or None and the reason."""
    if facts.gpu is None:
        return None, "built for GPUs of Ampere and newer; not run, features not compared here: no GPU"
    if reference is None:
        return None, f"features not compared: no {REFERENCE} next to the ONNX file"
    backend = TensorrtBackend(plan)
    outputs = run_all(backend, reference.images, batch_size=facts.profile.max)
    gate = GATES[backend.metadata.precision]
    return compare(reference, outputs, gate=gate, runner=backend.facts.runner), ""


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
            f"TensorRT needs a separate int8 graph. Received: {path}, a graph for CPUs. Export one: "
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


# === Proof ===


@dataclass(frozen=True)
class Layer:
    """One layer of an engine."""

    kind: str  # of its kernel
    nodes: frozenset[str]  # of the ONNX graph that it computes
    reads: str  # data type of its first input, or "" without one
    weights: str  # data type of its largest constant, or "" without one


def from_inspector(text: str) -> list[Layer]:
    """Read the layers in the engine inspector's JSON."""
    layers = json.loads(text)["Layers"]
    if any(isinstance(layer, str) for layer in layers):  # names only
        raise ExportError(
            "The engine must be built with detailed profiling verbosity to prove its precision. Received: one with "
            "the names of its layers only. Build it with `swav-tf export`."
        )
    return [_from_json(layer) for layer in layers]


def from_listing(text: str) -> list[Layer]:
    """Read the layers in the list that a builder logs at its end, for machines that cannot load the engine."""
    return [
        Layer(
            kind=_between(line, "LayerType: ", ","),
            nodes=_nodes(line.partition("Metadata: ")[2]),
            reads=_type(next(iter(_tensors(line, "Inputs")), "")),
            weights=_type(max(_tensors(line, "Constants"), key=_size, default="")),
        )
        for line in map(str.strip, text.splitlines())
        if line.startswith("Name: ") and ", LayerType: " in line
    ]


def prove(
    layers: Iterable[Layer], convolutions: Mapping[str, Precision], *, source: ProofSource, builder: str
) -> Proof:
    """Compare every convolution of the ONNX graph (its precision by name) with the layers that compute it."""
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        if CONVOLVES.search(layer.kind):
            for node in layer.nodes:
                by_node.setdefault(node, []).append(layer)
    wrong, counts = [], Counter[str]()
    for node, precision in convolutions.items():
        types = {kind for layer in by_node.get(node, []) for kind in (layer.reads, layer.weights)}
        types.discard("")  # weights may be an input: then there is no constant
        if types != {TYPES[precision]}:
            found = " and ".join(sorted(types)) or "not listed"
            wrong.append(f"{node} is {found}, not {TYPES[precision]}")
        counts[TYPES[precision]] += 1
    if wrong or not counts:
        more = f"; and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise ExportError(
            f"Every convolution of the engine must have the precision of the graph. {builder} built {len(wrong)} of "
            f"{len(convolutions)} otherwise: {'; '.join(wrong[:LISTED])}{more}. The engine was not written."
        )
    return Proof(source=source, convolutions=dict(counts))


def _from_json(layer: Mapping[str, Any]) -> Layer:
    inputs: Sequence[Mapping[str, Any]] = layer.get("Inputs", [])
    constants: Sequence[Mapping[str, Any]] = layer.get("Constants", [])
    weights = layer.get("Weights", {}).get("Type", "")
    if constants and not weights:
        weights = _written(max(constants, key=lambda constant: math.prod(constant.get("Dimensions", []))))
    return Layer(
        kind=layer.get("LayerType", ""),
        nodes=_nodes(layer.get("Metadata", "")),
        reads=_type(_written(inputs[0])) if inputs else "",
        weights=_type(weights),
    )


def _written(tensor: Mapping[str, Any]) -> str:
    """Return a tensor's type in words: a key of its own since TensorRT 10.13, part of the format before."""
    return str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def _type(words: str) -> str:
    """Return `Float`, `Half`, `Int8`, or the words if they are another type."""
    if "Datatype: " in words:
        words = _between(words, "Datatype: ", ",")
    return next(
        (name for name, pattern in WRITTEN.items() if re.search(rf"\b({pattern})\b", words, re.IGNORECASE)),
        words,
    )


def _nodes(metadata: str) -> frozenset[str]:
    return frozenset(re.findall(r"\[ONNX Layer: (.*?)\](?=[^\w/]|\[|$)", metadata))


def _tensors(line: str, group: str) -> list[str]:
    """Return the tensors of a group, each as the text between its braces."""
    inside = _between(line, f"{group}: [", "], Constants:" if group == "Inputs" else "], Outputs:")
    return re.findall(r"\{ (.*?) \}", f"{inside} ")


def _size(tensor: str) -> int:
    return math.prod(abs(int(side)) for side in _between(tensor, "Dimensions: [", "]").split(",") if side)


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]
