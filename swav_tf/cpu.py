"""What the processor is and can do, as Linux tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
# x86's names and ARM's.
BFLOAT16_FLAGS: Final = frozenset({"amx_bf16", "avx512_bf16", "bf16", "svebf16"})


def cpu_field(name: str) -> str | None:
    """A line of /proc/cpuinfo, of the first core; None where there is none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name]
    return found[0] if found else None


def cpu_flags() -> frozenset[str]:
    """Instruction sets by the kernel's names; empty where it does not tell."""
    return frozenset((cpu_field("flags") or cpu_field("Features") or "").split())


def lacks_bfloat16() -> bool:
    """Whether it is known that products of bfloat16 have no instructions here."""
    flags = cpu_flags()
    return bool(flags) and not flags & BFLOAT16_FLAGS
