"""Profile a recipe on this machine: the input alone, a step alone, and the training loop."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf

from swav_tf.data.bad_images import BadImages
from swav_tf.data.image_source import ImageSource
from swav_tf.data.loader import ended_after, made_ahead, training_batches
from swav_tf.data.sources import open_source
from swav_tf.data.workers import cpu_seconds
from swav_tf.planning.estimate import IMAGENET_IMAGES, image_flops
from swav_tf.planning.network_cost import network_cost
from swav_tf.plumbing.errors import UsageError
from swav_tf.plumbing.log import log
from swav_tf.plumbing.system import available_cores, peak_memory
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.build import build_swav
from swav_tf.training.cluster import Topology, batches_on_devices, build_strategy, topology
from swav_tf.training.failures import explained_failures
from swav_tf.training.profile.inputs import RandomPhotos, fixed_parts
from swav_tf.training.profile.verdict import Loop, Verdict, verdict

SLOW_INPUT = 0.3  # an input that takes less of a step's time never makes the step wait


@dataclass(frozen=True)
class Timing:
    """Means over repetitions of the same work.

    Attributes:
        ms: wall time in milliseconds.
        cpu_ms: CPU time of all threads of this process and of its crop processes.
        spread: half the interquartile range, as a share of the median.
    """

    ms: float
    cpu_ms: float
    spread: float


@dataclass(frozen=True)
class Profile:
    """The measurements of a recipe.

    Attributes:
        recipe: its name.
        source: description of the images.
        images, steps: training images and optimizer steps of the complete recipe.
        devices, replicas: GPU or CPU, and how many.
        batch_size, accumulation_steps, precision: of the recipe.
        cores, threads, processes: available cores; threads that decode and crop; processes that do so instead.
        input_images_per_second, input_cpu_ms: rate of the input alone, CPU time per image.
        step: a step whose crops are on the devices already.
        loop: a step of the training loop.
        wait_ms, host_ms: time of the loop spent waiting for crops; time in which a GPU idles for other reasons.
        tflops: of all replicas, forward and backward; None for external networks.
        memory_mb: peak until the end of the loop, 10^6 bytes: on GPUs what TensorFlow took of the fullest, else of this
            process; None on a CPU without /proc.
        hours: time of all steps.
        load: average number of runnable processes during the minute before.
        verdict: what limits the loop.
    """

    recipe: str
    source: str
    images: int
    steps: int
    devices: str
    replicas: int
    batch_size: int
    accumulation_steps: int
    precision: str
    cores: int
    threads: int
    processes: int
    input_images_per_second: float
    input_cpu_ms: float
    step: Timing
    loop: Timing
    wait_ms: float
    host_ms: float
    tflops: float | None
    memory_mb: float | None
    hours: float
    load: float
    verdict: Verdict


def profile(recipe: Recipe, *, steps: int = 10, images: int | None = None) -> Profile:
    """Measure a recipe on this machine; nothing is written.

    Args:
        recipe: without images, random photographs replace them.
        steps: of each measurement, >= 2.
        images: number of random photographs; None for ImageNet's.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: out of memory.
    """
    if steps < 2:
        raise UsageError(f"A profile needs 2 steps or more. Received: {steps}.")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    recipe = _on_this_machine(recipe)
    source: ImageSource = (
        open_source(recipe.data)
        if recipe.data.path is not None or recipe.data.kind == "digits"
        else RandomPhotos(recipe, images or IMAGENET_IMAGES)
    )
    strategy, _ = build_strategy(recipe.train)
    team = topology(strategy)
    check_recipe(recipe, replicas=team.replicas, images=len(source), on_cpu=team.devices == "CPU")
    bad_images = BadImages(None, images=len(source), max_share=recipe.data.max_bad_share)
    share = recipe.train.batch_size // team.replicas // recipe.train.accumulation_steps
    steps_per_epoch = len(source) // recipe.train.batch_size
    batches = partial(
        training_batches,
        recipe,
        source,
        steps_per_epoch=steps_per_epoch,
        start_step=0,
        total_steps=steps_per_epoch * recipe.train.epochs,
        workers=1,
        worker=0,
        replica_batch_size=share,
        bad_images=bad_images,
    )
    with explained_failures(recipe.train, team):
        log.info("measuring the input alone ...")
        ahead = made_ahead(recipe.data, share)
        elements = team.replicas * recipe.train.accumulation_steps  # of a step
        fed = _drain(batches, skip=ahead + 1, elements=steps * elements)
        skip = -(-ahead // elements) + 1  # steps that use up what was made ahead
        step, loop, wait_ms = _time_steps(
            recipe, strategy, batches, steps, skip=skip, input_ms=fed.ms * elements
        )
    return _assemble(recipe, source, team, fed, step, loop, wait_ms, load)


def _assemble(
    recipe: Recipe,
    source: ImageSource,
    team: Topology,
    fed: Timing,
    step: Timing,
    loop: Timing,
    wait_ms: float,
    load: float,
) -> Profile:
    train, cores = recipe.train, available_cores()
    share = train.batch_size // team.replicas // train.accumulation_steps
    times = Loop(loop_ms=loop.ms, wait_ms=wait_ms, step_ms=step.ms, on_gpu=team.devices == "GPU")
    cpu_ms_image, total_steps = fed.cpu_ms / share, len(source) // train.batch_size * train.epochs
    return Profile(
        recipe=recipe.name,
        source=str(source) if isinstance(source, RandomPhotos) else recipe.data.path or "the bundled digits",
        images=len(source),
        steps=total_steps,
        devices=team.devices,
        replicas=team.replicas,
        batch_size=train.batch_size,
        accumulation_steps=train.accumulation_steps,
        precision=train.precision,
        cores=cores,
        threads=recipe.data.threads or cores,
        processes=recipe.data.processes,
        input_images_per_second=1000 * share / fed.ms,
        input_cpu_ms=cpu_ms_image,
        step=step,
        loop=loop,
        wait_ms=wait_ms,
        host_ms=times.host_ms,
        tflops=_tflops(recipe, loop.ms),
        memory_mb=_peak_memory_mb(team),
        hours=total_steps * loop.ms / 3.6e6,
        load=load,
        verdict=verdict(times, recipe, cores=cores, cpu_ms_image=cpu_ms_image, replicas=team.replicas),
    )


def _on_this_machine(recipe: Recipe) -> Recipe:
    """Return the recipe for this machine's devices alone."""
    if os.environ.get("TF_CONFIG") or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UsageError(
            "A profile covers one machine. TF_CONFIG or a SLURM job of several tasks describes more: run it "
            "without them (env -u TF_CONFIG swav-tf profile ..., or srun --ntasks=1)."
        )
    if recipe.train.strategy != "multi_worker":
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"strategy": "auto"})})


def _drain(batches: Callable[[], tf.data.Dataset], *, skip: int, elements: int) -> Timing:
    """Time the elements of the input as fast as they come, after `skip` of them."""
    with ended_after():
        iterator = iter(batches())
        for _ in range(skip):
            next(iterator)
        return timed(lambda: next(iterator), elements)


def _time_steps(
    recipe: Recipe,
    strategy: tf.distribute.Strategy,
    batches: Callable[[], tf.data.Dataset],
    steps: int,
    *,
    skip: int,
    input_ms: float,
) -> tuple[Timing, Timing, float]:
    """Return the times of a step alone and of a step of the loop, and the loop's waiting per step in ms."""
    log.info("measuring a step alone ...")
    with strategy.scope():
        model = build_swav(recipe)
    step, endless = model.make_train_function(), itertools.cycle(fixed_parts(recipe, strategy))
    timed(lambda: step(endless), 2)  # traces it
    alone = timed(lambda: step(endless), steps)

    log.info("measuring the training loop ...")
    with ended_after():
        iterator = _Waiting(iter(batches_on_devices(strategy, batches)))
        # What was made ahead must be used up first, if the input is slow enough to matter.
        for _ in range(skip if input_ms > SLOW_INPUT * alone.ms else 1):
            step(iterator)
        iterator.seconds = 0.0
        loop = timed(lambda: step(iterator), steps)
    model.batches_in_use = None
    return alone, loop, 1000 * iterator.seconds / steps


def _peak_memory_mb(team: Topology) -> float | None:
    if team.devices == "GPU":
        gpus = range(len(tf.config.list_logical_devices("GPU")))
        return max(tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i in gpus) / 1e6
    peak = peak_memory()
    return None if peak is None else peak / 1e6


class _Waiting:
    """An iterator that adds up the time spent waiting for its elements."""

    def __init__(self, elements: Iterator[Any]) -> None:
        self.elements, self.seconds = elements, 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        element = next(self.elements)
        self.seconds += time.perf_counter() - start
        return element


def timed(work: Callable[[], object], times: int) -> Timing:
    """Run `work` so many times, >= 1."""
    walls, cpu = [], cpu_seconds()
    for _ in range(times):
        start = time.perf_counter()
        work()
        walls.append(time.perf_counter() - start)
    return timing_of(walls, cpu_seconds() - cpu)


def timing_of(walls: list[float], cpu: float) -> Timing:
    """Return the means of single wall times and of their total CPU time, both in seconds."""
    low, median, high = statistics.quantiles(walls, n=4) if len(walls) > 1 else [walls[0]] * 3
    return Timing(
        ms=1000 * statistics.fmean(walls), cpu_ms=1000 * cpu / len(walls), spread=(high - low) / 2 / median
    )


def _tflops(recipe: Recipe, loop_ms: float) -> float | None:
    """Return TFLOP/s of forward and backward in the loop, with the second forward pass of parts."""
    try:
        return image_flops(recipe, network_cost(recipe)) * recipe.train.batch_size / loop_ms / 1e9
    except UsageError:
        return None
