"""The input pipeline compared with what users would pick instead.

    python -m benchmarks.pipeline [--rows threads,processes] [--pairs 12] [--json FILE]

2 x 224 + 6 x 96 px crops from 500 x 375 JPEG files of 110 KB, uint8 crops out, on the CPU. The rows of Pillow count
the CPU time of one thread, with the same random draws in both; the rows of other layers the CPU time of the process in
tf.data; those of threads and processes wall time. Normalization is omitted everywhere: the device does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import pil_pipeline as pil
from benchmarks.common import Photos, Rows, argument_parser, chosen, compare, photos
from swav_tf.data.bad_images import BadImages
from swav_tf.data.decode import decode
from swav_tf.data.multicrop import MultiCrop
from swav_tf.recipe.pretraining import Augment, CropGroup, Recipe

GROUPS = (CropGroup(count=2, size=224, scale=(0.14, 1.0)), CropGroup(count=6, size=96, scale=(0.05, 0.14)))
AUGMENT = Augment()
CUT_ONLY = Augment(
    jitter={"probability": 0}, grayscale_probability=0, blur={"probability": 0}
)  # the same boxes
IMAGES = 16
AHEAD = 5  # batches; a recipe has four made ahead


# === Without tf.data, compared with Pillow ===


def over_images(crop: Callable[..., object], files: list[bytes]) -> Callable[[], None]:
    """Crop all files, with other draws at each call."""
    epoch = -1

    def work() -> None:
        nonlocal epoch
        epoch += 1
        for index, file in enumerate(files):
            crop(file, seed=0, epoch=epoch, index=index)

    return work


def check_parity(files: list[bytes]) -> None:
    """Check that both pipelines make the same crops up to a few gray levels."""
    multicrop = MultiCrop(GROUPS, AUGMENT)
    differences = []
    for index, file in enumerate(files):
        ours = multicrop(decode(file), seed=0, epoch=0, index=index)
        other = pil.multicrop(pil.decode(file), GROUPS, AUGMENT, seed=0, epoch=0, index=index)
        differences += [np.abs(a.astype(int) - b).mean() for a, b in zip(ours, other, strict=True)]
    mean, worst = np.mean(differences), max(differences)
    print(f"parity with Pillow: mean difference {mean:.2f} of 255, worst group {worst:.2f}", flush=True)
    if worst > 8:
        raise SystemExit("The pipelines do not make the same crops: there is nothing to compare.")


def pillow_rows(rows: Rows, files: list[bytes], pairs: int) -> None:
    full, half = MultiCrop(GROUPS, AUGMENT), MultiCrop(GROUPS, CUT_ONLY)
    ours = over_images(lambda file, **key: full(decode(file), **key), files)
    host = over_images(lambda file, **key: half(decode(file), **key), files)
    pillow = over_images(lambda file, **key: pil.multicrop(pil.decode(file), GROUPS, AUGMENT, **key), files)
    for name, target, work in (
        ("full pipeline vs. Pillow", ">= 2.5", ours),
        ("host half vs. the full Pillow pipeline", ">= 3.5", host),
    ):
        rows.add(name, target, compare(work, pillow, pairs=pairs), per=IMAGES)


# === In tf.data ===


def data_set(files: list[bytes], *, batches: int, augment: Augment = AUGMENT, **settings: int) -> Any:
    """Our pipeline in tf.data; `settings` are those of the recipe's data section."""
    from swav_tf.data.loader import training_batches

    recipe = Recipe(
        name="benchmark", crops=GROUPS, augment=augment, data=settings, optimizer={"peak_learning_rate": 1},
        train={"epochs": 1, "batch_size": IMAGES},
    )  # fmt: skip
    return training_batches(
        recipe, Photos(files), steps_per_epoch=1, start_step=0, total_steps=batches, workers=1, worker=0,
        replica_batch_size=IMAGES, bad_images=BadImages(None, images=len(files), max_share=0),
    )  # fmt: skip


def run_through(data: Iterable[object]) -> None:
    for _ in data:
        pass


def ours_in_tf(files: list[bytes], **settings: Any) -> Callable[[], None]:
    return lambda: run_through(data_set(files, **settings))


class Stopwatch:
    """A clock for `compare` that runs while crops come, not while processes start and end."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def over(self, files: list[bytes], *, batches: int, **settings: int) -> Callable[[], None]:
        """Take `batches` after those that are made ahead; more follow, so that no worker idles at the end."""
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


def layers_in_tf(files: list[bytes], *, batches: int) -> Callable[[], None]:
    """Decode once and cut each crop by tf.image, antialiased; color and blur by Keras' layers."""
    import tensorflow as tf

    layers = color_layers()

    def crops(file: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = tf.io.decode_jpeg(file, channels=3)

        def view(group: CropGroup) -> tf.Tensor:
            begin, size, _ = tf.image.sample_distorted_bounding_box(
                tf.shape(image), tf.zeros((1, 0, 4)), aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=group.scale, max_attempts=10, use_image_if_no_bounding_boxes=True,
            )  # fmt: skip
            return tf.image.resize(tf.slice(image, begin, size), (group.size, group.size), antialias=True)

        return tuple(tf.stack([view(group) for _ in range(group.count)]) for group in GROUPS)

    def augment(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        results = []
        for views, group in zip(batch, GROUPS, strict=True):
            flat = tf.reshape(views, (-1, group.size, group.size, 3))
            for layer in layers:
                flat = layer(flat, training=True)
            results.append(tf.cast(flat, tf.uint8))
        return tuple(results)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.from_tensor_slices(files).repeat(batches)
    data = data.map(crops, num_parallel_calls=1).batch(IMAGES).map(augment, num_parallel_calls=1)
    return partial(run_through, data.with_options(options))


def color_layers() -> list[Callable[..., object]]:
    """Return the nearest that Keras offers: it jitters always, in a fixed order, and has one sigma a batch."""
    from keras import layers

    jitter = {
        "value_range": (0, 255), "brightness_factor": 0.8, "contrast_factor": 0.8, "saturation_factor": 0.8,
        "hue_factor": 0.2,
    }  # fmt: skip
    blur = {"factor": 0.5, "kernel_size": 13, "sigma": (0.1, 2.0), "value_range": (0, 255)}
    return [
        layers.RandomFlip("horizontal"),
        layers.RandomColorJitter(**jitter),
        layers.RandomGrayscale(0.2),
        layers.RandomGaussianBlur(**blur),
    ]


def keras_row(rows: Rows, files: list[bytes], pairs: int) -> None:
    batches = 4
    ours = ours_in_tf(files, threads=1, batches=batches)
    found = compare(ours, layers_in_tf(files, batches=batches), pairs=pairs)
    rows.add("in tf.data vs. Keras layers", ">= 3", found, per=IMAGES * batches)


def thread_rows(rows: Rows, files: list[bytes], pairs: int) -> None:
    batches = 24  # long enough that starting the threads does not count
    for name, augment in (("full pipeline", AUGMENT), ("host half", CUT_ONLY)):
        one, two = (ours_in_tf(files, threads=n, batches=batches, augment=augment) for n in (1, 2))
        found = compare(two, one, pairs=pairs, clock=time.perf_counter)
        rows.add(f"{name} in tf.data, 2 threads vs. 1, wall time", ">= 1.85", found, per=IMAGES * batches)


def process_rows(rows: Rows, files: list[bytes], pairs: int) -> None:
    clock, batches = Stopwatch(), 24
    two = clock.over(files, batches=batches, processes=2)
    for name, target, settings in (
        ("1 thread", ">= 1.85", {"threads": 1}),
        ("2 threads", "-", {"threads": 2}),
        ("1 process", ">= 1.85", {"processes": 1}),
    ):
        found = compare(two, clock.over(files, batches=batches, **settings), pairs=pairs, clock=clock)
        rows.add(f"in tf.data, 2 processes vs. {name}, wall time", target, found, per=IMAGES * batches)


ROWS = {
    "pillow": pillow_rows,
    "keras": keras_row,
    "threads": thread_rows,
    "processes": process_rows,
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rows", default="all", help=f"comma-separated, of {', '.join(ROWS)}; or all")
    arguments = parser.parse_args()
    files, rows, pairs = photos(IMAGES), Rows(arguments.json), arguments.pairs
    check_parity(files)
    for name in chosen(parser, arguments.rows, list(ROWS)):
        ROWS[name](rows, files, pairs)


if __name__ == "__main__":
    main()
