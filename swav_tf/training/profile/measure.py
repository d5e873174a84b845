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

import cv2
import numpy as np
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
from swav_tf.training.profile.verdict import Loop, Verdict, verdict
from swav_tf.training.rendezvous import described_workers

WIDTH, HEIGHT = 500, 375  # of a typical ImageNet file
QUALITY, GRAIN = 92, 22.5  # give files of about 110 KB, as ImageNet's
DIFFERENT = 8
SLOW_INPUT = 0.3  # an input that takes less of a step's time never makes the step wait


@dataclass(frozen=True)
class Timing:
    """Means over repetitions of the same work."""

    ms: float  # wall time
    cpu_ms: float  # of all threads of this process and of its crop processes
    spread: float  # half the interquartile range, as a share of the median


@dataclass(frozen=True)
class Profile:
    """The measurements of a recipe; its fields are the keys of the command's JSON."""

    recipe: str  # its name
    source: str  # description of the images
    images: int
    steps: int  # of the complete recipe
    devices: str  # GPU or CPU
    replicas: int
    batch_size: int
    accumulation_steps: int
    precision: str
    cores: int  # available
    threads: int  # that decode and crop
    processes: int  # that do so instead
    input_images_per_second: float  # of the input alone
    input_cpu_ms: float  # per image
    step: Timing  # whose crops are on the devices already
    loop: Timing  # a step of the training loop
    wait_ms: float  # of the loop, spent waiting for crops
    host_ms: float  # of the loop, in which a GPU idles for other reasons
    tflops: float | None  # of all replicas, forward and backward; None for external networks
    # Peak until the end of the loop, 10^6 bytes: what TensorFlow took of the fullest GPU, without any of this process;
    # None without /proc.
    memory_mb: float | None
    hours: float  # of all steps
    load: float  # average number of runnable processes during the minute before
    verdict: Verdict  # what limits the loop


def profile(recipe: Recipe, *, steps: int) -> Profile:
    """Measure a recipe on this machine; nothing is written.

    Args:
        recipe: without images, random photographs replace them.
        steps: of each measurement, >= 2.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: out of memory.
    """
    load = os.getloadavg()[0]
    recipe = _on_this_machine(recipe)
    source: ImageSource = (
        open_source(recipe.data)
        if recipe.data.path is not None or recipe.data.kind == "digits"
        else RandomPhotos(recipe)
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
        total_steps=2**31,  # never runs out, however short the recipe's training is
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
    if described_workers(os.environ) > 1:
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
        waits: list[float] = []
        iterator = _timed_waits(iter(batches_on_devices(strategy, batches)), waits)
        # What was made ahead must be used up first, if the input is slow enough to matter.
        for _ in range(skip if input_ms > SLOW_INPUT * alone.ms else 1):
            step(iterator)
        waits.clear()
        loop = timed(lambda: step(iterator), steps)
    model.batches_in_use = None
    return alone, loop, 1000 * sum(waits) / steps


def _peak_memory_mb(team: Topology) -> float | None:
    if team.devices == "GPU":
        gpus = range(len(tf.config.list_logical_devices("GPU")))
        return max(tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"] for i in gpus) / 1e6
    peak = peak_memory()
    return None if peak is None else peak / 1e6


def _timed_waits(elements: Iterator[Any], seconds: list[float]) -> Iterator[Any]:
    """Yield the elements, and append the time spent waiting for each."""
    while True:
        start = time.perf_counter()
        element = next(elements)
        seconds.append(time.perf_counter() - start)
        yield element


def timed(work: Callable[[], object], times: int) -> Timing:
    """Run `work` so many times, >= 2."""
    walls, cpu = [], cpu_seconds()
    for _ in range(times):
        start = time.perf_counter()
        work()
        walls.append(time.perf_counter() - start)
    return timing_of(walls, cpu_seconds() - cpu)


def timing_of(walls: list[float], cpu: float) -> Timing:
    """Return the means of two or more wall times and of their total CPU time, both in seconds."""
    low, median, high = statistics.quantiles(walls, n=4)
    return Timing(
        ms=1000 * statistics.fmean(walls), cpu_ms=1000 * cpu / len(walls), spread=(high - low) / 2 / median
    )


def _tflops(recipe: Recipe, loop_ms: float) -> float | None:
    """Return TFLOP/s of forward and backward in the loop, with the second forward pass of parts."""
    try:
        return image_flops(recipe, network_cost(recipe)) * recipe.train.batch_size / loop_ms / 1e9
    except UsageError:
        return None


# === What is measured: random photographs, and crops that stay on the devices ===


class RandomPhotos(ImageSource):
    """As many JPEG files as ImageNet has, in memory; only DIFFERENT of them exist.

    For crops of 224 pixels they have ImageNet's typical size; for others it is in proportion to the largest crop.
    """

    def __init__(self, recipe: Recipe) -> None:
        scale = max(group.size for group in recipe.crops) / 224
        self.width, self.height = max(16, round(WIDTH * scale)), max(16, round(HEIGHT * scale))
        generator = np.random.default_rng(0)
        self._files = [_photo(generator, self.width, self.height) for _ in range(DIFFERENT)]

    def __len__(self) -> int:
        return IMAGENET_IMAGES

    def read(self, index: int) -> bytes:
        """Return one of the files."""
        return self._files[index % DIFFERENT]

    def image_name(self, index: int) -> str:
        """Return a name that contains the index."""
        return f"random/{index}"

    def __str__(self) -> str:
        kilobytes = sum(map(len, self._files)) / DIFFERENT / 1000
        return f"random JPEGs of {self.width} x {self.height} px and {kilobytes:.0f} KB, in memory"


def _photo(generator: np.random.Generator, width: int, height: int) -> bytes:
    colors = generator.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    soft = cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = GRAIN * generator.normal(size=(height, width, 1))
    pixels = np.clip(soft + grain, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def fixed_parts(recipe: Recipe, strategy: tf.distribute.Strategy) -> list[tuple[Any, ...]]:
    """Return a random batch as the training function takes it: per part, each replica's crops on its device."""
    replicas, parts = strategy.num_replicas_in_sync, recipe.train.accumulation_steps
    size = recipe.train.batch_size // replicas // parts
    generator = np.random.default_rng(0)

    def crops(count: int, side: int) -> Any:
        array = generator.integers(0, 256, (size, count, side, side, 3), dtype=np.uint8)
        if replicas == 1:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(lambda _: tf.constant(array))

    # Equal parts cost as much as different ones and need less memory.
    return [tuple(crops(group.count, group.size) for group in recipe.crops)] * parts
