"""Decide what limits the training loop, from measured times. No TensorFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from swav_tf.plumbing.names import counted
from swav_tf.recipe.data import Data
from swav_tf.recipe.pretraining import Recipe, Train

Bound = Literal["input", "host", "device"]

WAITING_SHARE = 0.10  # crops are made ahead of the step, so steady waiting means that the input is too slow


@dataclass(frozen=True)
class Loop:
    """One optimizer step of the training loop."""

    loop_ms: float  # the complete step
    wait_ms: float  # of it, spent waiting for crops
    step_ms: float  # a step whose crops are on the device already
    on_gpu: bool  # the step computes on GPUs, not on the cores that make crops

    @property
    def input_ms(self) -> float:
        """Return what crops cost: waiting, and on a CPU the cores that they take from the step."""
        return self.wait_ms if self.on_gpu else max(self.wait_ms, self.loop_ms - self.step_ms, 0.0)

    @property
    def host_ms(self) -> float:
        """Return the time in which a GPU idles although crops are ready: Python and copies."""
        return max(0.0, self.loop_ms - self.wait_ms - self.step_ms) if self.on_gpu else 0.0

    @property
    def device_ms(self) -> float:
        """Return the remaining time: the network's, with the communication of replicas."""
        return max(0.0, self.loop_ms - self.input_ms - self.host_ms)


@dataclass(frozen=True)
class Verdict:
    """What limits the loop, its share of the time (0 to 1), and a sentence with advice."""

    bound: Bound
    share: float
    sentence: str


def verdict(loop: Loop, recipe: Recipe, *, cores: int, cpu_ms_image: float, replicas: int) -> Verdict:
    """Return the largest part of the loop, or the input if the step waits for it.

    `cores` are available to this process; crops of an image take `cpu_ms_image` of CPU time.
    """
    parts: dict[Bound, float] = {"input": loop.input_ms, "host": loop.host_ms, "device": loop.device_ms}
    waits = loop.wait_ms >= WAITING_SHARE * loop.loop_ms
    bound: Bound = "input" if waits else max(parts, key=lambda name: parts[name])
    share = min(1.0, parts[bound] / loop.loop_ms)
    percent = f"{100 * share:.0f} %"
    if bound == "input":
        needed = math.ceil(cpu_ms_image * recipe.train.batch_size / loop.step_ms)
        faster = _faster_input(recipe.data, cores, needed, loop.on_gpu)
        text = f"the step spends {percent} of its time on crops. {faster}"
    elif bound == "host":
        text = (
            f"the GPU waits for the host {percent} of the time. Give it more work per launch (a larger "
            "train.batch_size or fewer train.accumulation_steps), or use a faster processor core"
        )
    else:
        advice = (
            _faster_network(recipe.train) if loop.on_gpu else "a GPU, or a smaller network and fewer crops"
        )
        what = "the network computes for"
        if replicas > 1:
            what = "the replicas compute and communicate (`swav-tf plan` estimates how much) for"
        text = f"{what} {percent} of the time; crops arrive in time. Use {advice}"
    return Verdict(bound, share, f"{bound.capitalize()}-bound: {text}.")


def _faster_input(data: Data, cores: int, needed: int, on_gpu: bool) -> str:
    smaller = "images resized beforehand, or fewer crops"
    if not on_gpu:
        return f"Input and network share {counted(cores, 'core')}. Use more cores, {smaller}"
    if data.processes < cores:
        threads = f"{data.threads or cores} threads of one process"
        now = f"{data.processes} processes" if data.processes else threads
        return f"Use -o data.processes={cores} (now {now}; about {needed} cores are needed), then {smaller}"
    return f"About {needed} cores are needed and {cores} are available. Use more cores, {smaller}"


def _faster_network(train: Train) -> str:
    gpus = "more or faster GPUs"
    if train.precision == "float32":
        return f"train.precision=mixed_float16 (mixed_bfloat16 on A100 and later), then {gpus}"
    if train.accumulation_steps > 1:
        each = "each image passes forward twice"
        return f"fewer train.accumulation_steps if memory allows ({each}), then {gpus}"
    return gpus
