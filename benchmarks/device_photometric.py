"""What jitter, grayscale and blur would cost on the device: a prototype, compiled by XLA, on one batch of crops.

    python -m benchmarks.device_photometric [--batch 256]

The program makes them on the host (swav_tf/data/augment.py). This tells what it would take to move them: milliseconds
a batch on the first GPU, or on the CPU where there is none, to be held against the step's and against the CPU time
that the host would save (docs/performance.md). The order of the four adjustments is each crop's own, as in the recipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import tensorflow as tf

REACH = 6  # pixels to each side: three sigma of the widest blur
LUMA = tf.constant([0.299, 0.587, 0.114])


def gray(x: Any) -> Any:
    return tf.reduce_sum(x * LUMA, axis=-1, keepdims=True)


def shift_hue(x: Any, turn: Any) -> Any:
    hsv = tf.image.rgb_to_hsv(x)
    return tf.image.hsv_to_rgb(
        tf.stack([(hsv[..., 0] + turn[..., 0]) % 1.0, hsv[..., 1], hsv[..., 2]], axis=-1)
    )


def adjusted(x: Any, which: Any, factors: Any) -> Any:
    """One of the four adjustments of each crop; `which` (n,), `factors` (n, 4)."""
    f = [factors[:, i, tf.newaxis, tf.newaxis, tf.newaxis] for i in range(4)]
    which = which[:, tf.newaxis, tf.newaxis, tf.newaxis]
    mean = tf.reduce_mean(gray(x), axis=[1, 2], keepdims=True)
    choices = [f[0] * x, f[1] * x + (1 - f[1]) * mean, f[2] * x + (1 - f[2]) * gray(x), shift_hue(x, f[3])]
    found = choices[3]
    for i in range(3):
        found = tf.where(which == i, choices[i], found)
    return tf.clip_by_value(found, 0.0, 1.0)


def blurred(x: Any, sigma: Any) -> Any:
    taps = tf.range(-REACH, REACH + 1, dtype=tf.float32)
    weights = tf.exp(-0.5 * tf.square(taps / sigma[:, tf.newaxis]))
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    for axis in (1, 2):
        size, pads = x.shape[axis], [[0, 0]] * 4
        pads[axis] = [REACH, REACH]
        wide = tf.pad(x, pads, "SYMMETRIC")
        x = tf.add_n(
            [
                weights[:, i, tf.newaxis, tf.newaxis, tf.newaxis]
                * (wide[:, i : i + size] if axis == 1 else wide[:, :, i : i + size])
                for i in range(2 * REACH + 1)
            ]
        )
    return x


@tf.function(jit_compile=True)
def photometric(images: Any, order: Any, factors: Any, jittered: Any, grayed: Any, sigma: Any) -> Any:
    """uint8 crops (n, size, size, 3) to the same, float16."""
    x = tf.cast(images, tf.float32) / 255.0
    jittering = x
    for place in range(4):
        jittering = adjusted(jittering, order[:, place], factors)
    flag = [1, 1, 1]
    x = tf.where(tf.reshape(jittered, [-1, *flag]), jittering, x)
    x = tf.where(tf.reshape(grayed, [-1, *flag]), tf.broadcast_to(gray(x), tf.shape(x)), x)
    x = tf.where(tf.reshape(sigma > 0, [-1, *flag]), blurred(x, tf.maximum(sigma, 0.1)), x)
    return tf.cast(x, tf.float16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    draw = np.random.default_rng(0)
    groups = []
    for count, size in ((2, 224), (6, 96)):
        n = count * arguments.batch
        groups.append(
            (
                tf.constant(draw.integers(0, 256, (n, size, size, 3), dtype=np.uint8)),
                tf.constant(np.array([draw.permutation(4) for _ in range(n)], np.int64)),
                tf.constant(draw.uniform(0.2, 1.8, (n, 4)).astype(np.float32) * [1, 1, 1, 0.1], tf.float32),
                tf.constant(draw.random(n) < 0.8),
                tf.constant(draw.random(n) < 0.2),
                tf.constant(np.where(draw.random(n) < 0.5, draw.uniform(0.1, 2, n), 0), tf.float32),
            )
        )
    times = []
    for _ in range(3 + arguments.times):
        begun = time.perf_counter()
        for group in groups:
            last = photometric(*group)
        last[0, 0, 0, 0].numpy()
        times.append(1000 * (time.perf_counter() - begun))
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    found = {
        "device": device,
        "batch": arguments.batch,
        "ms": statistics.median(times[3:]),
        "first_ms": times[0],
    }
    print(json.dumps(found | {"us_an_image": 1000 * found["ms"] / arguments.batch}), flush=True)


if __name__ == "__main__":
    main()
