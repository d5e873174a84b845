"""Recipes for linear probes and fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from swav_tf.recipe.data import Data
from swav_tf.recipe.pretraining import Augment, Blur, Checkpoints, ColorJitter, CropGroup, Metrics, Train
from swav_tf.recipe.section import AreaRange, Probability, Range, Remark, Section, refuse


class TrainingCrop(Section):
    """The one crop of a training image; validation images use the view `data.evaluation`."""

    size: int = Field(224, ge=8, description="side of the square crop after resizing, pixels")
    scale: AreaRange = Field((0.08, 1.0), description="least and greatest share of the image's area (0 to 1)")
    aspect_ratio: Range = Field((3 / 4, 4 / 3), description="least and greatest width / height, log-uniform")
    flip_probability: Probability = Field(0.5, description="share of crops mirrored left to right (0 to 1)")


class SGDSettings(Section):
    """SGD with momentum; learning rates change between epochs only."""

    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")
    weight_decay: float = Field(
        0.0, ge=0, description="L2 factor: weight_decay x weights is added to the gradient"
    )
    decay: Literal["cosine", "steps"] = Field(
        "cosine",
        description="cosine: rate x (1 + cos(pi epoch / epochs)) / 2; steps: x decay_factor at decay_epochs",
    )
    decay_epochs: tuple[int, ...] = Field(
        (), description="epochs (from 0) that lower the rate, for steps; or shares, [60%, 80%]"
    )
    decay_factor: float = Field(0.2, gt=0, le=1, description="multiplies the rate, for steps")

    def impossible(self) -> Iterator[Remark]:
        """Yield a decay without its epochs, and epochs without their decay."""
        if self.decay == "cosine" and self.decay_epochs:
            yield Remark(
                "optimizer.decay_epochs",
                f"has no effect with optimizer.decay=cosine; got {list(self.decay_epochs)}",
                "Leave it out, or set optimizer.decay=steps",
            )
        if self.decay == "steps" and not self.decay_epochs:
            yield Remark(
                "optimizer.decay_epochs",
                "must list the epochs that lower the rates when optimizer.decay is steps",
                "The published fine-tuning has [12, 16] of 20 epochs",
            )


class ProbeOptimizer(SGDSettings):
    """The optimizer of a probe: the backbone has no learning rate."""

    learning_rate: float = Field(..., gt=0, description="rate of the classifier in the first epoch")


class FinetuneOptimizer(SGDSettings):
    """The optimizer of fine-tuning."""

    backbone_learning_rate: float = Field(..., gt=0, description="the backbone's rate in the first epoch")
    classifier_learning_rate: float = Field(..., gt=0, description="the classifier's rate in the first epoch")


class Cached(Section):
    """The classifier on features that are computed once: of `swav-tf probe --cached`, and where fine-tuning starts."""

    penalties: tuple[float, ...] = Field(
        (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6),
        min_length=1,
        description="L2 penalties to choose from; penalty / 2 x the sum of squared weights is added to the mean loss",
    )
    held_out_share: float = Field(0.2, gt=0, lt=1, description="share of features to choose a penalty on")
    max_iterations: int = Field(500, ge=1, description="iterations of L-BFGS for each penalty, at most")


class ClassifierMonitor(Metrics):
    """Metrics during training."""

    validate_every_epochs: int = Field(1, ge=1, description="epochs between validations, and after the last")


class ClassifierRecipe(Section):
    """The settings that a probe and fine-tuning share."""

    kind: Literal["probe", "finetune"] = Field(..., description="what is trained: the classifier, or all")
    name: str = Field(..., min_length=1, description="name of the recipe, for logs and reports")
    data: Data = Field(Data(), description="training and validation images, both labeled")
    subset: str | None = Field(None, description="file with the names of the images to train on; null: all")
    crop: TrainingCrop = Field(TrainingCrop(), description="the crop of a training image")
    optimizer: ProbeOptimizer | FinetuneOptimizer = Field(..., description="SGD and its schedule")
    train: Train = Field(..., description="duration, batch, precision and devices")
    checkpoint: Checkpoints = Field(Checkpoints(), description="when state is saved")
    monitor: ClassifierMonitor = Field(ClassifierMonitor(), description="metrics")

    @field_validator("data")
    @classmethod
    def _refuse_data_without_labels(cls, data: Data) -> Data:
        refuse(_impossible_labels(data))
        return data

    @field_validator("train")
    @classmethod
    def _refuse_decay_beyond_the_run(cls, train: Train, info: ValidationInfo) -> Train:
        epochs = info.data["optimizer"].decay_epochs if "optimizer" in info.data else ()
        if list(epochs) != sorted({epoch for epoch in epochs if 0 < epoch < train.epochs}):
            must = f"must rise and lie between 1 and the last epoch, {train.epochs - 1}; got {list(epochs)}"
            if train.epochs == 1:
                must = f"must be [] for one epoch; got {list(epochs)}"
            refuse([Remark("optimizer.decay_epochs", must, "Change it or train.epochs")])
        return train

    @property
    def crops(self) -> tuple[CropGroup, ...]:
        """The training crop as multi-crop groups: one group of one crop."""
        return (CropGroup(count=1, size=self.crop.size, scale=self.crop.scale),)

    @property
    def augment(self) -> Augment:
        """Crops and flips, without changes of color."""
        return Augment(
            aspect_ratio=self.crop.aspect_ratio,
            flip_probability=self.crop.flip_probability,
            jitter=ColorJitter(probability=0.0),
            grayscale_probability=0.0,
            blur=Blur(probability=0.0),
        )

    @property
    def learning_rates(self) -> tuple[float | None, float]:
        """The rates of backbone (None: it is frozen) and classifier in the first epoch."""
        if isinstance(self.optimizer, ProbeOptimizer):
            return None, self.optimizer.learning_rate
        return self.optimizer.backbone_learning_rate, self.optimizer.classifier_learning_rate


class ProbeRecipe(ClassifierRecipe):
    """A linear classifier on a frozen backbone."""

    kind: Literal["probe"] = Field("probe", description="the classifier alone is trained")
    optimizer: ProbeOptimizer = Field(..., description="SGD and its schedule")
    cached: Cached = Field(Cached(), description="the probe on features computed once")


class FinetuneRecipe(ClassifierRecipe):
    """A classifier and the backbone below it, trained together."""

    kind: Literal["finetune"] = Field("finetune", description="backbone and classifier are trained")
    optimizer: FinetuneOptimizer = Field(..., description="SGD and its schedule")
    init_classifier: Literal["random", "probe"] = Field(
        "random",
        description="the classifier at the start: random, or that of `swav-tf probe` on the training images",
    )
    cached: Cached = Field(Cached(), description="how that probe is fitted")

    def lengthened(self, images: int, *, least_steps: int) -> FinetuneRecipe:
        """Return the recipe with epochs and schedule multiplied until it has at least `least_steps` steps."""
        steps = images // self.train.batch_size * self.train.epochs
        if steps == 0 or steps >= least_steps:
            return self
        factor = -(-least_steps // steps)
        decay = tuple(factor * epoch for epoch in self.optimizer.decay_epochs)
        every = factor * self.monitor.validate_every_epochs
        return self.model_copy(
            update={
                "train": self.train.model_copy(update={"epochs": factor * self.train.epochs}),
                "optimizer": self.optimizer.model_copy(update={"decay_epochs": decay}),
                "monitor": self.monitor.model_copy(update={"validate_every_epochs": every}),
            }
        )


def _impossible_labels(data: Data) -> Iterator[Remark]:
    if data.unlabeled:
        yield Remark(
            "data.kind",
            "a classifier needs labels and data.kind is images, a folder without labels",
            "Set it to class_folders, with one folder of images for each class, or data.labels to a list",
        )
    used, unused = "validation_path", "validation_split"
    if data.kind in ("digits", "tfds"):
        used, unused = unused, used
    if getattr(data, unused) is not None and data.kind not in ("auto", "tar", "parquet"):
        yield Remark(
            f"data.{unused}",
            f"is not used when data.kind is {data.kind}; got {getattr(data, unused)!r}",
            f"Set data.{unused}=null" if getattr(data, used) is not None else f"Set data.{used} instead",
        )
