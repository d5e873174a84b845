"""The rules of `-c auto`: from facts about images and machine to a complete recipe, each choice with its reason.

Measured on two cores: digits, hand signs and CIFAR-10, all with `resnet10_32px`, two crops of 32 pixels, Adam and
epsilon 0.01 (docs/results.md). The choices for larger networks are not measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swav_tf.plumbing.errors import DataError
from swav_tf.plumbing.names import counted
from swav_tf.recipe.pretraining import Recipe

# === Rules: change them here ===

LEAST_IMAGES: Final = 16
CPU_SECONDS: Final = 900  # of training on a CPU, by the estimate below; 25 % are left for a busy machine
# Seconds that one core needs for the crops, forward and backward pass of an image; decoding is measured.
CORE_SECONDS: Final = 0.0025
STEPS: Final = 4000  # of a small network
# At 0.03 features of photos that look alike collapse within an epoch: their codes are nearly uniform.
EPSILON: Final = 0.01
EPOCHS: Final = (10, 200)  # fewest (if the time allows) and most
# Fewer are few: not mirrored, as text, digits and hands have a direction, and cut into larger parts, which gave 8
# points of k-NN accuracy on hand signs.
FEW_IMAGES: Final = 5_000
LEAST_AREA: Final = {"few": 0.5, "many": 0.3}
GPU_STEPS, GPU_EPOCHS = 20_000, (50, 400)
# Images up to which a batch is used. At least 20 steps an epoch, so that codes of an image change between its visits.
BATCHES: Final = ((5_000, 64), (20_000, 128))
LARGEST_BATCH: Final = 256
PROTOTYPES_PER_SAMPLE: Final = (
    0.8  # codes share the batch equally among prototypes: each gets more than one image
)
LARGER: Final = ((0.7, 1.0), (0.4, 0.8))  # scales of crops against a collapse
# Peak and final rate: of Adam; of LARS with ResNet-50, as in the paper at its batch of 256.
ADAM_RATE: Final = {"cpu": 0.002, "gpu": 0.001}
LARS_RATES: Final = (0.6, 0.0006)
GPU_BYTES_PER_PIXEL: Final = {
    "resnet18_32px": 4000,
    "resnet18": 700,
    "resnet50": 2600,
}  # activations in half precision

# Of files of images: a run is named without them.
_ENDINGS: Final = re.compile(
    r"\.(zip|tgz|tbz2|txz|tzst|tar(\.\w+)?|parquet|tfrecord|csv|tsv|jsonl|txt)$", re.IGNORECASE
)


@dataclass(frozen=True)
class ImageFacts:
    """Facts about a folder of images."""

    path: str
    kind: str  # data.kind
    images: int
    classes: int  # 0: no labels
    short_side: int  # median of a sample, pixels
    gray: bool  # all of the sample
    decode_seconds: float  # mean of a sample, one core


@dataclass(frozen=True)
class Machine:
    """The machine that a recipe must fit."""

    cores: int
    gpu_gb: float = 0.0  # memory of one GPU, 10^9 bytes; 0: no GPU
    gpus: int = 0
    bfloat16: bool = False  # the GPU computes in it


@dataclass(frozen=True)
class Choice:
    """A recipe as plain settings, and one line per choice with its reason."""

    settings: dict[str, Any]
    lines: tuple[str, ...]
    seconds: float | None  # expected; None: not known for this machine


def choose(images: ImageFacts, machine: Machine, batch: int | None = None) -> Choice:
    """Return the recipe for these images on this machine; a given batch replaces the chosen one.

    Raises:
        DataError: there are too few images to learn from.
    """
    if images.images < LEAST_IMAGES:
        raise DataError(
            f"At least {LEAST_IMAGES} images are needed to learn features. Received: {images.images} in {images.path}."
        )
    large, small, network = _views(images, machine)
    wanted = batch or _batch(images.images)
    parts = _parts(wanted, machine, network=network, pixels=2 * large**2 + 4 * small**2)
    shares = max(1, machine.gpus) * parts
    batch = batch or max(shares, wanted // shares * shares)
    prototypes = max(2, int(PROTOTYPES_PER_SAMPLE * batch))
    epochs, seconds = _epochs(images, machine, batch=batch)
    half = "mixed_bfloat16" if machine.bfloat16 else "mixed_float16"
    precision = half if machine.gpus else "float32"
    view = {"resize": large if large <= 32 else large * 8 // 7, "crop": large}
    least = LEAST_AREA["few" if images.images < FEW_IMAGES else "many"]
    crops = [{"count": 2, "size": large, "scale": [least, 1.0]}]
    crops += [{"count": 4, "size": small, "scale": [0.1, 0.4]}] if small else []
    settings = {
        "name": auto_name(images.path),
        "data": {
            "kind": images.kind,
            "path": None if images.kind == "digits" else images.path,
            "evaluation": view,
        },
        "crops": crops,
        "augment": _augment(images, size=large),
        "model": {
            "backbone": {"name": network},
            "head_hidden": 2048 if network == "resnet50" else 512,
            "prototypes": prototypes,
        },
        "method": {"epsilon": EPSILON, "prototypes_frozen_epochs": 1},
        "optimizer": _optimizer(machine, network=network),
        "monitor": {
            "knn_every_epochs": max(1, epochs // 7) if images.classes >= 2 else 0,
        },
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "accumulation_steps": parts,
            "precision": precision,
        },
    }
    return Choice(settings, tuple(_explain(images, machine, settings, seconds)), seconds)


def auto_name(path: str) -> str:
    """Return the name of a recipe for the images at a path, which is also that of the run's folder."""
    name = re.sub(r"[*?\[\]]", "", _ENDINGS.sub("", Path(path).name))  # of a pattern, such as train-*.tar
    return f"auto-{name.strip('-') or 'images'}"


def _views(images: ImageFacts, machine: Machine) -> tuple[int, int, str]:
    """Return the sizes of large and small crops (0: none), and the network for them."""
    if not machine.gpus:
        return 32, 0, "resnet10_32px"
    if images.short_side <= 96:
        return (32 if images.short_side <= 40 else 64), 0, "resnet18_32px"
    return (160, 64, "resnet18") if images.images < 20_000 else (224, 96, "resnet50")


def _augment(images: ImageFacts, *, size: int) -> dict[str, Any]:
    """Return the augmentation of crops of a size."""
    jitter = 0.3 if images.gray else 0.4
    return {
        "flip_probability": 0.5 if images.images >= FEW_IMAGES and not images.gray else 0.0,
        "jitter": {
            "brightness": jitter,
            "contrast": jitter,
            "saturation": 0.0 if images.gray else jitter,
            "hue": 0.0 if images.gray else 0.1,
        },
        "grayscale_probability": 0.0 if images.gray else 0.2,
        "blur": {"probability": 0.5 if size > 64 else 0.0},
    }


def _optimizer(machine: Machine, *, network: str) -> dict[str, Any]:
    if network == "resnet50":
        peak, final = LARS_RATES
        return {"peak_learning_rate": peak, "final_learning_rate": final}
    return {"kind": "adam", "peak_learning_rate": ADAM_RATE["gpu" if machine.gpus else "cpu"]}


def _batch(images: int) -> int:
    for most, batch in BATCHES:
        if images <= most:
            # A small set gets a batch of at most a quarter of it, a power of 2.
            return min(batch, 1 << max(2, (images // 4).bit_length() - 1))
    return LARGEST_BATCH


def _epochs(images: ImageFacts, machine: Machine, *, batch: int) -> tuple[int, float | None]:
    """Return the number of epochs and the expected seconds."""
    steps = max(1, images.images // batch)
    if machine.gpus:
        fewest, most = GPU_EPOCHS
        return min(max(GPU_STEPS // steps, fewest), most), None
    epoch = steps * batch * (CORE_SECONDS + images.decode_seconds) / machine.cores
    fewest, most = EPOCHS
    wanted = min(max(STEPS // steps, fewest), most)
    epochs = max(1, min(wanted, int(CPU_SECONDS / epoch)))
    return epochs, epochs * epoch


def _parts(batch: int, machine: Machine, *, network: str, pixels: int) -> int:
    """Return the accumulation steps with which each GPU's share of a batch fits its memory."""
    parts, per_image, memory = 1, GPU_BYTES_PER_PIXEL.get(network, 0) * pixels, machine.gpus * machine.gpu_gb
    while machine.gpus and batch // parts > 16 and batch * per_image / parts > 0.7 * memory * 1e9:
        parts *= 2
    return parts


def _explain(
    images: ImageFacts, machine: Machine, settings: dict[str, Any], seconds: float | None
) -> list[str]:
    """Return the choices and their reasons, in at most 12 lines."""
    train, optimizer, on_cpu = settings["train"], settings["optimizer"], not machine.gpus
    crops = " + ".join(f"{group['count']} x {group['size']}" for group in settings["crops"])
    steps = images.images // train["batch_size"]
    labels = f"{images.classes} classes (used for k-NN only)" if images.classes else "no labels"
    color, jitter = "color", "softer than ImageNet's"
    if images.gray:
        color, jitter = "gray", "no changes of color: the images are gray"
    flips = "flips (text or digits: -o augment.flip_probability=0)"
    if not settings["augment"]["flip_probability"]:
        flips = "no flips"
    device = (
        counted(machine.cores, "CPU core")
        if on_cpu
        else f"{counted(machine.gpus, 'GPU')} of {machine.gpu_gb:.0f} GB"
    )
    size = "a larger network does not finish on a CPU" if on_cpu else "by the images' size and number"
    time = f"about {max(1, round(seconds / 60))} min" if seconds else "not known before the first steps"
    lines = [
        f"auto: {images.images:,} images (data.kind {images.kind}), {labels}, {color}, median short side "
        f"{images.short_side} px; {device}",
        f"  {settings['model']['backbone']['name']}, crops {crops} px: {size}",
        f"  batch {train['batch_size']} in {counted(train['accumulation_steps'], 'part')}, {train['precision']}: "
        f"{counted(steps, 'step')} per epoch",
        f"  {settings['model']['prototypes']} prototypes: each gets more than one image of a batch, so no queue",
        f"  epsilon {EPSILON:g}, prototypes frozen for an epoch: against collapse on small data",
        f"  {optimizer.get('kind', 'lars')} at rate {optimizer['peak_learning_rate']:g}",
        f"  jitter {settings['augment']['jitter']['brightness']}, {jitter}; {flips}",
        f"  {train['epochs']} epochs, {train['epochs'] * steps:,} steps: {time}",
    ]
    if not on_cpu:
        return lines
    wanted = min(max(STEPS // max(1, steps), EPOCHS[0]), EPOCHS[1])
    if train["epochs"] < wanted:
        reading = f"; reading takes {images.decode_seconds * 1e3:.0f} ms per image: store smaller ones"
        lines.append(
            f"  If you have more time, {wanted} epochs are better: -o train.epochs={wanted}"
            f"{reading if images.decode_seconds > CORE_SECONDS else ''}"
        )
    return [*lines, "  With a GPU, auto would choose a larger network, larger crops and more epochs."]


@dataclass(frozen=True)
class Remedy:
    """A change of a recipe against a collapse."""

    what: str
    overrides: tuple[str, ...]  # KEY=VALUE
    now: str = ""

    @property
    def text(self) -> str:
        """Return the remedy in words, with the options that apply it."""
        options = " ".join(f"-o {override}" for override in self.overrides)
        return f"{self.what}: {options}" + (f" (instead of {self.now})" if self.now else "")


def remedies(recipe: Recipe, steps_per_epoch: int) -> list[Remedy]:
    """Return changes of this recipe against a collapse, the most likely remedy first."""
    method, jitter, rate = recipe.method, recipe.augment.jitter, recipe.optimizer.peak_learning_rate
    frozen, prototypes = recipe.frozen_steps(steps_per_epoch), recipe.model.prototypes
    # Beyond a third of the run too little is left to train the prototypes.
    longer = min(max(2 * frozen, steps_per_epoch), recipe.train.epochs * steps_per_epoch // 3)
    found = []
    if method.epsilon > EPSILON:
        found.append(Remedy("a smaller epsilon", (f"method.epsilon={EPSILON:g}",), f"{method.epsilon:g}"))
    if longer > frozen:
        setting = f"method.prototypes_frozen_steps={longer}"
        found.append(Remedy("a longer freeze", (setting,), str(frozen)))
    if recipe.crops[0].scale[0] < LARGER[0][0]:
        scales = [
            f"crops.{i}.scale=[{low},{high}]" for i, (low, high) in enumerate(LARGER[: len(recipe.crops)])
        ]
        found.append(Remedy("larger parts of the image", tuple(scales), f"{recipe.crops[0].scale[0]:g}"))
    if prototypes > 20:
        setting = f"model.prototypes={prototypes // 2}"
        found.append(Remedy("fewer prototypes, about ten per class", (setting,), str(prototypes)))
    if not recipe.queue_length:
        settings = [f"method.queue.length={4 * recipe.train.batch_size}"]
        if method.queue.from_epoch >= recipe.train.epochs:
            settings.append("method.queue.from_epoch=0")
        found.append(Remedy("a queue", tuple(settings)))
    if jitter.probability > 0:
        half = jitter.probability / 2
        found.append(
            Remedy("weaker jitter", (f"augment.jitter.probability={half:g}",), f"{jitter.probability:g}")
        )
    lower = max(rate / 2, recipe.optimizer.final_learning_rate)
    if lower < rate:
        found.append(Remedy("a lower rate", (f"optimizer.peak_learning_rate={lower:g}",), f"{rate:g}"))
    return found
