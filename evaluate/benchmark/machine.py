"""Facts about this machine, and how busy it is."""

from __future__ import annotations

import os
import platform
from typing import Final

import psutil

from swav_tf.plumbing.nvidia import Gpu, gpus
from swav_tf.plumbing.system import UNKNOWN, available_cores, cpu_field, cpu_flags, memory_gib, version_of
from swav_tf.recipe.section import Section

# Instruction sets that decide how fast a CPU multiplies.
CPU_FLAGS: Final = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
)  # fmt: skip
PACKAGES: Final = (
    "swav-tf", "numpy", "onnxruntime", "onnxruntime-gpu", "onnx", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx",
    "tensorflow", "keras",
)  # fmt: skip


class Machine(Section):
    """What speeds depend on in addition to the model."""

    cpu: str  # processor model
    cores: int  # logical ones, available to this process
    cpu_flags: tuple[str, ...]  # instruction sets that decide the speed of products
    cpu_clock_mhz: float | None  # now
    memory_gib: float  # of the machine or of its container
    gpus: tuple[Gpu, ...]
    system: str
    python: str  # its version
    versions: dict[str, str]  # of the relevant installed packages
    load: float  # average of the minute before the first cell


def describe_machine() -> Machine:
    """Return the facts about this machine."""
    flags, clock = cpu_flags(), psutil.cpu_freq()
    versions = {package: version_of(package) for package in PACKAGES}
    return Machine(
        cpu=cpu_field("model name") or platform.processor() or platform.machine(),
        cores=available_cores(),
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in flags),
        cpu_clock_mhz=None if clock is None else round(clock.current),
        memory_gib=memory_gib(),
        gpus=gpus(),
        system=platform.platform(),
        python=platform.python_version(),
        versions={package: version for package, version in versions.items() if version != UNKNOWN},
        load=round(float(psutil.getloadavg()[0]), 2),
    )


# === CPU time ===


def others_cpu_share(before: tuple[float, float, float]) -> float | None:
    """Return the share of all cores (0 to 1) used by other processes since `before`, a result of `cpu_seconds`."""
    total, busy, own = (now - then for now, then in zip(cpu_seconds(), before, strict=True))
    return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else None


def cpu_seconds() -> tuple[float, float, float]:
    """Return the seconds of all cores since boot: total, busy, and used by this process."""
    times = psutil.cpu_times()._asdict()
    total = sum(seconds for name, seconds in times.items() if not name.startswith("guest"))  # part of `user`
    own = sum(os.times()[:2])
    return total, total - times["idle"] - times.get("iowait", 0.0), own
