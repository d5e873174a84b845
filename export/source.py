"""Run a model in Keras: its float32 graph, its outputs for the reference, the images for int8."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from evaluate.backends.onnx_metadata import OnnxMetadata, Preprocessing, dataset_name, public_data
from evaluate.images import open_images
from export import onnx_file
from export.onnx_file import weight_bytes
from export.reference import Drawn, Reference, draw_images, no_images, random_pixels
from export.settings import ExportSettings
from swav_tf.plumbing.errors import DataError, UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.system import version_of
from swav_tf.recipe.pretraining import EvaluationView

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from export.graph import TrainedModel

TOOLS: Final = ("swav-tf", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ExportSource:
    """What all files of an export are made of.

    Attributes:
        graph: in float32.
        facts: metadata of a float32 file.
        reference: images and Keras' outputs.
        calibration: images for int8; empty without int8.
    """

    graph: onnx.ModelProto
    facts: OnnxMetadata
    reference: Reference
    calibration: Drawn


def from_keras(run_dir: Path, settings: ExportSettings) -> ExportSource:
    """Load a run in Keras, compute the reference and convert the graph.

    Raises:
        UsageError: the model lacks an output or checkpoint, or is too large for int8.
        DataError: too few readable images.
        ExportError: an operation does not exist in ONNX.
        CheckpointError: the checkpoint is damaged.
    """
    from export.graph import build_graph, load_trained

    trained = load_trained(run_dir, step=settings.step)
    settings = replace(settings, outputs=_outputs(trained, settings.outputs))
    view = trained.recipe.data.evaluation
    if settings.size is not None:  # the same share of the image
        view = EvaluationView(resize=round(settings.size * view.resize / view.crop), crop=settings.size)
    compared, calibration = _draw(trained, settings, view)
    noise = random_pixels(view, seed=settings.seed)
    log.info("Keras: %d images and %d of random pixels", len(compared.views), len(noise))
    reference = _reference(trained, settings, view, compared, noise)
    log.info("graph in float32")
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


def _outputs(trained: TrainedModel, requested: tuple[str, ...]) -> tuple[str, ...]:
    available = trained.output_names
    if not requested:
        return available if "logits" in available else ("features",)
    if missing := [name for name in requested if name not in available]:
        raise UsageError(
            f"--outputs of this model must be of {', '.join(available)}. Received: {', '.join(missing)}. Logits come "
            "from the folder of a probe or fine-tuning run, projections and scores from that of pretraining."
        )
    return requested


def _draw(trained: TrainedModel, settings: ExportSettings, view: EvaluationView) -> tuple[Drawn, Drawn]:
    """Draw images to compare and to calibrate on. Without any, fp32 and fp16 are compared on random pixels only."""
    data = trained.recipe.data
    given = (settings.data, settings.kind, settings.split) != (None, None, None)
    try:
        images = open_images(settings.data, like=data, kind=settings.kind, split=settings.split)
    except (UsageError, DataError) as error:
        if given or "int8" in settings.precisions:
            raise type(error)(f"--calibration: {error}") from error
        log.info("No real images are compared, random pixels only: %s Give some with --calibration.", error)
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
    """Return float32 values in their shortest decimals, as the recipe has them."""
    red, green, blue = (float(str(value)) for value in values)
    return red, green, blue
