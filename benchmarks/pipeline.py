"""The input pipeline beside what users would pick instead.

    python -m benchmarks.pipeline [--rows threads,processes] [--pairs 20] [--json FILE]

2 x 224 + 6 x 96 px crops from 500 x 375 JPEG files of 110 KB, uint8 crops out, on the
CPU. The rows of Pillow count the CPU time of one thread, with the same draws in both;
the rows of other layers the CPU time of the whole process in tf.data; those of threads and
processes wall time. Normalisation is left out everywhere: it is the device's.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks import pil_pipeline as pil
from benchmarks.paired import Comparison, compare
from benchmarks.photos import Photos, photos
from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import decode
from swav_tf.data.multicrop import MultiCrop
from swav_tf.recipe.pretraining import Augment, CropGroup, Recipe

GROUPS = (CropGroup(count=2, size=224, scale=(0.14, 1.0)), CropGroup(count=6, size=96, scale=(0.05, 0.14)))
AUGMENT = Augment()
IMAGES = 16
AHEAD = 5  # batches; a recipe has four made ahead
ROWS = ("pillow", "keras_cv", "keras", "threads", "processes")


def over_images(crop: Callable[..., object], files: list[bytes]) -> Callable[[], None]:
    """Crops of all files, other ones each time it is called."""
    epoch = -1

    def work() -> None:
        nonlocal epoch
        epoch += 1
        for index, file in enumerate(files):
            crop(file, seed=0, epoch=epoch, index=index)

    return work


def check_parity(files: list[bytes]) -> None:
    """The crops of both pipelines are the same but for a few grey levels."""
    multicrop = MultiCrop(GROUPS, AUGMENT)
    differences = []
    for index, file in enumerate(files):
        ours = multicrop(decode(file), seed=0, epoch=0, index=index)
        theirs = pil.multicrop(pil.decode(file), GROUPS, AUGMENT, seed=0, epoch=0, index=index)
        differences += [np.abs(a.astype(int) - b).mean() for a, b in zip(ours, theirs, strict=True)]
    mean, worst = np.mean(differences), max(differences)
    print(f"parity with Pillow: mean difference {mean:.2f} of 255, worst group of crops {worst:.2f}")
    if worst > 8:
        raise SystemExit("the two pipelines do not make the same crops: nothing to compare")


def data_set(files: list[bytes], *, batches: int, augment: Augment = AUGMENT, **settings: int) -> Any:
    """Our pipeline in tf.data, `settings` those of the recipe's data section."""
    from swav_tf.data.loader import training_batches

    recipe = Recipe(
        name="benchmark",
        crops=GROUPS,
        augment=augment,
        data=settings,
        optimizer={"peak_learning_rate": 1},
        train={"epochs": 1, "batch_size": IMAGES},
    )
    return training_batches(
        recipe, Photos(files), steps_per_epoch=1, start_step=0, total_steps=batches, workers=1, worker=0,
        replica_batch_size=IMAGES, bad_images=BadImages(None, images=len(files), max_share=0),
    )  # fmt: skip


def ours_in_tf(
    files: list[bytes], *, threads: int, batches: int, augment: Augment = AUGMENT
) -> Callable[[], None]:
    def work() -> None:
        for _ in data_set(files, batches=batches, augment=augment, threads=threads):
            pass

    return work


class Stopwatch:
    """A clock for `compare` that runs while crops come, not while processes start and end."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def over(self, files: list[bytes], *, batches: int, **settings: int) -> Callable[[], None]:
        """Takes so many batches, after those that are made ahead; more are to come, so that nobody idles at the end."""
        from swav_tf.data.loader import ended_after

        def work() -> None:
            with ended_after():
                iterator = iter(data_set(files, batches=3 * batches, **settings))
                for _ in range(AHEAD):
                    next(iterator)
                start = time.perf_counter()
                for _ in range(batches):
                    next(iterator)
                self.seconds += time.perf_counter() - start

        return work


def layers_in_tf(files: list[bytes], library: str, *, batches: int) -> Callable[[], None]:
    """Decode once and cut each crop by tf.image, antialiased; colour and blur by a library's layers."""
    import tensorflow as tf

    colour = (keras_cv_layers if library == "keras_cv" else keras_layers)()

    def crops(file: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = tf.io.decode_jpeg(file, channels=3)
        views = []
        for group in GROUPS:
            boxes = [
                tf.image.sample_distorted_bounding_box(
                    tf.shape(image), tf.zeros((1, 0, 4)), aspect_ratio_range=(3 / 4, 4 / 3),
                    area_range=group.scale, max_attempts=10, use_image_if_no_bounding_boxes=True,
                )[:2]
                for _ in range(group.count)
            ]  # fmt: skip
            cut = [
                tf.image.resize(tf.slice(image, *box), (group.size, group.size), antialias=True)
                for box in boxes
            ]
            views.append(tf.stack(cut))
        return tuple(views)

    def augment(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        results = []
        for views, group in zip(batch, GROUPS, strict=True):
            flat = tf.reshape(views, (-1, group.size, group.size, 3))
            for layer in colour:
                flat = layer(flat, training=True)
            results.append(tf.cast(flat, tf.uint8))
        return tuple(results)

    data = tf.data.Dataset.from_tensor_slices(files).repeat(batches)
    data = data.map(crops, num_parallel_calls=1).batch(IMAGES).map(augment, num_parallel_calls=1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    data = data.with_options(options)

    def work() -> None:
        for _ in data:
            pass

    return work


def keras_layers() -> list[Callable[..., object]]:
    """The nearest that Keras offers: jitter in a fixed order and always, one blur sigma a batch."""
    from keras import layers

    return [
        layers.RandomFlip("horizontal"),
        layers.RandomColorJitter(
            value_range=(0, 255),
            brightness_factor=0.8,
            contrast_factor=0.8,
            saturation_factor=0.8,
            hue_factor=0.2,
        ),
        layers.RandomGrayscale(0.2),
        layers.RandomGaussianBlur(factor=0.5, kernel_size=13, sigma=(0.1, 2.0), value_range=(0, 255)),
    ]


def keras_cv_layers() -> list[Callable[..., object]]:
    """The nearest that KerasCV offers."""
    from keras_cv import layers

    return [
        layers.RandomFlip("horizontal"),
        layers.RandomColorJitter(
            value_range=(0, 255),
            brightness_factor=0.8,
            contrast_factor=0.8,
            saturation_factor=0.8,
            hue_factor=0.2,
        ),
        layers.RandomApply(layers.Grayscale(output_channels=3), rate=0.2),
        layers.RandomApply(layers.RandomGaussianBlur(kernel_size=13, factor=(0.1, 1.0)), rate=0.5),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of measurements, at least 10")
    parser.add_argument("--rows", default="all", help=f"with commas, of {', '.join(ROWS)}; or all")
    arguments = parser.parse_args()
    if arguments.pairs < 10:
        parser.error("--pairs must be at least 10")
    pairs = arguments.pairs
    wanted = set(ROWS if arguments.rows == "all" else arguments.rows.split(","))
    if unknown := wanted - set(ROWS):
        parser.error(f"--rows must be of {', '.join(ROWS)}; got {', '.join(sorted(unknown))}")

    files = photos(IMAGES)
    check_parity(files)
    full, half = MultiCrop(GROUPS, AUGMENT), MultiCrop(GROUPS, AUGMENT, colour=False)
    ours = over_images(lambda file, **key: full(decode(file), **key), files)
    host = over_images(lambda file, **key: half(decode(file), **key), files)
    pillow = over_images(lambda file, **key: pil.multicrop(pil.decode(file), GROUPS, AUGMENT, **key), files)
    pillow_host = over_images(
        lambda file, **key: pil.multicrop(pil.decode(file), GROUPS, half.augment, **key), files
    )
    print(f"\n{'':48} {'target':>7} {'ratio':>7} {'quartiles':>13} {'ms an image':>15} {'load':>5}")
    rows: list[dict[str, object]] = []

    def row(name: str, target: float | None, images: int, comparison: Comparison) -> None:
        c = comparison
        each = f"{c.a_ms / images:.2f} / {c.b_ms / images:.2f}"
        wanted = f"{target:.2f}x" if target else ""
        print(
            f"{name:48} {wanted:>7} {c.ratio:6.2f}x {c.low:6.2f}-{c.high:.2f} {each:>15} {c.load:5.1f}",
            flush=True,
        )
        rows.append({"row": name, "target": target, "images": images, **asdict(c)})

    if "pillow" in wanted:
        row("full pipeline v Pillow", 2.5, IMAGES, compare(ours, pillow, pairs=pairs))
        row("host half v the full Pillow pipeline", 3.5, IMAGES, compare(host, pillow, pairs=pairs))
        row("host half v the same half of Pillow's", None, IMAGES, compare(host, pillow_host, pairs=pairs))

    batches = 4
    in_tf = ours_in_tf(files, threads=1, batches=batches)
    for library, name in (("keras_cv", "KerasCV"), ("keras", "Keras")):
        if library in wanted:
            theirs = layers_in_tf(files, library, batches=batches)
            row(f"in tf.data v {name} layers", 3.0, IMAGES * batches, compare(in_tf, theirs, pairs=pairs))

    batches = 24  # long enough that starting the threads does not count
    if "threads" in wanted:
        for name, augment in (("full pipeline", AUGMENT), ("host half", half.augment)):
            one, two = (ours_in_tf(files, threads=n, batches=batches, augment=augment) for n in (1, 2))
            scaling = compare(two, one, pairs=pairs, clock=time.perf_counter)
            row(f"{name} in tf.data, 2 threads v 1, wall time", 1.85, IMAGES * batches, scaling)

    if "processes" in wanted:
        clock = Stopwatch()
        two_processes = clock.over(files, batches=batches, processes=2)
        for name, target, settings in (
            ("1 thread", 1.85, {"threads": 1}),
            ("2 threads", None, {"threads": 2}),
            ("1 process", None, {"processes": 1}),
        ):
            other = clock.over(files, batches=batches, **settings)
            scaling = compare(two_processes, other, pairs=pairs, clock=clock)
            row(f"in tf.data, 2 processes v {name}, wall time", target, IMAGES * batches, scaling)

    if arguments.json:
        import cv2
        import keras
        import PIL
        import tensorflow as tf

        versions = {m.__name__: m.__version__ for m in (np, cv2, PIL, tf, keras)}
        machine = {"python": platform.python_version(), "machine": platform.machine(), "versions": versions}
        with open(arguments.json, "w") as file:
            json.dump({"benchmark": "pipeline", "rows": rows, **machine}, file, indent=2)


if __name__ == "__main__":
    main()
