"""Facts about this machine, and how busy it is."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from swav_tf.data.survey import visible_gpus
from swav_tf.plumbing.system import UNKNOWN, available_cores, cpu_field, cpu_flags, version_of
from swav_tf.recipe.section import Section

# Instruction sets that decide how fast a CPU multiplies.
CPU_FLAGS: Final = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
)  # fmt: skip
PACKAGES: Final = (
    "swav-tf", "numpy", "onnxruntime", "onnxruntime-gpu", "onnx", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx",
    "tensorflow", "keras",
)  # fmt: skip
# NVML's bits for a lower clock. Not listed: an idle GPU, and clocks chosen by its owner.
THROTTLING: Final = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown", 0x80: "power brake",
}  # fmt: skip


class Gpu(Section):
    """One NVIDIA GPU."""

    name: str
    driver: str  # its version
    memory_mib: float
    clock_mhz: float | None = None  # of its processors, now


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


# === Memory and CPU time ===


def memory_gib() -> float:
    """Return the memory of the machine, or of its container if that has less, in GiB."""
    sizes = [int(psutil.virtual_memory().total)]
    with contextlib.suppress(OSError, ValueError):  # not in a container, or in one without a limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return round(min(sizes) / 2**30, 1)


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


# === GPUs, by the driver's NVML ===


def no_gpu_reason() -> str | None:
    """Return why no NVIDIA GPU can be used here, None if one can."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return "NVIDIA GPUs cannot be queried here: nvidia-ml-py is not installed (pip install 'swav-tf[onnx-gpu]')"
    try:
        pynvml.nvmlInit()
        return None if pynvml.nvmlDeviceGetCount() else "no NVIDIA GPU here (NVML finds none)"
    except pynvml.NVMLError as error:
        return f"no NVIDIA GPU here (NVML: {error})"


def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs."""
    if no_gpu_reason() is not None:
        return ()
    import pynvml

    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    return tuple(
        Gpu(
            name=pynvml.nvmlDeviceGetName(handle),
            driver=pynvml.nvmlSystemGetDriverVersion(),
            memory_mib=pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**20,
            clock_mhz=_query("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM),
        )
        for handle in handles
    )


@dataclass(frozen=True)
class GpuState:
    """A GPU at this moment; None where it does not report a figure, or does not exist."""

    memory_mib: float | None = None  # memory in use by all processes
    clock_mhz: float | None = None  # clock of its processors
    throttling: str | None = None  # why it runs below its clock, None if it does not


def gpu_state() -> GpuState:
    """Return the state of the GPU that is measured, the first one that is visible."""
    if no_gpu_reason() is not None or not (visible := visible_gpus()):
        return GpuState()
    import pynvml

    name = visible[0]
    try:
        if name.isdecimal():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
    except pynvml.NVMLError:  # a shortened UUID, which CUDA understands
        return GpuState()
    memory = _query("nvmlDeviceGetMemoryInfo", handle)
    bits = _query("nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0
    return GpuState(
        None if memory is None else float(memory.used / 2**20),
        _query("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM),
        ", ".join(name for bit, name in THROTTLING.items() if bits & bit) or None,
    )


def _query(function: str, handle: Any, *arguments: Any) -> Any:
    """Call a function of NVML; None if this GPU or driver does not support it."""
    import pynvml

    try:
        return getattr(pynvml, function)(handle, *arguments)
    except pynvml.NVMLError:
        return None
