"""The parts of a step on one replica, by timing ever more of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from swav_tf.method.loss import swapped_prediction_loss
from swav_tf.method.swav import Crops, SwAV
from swav_tf.training.profile.timing import in_turn


@dataclass(frozen=True)
class Part:
    """A part of a step and its wall time, milliseconds."""

    name: str
    ms: float


@dataclass(frozen=True)
class Parts:
    """One replica's step, no other replica taking part.

    Attributes:
        parts: in their order; they add up to the step.
        step_ms: the whole step.
        launch_ms: until the host has started it and goes on; on a CPU nearly all of it.
        cpu_ms: CPU time of the step, all threads.
    """

    parts: tuple[Part, ...]
    step_ms: float
    launch_ms: float
    cpu_ms: float


def measure_parts(model: SwAV, crops: Crops, rounds: int) -> Parts:
    """Times forward, codes and loss, backward, update.

    Args:
        model: under no strategy; its weights change.
        crops: of what a replica computes at once, on its device.
        rounds: how often, >= 1.
    """
    temperature = model.method.temperature

    def loss_of() -> tf.Tensor:
        projections, scores = model(crops, training=True)
        codes = model.codes(projections, scores)
        return swapped_prediction_loss(scores, codes, temperature=temperature)

    # What a function computes is returned whole, and one number of it fetched: of what nobody takes,
    # not even by a control dependency, TensorFlow leaves out what it can.
    @tf.function
    def features() -> tuple[tf.Tensor, tf.Tensor]:
        found = model.features_of_crops(crops, training=True)
        return found[0, 0], found

    @tf.function
    def scores() -> tuple[tf.Tensor, tf.Tensor]:
        found = model(crops, training=True)[1]
        return found[0, 0, 0], found

    @tf.function
    def loss() -> tf.Tensor:
        return loss_of()

    @tf.function
    def gradients() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            value = loss_of()
        variables = [variable.value for variable in model.trainable_variables]
        return value, tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    step_function = tf.function(lambda: model.train_step(crops))
    launches: list[float] = []
    cpu: list[float] = []

    def step() -> None:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        logs = step_function()
        launches.append(time.perf_counter() - begun)
        logs["loss"].numpy()  # waits for the device
        cpu.append(time.process_time() - cpu_begun)

    works: dict[str, Callable[[], object]] = {
        "features": lambda: features()[0].numpy(),
        "scores": lambda: scores()[0].numpy(),
        "loss": lambda: loss().numpy(),
        "gradients": lambda: gradients()[0].numpy(),
        "step": step,
    }
    in_turn(works, 1)  # traces them
    launches.clear()
    cpu.clear()
    times = in_turn(works, rounds)
    names = ("forward, backbone", "head and prototypes", "Sinkhorn and loss", "backward", "update")
    # Each work is the one before and one thing more; noise must not make a part negative.
    so_far, parts = 0.0, []
    for name, ms in zip(names, times.values(), strict=True):
        parts.append(Part(name, max(0.0, ms - so_far)))
        so_far = max(so_far, ms)
    return Parts(
        parts=tuple(parts),
        step_ms=times["step"],
        launch_ms=1000 * sorted(launches)[len(launches) // 2],
        cpu_ms=1000 * sorted(cpu)[len(cpu) // 2],
    )
