"""What this machine is and how busy it is."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

from pydantic import Field

from swav_tf.plumbing.system import available_cores, cpu_field, cpu_flags
from swav_tf.recipe.pretraining import Section

# Throttling that is no throttling: a GPU that rests, or clocks that its owner has set.
HARMLESS_REASONS: Final = 0x1 | 0x2 | 0x100
SMI_SECONDS: Final = 20


class Gpu(Section):
    """One NVIDIA GPU, by nvidia-smi."""

    name: str = Field(description="its name")
    driver: str = Field(description="version of the driver")
    memory_mib: float = Field(description="its memory, MiB")
    clock_mhz: float | None = Field(None, description="clock of its processors when it was looked at, MHz")
    max_clock_mhz: float | None = Field(None, description="the greatest clock that it has, MHz")
    power_limit_w: float | None = Field(None, description="power that it may take, watts")


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs; none where there is no driver."""
    rows = _smi("name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit")
    return tuple(
        Gpu(
            name=name,
            driver=driver,
            memory_mib=_number(memory) or 0.0,
            clock_mhz=_number(clock),
            max_clock_mhz=_number(max_clock),
            power_limit_w=_number(power),
        )
        for name, driver, memory, clock, max_clock, power in rows
    )


def no_gpu_because() -> str | None:
    """Why there is no NVIDIA GPU here; None if there is one."""
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA GPU here (there is no nvidia-smi)"
    return None if _smi("name") else "no NVIDIA GPU here (nvidia-smi shows none)"


def gpu_memory_mib() -> float | None:
    """Memory in use on the first GPU, by all processes, MiB."""
    rows = _smi("memory.used")
    return _number(rows[0][0]) if rows else None


def gpu_clock_mhz() -> float | None:
    """Clock of the first GPU's processors now, MHz."""
    rows = _smi("clocks.sm")
    return _number(rows[0][0]) if rows else None


def gpu_throttling() -> str | None:
    """Why the first GPU is slower than it could be, as nvidia-smi's bits in hexadecimal; None if it is not."""
    for field in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):  # new name, old name
        rows = _smi(field)
        if rows:
            try:
                harmful = int(rows[0][0], 16) & ~HARMLESS_REASONS
            except ValueError:
                return None
            return hex(harmful) if harmful else None
    return None


def _smi(fields: str) -> list[list[str]]:
    """A row of fields for each GPU; none where they cannot be had."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = list(csv.reader(io.StringIO(asked.stdout), skipinitialspace=True))
    return [row for row in rows if len(row) == fields.count(",") + 1]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # nvidia-smi says [N/A]


# What decides how fast a CPU multiplies.
CPU_FLAGS: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
)
PACKAGES: Final = (
    "swav-tf", "numpy", "onnxruntime", "onnxruntime-gpu", "onnx", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx",
    "tensorflow", "keras", "torch",
)  # fmt: skip


class Machine(Section):
    """What figures depend on beside the model."""

    cpu: str = Field(description="model of the processor")
    cores: int = Field(description="logical cores that this process may use")
    cpu_flags: tuple[str, ...] = Field(description="instruction sets that decide the speed of products")
    cpu_clock_mhz: float | None = Field(description="clock of the first core when it was looked at, MHz")
    memory_gib: float | None = Field(description="memory of the machine or of its container, GiB")
    gpus: tuple[Gpu, ...] = Field(description="NVIDIA GPUs")
    system: str = Field(description="operating system")
    python: str = Field(description="version of Python")
    versions: dict[str, str] = Field(description="of the installed packages that matter")
    load: float | None = Field(description="processes that wanted to run, the minute before the first cell")


def describe_machine() -> Machine:
    """Looks at this machine."""
    has = cpu_flags()
    return Machine(
        cpu=cpu_field("model name") or platform.processor() or platform.machine(),
        cores=available_cores(),
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in has),
        cpu_clock_mhz=None if (clock := cpu_field("cpu MHz")) is None else float(clock),
        memory_gib=memory_gib(),
        gpus=gpus(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=_versions(),
        load=load(),
    )


def load() -> float | None:
    """Processes that wanted to run, mean of the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


class OtherProcesses:
    """How much of the CPU others take from its making on."""

    def __init__(self) -> None:
        self._before = _ticks()

    def share(self) -> float | None:
        """0 to 1 of all cores; None where the system does not tell."""
        after = _ticks()
        if self._before is None or after is None:
            return None
        total, busy, own = (new - old for new, old in zip(after, self._before, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else None


def _ticks() -> tuple[float, float, float] | None:
    """Ticks of all cores so far: all, those not idle, those of this process."""
    try:
        values = [float(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    own = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    # idle and iowait are no work; steal (the last) is a neighbour on the same hardware.
    return sum(values), sum(values) - values[3] - values[4], own


def peak_memory_mib() -> float | None:
    """The most memory that this process held at once, MiB."""
    return _status_mib("VmHWM")


def memory_mib() -> float | None:
    """The memory that this process holds, MiB."""
    return _status_mib("VmRSS")


def _status_mib(key: str) -> float | None:
    # Not getrusage: its peak counts the parent's from before exec.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return round(int(found[0]) / 1024, 1) if found else None


# === Processor and memory ===


def memory_gib() -> float | None:
    """Memory of the machine, or of its container where that has less, GiB; None where the system does not tell."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return round(min(sizes) / 2**30, 1)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
