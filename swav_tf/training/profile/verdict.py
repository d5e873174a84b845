"""What bounds the loop, from its times. Pure arithmetic, no TensorFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Bound = Literal["input", "host", "device", "communication"]

WAITS = 0.10  # crops are made ahead of the step: a step that waits at all has used up what was ahead
LAUNCH_SHARE = 0.9  # the host takes this part of a GPU's step to start it: then the GPU waits for the host


@dataclass(frozen=True)
class Loop:
    """One optimiser step of the real loop, milliseconds.

    Attributes:
        loop_ms: all of it.
        wait_ms: of it, waiting for crops.
        step_ms: a step on crops that are there already.
        launch_ms: until the host has started a step on a GPU; None on a CPU, where host and device are one.
        communication_ms: of a step, what several replicas cost; 0 for one.
    """

    loop_ms: float
    wait_ms: float
    step_ms: float
    launch_ms: float | None
    communication_ms: float

    @property
    def input_ms(self) -> float:
        """What crops cost the loop: waiting for them, and on a CPU the cores that they take from the step."""
        if self.launch_ms is None:
            return max(self.wait_ms, self.loop_ms - self.step_ms, 0.0)
        return self.wait_ms

    @property
    def host_ms(self) -> float:
        """What neither waits nor computes on a GPU: Python, copies, and a step that is started too slowly."""
        if self.launch_ms is None:
            return 0.0
        between = max(0.0, self.loop_ms - self.wait_ms - self.step_ms)
        slow = self.launch_ms >= LAUNCH_SHARE * self.step_ms
        return between + (max(0.0, self.launch_ms - self.communication_ms) if slow else 0.0)

    @property
    def device_ms(self) -> float:
        """The rest: computing."""
        return max(0.0, self.loop_ms - self.input_ms - self.host_ms - self.communication_ms)


@dataclass(frozen=True)
class Verdict:
    """What bounds the loop, in one sentence with what to do."""

    bound: Bound
    share: float  # of the loop's time, 0 to 1
    sentence: str


@dataclass(frozen=True)
class Facts:
    """What a remedy depends on.

    Attributes:
        threads: that decode and crop.
        cores: that this process may use.
        cpu_ms_image: CPU time of one image's crops.
        step_images_per_second: of a step that never waits.
        on_gpu: devices are GPUs.
        replicas: devices.
        synchronised: batch statistics are over all replicas.
        accumulation_steps: parts of a batch.
        precision: of the recipe.
        processes: that decode and crop in place of threads; 0: none.
    """

    threads: int
    cores: int
    cpu_ms_image: float
    step_images_per_second: float
    on_gpu: bool
    replicas: int
    synchronised: bool
    accumulation_steps: int
    precision: str
    processes: int = 0


def verdict(loop: Loop, facts: Facts) -> Verdict:
    """The bound with the largest part of the time; the input as soon as the step waits for it."""
    parts: dict[Bound, float] = {
        "input": loop.input_ms,
        "host": loop.host_ms,
        "communication": loop.communication_ms,
        "device": loop.device_ms,
    }
    waits = loop.wait_ms >= WAITS * loop.loop_ms
    bound: Bound = "input" if waits else max(parts, key=lambda name: parts[name])
    share = min(1.0, parts[bound] / loop.loop_ms)
    return Verdict(bound, share, f"{bound} bound: {_sentence(bound, share, facts)}.")


def _sentence(bound: Bound, share: float, facts: Facts) -> str:
    percent = f"{100 * share:.0f} %"
    if bound == "input":
        return f"crops cost the step {percent} of its time; {_more_input(facts)}"
    if bound == "host":
        return (
            f"the GPU waits {percent} of the time to be told what to do; give it more at once: a larger "
            "train.batch_size or fewer train.accumulation_steps, and a faster processor core"
        )
    if bound == "communication":
        own = "model.batch_norm.synchronised=false, " if facts.synchronised else ""
        return (
            f"replicas exchange numbers {percent} of the time; {own}more images a replica, or a faster link"
        )
    remedy = "more or faster GPUs" if facts.on_gpu else "a GPU, or a smaller network and fewer crops"
    if facts.on_gpu and facts.precision == "float32":
        remedy = "train.precision=mixed_float16 (mixed_bfloat16 on A100 and later), then " + remedy
    elif facts.on_gpu and facts.accumulation_steps > 1:
        remedy = (
            "fewer train.accumulation_steps where memory allows (each image goes forward twice), then "
            + remedy
        )
    return f"the network computes {percent} of the time and nothing waits for crops; {remedy}"


def _more_input(facts: Facts) -> str:
    needed = math.ceil(facts.cpu_ms_image / 1000 * facts.step_images_per_second)
    smaller = "images that were made smaller beforehand, or fewer crops"
    if not facts.on_gpu:
        return f"input and network share {facts.cores} core(s): more cores, {smaller}"
    if facts.processes < facts.cores:
        now = f"{facts.processes} processes" if facts.processes else f"{facts.threads} threads of one process"
        return f"-o data.processes={facts.cores} (now {now}, about {needed} cores are needed), then {smaller}"
    return f"about {needed} cores would keep up, here are {facts.cores}: more cores, {smaller}"
