"""Time the parts of a step on one replica, by running ever more of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median_high

import tensorflow as tf

from swav_tf.method.loss import swapped_prediction_loss
from swav_tf.method.swav import Crops, SwAV


@dataclass(frozen=True)
class Part:
    """A part of a step and its wall time in milliseconds, 0 if it is less than the noise."""

    name: str
    ms: float


@dataclass(frozen=True)
class Parts:
    """One replica's step while no other replica computes.

    Attributes:
        parts: in their order.
        step_ms: the complete step.
        launch_ms: time until the host has launched it; on a CPU nearly all of it.
    """

    parts: tuple[Part, ...]
    step_ms: float
    launch_ms: float


def measure_parts(model: SwAV, crops: Crops, rounds: int) -> Parts:
    """Time forward, codes and loss, backward and update; the model's weights change.

    Args:
        model: under no strategy.
        crops: what a replica computes at once, on its device.
        rounds: repetitions; the quickest counts.
    """
    step_function = tf.function(lambda: model.train_step(crops))
    launches: list[float] = []

    def step() -> None:
        begun = time.perf_counter()
        logs = step_function()
        launches.append(time.perf_counter() - begun)
        logs["loss"].numpy()  # waits for the device

    works = {**_beginnings(model, crops), "update": step}
    quickest(works, 1)  # traces the functions
    launches.clear()
    times = quickest(works, rounds)
    # Each work contains the one before; noise must not make a part negative.
    so_far, parts = 0.0, []
    for name, ms in times.items():
        parts.append(Part(name, max(0.0, ms - so_far)))
        so_far = max(so_far, ms)
    return Parts(tuple(parts), step_ms=times["update"], launch_ms=1000 * median_high(launches))


def _beginnings(model: SwAV, crops: Crops) -> dict[str, Callable[[], object]]:
    """Return functions that run a step up to a part, by the part's name."""

    def loss_of() -> tf.Tensor:
        projections, scores = model(crops, training=True)
        codes = model.codes(projections, scores)
        return swapped_prediction_loss(scores, codes, temperature=model.method.temperature)

    # Each function returns its complete result, of which one number is fetched: TensorFlow prunes the rest.
    @tf.function
    def features() -> tuple[tf.Tensor, tf.Tensor]:
        found = model.features_of_crops(crops, training=True)
        return found[0, 0], found

    @tf.function
    def scores() -> tuple[tf.Tensor, tf.Tensor]:
        found = model(crops, training=True)[1]
        return found[0, 0, 0], found

    @tf.function
    def loss() -> tuple[tf.Tensor]:
        return (loss_of(),)

    @tf.function
    def gradients() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            value = loss_of()
        variables = [variable.value for variable in model.trainable_variables]
        return value, tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return {
        "forward, backbone": lambda: features()[0].numpy(),
        "head and prototypes": lambda: scores()[0].numpy(),
        "Sinkhorn and loss": lambda: loss()[0].numpy(),
        "backward": lambda: gradients()[0].numpy(),
    }


def quickest(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least wall time of each in milliseconds; other processes can only add to it."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * min(values) for name, values in times.items()}
