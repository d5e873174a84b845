"""GPUs by their published figures, and clusters of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. GB are 10^9 bytes."""

    name: str
    half_tflops: float  # peak of dense half-precision products summed in float32, TFLOP/s
    single_tflops: float  # peak of float32 products, TFLOP/s; not TF32, which training turns off
    memory_gb: float
    bandwidth_gb: float  # of its memory, per second
    link_gb: float  # to other GPUs of the same machine, both directions together, per second
    link: str = "NVLink"
    bfloat16: bool = True  # whether its half-precision units support it


PCIE: Final = "PCI Express"

# Compared with tables that cite the makers, not with their documents: hmc-tech.com/gpu (B200, MI300X, RTX 4080, 4090,
# 5080), waredb.com/processor (RTX 4090), glennklockwood.com/garden/processors (A100), inferenceengineering.tech (H100,
# H200, L4), llmbook.apartsin.com appendix G (L40S), gamingpcbuilder.com (RTX 30; their tensor figures are four times
# ours), baseten.co/blog (A10G's memory). Not found there and not verified: products of A10G, RTX 5070, RTX A6000; V100,
# T4. B200 is that of HGX, whose 180 GB differ from the module's 192. GeForce's products are summed in float32, which
# halves their better known number. Without sparsity, which doubles some.
GPUS: Final = {
    "v100": Gpu("V100 16 GB", 125, 15.7, 16, 900, 300, bfloat16=False),
    "a100": Gpu("A100 80 GB", 312, 19.5, 80, 2039, 600),
    "a100-40": Gpu("A100 40 GB", 312, 19.5, 40, 1555, 600),
    "h100": Gpu("H100", 989, 67, 80, 3350, 900),
    "h200": Gpu("H200", 989, 67, 141, 4800, 900),
    "b200": Gpu("B200", 2250, 75, 180, 8000, 1800),
    "mi300x": Gpu("MI300X", 1307, 163.4, 192, 5300, 896, link="Infinity Fabric"),
    "t4": Gpu("T4", 65, 8.1, 16, 300, 32, link=PCIE, bfloat16=False),
    "l4": Gpu("L4", 121, 30.3, 24, 300, 64, link=PCIE),
    "a10g": Gpu("A10G", 70, 35, 24, 600, 64, link=PCIE),
    "l40s": Gpu("L40S", 362, 91.6, 48, 864, 64, link=PCIE),
    "a6000": Gpu("RTX A6000", 154.8, 38.7, 48, 768, 64, link=PCIE),
    "rtx3070": Gpu("RTX 3070", 40.6, 20.3, 8, 448, 64, link=PCIE),
    "rtx3080": Gpu("RTX 3080 10 GB", 59.5, 29.8, 10, 760, 64, link=PCIE),
    "rtx3090": Gpu("RTX 3090", 71, 35.6, 24, 936, 64, link=PCIE),
    "rtx4070": Gpu("RTX 4070", 58.3, 29.1, 12, 504, 64, link=PCIE),
    "rtx4080": Gpu("RTX 4080", 97.5, 48.7, 16, 717, 64, link=PCIE),
    "rtx4090": Gpu("RTX 4090", 165, 82.6, 24, 1008, 64, link=PCIE),
    "rtx5070": Gpu("RTX 5070", 61.7, 30.9, 12, 672, 128, link=PCIE),
    "rtx5080": Gpu("RTX 5080", 112.6, 56.3, 16, 960, 128, link=PCIE),
    "rtx5090": Gpu("RTX 5090", 209.5, 104.8, 32, 1792, 128, link=PCIE),
}


def own_gpu(*, memory_gb: float, tflops: float, bandwidth_gb: float) -> Gpu:
    """Return a GPU by its numbers, on PCI Express; `tflops` counts in the precision of the recipe."""
    return Gpu("own card", tflops, tflops, memory_gb, bandwidth_gb, 64, link=PCIE)


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind and their links."""

    gpu: Gpu
    gpus: int  # over all machines
    gpus_per_node: int
    link_gbit: float  # network of one machine in each direction, Gbit/s

    @property
    def nodes(self) -> int:
        """Return the number of machines."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def link_bytes_per_second(self) -> float:
        """Return what the slowest link of a ring through all GPUs carries in one direction."""
        inside = self.gpu.link_gb * 1e9 / 2
        return inside if self.nodes == 1 else min(inside, self.link_gbit * 1e9 / 8)
