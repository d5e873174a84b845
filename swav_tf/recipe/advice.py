"""Check recipes against images and devices, and advise on settings that collapse, are slow or have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from swav_tf.plumbing.errors import RecipeError
from swav_tf.plumbing.names import counted
from swav_tf.plumbing.system import lacks_bfloat16
from swav_tf.recipe.classifier import ClassifierRecipe, FinetuneRecipe
from swav_tf.recipe.pretraining import BatchNorm, Recipe, Train, nearest_multiple
from swav_tf.recipe.section import Remark

SMALL_DATA_IMAGES = 10_000  # SwAV collapsed on 1,437 images; the settings for ImageNet have 1,281,167
SMALL_DATA_PIXELS = 64
FEWEST_STEPS = 200  # of fine-tuning: the published recipes have 1,000 or more, that of the digits 240
HIGHEST_RATE = 5.0  # of the classifier, at a batch of 256: fine-tuning with 1 % of ImageNet's labels


def check_recipe(
    recipe: Recipe | ClassifierRecipe,
    *,
    replicas: int | None = None,
    images: int | None = None,
    on_cpu: bool = False,
) -> list[Remark]:
    """Refuse settings that cannot work with these images and devices; return advice on those that work badly.

    Replicas over all workers, and training images, may be unknown (None); what depends on them is not checked then.
    `on_cpu`: the run is known to have no GPU.

    Raises:
        RecipeError: lists every reason.
    """
    replicas = replicas or max(1, recipe.train.logical_cpus)
    if errors := list(_impossible_batch(recipe.train, replicas, images)):
        lines = [f"recipe '{recipe.name}' cannot work:", *(f"  {error}" for error in errors)]
        raise RecipeError("\n".join(lines))
    advice = []
    if isinstance(recipe, Recipe):
        advice += [*_unwise_codes(recipe), *_unwise_freeze(recipe, images), *_unwise_queue(recipe, images)]
        advice += [*_unwise_rates(recipe), *_separate_batch_norm(recipe)]
    if isinstance(recipe, FinetuneRecipe):
        advice += _unwise_fine_tuning(recipe, images)
    return advice + list(_slow_precision(recipe.train, on_cpu))


def _impossible_batch(train: Train, replicas: int, images: int | None) -> Iterator[Remark]:
    size, parts = train.batch_size, train.accumulation_steps * replicas
    if size % parts:
        possible = [n for n in range(1, size + 1) if size % (n * train.accumulation_steps) == 0]
        nearest = [n for n in possible if n < replicas][-1:] + [n for n in possible if n > replicas][:1]
        yield Remark(
            "train.batch_size",
            f"{size} images cannot be shared equally by {counted(replicas, 'replica')} x "
            f"{counted(train.accumulation_steps, 'accumulation step')}",
            f"A new run can use a multiple of {parts}: {nearest_multiple(size, parts)}. A run that has started keeps "
            f"its batch: resume it with {' or '.join(counted(number, 'replica') for number in nearest)}",
        )
    if images is not None and images < size:
        yield Remark(
            "train.batch_size",
            f"{images} images do not fill one batch of {size}, so an epoch would have no steps",
            f"Set it to {images} or less, or use more images",
        )


def _unwise_codes(recipe: Recipe) -> Iterator[Remark]:
    samples = recipe.train.batch_size + recipe.queue_length
    if recipe.model.prototypes > samples:
        yield Remark(
            "model.prototypes",
            f"{recipe.model.prototypes} prototypes share {samples} samples (batch and queue) equally: "
            "each gets less than one",
            f"Use {samples} or fewer, a larger batch or a longer queue",
        )


def _unwise_freeze(recipe: Recipe, images: int | None) -> Iterator[Remark]:
    method, batch = recipe.method, recipe.train.batch_size
    small = images is not None and images < SMALL_DATA_IMAGES
    small |= recipe.data.kind == "digits" or max(group.size for group in recipe.crops) <= SMALL_DATA_PIXELS
    if method.epsilon >= 0.05 and small:
        yield Remark(
            "method.epsilon",
            f"at {method.epsilon:g} SwAV has collapsed on small data (the loss stays at ln K)",
            "Try 0.01",
        )
    if not method.prototypes_frozen_steps and not method.prototypes_frozen_epochs:
        epoch = f" ({images // batch} steps)" if images is not None else ""
        yield Remark(
            "method.prototypes_frozen_steps",
            "SwAV has collapsed when prototypes were trained from the first step",
            f"Freeze them for about an epoch{epoch}, on small data for three",
        )
    elif images is not None and recipe.frozen_steps(images // batch) >= images // batch * recipe.train.epochs:
        yield Remark(
            "method.prototypes_frozen_steps",
            f"the run has {images // batch * recipe.train.epochs} steps, so the prototypes are never trained",
            f"Freeze them for about an epoch ({images // batch} steps)",
        )


def _unwise_queue(recipe: Recipe, images: int | None) -> Iterator[Remark]:
    train, queue, used = recipe.train, recipe.method.queue, recipe.queue_length
    if used != queue.length:
        yield Remark(
            "method.queue.length",
            f"{queue.length} is not a multiple of the batch of {train.batch_size}; {used} will be used",
            f"Set it to {nearest_multiple(queue.length, train.batch_size)}",
        )
    if used and images is not None:
        steps = images // train.batch_size * (train.epochs - queue.from_epoch)
        if steps <= used // train.batch_size:
            yield Remark(
                "method.queue.from_epoch",
                f"only {steps} steps are left from epoch {queue.from_epoch} and the queue is used after "
                f"{used // train.batch_size}, when it is full",
                "Start it earlier, make it shorter, or set method.queue.length=0",
            )


def _unwise_rates(recipe: Recipe) -> Iterator[Remark]:
    rate = recipe.optimizer
    for setting in ("final_learning_rate", "warmup_start_learning_rate"):
        value = getattr(rate, setting)
        if value > rate.peak_learning_rate:
            yield Remark(
                f"optimizer.{setting}",
                f"{value:g} is above the peak of {rate.peak_learning_rate:g}",
                "Set it below the peak; the paper's recipes have peak / 1000 at the end and 0.3 at the start",
            )


def _unwise_fine_tuning(recipe: FinetuneRecipe, images: int | None) -> Iterator[Remark]:
    batch, epochs = recipe.train.batch_size, recipe.train.epochs
    random = recipe.init_classifier == "random"
    if images and random and (steps := images // batch * epochs) < FEWEST_STEPS:
        yield Remark(
            "train.epochs",
            f"{images:,} images in batches of {batch} make {steps} steps in {epochs} epochs; with 20 steps the "
            "accuracy has stayed at chance",
            f"Set it to {-(-FEWEST_STEPS // (images // batch))} or more, and optimizer.decay_epochs in proportion",
        )
    rate, proportional = recipe.optimizer.classifier_learning_rate, HIGHEST_RATE * batch / 256
    if rate > 2 * proportional:
        yield Remark(
            "optimizer.classifier_learning_rate",
            f"{rate:g} is high for a batch of {batch}; the highest published rate is {HIGHEST_RATE:g} at 256",
            f"Set it to {proportional:.2g}, in proportion to the batch",
        )


def _separate_batch_norm(recipe: Recipe) -> Iterator[Remark]:
    """Yield settings that a KerasCV backbone ignores: it has a momentum and an epsilon of its own."""
    if recipe.model.backbone.library != "keras_cv":
        return
    own = ("momentum", "epsilon")
    changed = [n for n in own if getattr(recipe.model.batch_norm, n) != getattr(BatchNorm(), n)]
    if changed:
        yield Remark(
            f"model.batch_norm.{changed[0]}",
            f"{' and '.join(changed)} apply to the head only: a KerasCV backbone has its own",
            "Set model.backbone.arguments, if the class accepts them, or omit it",
        )


def _slow_precision(train: Train, on_cpu: bool) -> Iterator[Remark]:
    on_cpu = on_cpu or train.logical_cpus > 0
    if train.precision == "mixed_float16" and on_cpu:
        yield Remark(
            "train.precision",
            "mixed_float16 is for GPUs; on a CPU it is about a hundred times slower than float32",
            "Set train.precision=float32",
        )
    if train.precision == "mixed_bfloat16" and on_cpu and lacks_bfloat16():
        yield Remark(
            "train.precision",
            "this CPU has no bfloat16 instructions; without them a step took three times as long as in float32",
            "Set train.precision=float32",
        )
