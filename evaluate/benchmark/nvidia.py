"""The NVIDIA GPUs and what they are doing, by nvidia-smi. No TensorFlow."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from typing import Final

from pydantic import Field

from swav_tf.recipe import Section

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
