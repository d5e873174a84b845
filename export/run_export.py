"""From a run folder to files that were checked, run and compared; all of them or none."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evaluate.images import ImageSet, open_images
from evaluate.runners.onnx_metadata import (
    Input,
    OnnxMetadata,
    Precision,
    Preprocessing,
    dataset_name,
    public_data,
)
from evaluate.runners.onnx_runner import OnnxRunner
from export import onnx_file
from export.errors import ExportError
from export.images import Drawn, draw_images, random_pixels
from export.onnx_file import save_model, weight_bytes
from export.parity import GATES, Parity, compare, run_all
from export.quantize import Method, Target
from export.reference import REFERENCE, Reference, write_reference
from export.staging import staging_folder
from export.verify import PARITY, write_parity
from swav_tf.errors import DataError, UsageError
from swav_tf.recipe import EvaluationView

if TYPE_CHECKING:
    import onnx

    from export.trained import TrainedModel

OUTPUTS: Final = ("features", "projections", "scores", "logits")
PRECISIONS: Final = ("fp32", "fp16", "int8")
TOOLS: Final = ("swav-tf", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")


def file_name(precision: Precision, target: Target) -> str:
    """What the file of a precision is called; int8 is one for each target."""
    return f"model-{precision}-{target}.onnx" if precision == "int8" else f"model-{precision}.onnx"


@dataclass(frozen=True)
class ExportSettings:
    """What is asked for.

    Attributes:
        precisions: of the files to write.
        outputs: of OUTPUTS, in order, `features` among them; empty: `features`, and `logits` of a classifier.
        graph_input: uint8 (batch, size, size, 3), or normalised float32 (batch, 3, size, size).
        size: side of the images, pixels; None: the recipe's evaluation view.
        dynamic_size: let the graph take images of any size; it is compared at `size`.
        step: of the checkpoint; None: the newest.
        data, kind, split: images to compare with and to calibrate on; None: the training images.
        reference_images: that are compared.
        calibration_images: that int8 is calibrated on; others.
        target: of int8: where it will run; each wants a graph of its own.
        calibration: how.
        percentile: of the activations in the range, percent; with calibration `percentile` only.
        seed: of the draw of images.
    """

    precisions: tuple[Precision, ...] = ("fp32",)
    outputs: tuple[str, ...] = ()
    graph_input: Input = "uint8"
    size: int | None = None
    dynamic_size: bool = False
    step: int | None = None
    data: str | None = None
    kind: str | None = None
    split: str | None = None
    reference_images: int = 512
    calibration_images: int = 256
    target: Target = "cpu"
    calibration: Method = "minmax"
    percentile: float = 99.99
    seed: int = 0

    def check(self) -> None:
        """Refuses what does not fit together.

        Raises:
            UsageError: it does not.
        """
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        lacks_features = bool(self.outputs) and "features" not in self.outputs
        if unknown or lacks_features or len(set(self.outputs)) < len(self.outputs):
            raise UsageError(
                f"--outputs must be of {', '.join(OUTPUTS)}, each once and features among them. "
                f"Received: {', '.join(self.outputs)}."
            )
        wrong = [precision for precision in self.precisions if precision not in PRECISIONS]
        if wrong or not self.precisions:
            raise UsageError(
                f"--precision must be of {', '.join(PRECISIONS)}. Received: {', '.join(wrong) or 'nothing'}."
            )


@dataclass(frozen=True)
class Exported:
    """One file.

    Attributes:
        path: where it is.
        precision: of its backbone.
        bytes: its size.
        parity: how near to Keras it is.
        float32_convolutions: int8 only: names of those that stayed in float32 to meet the gate.
    """

    path: Path
    precision: Precision
    bytes: int
    parity: Parity
    float32_convolutions: tuple[str, ...] = ()


def export_run(
    run_dir: Path,
    output: Path,
    settings: ExportSettings,
    *,
    tell: Callable[[str], None],
) -> list[Exported]:
    """Writes ONNX files, reference.npz and parity.json into a folder.

    Args:
        run_dir: of a pretraining run, a probe or fine-tuning.
        output: the folder; files of these names in it are replaced.
        settings: what to write.
        tell: called with a line about what goes on.

    Raises:
        UsageError: what is asked for cannot be had.
        DataError: images are missing.
        ExportError: a file would not be what was asked for, or the disk refuses.
        CheckpointError: the checkpoint is damaged.
    """
    settings.check()
    source = _from_keras(run_dir, settings, tell)
    gc.collect()  # Keras' model is full of circles, and as large as the graph
    with _staging(output) as folder:
        write_reference(folder / REFERENCE, source.reference)
        exported = [
            _export_one(source, precision, folder, settings, tell) for precision in settings.precisions
        ]
        results = {file.path.name: (file.precision, file.parity) for file in exported}
        write_parity(folder / PARITY, source.reference, results)
    return [replace(file, path=output / file.path.name) for file in exported]


@dataclass(frozen=True)
class _Source:
    """What all files of an export are made of; Keras' model is not needed any more."""

    graph: onnx.ModelProto
    facts: OnnxMetadata
    reference: Reference
    images: ImageSet | None
    calibration: Drawn | None


def _from_keras(run_dir: Path, settings: ExportSettings, tell: Callable[[str], None]) -> _Source:
    from export.onnx_graph import build_graph
    from export.trained import load_trained

    trained = load_trained(run_dir, step=settings.step)
    settings = replace(settings, outputs=_outputs(trained, settings.outputs))
    view = _view(trained.recipe.data.evaluation, settings.size)
    images = _open_images(trained, settings, tell)
    drawn = _draw(images, settings, view, trained.recipe.data.max_bad_share)
    noise = random_pixels(view, seed=settings.seed)
    tell(f"Keras: {len(drawn[0].views) if drawn else 0} images and {len(noise)} of random pixels")
    reference = _reference(trained, settings, view, noise, images, drawn)
    tell("graph in float32")
    graph = build_graph(
        trained,
        outputs=list(settings.outputs),
        size=None if settings.dynamic_size else view.crop,
        graph_input=settings.graph_input,
    )
    if "int8" in settings.precisions and weight_bytes(graph) > onnx_file.ONE_FILE_BYTES:
        raise UsageError(
            f"int8 is made from a float32 graph of {onnx_file.ONE_FILE_BYTES / 2**30:.2f} GiB at most. Received: "
            f"{weight_bytes(graph) / 2**30:.2f} GiB. Give --precision fp32,fp16."
        )
    facts = _metadata(trained, settings, view)
    return _Source(graph, facts, reference, images, None if drawn is None else drawn[1])


def _export_one(
    source: _Source,
    precision: Precision,
    folder: Path,
    settings: ExportSettings,
    tell: Callable[[str], None],
) -> Exported:
    """One file, written, run and compared."""
    path, facts = folder / file_name(precision, settings.target), _of_precision(source.facts, precision)
    tell(f"{precision}: {path.name}")
    kept: list[str] = []
    if precision == "fp32":
        save_model(source.graph, facts, path)
    elif precision == "fp16":
        from export.half import to_fp16

        save_model(to_fp16(source.graph), facts, path)
    else:
        assert source.images is not None  # _open_images sees to it
        assert source.calibration is not None
        kept = _save_int8(source.graph, facts, path, settings, source.images, source.calibration, tell)
    parity = compare(
        source.reference, run_all(OnnxRunner(path), source.reference.images), gate=GATES[precision]
    )
    if not parity.passed:
        raise ExportError(f"{precision} does not compute what Keras computes: {'; '.join(parity.failures)}.")
    size = sum(part.stat().st_size for part in folder.glob(f"{path.name}*"))
    return Exported(path, precision, size, parity, tuple(kept))


def _outputs(trained: TrainedModel, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The outputs that are asked for, where the model has them."""
    there = trained.output_names
    if not wanted:
        return there if "logits" in there else ("features",)
    if missing := [name for name in wanted if name not in there]:
        raise UsageError(
            f"--outputs of this model must be of {', '.join(there)}. Received: {', '.join(missing)}. Logits come from "
            "the folder of a probe or fine-tuning run, projections and scores from that of pretraining."
        )
    return wanted


# === Images ===


def _view(view: EvaluationView, size: int | None) -> EvaluationView:
    """The evaluation view at another size, cut from the same share of the image."""
    if size is None:
        return view
    return EvaluationView(resize=round(size * view.resize / view.crop), crop=size)


def _open_images(
    trained: TrainedModel, settings: ExportSettings, tell: Callable[[str], None]
) -> ImageSet | None:
    """Images of the user's; without any, int8 cannot be and the others are compared on random pixels."""
    data = trained.recipe.data
    given = (settings.data, settings.kind, settings.split) != (None, None, None)
    try:
        return open_images(settings.data, like=data, kind=settings.kind, split=settings.split)
    except (UsageError, DataError) as error:
        if given or "int8" in settings.precisions:
            raise type(error)(f"--calibration: {error}") from error
        tell(f"No real images are compared, random pixels only: {error} Give some with --calibration.")
        return None


def _draw(
    images: ImageSet | None, settings: ExportSettings, view: EvaluationView, max_bad_share: float
) -> tuple[Drawn, Drawn] | None:
    if images is None:
        return None
    calibration = settings.calibration_images if "int8" in settings.precisions else 0
    counts = settings.reference_images, calibration
    return draw_images(images, counts, view, seed=settings.seed, max_bad_share=max_bad_share)


def _reference(
    trained: TrainedModel,
    settings: ExportSettings,
    view: EvaluationView,
    noise: np.ndarray,
    images: ImageSet | None,
    drawn: tuple[Drawn, Drawn] | None,
) -> Reference:
    labels = np.full(len(noise), -1, np.int64)
    views, real = noise, np.zeros(len(noise), bool)
    facts: dict[str, Any] = {"step": trained.step, "recipe": trained.recipe.name, "real": None}
    if images is not None and drawn is not None:
        views = np.concatenate([drawn[0].views, noise])
        labels = np.concatenate([drawn[0].labels, labels])
        real = np.concatenate([np.ones(len(drawn[0].views), bool), real])
        facts["real"] = drawn[0].facts(images, settings.seed)
    outputs = trained.outputs(views)
    return Reference(
        images=views,
        labels=labels,
        real=real,
        outputs={name: outputs[name] for name in settings.outputs},
        weights_sha256=trained.weights_sha256,
        view=view,
        facts=facts,
    )


# === Files ===


def _metadata(trained: TrainedModel, settings: ExportSettings, view: EvaluationView) -> OnnxMetadata:
    recipe = trained.recipe
    return OnnxMetadata(
        precision="fp32",
        preprocessing=Preprocessing(
            resize=view.resize,
            crop=view.crop,
            mean=_three(trained.model.mean),
            std=_three(trained.model.std),
            layout="NHWC" if settings.graph_input == "uint8" else "NCHW",
            inside=settings.graph_input == "uint8",
        ),
        recipe=recipe.name,
        step=trained.step,
        data=public_data(recipe.data),
        dataset=dataset_name(recipe.data),
        weights_sha256=trained.weights_sha256,
        class_names=trained.class_names if "logits" in settings.outputs else (),
        versions={"python": platform.python_version(), **{tool: metadata.version(tool) for tool in TOOLS}},
    )


def _three(values: np.ndarray) -> tuple[float, float, float]:
    """As the recipe has them: float32's shortest decimals."""
    red, green, blue = (float(str(value)) for value in values)
    return red, green, blue


def _of_precision(facts: OnnxMetadata, precision: Precision) -> OnnxMetadata:
    return facts.model_copy(update={"precision": precision})


def _save_int8(
    graph: onnx.ModelProto,
    facts: OnnxMetadata,
    path: Path,
    settings: ExportSettings,
    images: ImageSet,
    drawn: Drawn,
    tell: Callable[[str], None],
) -> list[str]:
    """int8 that keeps to its gate on the calibration images; names of the convolutions left in float32."""
    from export.quantize import calibrate, quantise_within, to_int8
    from export.quantize_tensorrt import to_int8_tensorrt

    float32 = path.with_suffix(".float32")
    save_model(graph, _of_precision(facts, "fp32"), float32)
    runner = OnnxRunner(float32)
    measure = Reference(
        images=drawn.views,
        labels=drawn.labels,
        real=np.ones(len(drawn.views), bool),
        outputs=run_all(runner, drawn.views),
        weights_sha256=facts.weights_sha256,
        view=runner.view,
        facts={},
    )
    inputs = runner.prepared(drawn.views)
    float32.unlink()

    def acceptable(candidate: onnx.ModelProto) -> bool:
        save_model(candidate, facts, path)
        return compare(measure, run_all(OnnxRunner(path), drawn.views), gate=GATES["int8"]).passed

    tell(f"int8: calibration ({settings.calibration}) on {len(drawn.views)} images")
    ranges = calibrate(graph, inputs, method=settings.calibration, percentile=settings.percentile)
    quantise, activations = {"cpu": (to_int8, "uint8"), "tensorrt": (to_int8_tensorrt, "int8")}[
        settings.target
    ]
    quantised, kept = quantise_within(
        graph, ranges, inputs, acceptable=acceptable, tell=tell, quantise=quantise
    )
    quantisation = {
        "target": settings.target,
        "scheme": f"QDQ, activations {activations}, weights int8 with a scale for each channel",
        "calibration": settings.calibration,
        "percentile": settings.percentile if settings.calibration == "percentile" else None,
        **drawn.facts(images, settings.seed),
        "float32_convolutions": kept,
    }
    save_model(quantised, facts.model_copy(update={"quantisation": quantisation}), path)
    return kept


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A folder whose files appear in `output` at the end, when all of them are whole."""
    was_there = output.is_dir()
    made = ExitStack()
    try:
        folder = made.enter_context(staging_folder(output))
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error}. Give another -o.") from error
    try:
        yield folder
        whole = sorted(path.name for path in folder.iterdir())
        for name in reversed(whole):  # weights in a file of their own before the graph that reads them
            os.replace(folder / name, output / name)
        for name in whole:  # of a larger model that was there before
            if f"{name}.data" not in whole:
                (output / f"{name}.data").unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(
            f"{output} could not be written: {error}. Make room, or give another -o."
        ) from error
    finally:
        made.close()
        if not was_there and not any(output.iterdir()):
            output.rmdir()
