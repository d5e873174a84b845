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
    inner: int = 1  # factor on the inner channels of bottlenecks alone

    def block_channels(self, stage: int, width: int) -> tuple[int, int]:
        """Return the inner and the output channels of a stage's blocks; stages count from 0."""
        channels = self.channels[stage] * width
        return channels * self.inner, channels * EXPANSION[self.block]

    def feature_dim(self, width: int = 1) -> int:
        """Return the output channels of the last stage, F."""
        return self.block_channels(-1, width)[1]


EXPANSION = {"basic": 1, "bottleneck": 4}
_CHANNELS = (64, 128, 256, 512)

ARCHITECTURES = {
    "resnet50": Architecture("bottleneck", (3, 4, 6, 3), _CHANNELS, "imagenet"),
    "resnet101": Architecture("bottleneck", (3, 4, 23, 3), _CHANNELS, "imagenet"),
    "resnet152": Architecture("bottleneck", (3, 8, 36, 3), _CHANNELS, "imagenet"),
    # As in torchvision and timm: only the inner channels are doubled.
    "wide_resnet50_2": Architecture("bottleneck", (3, 4, 6, 3), _CHANNELS, "imagenet", inner=2),
    "wide_resnet101_2": Architecture("bottleneck", (3, 4, 23, 3), _CHANNELS, "imagenet", inner=2),
    "resnet34": Architecture("basic", (3, 4, 6, 3), _CHANNELS, "imagenet"),
    "resnet18": Architecture("basic", (2, 2, 2, 2), _CHANNELS, "imagenet"),
    "resnet18_32px": Architecture("basic", (2, 2, 2, 2), _CHANNELS, "plain"),
    # Few multiplications, and every feature still sees 32 x 32 pixels.
    "resnet10_32px": Architecture("basic", (1, 1, 1, 1), (32, 64, 128, 256), "halving"),
    "resnet_small": Architecture("basic", (1, 1), (64, 128), "halving"),
}
