"""What all files of an export are made of: Keras is needed up to here, and no further.

This module loads no TensorFlow by itself; `from_keras` does.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from evaluate.backends.onnx_metadata import OnnxMetadata, Preprocessing, dataset_name, public_data
from evaluate.images import open_images
from export import onnx_file
from export.onnx_file import weight_bytes
from export.reference import Drawn, Reference, draw_images, no_images, random_pixels
from export.settings import ExportSettings
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.system import version_of
from swav_tf.recipe.pretraining import EvaluationView

if TYPE_CHECKING:
    import onnx

    from export.graph import TrainedModel


TOOLS: Final = ("swav-tf", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ExportSource:
    """What all files of an export are made of.

    Attributes:
        graph: in float32.
        facts: of a float32 file.
        reference: images and what Keras says of them.
        calibration: images for int8; none where no int8 is asked for.
    """

    graph: onnx.ModelProto
    facts: OnnxMetadata
    reference: Reference
    calibration: Drawn


def from_keras(run_dir: Path, settings: ExportSettings, *, tell: Callable[[str], None]) -> ExportSource:
    """Loads a run in Keras, asks it for all outputs, and makes its graph.

    Args:
        run_dir: of a pretraining run, a probe or fine-tuning.
        settings: what to write.
        tell: called with a line about what goes on.

    Raises:
        UsageError: what is asked for cannot be had.
        DataError: images are missing.
        ExportError: an operation has no counterpart in ONNX.
        CheckpointError: the checkpoint is damaged.
    """
    from export.graph import build_graph, load_trained

    trained = load_trained(run_dir, step=settings.step)
    settings = replace(settings, outputs=_outputs(trained, settings.outputs))
    view = _view(trained.recipe.data.evaluation, settings.size)
    compared, calibration = _draw(trained, settings, view, tell)
    noise = random_pixels(view, seed=settings.seed)
    tell(f"Keras: {len(compared.views)} images and {len(noise)} of random pixels")
    reference = _reference(trained, settings, view, compared, noise)
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
    return ExportSource(graph, _metadata(trained, settings, view), reference, calibration)


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


def _view(view: EvaluationView, size: int | None) -> EvaluationView:
    """The evaluation view at another size, cut from the same share of the image."""
    if size is None:
        return view
    return EvaluationView(resize=round(size * view.resize / view.crop), crop=size)


def _draw(
    trained: TrainedModel, settings: ExportSettings, view: EvaluationView, tell: Callable[[str], None]
) -> tuple[Drawn, Drawn]:
    """Images to compare and to calibrate on; without any, int8 cannot be and the others see random pixels."""
    data = trained.recipe.data
    given = (settings.data, settings.kind, settings.split) != (None, None, None)
    try:
        images = open_images(settings.data, like=data, kind=settings.kind, split=settings.split)
    except (UsageError, DataError) as error:
        if given or "int8" in settings.precisions:
            raise type(error)(f"--calibration: {error}") from error
        tell(f"No real images are compared, random pixels only: {error} Give some with --calibration.")
        return no_images(view), no_images(view)
    counts = settings.reference_images, settings.calibration_images if "int8" in settings.precisions else 0
    return draw_images(images, counts, view, seed=settings.seed, max_bad_share=data.max_bad_share)


def _reference(
    trained: TrainedModel, settings: ExportSettings, view: EvaluationView, compared: Drawn, noise: np.ndarray
) -> Reference:
    views = np.concatenate([compared.views, noise])
    outputs = trained.outputs(views)
    return Reference(
        images=views,
        labels=np.concatenate([compared.labels, np.full(len(noise), -1, np.int64)]),
        real=np.arange(len(views)) < len(compared.views),
        outputs={name: outputs[name] for name in settings.outputs},
        weights_sha256=trained.weights_sha256,
        view=view,
        facts={"step": trained.step, "recipe": trained.recipe.name, "real": compared.facts or None},
    )


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
        versions={
            "python": platform.python_version(),
            **{tool: version_of(tool, f"{tool}-gpu", f"{tool}-cpu") for tool in TOOLS},
        },
    )


def _three(values: np.ndarray) -> tuple[float, float, float]:
    """As the recipe has them: float32's shortest decimals."""
    red, green, blue = (float(str(value)) for value in values)
    return red, green, blue
