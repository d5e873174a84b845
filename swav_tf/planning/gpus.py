"""GPUs by their makers' data sheets, and clusters of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: common name.
        half_tflops: peak of dense half-precision products summed in float32, TFLOP/s.
        single_tflops: peak of float32 products, TFLOP/s; not TF32, which training turns off.
        memory_gb: 10^9 bytes.
        bandwidth_gb: of its memory, 10^9 bytes per second.
        link_gb: to other GPUs of the same machine, both directions together, 10^9 bytes per second.
        nvlink: whether that link is NVLink; otherwise it is PCI Express.
        bfloat16: whether its half-precision units support bfloat16.
    """

    name: str
    half_tflops: float
    single_tflops: float
    memory_gb: float
    bandwidth_gb: float
    link_gb: float
    nvlink: bool = True
    bfloat16: bool = True


# NVIDIA's data sheets of V100 (SXM2), A100 (SXM4), H100 and H200 (SXM5), L4 and T4; for the RTX 4090 the white paper
# of its architecture (Ada, summing in float32). Without sparsity, which doubles some of their numbers.
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


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind and their links.

    Attributes:
        gpu: the kind.
        gpus: number over all machines.
        gpus_per_node: number in one machine.
        link_gbit: network of one machine in each direction, Gbit/s.
    """

    gpu: Gpu
    gpus: int
    gpus_per_node: int
    link_gbit: float

    @property
    def nodes(self) -> int:
        """Return the number of machines."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def link_bytes_per_second(self) -> float:
        """Return what the slowest link of a ring through all GPUs carries in one direction."""
        inside = self.gpu.link_gb * 1e9 / 2
        return inside if self.nodes == 1 else min(inside, self.link_gbit * 1e9 / 8)
