"""The typed recipe: every setting of a run, with its unit, bounds and meaning.

This module only describes. Reading files, overrides and errors live in
`recipe_files.py`; combinations that do not work, or are known to collapse, in
`recipe_advice.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from swav_tf.plumbing.log import log

Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EvaluationView(Section):
    """How an image is shown to the frozen backbone: short side resized, centre cropped."""

    resize: int = Field(256, ge=8, description="length of the short side after resizing, pixels")
    crop: int = Field(224, ge=8, description="side of the square centre crop, pixels")


class Data(Section):
    """Where the images come from."""

    kind: Literal["class_folders", "images", "tfrecord", "tfds", "digits"] = Field(
        "class_folders",
        description="class_folders: <path>/<class>/*.JPEG; images: any images below <path>, unlabelled; "
        "tfrecord: shards below <path>; tfds: a TensorFlow Datasets name as <path>; digits: bundled",
    )
    path: str | None = Field(None, description="folder, shard pattern or TFDS name; not needed for digits")
    split: str = Field("train", description="split of a tfds or digits source")
    validation_path: str | None = Field(None, description="labelled images for the k-NN during training")
    validation_split: str | None = Field(None, description="the same, as a split of a tfds or digits source")
    image_key: str = Field(
        "image/encoded", description="feature that holds the encoded image in TFRecord shards"
    )
    label_key: str = Field(
        "image/class/label", description="feature that holds the integer label in TFRecord shards"
    )
    max_bad_share: Probability = Field(
        0.01,
        description="share of unreadable images past which the run stops (0 to 1); each worker counts those that it "
        "meets itself, against all images",
    )
    threads: int = Field(
        0, ge=0, description="threads that decode and crop, per worker; 0: one for each core"
    )
    processes: int = Field(
        0,
        ge=0,
        description="processes that make the training crops in place of threads, per worker, for more cores than "
        "one Python keeps busy; 0: none",
    )
    prefetch_batches: int = Field(4, ge=1, description="batches made ready ahead of the device, per worker")
    evaluation: EvaluationView = Field(
        default_factory=EvaluationView, description="the view for k-NN and features"
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_service(cls, values: Any) -> Any:
        """Load runs of earlier versions, which had a setting `service`; it never changed the crops."""
        if isinstance(values, dict) and "service" in values:
            if values["service"] is not None:
                log.warning(
                    "data.service was removed: this machine makes the crops. Set data.processes to its cores."
                )
            return {name: value for name, value in values.items() if name != "service"}
        return values


class CropGroup(Section):
    """Crops of one size, all cut from the same image."""

    count: int = Field(..., ge=1, description="crops of this kind for each image")
    size: int = Field(..., ge=8, description="side of the square crop after resizing, pixels")
    scale: tuple[float, float] = Field(
        ..., description="least and greatest share of the image's area (0 to 1)"
    )


class ColourJitter(Section):
    """Brightness, contrast, saturation and hue, in random order (docs/algorithm.md, "Crops")."""

    probability: Probability = Field(0.8, description="share of crops that are jittered (0 to 1)")
    brightness: float = Field(0.8, ge=0, description="factor uniform in [max(0, 1 - x), 1 + x]")
    contrast: float = Field(0.8, ge=0, description="factor uniform in [max(0, 1 - x), 1 + x]")
    saturation: float = Field(0.8, ge=0, description="factor uniform in [max(0, 1 - x), 1 + x]")
    hue: float = Field(
        0.2, ge=0, le=0.5, description="shift uniform in [-x, x], in turns of the colour circle"
    )


class Blur(Section):
    """Gaussian blur."""

    probability: Probability = Field(0.5, description="share of crops that are blurred (0 to 1)")
    sigma: tuple[float, float] = Field(
        (0.1, 2.0), description="least and greatest standard deviation, pixels"
    )


class Augment(Section):
    """What happens to each crop, independently of the others (paper, appendix A)."""

    aspect_ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="least and greatest width / height, log-uniform"
    )
    flip_probability: Probability = Field(0.5, description="share of crops mirrored left to right (0 to 1)")
    jitter: ColourJitter = Field(default_factory=ColourJitter, description="colour jitter")
    grayscale_probability: Probability = Field(0.2, description="share of crops made gray (0 to 1)")
    blur: Blur = Field(default_factory=Blur, description="Gaussian blur")
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="channel means of images in [0, 1]"
    )
    std: tuple[float, float, float] = Field(
        (0.228, 0.224, 0.225), description="channel deviations of images in [0, 1]"
    )


class Backbone(Section):
    """The network whose features are wanted."""

    library: Literal["swav_tf", "keras_cv"] = Field("swav_tf", description="who defines the network")
    name: str = Field(
        "resnet50",
        description="swav_tf: resnet18, resnet34, resnet50, resnet18_32px, resnet_small; "
        "keras_cv: a backbone class",
    )
    width: int = Field(1, ge=1, le=8, description="multiplies the channels of every stage (swav_tf only)")
    preset: str | None = Field(
        None, description="keras_cv preset name (downloads weights); else built from arguments"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the keras_cv class"
    )


class BatchNorm(Section):
    """Batch normalisation in backbone and head."""

    synchronised: bool = Field(True, description="statistics over all replicas, not each replica's own")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="share of the old running average kept each step (Keras' sense)"
    )
    epsilon: float = Field(1e-5, gt=0, description="added to the variance")


class Model(Section):
    """Backbone, projection head and prototypes."""

    backbone: Backbone = Field(default_factory=Backbone, description="the network whose features are wanted")
    head_hidden: int = Field(2048, ge=1, description="units of the head's hidden layer")
    projection_dim: int = Field(128, ge=2, description="length of a projection")
    prototypes: int = Field(3000, ge=2, description="number of prototypes, K")
    batch_norm: BatchNorm = Field(default_factory=BatchNorm, description="batch normalisation")


class Queue(Section):
    """Past projections that join the batch when codes are computed."""

    length: int = Field(
        0, ge=0, description="projections kept per assign crop over all replicas; 0: no queue"
    )
    from_epoch: int = Field(0, ge=0, description="epoch (from 0) in which the queue begins to fill")


class Method(Section):
    """Swapped prediction with Sinkhorn codes (paper, section 3)."""

    temperature: float = Field(0.1, gt=0, description="divides the scores in the softmax only")
    epsilon: float = Field(0.05, gt=0, description="entropy weight: divides the scores in Sinkhorn only")
    sinkhorn_iterations: int = Field(3, ge=1, le=100, description="alternating normalisations")
    prototypes_frozen_steps: int = Field(
        0, ge=0, description="first steps in which the prototypes get no update"
    )
    queue: Queue = Field(default_factory=Queue, description="the queue of projections")


class Optimizer(Section):
    """LARS and its learning-rate schedule. Nothing rescales the rate by the batch size."""

    peak_learning_rate: float = Field(..., gt=0, description="rate at the end of the warm-up")
    final_learning_rate: float = Field(0.0, ge=0, description="rate that the cosine decays to")
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up")
    warmup_start_learning_rate: float = Field(0.0, ge=0, description="rate of the first warm-up step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")
    weight_decay: float = Field(1e-6, ge=0, description="added to the gradient before the trust ratio")
    trust_coefficient: float = Field(0.001, gt=0, description="LARS trust coefficient")


class Train(Section):
    """How long, how large, on what."""

    epochs: int = Field(..., ge=1, description="passes over the images")
    batch_size: int = Field(..., ge=2, description="images of one optimiser step over all replicas (global)")
    accumulation_steps: int = Field(
        1, ge=1, description="parts that one batch is split into, one after the other"
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "mixed_float16", description="Keras dtype policy of backbone and head"
    )
    seed: int = Field(31, ge=0, lt=2**32, description="seed of weights, order and crops")
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = Field(
        "auto",
        description="auto: multi_worker if a cluster is described, else mirrored over several GPUs, "
        "else one_device",
    )
    logical_cpus: int = Field(
        0, ge=0, le=64, description="replicas to make of the CPU, for trials without a GPU; 0: one"
    )
    deterministic: bool = Field(
        False, description="ask TensorFlow for bit-for-bit repeatable kernels (slower on GPU)"
    )
    max_non_finite_steps: int = Field(
        20, ge=1, description="non-finite steps in a row after which the run stops with an error"
    )
    worker_timeout_seconds: float = Field(
        60.0,
        ge=0,
        description="silence of a worker after which the others end, seconds; 0: leave it to TensorFlow",
    )


class Checkpoints(Section):
    """When checkpoints are written and which are kept."""

    every_minutes: float = Field(15.0, gt=0, description="longest time between two checkpoints, minutes")
    keep_last: int = Field(3, ge=1, description="newest checkpoints that are kept")
    keep_every_epochs: int = Field(
        25, ge=0, description="epochs between checkpoints that are kept for ever; 0: none"
    )


class Monitor(Section):
    """What is watched during training."""

    log_every_steps: int = Field(
        10, ge=1, description="steps between two lines of metrics.jsonl and TensorBoard"
    )
    tensorboard: bool = Field(True, description="write TensorBoard event files")
    collapse_after_steps: int = Field(
        500,
        ge=1,
        description="steps at ln K, the prototypes unfrozen, after which a collapse is warned about",
    )
    knn_every_epochs: int = Field(
        0, ge=0, description="epochs between two k-NN accuracies on labelled data; 0: never"
    )
    knn_neighbours: int = Field(20, ge=1, description="neighbours that vote, k")
    knn_temperature: float = Field(0.07, gt=0, description="temperature of the neighbours' weights")
    knn_images: int = Field(20_000, ge=10, description="at most so many images are taken for that k-NN")


class Recipe(Section):
    """One pretraining run, whole. The defaults are the paper's where the paper has them."""

    name: str = Field(..., min_length=1, description="name of the recipe, for logs and reports")
    data: Data = Field(default_factory=Data, description="where the images come from")
    crops: tuple[CropGroup, ...] = Field(
        ..., min_length=1, description="groups of crops; the first two crops are the assign crops"
    )
    augment: Augment = Field(default_factory=Augment, description="what happens to each crop")
    model: Model = Field(default_factory=Model, description="backbone, head and prototypes")
    method: Method = Field(default_factory=Method, description="codes and loss")
    optimizer: Optimizer = Field(..., description="LARS and its schedule")
    train: Train = Field(..., description="how long, how large, on what")
    checkpoint: Checkpoints = Field(default_factory=Checkpoints, description="when state is saved")
    monitor: Monitor = Field(default_factory=Monitor, description="what is watched")

    @property
    def crop_count(self) -> int:
        """Crops of one image, V."""
        return sum(group.count for group in self.crops)

    @property
    def queue_length(self) -> int:
        """Queue length floored to a multiple of the global batch (docs/algorithm.md, "Queue")."""
        return self.method.queue.length // self.train.batch_size * self.train.batch_size
