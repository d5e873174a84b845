"""Recipes whose settings cannot work together, and settings that are known to collapse or to do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swav_tf.plumbing.errors import RecipeError
from swav_tf.plumbing.system import lacks_bfloat16
from swav_tf.recipe.pretraining import BatchNorm, Data, Recipe, Train

# Known from TensorFlow modules, written again so that a check needs no TensorFlow; a test compares them.
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet18_32px", "resnet_small")
SMALLEST_PLAIN_EPSILON = 0.025  # below it `sinkhorn` computes with logarithms

SMALL_DATA_IMAGES = 10_000  # the collapses were seen on 1,437 images; ImageNet's settings are for 1,281,167
SMALL_DATA_PIXELS = 64


@dataclass(frozen=True)
class Advice:
    """One remark about a setting: why it matters and what to do."""

    path: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """The remark as one line."""
        return f"{self.path}: {self.message}. {self.remedy}."


def check_recipe(
    recipe: Recipe, *, replicas: int | None = None, images: int | None = None, on_cpu: bool = False
) -> list[Advice]:
    """Refuse settings that cannot work together; return advice on those that can but should not.

    Args:
        recipe: what to check.
        replicas: devices over all workers, where known.
        images: training images, where known; needed for all that is counted in steps.
        on_cpu: the run is known to have no GPU.

    Raises:
        RecipeError: lists every combination that cannot work, with the reason.
    """
    replicas = replicas or max(1, recipe.train.logical_cpus)
    errors = [
        *_impossible_crops(recipe),
        *impossible_view(recipe.data),
        *_impossible_monitor(recipe),
        *_impossible_model(recipe),
        *impossible_batch(recipe.train, replicas, images),
        *_impossible_warmup(recipe),
        *impossible_devices(recipe.train),
        *_impossible_queue(recipe),
    ]
    if errors:
        raise RecipeError(
            "\n".join([f"recipe '{recipe.name}' cannot work:", *(f"  {error}" for error in errors)])
        )
    return [
        *_unwise_codes(recipe, images),
        *_unwise_course(recipe, images, on_cpu),
        *_batch_norm_of_the_head_alone(recipe, replicas),
    ]


def _impossible_crops(recipe: Recipe) -> Iterator[Advice]:
    if recipe.crops[0].count < 2:
        yield Advice(
            "crops.0.count",
            f"the first two crops get codes and must be of one group; got {recipe.crops[0].count}",
            "Set crops.0.count=2 or more",
        )
    for index, group in enumerate(recipe.crops):
        yield from impossible_scale(
            f"crops.{index}.scale",
            group.scale,
            "The paper's large crops have [0.14, 1.0], its small ones [0.05, 0.14]",
        )
    for path, bounds, paper in (
        ("augment.aspect_ratio", recipe.augment.aspect_ratio, "[0.75, 1.333]"),
        ("augment.blur.sigma", recipe.augment.blur.sigma, "[0.1, 2.0]"),
    ):
        yield from impossible_scale(path, bounds, f"The paper's are {paper}", most=None)
    if min(recipe.augment.std) <= 0:
        yield Advice(
            "augment.std",
            f"images are divided by it, so each must be above 0; got {list(recipe.augment.std)}",
            "ImageNet's, as the paper has them, are [0.228, 0.224, 0.225]",
        )


def impossible_scale(
    path: str, bounds: tuple[float, float], remedy: str, *, most: float | None = 1
) -> Iterator[Advice]:
    """Bounds that do not rise, or leave 0 to `most`: shares of the area where that is 1."""
    least, greatest = bounds
    if not 0 < least <= greatest or (most is not None and greatest > most):
        shares = "be shares of the area with" if most is not None else "have"
        top = f" <= {most:g}" if most is not None else ""
        yield Advice(path, f"must {shares} 0 < least <= greatest{top}; got [{least}, {greatest}]", remedy)


def impossible_view(data: Data) -> Iterator[Advice]:
    """A view of the images, a place or a maker of theirs that cannot be."""
    view = data.evaluation
    if view.crop > view.resize:
        yield Advice(
            "data.evaluation.crop",
            f"a centre crop of {view.crop} pixels does not fit a short side of {view.resize}",
            f"Set it to {view.resize} or less, or data.evaluation.resize to more",
        )
    if data.kind == "digits" and data.path is not None:
        yield Advice(
            "data.path",
            f"the digits are bundled and have no path; got {data.path!r}",
            "For images of your own set data.kind (class_folders, images, tfrecord or tfds)",
        )


def _impossible_monitor(recipe: Recipe) -> Iterator[Advice]:
    data, monitor = recipe.data, recipe.monitor
    if monitor.knn_every_epochs and data.kind == "images":
        yield Advice(
            "monitor.knn_every_epochs",
            "a k-NN needs labels and data.kind is images, a folder without labels",
            "Set it to 0, or data.kind to class_folders",
        )
    if monitor.knn_every_epochs and monitor.knn_neighbours > monitor.knn_images:
        yield Advice(
            "monitor.knn_neighbours",
            f"{monitor.knn_neighbours} neighbours cannot be found among {monitor.knn_images} images",
            "Set fewer neighbours (the usual number is 20) or more monitor.knn_images",
        )


def _impossible_model(recipe: Recipe) -> Iterator[Advice]:
    backbone = recipe.model.backbone
    if backbone.library == "keras_cv":
        if backbone.preset and backbone.arguments:
            yield Advice(
                "model.backbone.preset",
                f"a preset fixes the network, so it takes no arguments; got {backbone.arguments}",
                "Give one of model.backbone.preset and model.backbone.arguments",
            )
        if backbone.width != 1:
            yield Advice(
                "model.backbone.width",
                f"only the networks of swav_tf have a width; got {backbone.width} for keras_cv",
                "Leave it out, or give the class what it knows in model.backbone.arguments",
            )
        return
    if backbone.name not in BACKBONES:
        yield Advice(
            "model.backbone.name",
            f"swav_tf has {', '.join(BACKBONES)}; got '{backbone.name}'",
            "For a class of KerasCV set model.backbone.library=keras_cv",
        )
    for setting in ("preset", "arguments"):
        if getattr(backbone, setting):
            yield Advice(
                f"model.backbone.{setting}",
                "is for keras_cv only; the networks of swav_tf have a name and a width",
                "Leave it out, or set model.backbone.library=keras_cv",
            )


def impossible_batch(train: Train, replicas: int, images: int | None) -> Iterator[Advice]:
    """A batch that cannot be shared out, or not be filled."""
    parts = train.accumulation_steps * replicas
    if train.batch_size % parts:
        yield Advice(
            "train.batch_size",
            f"{train.batch_size} images cannot be shared equally by {replicas} replica(s) x "
            f"{train.accumulation_steps} accumulation step(s)",
            (f"{_fitting_replicas(train, replicas)}. A new run may use" if replicas > 1 else "Use")
            + f" a multiple of {parts}: {_nearest_multiple(train.batch_size, parts)}",
        )
    if images is not None and images < train.batch_size:
        yield Advice(
            "train.batch_size",
            f"{images} images do not fill one batch of {train.batch_size}, so an epoch would have no step",
            f"Set it to {images} or less, or use more images",
        )


def _fitting_replicas(train: Train, replicas: int) -> str:
    """How a run that has begun, and keeps its batch, can be gone on with."""
    fitting = [
        n for n in range(1, train.batch_size + 1) if train.batch_size % (n * train.accumulation_steps) == 0
    ]
    below, above = [n for n in fitting if n < replicas][-1:], [n for n in fitting if n > replicas][:1]
    numbers = " or ".join(map(str, below + above))
    way = f"give it {numbers} replica(s)" if numbers else "give it other accumulation_steps"
    return f"A run that has begun keeps its batch: {way}"


def _impossible_warmup(recipe: Recipe) -> Iterator[Advice]:
    train, warmup = recipe.train, recipe.optimizer.warmup_epochs
    if warmup > train.epochs:
        yield Advice(
            "optimizer.warmup_epochs",
            f"a warm-up of {warmup} epochs is longer than the run of {train.epochs}",
            f"Set it to {train.epochs // 10} or train for longer",
        )


def impossible_devices(train: Train) -> Iterator[Advice]:
    """Devices that are asked for in two ways."""
    if train.strategy == "one_device" and train.logical_cpus > 1:
        yield Advice(
            "train.logical_cpus",
            f"makes {train.logical_cpus} replicas and train.strategy is one_device",
            "Set train.strategy=mirrored, or leave logical_cpus out",
        )


def _impossible_queue(recipe: Recipe) -> Iterator[Advice]:
    train, queue = recipe.train, recipe.method.queue
    if queue.length and not recipe.queue_length:
        yield Advice(
            "method.queue.length",
            f"{queue.length} is less than one batch of {train.batch_size}; the queue holds whole batches",
            f"Set it to a multiple of {train.batch_size}, or to 0 for no queue",
        )
    if queue.length and queue.from_epoch >= train.epochs:
        yield Advice(
            "method.queue.from_epoch",
            f"the queue would begin in epoch {queue.from_epoch} and the last epoch is {train.epochs - 1}",
            "Begin earlier, or set method.queue.length=0",
        )


def _unwise_codes(recipe: Recipe, images: int | None) -> Iterator[Advice]:
    method, queue, batch = recipe.method, recipe.method.queue, recipe.train.batch_size
    samples = batch + recipe.queue_length
    if recipe.model.prototypes > samples:
        yield Advice(
            "model.prototypes",
            f"{recipe.model.prototypes} prototypes share {samples} samples (batch and queue) equally: "
            "each gets less than one",
            f"Use {samples} or fewer, a larger batch or a longer queue",
        )
    if recipe.queue_length != queue.length:
        yield Advice(
            "method.queue.length",
            f"{queue.length} is not a multiple of the batch of {batch}; it will hold {recipe.queue_length}",
            f"Set it to {_nearest_multiple(queue.length, batch)}",
        )
    if method.epsilon < SMALLEST_PLAIN_EPSILON:
        yield Advice(
            "method.epsilon",
            f"exp(score / {method.epsilon:g}) can leave the range of float32, so the codes are computed "
            "with logarithms, which is slower",
            f"Use {SMALLEST_PLAIN_EPSILON} or more if speed matters",
        )
    if method.epsilon >= 0.05 and _is_small(recipe, images):
        yield Advice(
            "method.epsilon",
            f"at {method.epsilon:g} SwAV was seen to collapse on small data (the loss stays at ln K)",
            "Try 0.03",
        )
    if method.prototypes_frozen_steps == 0:
        epoch = f" ({images // batch} steps)" if images is not None else ""
        yield Advice(
            "method.prototypes_frozen_steps",
            "SwAV was seen to collapse when the prototypes move from the first step",
            f"Freeze them for about an epoch{epoch}, on small data for three",
        )
    elif images is not None and method.prototypes_frozen_steps >= images // batch * recipe.train.epochs:
        yield Advice(
            "method.prototypes_frozen_steps",
            f"the run has {images // batch * recipe.train.epochs} steps, so the prototypes are never trained",
            f"Freeze them for about an epoch ({images // batch} steps)",
        )


def _unwise_course(recipe: Recipe, images: int | None, on_cpu: bool) -> Iterator[Advice]:
    train, rate, queue = recipe.train, recipe.optimizer, recipe.method.queue
    if recipe.queue_length and images is not None:
        steps = images // train.batch_size * (train.epochs - queue.from_epoch)
        if steps <= recipe.queue_length // train.batch_size:
            yield Advice(
                "method.queue.from_epoch",
                f"only {steps} steps are left from epoch {queue.from_epoch} and the queue is used after "
                f"{recipe.queue_length // train.batch_size}, when it is full",
                "Begin earlier, make it shorter, or set method.queue.length=0",
            )
    for path, value in (
        ("final_learning_rate", rate.final_learning_rate),
        ("warmup_start_learning_rate", rate.warmup_start_learning_rate),
    ):
        if value > rate.peak_learning_rate:
            yield Advice(
                f"optimizer.{path}",
                f"{value:g} is above the peak of {rate.peak_learning_rate:g}",
                "Set it below the peak; the paper's recipes have peak / 1000 at the end and 0.3 at the start",
            )
    if rate.warmup_start_learning_rate and not rate.warmup_epochs:
        yield Advice(
            "optimizer.warmup_start_learning_rate",
            "has no effect without a warm-up",
            "Set optimizer.warmup_epochs, or leave it out",
        )
    if rate.warmup_epochs == train.epochs:
        yield Advice(
            "optimizer.warmup_epochs",
            "the warm-up lasts the whole run, the rate never decays",
            f"Set it to {train.epochs // 10} or train for longer",
        )
    yield from slow_precision(train, on_cpu)


def _batch_norm_of_the_head_alone(recipe: Recipe, replicas: int) -> Iterator[Advice]:
    """Settings that a network of KerasCV's does not take: its batch normalisation is its own."""
    settings = recipe.model.batch_norm
    if recipe.model.backbone.library != "keras_cv":
        return
    changed = [name for name, value in settings if value != getattr(BatchNorm(), name)]
    if changed:
        yield Advice(
            f"model.batch_norm.{changed[0]}",
            f"{' and '.join(changed)} of the head alone: a network of KerasCV's has batch normalisation of its own",
            "Set model.backbone.arguments, if its class takes such, or leave it out",
        )
    elif replicas > 1:
        yield Advice(
            "model.backbone.library",
            f"a network of KerasCV's takes batch statistics of each replica's {recipe.train.batch_size // replicas} "
            "images; only the head's are over all replicas",
            "Take a network of swav_tf's for statistics over the whole batch",
        )


def slow_precision(train: Train, on_cpu: bool) -> Iterator[Advice]:
    """A precision that is slower on these devices than float32."""
    if train.precision == "mixed_float16" and (on_cpu or train.logical_cpus):
        yield Advice(
            "train.precision",
            "mixed_float16 is for GPUs, a CPU gains nothing by it",
            "Set train.precision=float32",
        )
    if train.precision == "mixed_bfloat16" and (on_cpu or train.logical_cpus) and lacks_bfloat16():
        yield Advice(
            "train.precision",
            "this CPU has no instructions for bfloat16, without which a step took three times as long as in float32",
            "Set train.precision=float32",
        )


def _is_small(recipe: Recipe, images: int | None) -> bool:
    few = images is not None and images < SMALL_DATA_IMAGES
    return (
        few or recipe.data.kind == "digits" or max(group.size for group in recipe.crops) <= SMALL_DATA_PIXELS
    )


def _nearest_multiple(value: int, of: int) -> str:
    below, above = value // of * of, -(-value // of) * of
    return f"{below} or {above}" if below else str(above)
