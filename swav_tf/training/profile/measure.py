"""The profile of a recipe on this machine, from input alone to the whole loop."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from rich.console import Console

from swav_tf.data.bad_images import BadImages
from swav_tf.data.loader import ended_after, made_ahead, training_batches
from swav_tf.data.sources import ImageSource, open_source
from swav_tf.data.workers import cpu_seconds
from swav_tf.method.swav import SwAV
from swav_tf.planning.estimate import IMAGENET_IMAGES
from swav_tf.planning.network_cost import network_cost
from swav_tf.plumbing.errors import SwavError, UsageError
from swav_tf.plumbing.system import available_cores
from swav_tf.recipe.advice import check_recipe
from swav_tf.recipe.pretraining import Recipe
from swav_tf.training.build import build_swav
from swav_tf.training.cluster import Topology, batches_on_devices, build_strategy, topology
from swav_tf.training.job import failures_explained
from swav_tf.training.profile.exchange import Exchange, count_exchange
from swav_tf.training.profile.fixed_crops import fixed_parts, share_of_one
from swav_tf.training.profile.largest_batch import LargestBatch, find_largest_batch
from swav_tf.training.profile.memory import Peak, measure_peak
from swav_tf.training.profile.parts import Part, measure_parts
from swav_tf.training.profile.timing import RandomPhotos, Timing, Waited, timed, timing_of
from swav_tf.training.profile.verdict import Facts, Loop, Verdict, verdict

PART_ROUNDS = 10
MATTERS = 0.3  # an input that takes less of a step's time is never waited for


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Attributes:
        recipe: its name.
        source: the images, in words.
        images: training images; steps: of the whole recipe.
        devices: GPU or CPU; replicas: of them.
        batch_size, accumulation_steps, precision: of the recipe.
        cores, threads: that this process may use; that decode and crop.
        processes: that do so in place of threads; 0: none.
        input_images_per_second, input_cpu_ms: of the pipeline alone; CPU time of an image.
        step: on crops that are on the devices already.
        loop: one step of the real loop; wait_ms: of it, waiting for crops.
        host_ms: of the loop, when a GPU neither waits for crops nor computes.
        parts, part_images: of one replica's step of so many images.
        exchange, communication_ms: what replicas exchange; what that costs, None where it cannot be told.
        tflops: of all replicas, forward and backward; None for networks of others.
        memory, largest_batch: None where they were not asked for.
        hours: of all steps.
        load: processes that wanted to run in the minute before.
        verdict: what bounds it.
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
    input_images_per_second: float
    input_cpu_ms: float
    step: Timing
    loop: Timing
    wait_ms: float
    host_ms: float
    parts: tuple[Part, ...]
    part_images: int
    exchange: Exchange | None
    communication_ms: float | None
    tflops: float | None
    memory: Peak | None
    largest_batch: LargestBatch | None
    hours: float
    load: float
    verdict: Verdict
    processes: int


def profile(
    recipe: Recipe,
    *,
    steps: int = 10,
    images: int | None = None,
    memory: bool = True,
    find_batch: bool = False,
    quiet: bool = False,
) -> Profile:
    """Measures a recipe on this machine; writes nothing.

    Args:
        recipe: with its images, or without: then random photographs stand for them.
        steps: of each measurement, >= 2.
        images: that random photographs stand for; None: as many as ImageNet has.
        memory: measure it too, in a process of its own.
        find_batch: look for the largest batch that fits, in processes of their own (minutes).
        quiet: say nothing meanwhile.

    Raises:
        RecipeError, DataError, UsageError: before anything is built.
        SwavError: out of memory.
    """
    if steps < 2:
        raise UsageError(f"A profile needs 2 steps or more. Received: {steps}.")
    console = Console(stderr=True, quiet=quiet, highlight=False)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    recipe = _for_this_machine(recipe)
    source, described = _images(recipe, images or IMAGENET_IMAGES)
    # Before this process takes a GPU for itself.
    peak, largest = _memory(recipe, console, find_batch=find_batch) if memory or find_batch else (None, None)

    strategy = build_strategy(recipe.train)
    team = topology(strategy)
    check_recipe(recipe, replicas=team.replicas, images=len(source), on_cpu=team.devices == "CPU")
    bad_images = BadImages(None, images=len(source), max_share=recipe.data.max_bad_share)
    batch_size, parts = recipe.train.batch_size, recipe.train.accumulation_steps
    steps_per_epoch = len(source) // batch_size

    def batches() -> tf.data.Dataset:
        return training_batches(
            recipe,
            source,
            steps_per_epoch=steps_per_epoch,
            start_step=0,
            total_steps=steps_per_epoch * recipe.train.epochs,
            workers=1,
            worker=0,
            replica_batch_size=batch_size // team.replicas // parts,
            bad_images=bad_images,
        )

    with failures_explained(recipe.train, team.replicas, bad_images):
        console.print("input alone ...")
        ahead = made_ahead(recipe.data, batch_size // team.replicas // parts)
        elements = steps * team.replicas * parts
        fed = _drain(batches, skip=ahead + 1, elements=elements)
        image_ms = fed.ms * elements / steps / batch_size

        alone, loop, wait_ms, exchange = _real_steps(
            recipe,
            strategy,
            batches,
            steps=steps,
            ahead=ahead,
            input_ms=image_ms * batch_size,
            console=console,
        )

        console.print("parts of a step ...")
        one = share_of_one(recipe, team.replicas)
        [crops] = fixed_parts(one, tf.distribute.get_strategy())
        measured = measure_parts(build_swav(one), crops, rounds=min(steps, PART_ROUNDS))

    on_gpu = team.devices == "GPU"
    communication_ms = _communication_ms(alone.ms, measured.step_ms, team) if parts == 1 else None
    times = Loop(
        loop_ms=loop.ms,
        wait_ms=wait_ms,
        step_ms=alone.ms,
        launch_ms=parts * measured.launch_ms if on_gpu else None,
        communication_ms=communication_ms or 0.0,
    )
    input_cpu_ms = fed.cpu_ms * elements / steps / batch_size
    threads, cores = recipe.data.threads or available_cores(), available_cores()
    facts = Facts(
        threads=threads,
        cores=cores,
        cpu_ms_image=input_cpu_ms,
        step_images_per_second=1000 * batch_size / alone.ms,
        on_gpu=on_gpu,
        replicas=team.replicas,
        synchronised=recipe.model.batch_norm.synchronised,
        accumulation_steps=parts,
        precision=recipe.train.precision,
        processes=recipe.data.processes,
    )
    total_steps = steps_per_epoch * recipe.train.epochs
    return Profile(
        recipe=recipe.name,
        source=described,
        images=len(source),
        steps=total_steps,
        devices=team.devices,
        replicas=team.replicas,
        batch_size=batch_size,
        accumulation_steps=parts,
        precision=recipe.train.precision,
        cores=cores,
        threads=threads,
        input_images_per_second=1000 / image_ms,
        input_cpu_ms=input_cpu_ms,
        step=alone,
        loop=loop,
        wait_ms=wait_ms,
        host_ms=times.host_ms,
        parts=measured.parts,
        part_images=one.train.batch_size,
        exchange=exchange,
        communication_ms=communication_ms,
        tflops=_tflops(recipe, loop.ms),
        memory=peak,
        largest_batch=largest,
        hours=total_steps * loop.ms / 3.6e6,
        load=load,
        verdict=verdict(times, facts),
        processes=recipe.data.processes,
    )


def _images(recipe: Recipe, count: int) -> tuple[ImageSource, str]:
    """The recipe's images and what they are in words; random photographs where it names none."""
    if recipe.data.path is not None or recipe.data.kind == "digits":
        return open_source(recipe.data), recipe.data.path or "the bundled digits"
    photos = RandomPhotos(recipe, count)
    return photos, str(photos)


def _memory(recipe: Recipe, console: Console, *, find_batch: bool) -> tuple[Peak, LargestBatch | None]:
    """What the recipe takes, and the largest batch if it is asked for.

    Raises:
        SwavError: the recipe does not fit.
    """
    console.print("memory ...")
    peak = measure_peak(recipe)
    largest = None
    if find_batch:
        largest = find_largest_batch(recipe, peak, tell=lambda text: console.print(text))
    if not peak.fits:
        found = (
            f"at most {largest.images} images fit a device at once"
            if largest
            else "--find-batch finds what does"
        )
        raise SwavError(
            f"A batch of {recipe.train.batch_size} in {recipe.train.accumulation_steps} part(s) over {peak.replicas} "
            f"replica(s) does not fit the memory; {found}. Remedies: more train.accumulation_steps, a smaller "
            "train.batch_size, train.precision=mixed_float16 on a GPU."
        )
    return peak, largest


def _communication_ms(step_ms: float, alone_ms: float, team: Topology) -> float:
    """What a step of all replicas takes beyond one replica's, alone."""
    if team.replicas == 1:
        return 0.0
    # Replicas on one CPU share its cores: their computing comes one after the other.
    return max(0.0, step_ms - (alone_ms if team.devices == "GPU" else team.replicas * alone_ms))


def _for_this_machine(recipe: Recipe) -> Recipe:
    """The recipe on this machine's devices alone."""
    if os.environ.get("TF_CONFIG") or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UsageError(
            "A profile is of one machine. TF_CONFIG or a SLURM job of several tasks describes more: start it "
            "outside of that (env -u TF_CONFIG swav-tf profile ..., or srun --ntasks=1)."
        )
    if recipe.train.strategy != "multi_worker":
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"strategy": "auto"})})


def _drain(batches: Callable[[], tf.data.Dataset], *, skip: int, elements: int) -> Timing:
    """Takes elements out of the pipeline as fast as they come, after `skip` of them."""
    with ended_after():
        iterator = iter(batches())
        for _ in range(skip):
            next(iterator)
        return timed(lambda: next(iterator), elements)


def _real_steps(
    recipe: Recipe,
    strategy: tf.distribute.Strategy,
    batches: Callable[[], tf.data.Dataset],
    *,
    steps: int,
    ahead: int,
    input_ms: float,
    console: Console,
) -> tuple[Timing, Timing, float, Exchange | None]:
    """The step alone, the loop, the loop's waiting (ms), and what replicas exchange. The model goes with it."""
    console.print("step alone ...")
    with strategy.scope():
        model = build_swav(recipe)
    fixed = fixed_parts(recipe, strategy)
    step = model.make_train_function()
    endless = itertools.cycle(fixed)
    timed(lambda: step(endless), 2)  # traces it
    alone = timed(lambda: step(endless), steps)

    console.print("loop ...")
    # What was made ahead while nobody asked must be used up first, where it counts.
    used_up = -(-ahead // (strategy.num_replicas_in_sync * len(fixed))) + 1
    loop, wait_ms = _loop(
        strategy, step, model, batches, skip=used_up if input_ms > MATTERS * alone.ms else 1, steps=steps
    )
    exchange = None
    if strategy.num_replicas_in_sync > 1:
        console.print("communication ...")
        exchange = count_exchange(model, fixed, tf.constant(model.wishes))
    return alone, loop, wait_ms, exchange


def _loop(
    strategy: tf.distribute.Strategy,
    step: Callable[[Iterator[Any]], Any],
    model: SwAV,
    batches: Callable[[], tf.data.Dataset],
    *,
    skip: int,
    steps: int,
) -> tuple[Timing, float]:
    """Steps as `fit` makes them, without callbacks; and the time of one that was spent waiting for crops, ms."""
    with ended_after():
        iterator = Waited(iter(batches_on_devices(strategy, batches)))
        for _ in range(skip):
            step(iterator)
        iterator.seconds = 0.0
        walls, cpu = [], cpu_seconds()
        for _ in range(steps):
            start = time.perf_counter()
            step(iterator)
            walls.append(time.perf_counter() - start)
        found = timing_of(walls, cpu_seconds() - cpu), 1000 * iterator.seconds / steps
    model.batches_in_use = None
    return found


def _tflops(recipe: Recipe, loop_ms: float) -> float | None:
    """Of forward and backward in the loop; a second look at the images is not counted."""
    try:
        return network_cost(recipe).step_flops * recipe.train.batch_size / loop_ms / 1e9
    except UsageError:
        return None
