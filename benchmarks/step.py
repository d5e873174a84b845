"""The training step against what it cannot do without, and against its parts left out.

    python -m benchmarks.step [--json FILE] [--pairs 10] [--batch 16]

All rows are CPU time of the whole process, A and B in turn in one run, on the same random crops.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.paired import compare
from swav_tf.method.sinkhorn import sinkhorn
from swav_tf.method.swav import SwAV
from swav_tf.recipe import Recipe
from swav_tf.recipe_files import load_recipe
from swav_tf.replicas import update_on_all_replicas
from swav_tf.training.build import build_swav

Crops = tuple[tf.Tensor, ...]


def recipe_of(batch: int, *overrides: str) -> Recipe:
    return load_recipe(
        "swav_100ep",
        [
            f"train.batch_size={batch}",
            "train.precision=float32",
            "model.batch_norm.synchronised=false",
            "method.prototypes_frozen_steps=0",
            *overrides,
        ],
    )


def random_crops(recipe: Recipe) -> Crops:
    rng = np.random.default_rng(0)
    return tuple(
        tf.constant(
            rng.integers(0, 256, (recipe.train.batch_size, g.count, g.size, g.size, 3), dtype=np.uint8)
        )
        for g in recipe.crops
    )


def swav_step(recipe: Recipe, crops: Crops) -> Callable[[], Any]:
    model = build_swav(recipe)
    return lambda: model.train_on_crops(crops)


def bare_step(recipe: Recipe, crops: Crops) -> Callable[[], Any]:
    """Forward, backward and update of the same crops, network and optimiser; no codes, no SwAV loss."""
    model = build_swav(recipe)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            projections, scores = model(crops, training=True)
            loss = tf.reduce_mean(tf.square(scores))
        variables = [v.value for v in model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        always = [tf.constant(True)] * len(variables)
        update_on_all_replicas(model.optimizer.updates(gradients, model.trainable_variables, always))
        return loss + 0.0 * tf.reduce_sum(projections)

    return lambda: step().numpy()


def supervised_step(recipe: Recipe, batch: int) -> Callable[[], Any]:
    """Forward, backward and update of the backbone with a classifier on one 224-pixel image a row."""
    model: SwAV = build_swav(recipe)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8))
    labels = tf.constant(np.arange(batch) % 1000)
    kernel = tf.Variable(tf.random.normal([model.backbone.output_shape[-1], 1000], stddev=0.01))
    trainable = model.backbone.trainable_variables

    @tf.function
    def step() -> tf.Tensor:
        variables = [*(v.value for v in trainable), kernel]
        with tf.GradientTape() as tape:
            logits = model.backbone(model.normalise(images), training=True) @ kernel
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.01 * gradient)
        return loss

    return lambda: step().numpy()


def literal_sinkhorn(scores: tf.Tensor, epsilon: float, iterations: int) -> tf.Tensor:
    """Equations 3 to 5 as they stand: the matrix is rewritten at every normalisation."""
    q = tf.transpose(tf.exp(scores / epsilon), [0, 2, 1])  # (crops, K, B)
    prototypes, samples = q.shape[1], q.shape[2]
    q /= tf.reduce_sum(q, axis=[1, 2], keepdims=True)
    for _ in range(iterations):
        q /= tf.reduce_sum(q, axis=2, keepdims=True)
        q /= prototypes
        q /= tf.reduce_sum(q, axis=1, keepdims=True)
        q /= samples
    return tf.transpose(q * samples, [0, 2, 1])


def sinkhorn_pair() -> tuple[Callable[[], Any], Callable[[], Any], float]:
    rng = np.random.default_rng(0)
    z = tf.math.l2_normalize(tf.constant(rng.normal(size=(2, 512, 128)), tf.float32), axis=-1)
    c = tf.math.l2_normalize(tf.constant(rng.normal(size=(128, 3000)), tf.float32), axis=0)
    scores = z @ c
    ours = tf.function(lambda: sinkhorn(scores, epsilon=0.05, iterations=3))
    literal = tf.function(lambda: literal_sinkhorn(scores, 0.05, 3))
    return (lambda: ours().numpy()), (lambda: literal().numpy()), float(np.abs(ours() - literal()).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    batch, rows = arguments.batch, []

    def row(name: str, target: str, a: Callable[[], Any], b: Callable[[], Any], **extra: Any) -> None:
        """Adds the ratio of A's time to B's."""
        result = compare(b, a, pairs=arguments.pairs)  # compare gives second / first
        rows.append({"row": name, "target": target, **vars(result), **extra})
        print(
            f"{name:64} {result.ratio:6.3f}  [{result.low:.3f}, {result.high:.3f}]  target {target}"
            f"  ({result.b_ms:.0f} ms v {result.a_ms:.0f} ms, load {result.load:.1f})",
            flush=True,
        )

    ours, literal, difference = sinkhorn_pair()
    row("literal Sinkhorn v the u, v form (2 x 512 x 3000)", ">= 1.5", literal, ours, difference=difference)
    print(f"{'':64} largest difference of a code {difference:.1e}, target <= 1e-6")

    recipe = recipe_of(batch)
    crops = random_crops(recipe)
    swav = swav_step(recipe, crops)
    row(f"SwAV step v bare forward and backward, batch {batch}", "<= 1.05", swav, bare_step(recipe, crops))
    row(
        f"multi-crop step v supervised 224 step, batch {batch}",
        "<= 3.26",
        swav,
        supervised_step(recipe, batch),
    )

    few, many = recipe_of(batch, "model.prototypes=300"), recipe_of(batch, "model.prototypes=30000")
    row("step, 30,000 prototypes v 300", "<= 1.03", swav_step(many, crops), swav_step(few, crops))
    queue = recipe_of(batch, f"method.queue.length={3840 // batch * batch}")
    row("step, queue of 3840 v none", "<= 1.02", swav_step(queue, crops), swav)

    if arguments.json:
        arguments.json.write_text(json.dumps({"batch": batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
