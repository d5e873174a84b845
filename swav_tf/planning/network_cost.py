"""Count what one image costs in a network: products, parameters, and the numbers that are kept and moved.

Counted layer by layer from the recipe, as `model/backbone.py` builds it. A test compares with Keras' own layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from swav_tf.model.architectures import ARCHITECTURES, Architecture
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.pretraining import Model, Recipe

# How often each number that a convolution writes passes through memory in a step, if no operations are fused:
# written 1, batch normalization 3 (statistics, then read and write) and its gradient 5, ReLU 2 and its gradient 3,
# the convolution's two gradients 2. Each number that it reads: 1, and 2 for the gradients.
PASSES_OF_OUTPUTS = 16
PASSES_OF_INPUTS = 3


@dataclass(frozen=True)
class Convolution:
    """One convolution on one square image, followed by batch normalization."""

    kernel: int  # side in pixels; the padding is kernel // 2
    stride: int  # in both directions
    inputs: int  # channels
    outputs: int
    in_size: int  # side of the input in pixels
    relu: bool  # whether a ReLU follows, so that its result is kept in addition to the convolution's

    @property
    def out_size(self) -> int:
        """Return the side of the output in pixels."""
        return (self.in_size - 1) // self.stride + 1

    @property
    def weights(self) -> int:
        """Return the size of the kernel (no bias)."""
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def macs(self) -> int:
        """Return the multiply-adds."""
        return self.weights * self.out_size**2

    @property
    def read(self) -> int:
        """Return the size of the input."""
        return self.inputs * self.in_size**2

    @property
    def written(self) -> int:
        """Return the size of the output."""
        return self.outputs * self.out_size**2

    @property
    def kept(self) -> int:
        """Return the numbers that gradients need: the padded input, the output, the output after ReLU."""
        padded = self.inputs * (self.in_size + 2 * (self.kernel // 2)) ** 2 if self.kernel > 1 else 0
        return padded + self.written * (2 if self.relu else 1)


def convolutions(architecture: Architecture, *, width: int, size: int) -> list[Convolution]:
    """Return all convolutions of a ResNet on one image of `size` pixels, in their order."""
    kernel, stride = {"imagenet": (7, 2), "plain": (3, 1), "halving": (3, 2)}[architecture.stem]
    found = [Convolution(kernel, stride, 3, architecture.channels[0] * width, size, relu=True)]
    channels, size = found[0].outputs, found[0].out_size
    if architecture.stem == "imagenet":
        size = (size - 1) // 2 + 1  # the pooling
    for stage, depth in enumerate(architecture.depths):
        inner, outputs = architecture.block_channels(stage, width)
        for i in range(depth):
            stride = 2 if i == 0 and stage > 0 else 1
            if architecture.block == "bottleneck":
                plan = [(1, inner, 1), (3, inner, stride), (1, outputs, 1)]
            else:
                plan = [(3, inner, stride), (3, outputs, 1)]
            block_inputs, block_size = channels, size
            for kernel, filters, step in plan:
                # The last one's ReLU follows the addition; its output has the same size.
                found.append(Convolution(kernel, step, channels, filters, size, relu=True))
                channels, size = filters, found[-1].out_size
            if stride > 1 or block_inputs != outputs:
                found.append(Convolution(1, stride, block_inputs, outputs, block_size, relu=False))
    return found


@dataclass(frozen=True)
class NetworkCost:
    """The cost of one image, all its crops, through backbone, head and prototypes."""

    backbone_macs: int  # multiply-adds of a forward pass of all crops through the backbone
    head_macs: int  # the same through head and prototypes
    first_macs: int  # those of the first convolution, whose input needs no gradient
    parameters: int  # trainable numbers
    averages: int  # running means and variances
    normalizations: int  # calls of batch normalization in a forward pass
    normalized_channels: int  # channels of these calls
    kept: int  # numbers that the backward pass needs, in the precision of the backbone
    kept_single: int  # the same, in float32 always
    moved: int  # numbers that pass through memory in a forward and backward pass
    crop_pixels: int  # of all crops

    @property
    def forward_macs(self) -> int:
        """Return the multiply-adds of a forward pass."""
        return self.backbone_macs + self.head_macs

    @property
    def image_flops(self) -> int:
        """Return the FLOPs of one image forward and backward: each product and its two gradients, two FLOPs each."""
        return 2 * (3 * self.forward_macs - self.first_macs)


def network_cost(recipe: Recipe) -> NetworkCost:
    """Count the cost of one image of a recipe.

    Raises:
        UsageError: the backbone is external, with unknown layers.
    """
    backbone, model = recipe.model.backbone, recipe.model
    if backbone.library != "swav_tf" or backbone.name not in ARCHITECTURES:
        raise UsageError(
            f"The arithmetic is known for swav_tf's networks: {', '.join(ARCHITECTURES)}. Received: {backbone.name} of "
            f"{backbone.library}. Measure it instead: swav-tf profile -c RECIPE."
        )
    architecture = ARCHITECTURES[backbone.name]
    groups = [
        (group.count, group.size, convolutions(architecture, width=backbone.width, size=group.size))
        for group in recipe.crops
    ]
    layers = groups[0][2]
    sizes = len(list(itertools.groupby(size for _, size, _ in groups)))  # passes through the backbone
    features = architecture.feature_dim(backbone.width)
    head_macs, head_parameters = _head(model, features)
    channels = sum(layer.outputs for layer in layers)

    def total(value: Callable[[Convolution], int]) -> int:
        return sum(count * sum(map(value, found)) for count, _, found in groups)

    return NetworkCost(
        backbone_macs=total(lambda layer: layer.macs),
        head_macs=recipe.crop_count * head_macs,
        first_macs=sum(count * found[0].macs for count, _, found in groups),
        parameters=sum(layer.weights for layer in layers) + 2 * channels + head_parameters,
        averages=2 * (channels + model.head_hidden),
        normalizations=len(layers) * sizes + 1,
        normalized_channels=channels * sizes + model.head_hidden,
        kept=total(lambda layer: layer.kept) + recipe.crop_count * (features + 3 * model.head_hidden),
        # Scores, their log-probabilities, and the gradient of both.
        kept_single=recipe.crop_count * (3 * model.prototypes + 2 * model.projection_dim),
        moved=total(lambda layer: PASSES_OF_OUTPUTS * layer.written + PASSES_OF_INPUTS * layer.read),
        crop_pixels=sum(count * size**2 for count, size, _ in groups),
    )


def _head(model: Model, features: int) -> tuple[int, int]:
    """Return the multiply-adds per crop and the parameters of head and prototypes."""
    hidden, dim = model.head_hidden, model.projection_dim
    macs = features * hidden + hidden * dim + dim * model.prototypes
    return macs, macs + hidden + dim + 2 * hidden  # biases; batch normalization's scale and offset
