"""NVIDIA GPUs, as NVML, the library of their driver, sees them: without TensorFlow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_NO_PACKAGE: Final = (
    "NVIDIA GPUs cannot be queried here: nvidia-ml-py is not installed (pip install 'swav-tf[onnx-gpu]')"
)
# NVML's bits for a lower clock. Not listed: an idle GPU, and clocks chosen by its owner.
THROTTLING: Final = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown", 0x80: "power brake",
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    driver: str  # its version
    memory_mib: float | None  # None where it shares the machine's
    clock_mhz: float | None = None  # of its processors, now
    capability: int | None = None  # major number of its compute capability


@dataclass(frozen=True)
class GpuState:
    """A GPU at this moment; None where it does not report a figure, or does not exist."""

    memory_mib: float | None = None  # memory in use by all processes
    clock_mhz: float | None = None  # clock of its processors
    throttling: str | None = None  # why it runs below its clock, None if it does not


def no_gpu_reason() -> str | None:
    """Return why no GPU can be used here, None if one can."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return _NO_PACKAGE
    try:
        pynvml.nvmlInit()
        return None if pynvml.nvmlDeviceGetCount() else "no NVIDIA GPU here (NVML finds none)"
    except pynvml.NVMLError as error:
        return f"no NVIDIA GPU here (NVML: {error})"


def gpus() -> tuple[Gpu, ...]:
    """Return all GPUs of this machine, whatever CUDA_VISIBLE_DEVICES says."""
    if no_gpu_reason() is not None:
        return ()
    import pynvml

    found, driver = [], _query("nvmlSystemGetDriverVersion")
    for number in range(pynvml.nvmlDeviceGetCount()):
        handle = _query("nvmlDeviceGetHandleByIndex", number)
        memory, capability = (
            _query(name, handle) for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability")
        )
        found.append(
            Gpu(
                name=_query("nvmlDeviceGetName", handle) or "unknown",
                driver=driver or "unknown",
                memory_mib=None if memory is None else memory.total / 2**20,
                clock_mhz=_query("nvmlDeviceGetClockInfo", handle, pynvml.NVML_CLOCK_SM),
                capability=None if capability is None else capability[0],
            )
        )
    return tuple(found)


def lacks_package() -> bool:
    """Return whether the driver of a GPU is here, but not the package that asks it."""
    return Path("/dev/nvidia0").exists() and no_gpu_reason() == _NO_PACKAGE


def visible_gpus() -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES gives to GPUs, by default the numbers of all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(len(gpus()) or int(lacks_package()))]
    return [name for name in visible.split(",") if name not in ("", "-1")]


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


def _query(function: str, *arguments: Any) -> Any:
    """Call a function of NVML; None if this GPU or driver does not support it."""
    import pynvml

    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError:
        return None
