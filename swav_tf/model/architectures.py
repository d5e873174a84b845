"""The differences between ResNets, as numbers. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Architecture:
    """The blocks, widths and stem of a ResNet."""

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]  # blocks of each stage
    channels: tuple[int, ...]  # inner channels of each stage, at width 1; the stem has those of the first
    stem: Literal["imagenet", "plain", "halving"]  # 7x7/2 and pooling; 3x3; 3x3/2


ARCHITECTURES = {
    "resnet50": Architecture("bottleneck", (3, 4, 6, 3), (64, 128, 256, 512), "imagenet"),
    "resnet34": Architecture("basic", (3, 4, 6, 3), (64, 128, 256, 512), "imagenet"),
    "resnet18": Architecture("basic", (2, 2, 2, 2), (64, 128, 256, 512), "imagenet"),
    "resnet18_32px": Architecture("basic", (2, 2, 2, 2), (64, 128, 256, 512), "plain"),
    # Few multiplications, and every feature still sees 32 x 32 pixels.
    "resnet10_32px": Architecture("basic", (1, 1, 1, 1), (32, 64, 128, 256), "halving"),
    "resnet_small": Architecture("basic", (1, 1), (64, 128), "halving"),
}
EXPANSION = {"basic": 1, "bottleneck": 4}
