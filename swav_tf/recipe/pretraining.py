"""The recipe of a pretraining run: every setting with its unit, bounds and meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from swav_tf.recipe.data import Data
from swav_tf.recipe.section import AreaRange, Positive, Probability, Range, Remark, Section, refuse

# The networks of `swav_tf.model`, repeated here because recipes must not import TensorFlow. A test compares them.
BACKBONES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnet18_32px", "resnet10_32px", "resnet_small",
)  # fmt: skip


class CropGroup(Section):
    """Crops of one size, all cut from the same image."""

    count: int = Field(..., ge=1, description="crops of this kind for each image")
    size: int = Field(..., ge=8, description="side of the square crop after resizing, pixels")
    scale: AreaRange = Field(..., description="least and greatest share of the image's area (0 to 1)")


class ColorJitter(Section):
    """Brightness, contrast, saturation and hue, in random order (docs/algorithm.md, "Crops")."""

    probability: Probability = Field(0.8, description="share of crops that are jittered (0 to 1)")
    brightness: float = Field(0.8, ge=0, description="factor uniform in [max(0, 1 - x), 1 + x]")
    contrast: float = Field(0.8, ge=0, description="factor uniform in [max(0, 1 - x), 1 + x]")
    saturation: float = Field(0.8, ge=0, description="factor uniform in [max(0, 1 - x), 1 + x]")
    hue: float = Field(0.2, ge=0, le=0.5, description="shift uniform in [-x, x] of the color circle")


class Blur(Section):
    """Gaussian blur."""

    probability: Probability = Field(0.5, description="share of crops that are blurred (0 to 1)")
    sigma: Range = Field((0.1, 2.0), description="least and greatest standard deviation, pixels")


class Augment(Section):
    """Random changes of each crop, independent of the other crops (paper, appendix A)."""

    aspect_ratio: Range = Field((3 / 4, 4 / 3), description="least and greatest width / height, log-uniform")
    flip_probability: Probability = Field(0.5, description="share of crops mirrored left to right (0 to 1)")
    jitter: ColorJitter = Field(ColorJitter(), description="color jitter")
    grayscale_probability: Probability = Field(0.2, description="share of crops made gray (0 to 1)")
    blur: Blur = Field(Blur(), description="Gaussian blur")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="channel means (0 to 1)")
    std: tuple[Positive, Positive, Positive] = Field((0.228, 0.224, 0.225), description="channel deviations")


class Backbone(Section):
    """The network that computes the features."""

    library: Literal["swav_tf", "keras_cv"] = Field("swav_tf", description="library that defines the network")
    name: str = Field(
        "resnet50",
        description=f"swav_tf: {', '.join(BACKBONES)}; keras_cv: a backbone class",
    )
    width: int = Field(1, ge=1, le=8, description="multiplies the channels of every stage (swav_tf only)")
    preset: str | None = Field(None, description="keras_cv preset (downloads weights); null: use arguments")
    arguments: dict[str, Any] = Field(default_factory=dict, description="arguments of the keras_cv class")

    def impossible(self) -> Iterator[Remark]:
        """Yield settings that the library does not know."""
        if self.library == "swav_tf" and self.name not in BACKBONES:
            yield Remark(
                "model.backbone.name",
                f"swav_tf has {', '.join(BACKBONES)}; got '{self.name}'",
                "For a class of KerasCV set model.backbone.library=keras_cv",
            )
        for setting in ("preset", "arguments"):
            if self.library == "swav_tf" and getattr(self, setting):
                yield Remark(
                    f"model.backbone.{setting}",
                    "is for keras_cv only; the networks of swav_tf have a name and a width",
                    "Leave it out, or set model.backbone.library=keras_cv",
                )
        if self.library == "keras_cv" and self.preset and self.arguments:
            yield Remark(
                "model.backbone.preset",
                f"a preset fixes the network, so it takes no arguments; got {self.arguments}",
                "Set either model.backbone.preset or model.backbone.arguments",
            )
        if self.library == "keras_cv" and self.width != 1:
            yield Remark(
                "model.backbone.width",
                f"only the networks of swav_tf have a width; got {self.width} for keras_cv",
                "Omit it, or set the arguments of the class in model.backbone.arguments",
            )


class BatchNorm(Section):
    """Batch normalization in backbone and head."""

    synchronised: bool = Field(True, description="statistics over all replicas, not each replica's own")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the running average kept each step")
    epsilon: float = Field(1e-5, gt=0, description="added to the variance")


class Model(Section):
    """Backbone, projection head and prototypes."""

    backbone: Backbone = Field(Backbone(), description="the network that computes the features")
    head_hidden: int = Field(2048, ge=1, description="units of the head's hidden layer")
    projection_dim: int = Field(128, ge=2, description="length of a projection")
    prototypes: int = Field(3000, ge=2, description="number of prototypes, K")
    batch_norm: BatchNorm = Field(BatchNorm(), description="batch normalization")


class Queue(Section):
    """Past projections that join the batch when codes are computed."""

    length: int = Field(
        0, ge=0, description="projections stored per large crop, over all replicas; 0: no queue"
    )
    from_epoch: int = Field(
        0,
        ge=0,
        description="epoch (from 0) in which the queue starts to fill, or a share of the run such as 10%",
    )


class Method(Section):
    """Swapped prediction with Sinkhorn codes (paper, section 3)."""

    temperature: float = Field(0.1, gt=0, description="divides the scores in the softmax only")
    epsilon: float = Field(0.05, gt=0, description="entropy weight: divides the scores in Sinkhorn only")
    sinkhorn_iterations: int = Field(3, ge=1, le=100, description="alternating normalizations")
    prototypes_frozen_steps: int | None = Field(
        None,
        ge=0,
        description="first steps without prototype updates; null: use prototypes_frozen_epochs",
    )
    prototypes_frozen_epochs: int = Field(
        0, ge=0, description="the same in epochs, at most a third of the run; 0 if the steps are set"
    )
    queue: Queue = Field(Queue(), description="the queue of projections; null: no queue")

    @field_validator("queue", mode="before")
    @classmethod
    def _null_is_no_queue(cls, value: Any) -> Any:
        return Queue() if value is None else value

    @field_validator("prototypes_frozen_epochs")
    @classmethod
    def _steps_take_precedence(cls, epochs: int, info: ValidationInfo) -> int:
        return epochs if info.data.get("prototypes_frozen_steps") is None else 0


class Optimizer(Section):
    """LARS or Adam and its learning-rate schedule. Nothing rescales the rate by the batch size."""

    kind: Literal["lars", "adam"] = Field(
        "lars", description="lars: as in the paper; adam: for small batches, at rates near 0.001"
    )
    peak_learning_rate: float = Field(..., gt=0, description="rate at the end of the warm-up")
    final_learning_rate: float = Field(0.0, ge=0, description="rate that the cosine decays to")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up; or a share of the run, 10%")
    warmup_start_learning_rate: float = Field(0.0, ge=0, description="rate of the first warm-up step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum; of adam: beta 1")
    weight_decay: float = Field(
        1e-6,
        ge=0,
        description="L2 factor: weight_decay x weights is added to the gradient, before the trust ratio",
    )
    trust_coefficient: float = Field(0.001, gt=0, description="trust coefficient of lars")


MOST: Final = 10**9  # epochs, or images of a batch; huge integers do not fit into a float


class Train(Section):
    """Duration, batch, precision and devices of a run."""

    epochs: int = Field(..., ge=1, le=MOST, description="passes over the images")
    batch_size: int = Field(
        ..., ge=2, le=MOST, description="images of one optimizer step over all replicas (global)"
    )
    accumulation_steps: int = Field(1, ge=1, description="parts of a batch, computed one after another")
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "mixed_float16", description="Keras dtype policy of backbone and head"
    )
    seed: int = Field(31, ge=0, lt=2**32, description="seed of weights, order and crops")
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = Field(
        "auto",
        description="auto: multi_worker in a cluster, else mirrored over several GPUs, else one_device",
    )
    logical_cpus: int = Field(0, ge=0, le=64, description="replicas on the CPU, for trials; 0: one")
    deterministic: bool = Field(False, description="use kernels that repeat bit for bit (slower on a GPU)")
    max_non_finite_steps: int = Field(20, ge=1, description="non-finite steps in a row that stop the run")
    worker_timeout_seconds: float = Field(
        60.0,
        ge=0,
        description="seconds without a heartbeat after which the other workers stop; 0: only TensorFlow's",
    )

    def impossible(self) -> Iterator[Remark]:
        """Yield a batch that cannot be split, and replicas that contradict the strategy."""
        if self.batch_size % self.accumulation_steps:
            yield Remark(
                "train.batch_size",
                f"{self.batch_size} images cannot be split into {self.accumulation_steps} equal accumulation steps",
                f"Use {nearest_multiple(self.batch_size, self.accumulation_steps)}",
            )
        if self.strategy == "one_device" and self.logical_cpus > 1:
            yield Remark(
                "train.logical_cpus",
                f"makes {self.logical_cpus} replicas and train.strategy is one_device",
                "Set train.strategy=mirrored, or leave logical_cpus out",
            )


def nearest_multiple(value: int, of: int) -> str:
    """Return the multiples next to a value in words, such as `60 or 65`."""
    below, above = value // of * of, -(-value // of) * of
    return f"{below} or {above}" if below else str(above)


class Checkpoints(Section):
    """When checkpoints are written and which are kept."""

    every_minutes: float = Field(15.0, gt=0, description="longest time between two checkpoints, minutes")
    keep_last: int = Field(3, ge=1, description="newest checkpoints that are kept")
    keep_every_epochs: int = Field(25, ge=0, description="epochs between checkpoints kept forever; 0: none")


class Metrics(Section):
    """Where the metrics of a training job go."""

    log_every_steps: int = Field(10, ge=1, description="steps between lines of metrics.jsonl and TensorBoard")
    tensorboard: bool = Field(True, description="write TensorBoard event files")
    track: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (), description="trackers in addition to metrics.jsonl and TensorBoard"
    )


class Monitor(Metrics):
    """Metrics and warnings during training."""

    collapse_after_steps: int = Field(
        500,
        ge=1,
        description="steps after the prototype freeze at which the run is checked for collapse; at most a tenth of the "
        "run or 100, whichever is more",
    )
    knn_every_epochs: int = Field(0, ge=0, description="epochs between k-NN accuracies on labels; 0: never")
    knn_neighbours: int = Field(20, ge=1, description="neighbors that vote, k")
    knn_temperature: float = Field(0.07, gt=0, description="temperature of the neighbors' weights")
    knn_images: int = Field(20_000, ge=10, description="maximum number of images for that k-NN")
    view_images: int = Field(
        512, ge=0, description="images for view_retrieval in a run without k-NN; 0: none"
    )


class Recipe(Section):
    """A complete pretraining run. Defaults are those of the paper where it has them."""

    kind: ClassVar[Literal["pretrain"]] = "pretrain"
    name: str = Field(..., min_length=1, description="name of the recipe, for logs and reports")
    data: Data = Field(Data(), description="where the images come from")
    crops: tuple[CropGroup, ...] = Field(
        ..., min_length=1, description="groups of crops; the first two crops get codes"
    )
    augment: Augment = Field(Augment(), description="random changes of each crop")
    model: Model = Field(Model(), description="backbone, head and prototypes")
    method: Method = Field(Method(), description="codes and loss")
    optimizer: Optimizer = Field(..., description="optimizer and schedule")
    train: Train = Field(..., description="duration, batch, precision and devices")
    checkpoint: Checkpoints = Field(Checkpoints(), description="when state is saved")
    monitor: Monitor = Field(Monitor(), description="metrics and warnings")

    @field_validator("crops")
    @classmethod
    def _refuse_few_assign_crops(cls, crops: tuple[CropGroup, ...]) -> tuple[CropGroup, ...]:
        if crops[0].count < 2:
            message = f"the first two crops get codes and must be in one group; got {crops[0].count}"
            refuse([Remark("crops.0.count", message, "Set crops.0.count=2 or more")])
        return crops

    # Validated after `method` and `optimizer`: `info.data` has those of them that are valid.
    @field_validator("train")
    @classmethod
    def _refuse_phases_beyond_the_run(cls, train: Train, info: ValidationInfo) -> Train:
        refuse(_impossible_phases(train, info.data.get("optimizer"), info.data.get("method")))
        return train

    @field_validator("monitor")
    @classmethod
    def _refuse_impossible_knn(cls, monitor: Monitor, info: ValidationInfo) -> Monitor:
        if monitor.knn_every_epochs:
            refuse(_impossible_knn(monitor, info.data.get("data")))
        return monitor

    @property
    def crop_count(self) -> int:
        """The number of crops of one image, V."""
        return sum(group.count for group in self.crops)

    def frozen_steps(self, steps_per_epoch: int) -> int:
        """Return the number of first steps without prototype updates."""
        if self.method.prototypes_frozen_steps is not None:
            return self.method.prototypes_frozen_steps
        third = self.train.epochs * steps_per_epoch // 3
        return min(self.method.prototypes_frozen_epochs * steps_per_epoch, third)

    @property
    def queue_length(self) -> int:
        """The queue length rounded down to a multiple of the global batch (docs/algorithm.md, "Queue")."""
        return self.method.queue.length // self.train.batch_size * self.train.batch_size


def _impossible_phases(train: Train, optimizer: Optimizer | None, method: Method | None) -> Iterator[Remark]:
    if optimizer is not None and optimizer.warmup_epochs > train.epochs:
        yield Remark(
            "optimizer.warmup_epochs",
            f"a warm-up of {optimizer.warmup_epochs} epochs is longer than the run of {train.epochs}",
            f"Set it to {train.epochs // 10}, or train longer",
        )
    queue = method.queue if method is not None else Queue()
    if 0 < queue.length < train.batch_size:
        yield Remark(
            "method.queue.length",
            f"{queue.length} is less than one batch of {train.batch_size}; the queue holds complete batches",
            f"Set it to a multiple of {train.batch_size}, or to 0 for no queue",
        )
    if queue.length and queue.from_epoch >= train.epochs:
        yield Remark(
            "method.queue.from_epoch",
            f"the queue would start in epoch {queue.from_epoch} and the last epoch is {train.epochs - 1}",
            "Start it earlier, or set method.queue.length=0",
        )


def _impossible_knn(monitor: Monitor, data: Data | None) -> Iterator[Remark]:
    if data is not None and data.unlabeled:
        yield Remark(
            "monitor.knn_every_epochs",
            "a k-NN needs labels and data.kind is images, a folder without labels",
            "Set it to 0, or data.kind to class_folders, or data.labels",
        )
    if monitor.knn_neighbours > monitor.knn_images:
        yield Remark(
            "monitor.knn_neighbours",
            f"{monitor.knn_neighbours} neighbors cannot be found among {monitor.knn_images} images",
            "Set fewer neighbors (the usual number is 20) or more monitor.knn_images",
        )
