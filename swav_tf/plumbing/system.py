"""Facts about this machine: processor, cores, package versions."""

from __future__ import annotations

import contextlib
import math
import os
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

CPUINFO: Final = Path("/proc/cpuinfo")
CGROUP: Final = Path("/sys/fs/cgroup")
BFLOAT16_FLAGS: Final = frozenset({"amx_bf16", "avx512_bf16", "bf16", "svebf16"})  # x86 and ARM names
UNKNOWN: Final = "unknown"


def cpu_field(name: str) -> str | None:
    """Return a field of the first core in /proc/cpuinfo, None if it is missing."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name]
    return found[0] if found else None


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets by the kernel's names, empty if unknown."""
    return frozenset((cpu_field("flags") or cpu_field("Features") or "").split())


def lacks_bfloat16() -> bool:
    """Return whether this processor is known to have no bfloat16 instructions."""
    flags = cpu_flags()
    return bool(flags) and not flags & BFLOAT16_FLAGS


def available_cores() -> int:
    """Return the cores this process may use; a container or job scheduler may grant fewer than exist."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, (CGROUP / "cpu.max").read_text().split())
    except (OSError, ValueError):  # no container, or `max`: no limit
        return cores
    return max(1, min(cores, math.ceil(quota / period)))


def memory_gib() -> float:
    """Return the memory of the machine, or of its container if that has less, in GiB."""
    sizes = [int(psutil.virtual_memory().total)]
    with contextlib.suppress(OSError, ValueError):  # no container, or `max`: no limit
        sizes.append(int((CGROUP / "memory.max").read_text()))
    return round(min(sizes) / 2**30, 1)


def available_memory() -> int:
    """Return the bytes that this process can still allocate, within its container's limit."""
    free: int = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or `max`: no limit
        return free
    return max(0, min(free, limit - int(used["anon"])))  # without the page cache, which gives way


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes; None outside Linux."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return None
    # psutil has no peak on Linux, and getrusage's includes the parent's memory before exec.
    return 1024 * int(lines["VmHWM"].split()[0])


def blas_threads_for(multiplications: float) -> AbstractContextManager[object]:
    """Limit small products of matrices to one thread: more are no faster, and on a busy machine 100 times slower."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(
        1 if multiplications < 1e8 else None, user_api="blas"
    )
    return limits


def version_of(package: str, *others: str) -> str:
    """Return the version of the first installed package, `unknown` if none is.

    `others` are names under which the same module is distributed, such as `onnxruntime-gpu`.
    """
    for name in (package, *others):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return UNKNOWN
