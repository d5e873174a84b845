"""What makers say of their GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, by its maker's data sheet.

    Attributes:
        name: as people say it.
        half_tflops: peak of dense half-precision products summed in float32, TFLOP/s.
        single_tflops: peak of float32 products, TFLOP/s. TF32 is not meant: training turns it off.
        memory_gb: 10^9 bytes.
        bandwidth_gb: of its memory, 10^9 bytes a second.
        link_gb: to other GPUs of the same machine, both directions together, 10^9 bytes a second: NVLink,
            where there is none PCI Express.
        nvlink: whether that is NVLink.
        bfloat16: whether its half-precision units know bfloat16.
    """

    name: str
    half_tflops: float
    single_tflops: float
    memory_gb: float
    bandwidth_gb: float
    link_gb: float
    nvlink: bool = True
    bfloat16: bool = True


# NVIDIA's data sheets of V100 (SXM2), A100 (SXM4), H100 and H200 (SXM5), L4 and T4; for the RTX 4090 its
# architecture's white paper (Ada, summing in float32). Sparsity, which doubles some of their numbers, is left out.
GPUS: Final = {
    "v100": Gpu("V100 16 GB", 125, 15.7, 16, 900, 300, bfloat16=False),
    "a100": Gpu("A100 80 GB", 312, 19.5, 80, 2039, 600),
    "a100-40": Gpu("A100 40 GB", 312, 19.5, 40, 1555, 600),
    "h100": Gpu("H100", 989, 67, 80, 3350, 900),
    "h200": Gpu("H200", 989, 67, 141, 4800, 900),
    "l4": Gpu("L4", 121, 30.3, 24, 300, 64, nvlink=False),
    "t4": Gpu("T4", 65, 8.1, 16, 300, 32, nvlink=False, bfloat16=False),
    "rtx4090": Gpu("RTX 4090", 165, 82.6, 24, 1008, 64, nvlink=False),
}
