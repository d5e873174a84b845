"""The typed recipes of what comes after pretraining: a linear probe, and fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from swav_tf.recipe.pretraining import (
    Augment,
    Blur,
    Checkpoints,
    ColourJitter,
    CropGroup,
    Data,
    Probability,
    Section,
    Train,
)


class TrainingCrop(Section):
    """The one crop of a training image; validation images are shown by `data.evaluation`."""

    size: int = Field(224, ge=8, description="side of the square crop after resizing, pixels")
    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="least and greatest share of the image's area (0 to 1)"
    )
    aspect_ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="least and greatest width / height, log-uniform"
    )
    flip_probability: Probability = Field(0.5, description="share of crops mirrored left to right (0 to 1)")


class SGDSettings(Section):
    """SGD with momentum; learning rates change between epochs only."""

    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")
    weight_decay: float = Field(0.0, ge=0, description="added to the gradient, times the weight")
    decay: Literal["cosine", "steps"] = Field(
        "cosine",
        description="cosine: rate x (1 + cos(pi epoch / epochs)) / 2; steps: rate x decay_factor at each of "
        "decay_epochs",
    )
    decay_epochs: tuple[int, ...] = Field(
        (), description="epochs (from 0) from whose start on the rate is lower, for decay: steps"
    )
    decay_factor: float = Field(
        0.2, gt=0, le=1, description="what the rate is multiplied by, for decay: steps"
    )


class ProbeOptimizer(SGDSettings):
    """The optimiser of a probe: the backbone has no learning rate."""

    learning_rate: float = Field(..., gt=0, description="rate of the classifier in the first epoch")


class FinetuneOptimizer(SGDSettings):
    """The optimiser of fine-tuning."""

    backbone_learning_rate: float = Field(..., gt=0, description="rate of the backbone in the first epoch")
    classifier_learning_rate: float = Field(
        ..., gt=0, description="rate of the classifier in the first epoch"
    )


class Cached(Section):
    """The probe on features that are computed once (`swav-tf probe --cached`)."""

    penalties: tuple[float, ...] = Field(
        (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6),
        min_length=1,
        description="L2 penalties to choose from: each is half the factor of the squared weights beside the mean loss",
    )
    held_out_share: float = Field(
        0.2, gt=0, lt=1, description="share of the training features that the penalty is chosen on (0 to 1)"
    )
    max_iterations: int = Field(500, ge=1, description="iterations of L-BFGS for each penalty, at most")


class ClassifierMonitor(Section):
    """What is watched during training."""

    log_every_steps: int = Field(
        10, ge=1, description="steps between two lines of metrics.jsonl and TensorBoard"
    )
    tensorboard: bool = Field(True, description="write TensorBoard event files")
    validate_every_epochs: int = Field(
        1, ge=1, description="epochs between two validations; the last epoch is always validated"
    )


class ClassifierRecipe(Section):
    """What a probe and fine-tuning have in common."""

    kind: Literal["probe", "finetune"] = Field(
        ..., description="what is trained: the classifier alone, or all"
    )
    name: str = Field(..., min_length=1, description="name of the recipe, for logs and reports")
    data: Data = Field(default_factory=Data, description="training and validation images, both labelled")
    subset: str | None = Field(
        None, description="file that names the training images to use, one a line; unset: all"
    )
    crop: TrainingCrop = Field(default_factory=TrainingCrop, description="the crop of a training image")
    train: Train = Field(..., description="how long, how large, on what")
    checkpoint: Checkpoints = Field(default_factory=Checkpoints, description="when state is saved")
    monitor: ClassifierMonitor = Field(default_factory=ClassifierMonitor, description="what is watched")

    @property
    def crops(self) -> tuple[CropGroup, ...]:
        """One group of one crop, as multi-crop has them."""
        return (CropGroup(count=1, size=self.crop.size, scale=self.crop.scale),)

    @property
    def augment(self) -> Augment:
        """Cut and flipped, and no change of colour."""
        return Augment(
            aspect_ratio=self.crop.aspect_ratio,
            flip_probability=self.crop.flip_probability,
            jitter=ColourJitter(probability=0.0),
            grayscale_probability=0.0,
            blur=Blur(probability=0.0),
        )

    @property
    def sgd(self) -> SGDSettings:
        """The optimiser's settings, as far as both kinds have them."""
        raise NotImplementedError

    @property
    def learning_rates(self) -> tuple[float | None, float]:
        """Of the backbone (None: it is frozen) and of the classifier, in the first epoch."""
        raise NotImplementedError


class ProbeRecipe(ClassifierRecipe):
    """A linear classifier on a frozen backbone."""

    kind: Literal["probe"] = Field("probe", description="the classifier alone is trained")
    optimizer: ProbeOptimizer = Field(..., description="SGD and its schedule")
    cached: Cached = Field(default_factory=Cached, description="the probe on features computed once")

    @property
    def sgd(self) -> SGDSettings:
        """The optimiser's settings."""
        return self.optimizer

    @property
    def learning_rates(self) -> tuple[float | None, float]:
        """None: the backbone is frozen."""
        return None, self.optimizer.learning_rate


class FinetuneRecipe(ClassifierRecipe):
    """A classifier and the backbone below it, trained together."""

    kind: Literal["finetune"] = Field("finetune", description="backbone and classifier are trained")
    optimizer: FinetuneOptimizer = Field(..., description="SGD and its schedule")

    @property
    def sgd(self) -> SGDSettings:
        """The optimiser's settings."""
        return self.optimizer

    @property
    def learning_rates(self) -> tuple[float | None, float]:
        """One for each."""
        return self.optimizer.backbone_learning_rate, self.optimizer.classifier_learning_rate
