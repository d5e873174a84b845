"""What one image costs in a network: products, parameters, and the numbers that must be kept and moved.

Counted layer by layer from the recipe, as `model/resnet.py` builds it; a test compares with Keras' own layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from swav_tf.model.architectures import ARCHITECTURES, EXPANSION, STEM_CHANNELS, Architecture
from swav_tf.plumbing.errors import UsageError
from swav_tf.recipe.pretraining import Model, Recipe

# How often each number that a convolution writes passes through memory in a step, if no two operations are
# one kernel: written 1, batch normalisation 3 (statistics, then read and write) and its gradient 5, ReLU 2
# and its gradient 3, the convolution's two gradients 2. Each number that it reads: 1, and 2 for the gradients.
PASSES_OF_OUTPUTS = 16
PASSES_OF_INPUTS = 3


@dataclass(frozen=True)
class Convolution:
    """One convolution on one square image, batch normalisation after it.

    Attributes:
        kernel: its side, pixels; it is padded by kernel // 2.
        stride: in both directions.
        inputs, outputs: channels.
        in_size, out_size: sides of what it reads and writes, pixels.
        relu: a ReLU of its own follows, so that its result is kept beside the convolution's.
    """

    kernel: int
    stride: int
    inputs: int
    outputs: int
    in_size: int
    relu: bool

    @property
    def out_size(self) -> int:
        """Side of what it writes, pixels."""
        return (self.in_size - 1) // self.stride + 1

    @property
    def weights(self) -> int:
        """Numbers in the kernel; there is no bias."""
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def macs(self) -> int:
        """Products that are summed."""
        return self.weights * self.out_size**2

    @property
    def read(self) -> int:
        """Numbers that it reads."""
        return self.inputs * self.in_size**2

    @property
    def written(self) -> int:
        """Numbers that it writes."""
        return self.outputs * self.out_size**2

    @property
    def kept(self) -> int:
        """Numbers that its gradients need later: the padded input, the output, the output after ReLU."""
        padded = self.inputs * (self.in_size + 2 * (self.kernel // 2)) ** 2 if self.kernel > 1 else 0
        return padded + self.written * (2 if self.relu else 1)


def convolutions(architecture: Architecture, *, width: int, size: int) -> list[Convolution]:
    """All convolutions of a ResNet on one image, in their order.

    Args:
        architecture: of ARCHITECTURES.
        width: multiplies the channels.
        size: side of the image, pixels.
    """
    kernel, stride = {"imagenet": (7, 2), "plain": (3, 1), "halving": (3, 2)}[architecture.stem]
    found = [Convolution(kernel, stride, 3, STEM_CHANNELS * width, size, relu=True)]
    channels, size = found[0].outputs, found[0].out_size
    if architecture.stem == "imagenet":
        size = (size - 1) // 2 + 1  # the pooling
    for stage, (depth, inner) in enumerate(zip(architecture.depths, architecture.channels, strict=True)):
        inner *= width
        outputs = inner * EXPANSION[architecture.block]
        for i in range(depth):
            stride = 2 if i == 0 and stage > 0 else 1
            if architecture.block == "bottleneck":
                plan = [(1, inner, 1), (3, inner, stride), (1, outputs, 1)]
            else:
                plan = [(3, inner, stride), (3, outputs, 1)]
            block_inputs, block_size = channels, size
            for kernel, filters, step in plan:
                # The last one's ReLU comes after the addition; what it gives is as large.
                found.append(Convolution(kernel, step, channels, filters, size, relu=True))
                channels, size = filters, found[-1].out_size
            if stride > 1 or block_inputs != outputs:
                found.append(Convolution(1, stride, block_inputs, outputs, block_size, relu=False))
    return found


@dataclass(frozen=True)
class NetworkCost:
    """One image of a recipe, all its crops, through backbone, head and prototypes.

    Attributes:
        backbone_macs: products summed in a forward pass of all crops through the backbone.
        head_macs: the same through head and prototypes.
        first_macs: of these, the first convolution's, whose input needs no gradient.
        parameters: numbers that are trained.
        averages: numbers that are kept beside them: running means and variances.
        normalisations: calls of batch normalisation in a forward pass.
        normalised_channels: channels over these calls.
        kept: numbers that the backward pass needs, in the precision of the backbone.
        kept_single: likewise, in float32 always.
        moved: numbers that pass through memory in a forward and backward pass.
        crop_pixels: over all crops.
    """

    backbone_macs: int
    head_macs: int
    first_macs: int
    parameters: int
    averages: int
    normalisations: int
    normalised_channels: int
    kept: int
    kept_single: int
    moved: int
    crop_pixels: int

    @property
    def forward_macs(self) -> int:
        """Products summed in a forward pass."""
        return self.backbone_macs + self.head_macs

    @property
    def step_flops(self) -> int:
        """Of forward and backward: each product again for its two gradients; two FLOPs a product."""
        return 2 * (3 * self.forward_macs - self.first_macs)


def network_cost(recipe: Recipe) -> NetworkCost:
    """What one image of a recipe costs.

    Raises:
        UsageError: the backbone is not one of ours, whose layers are known.
    """
    wanted = recipe.model.backbone
    if wanted.library != "swav_tf" or wanted.name not in ARCHITECTURES:
        raise UsageError(
            f"The arithmetic is known for swav_tf's networks: {', '.join(ARCHITECTURES)}. Received: {wanted.name} of "
            f"{wanted.library}. Measure it instead: swav-tf profile -c RECIPE."
        )
    architecture = ARCHITECTURES[wanted.name]
    groups = [
        (group.count, group.size, convolutions(architecture, width=wanted.width, size=group.size))
        for group in recipe.crops
    ]
    layers = groups[0][2]
    features = architecture.channels[-1] * wanted.width * EXPANSION[architecture.block]
    head_macs, head_parameters = _head(recipe.model, features)
    channels = sum(layer.outputs for layer in layers)

    def over_crops(values: list[int]) -> int:
        return sum(count * value for (count, _, _), value in zip(groups, values, strict=True))

    return NetworkCost(
        backbone_macs=over_crops([sum(layer.macs for layer in found) for _, _, found in groups]),
        head_macs=recipe.crop_count * head_macs,
        first_macs=over_crops([found[0].macs for _, _, found in groups]),
        parameters=sum(layer.weights for layer in layers) + 2 * channels + head_parameters,
        averages=2 * (channels + recipe.model.head_hidden),
        normalisations=len(layers) * len(groups) + 1,
        normalised_channels=channels * len(groups) + recipe.model.head_hidden,
        kept=over_crops([sum(layer.kept for layer in found) for _, _, found in groups])
        + recipe.crop_count * (features + 3 * recipe.model.head_hidden),
        # Scores, their logarithms of probabilities, and the gradient of both.
        kept_single=recipe.crop_count * (3 * recipe.model.prototypes + 2 * recipe.model.projection_dim),
        moved=over_crops(
            [
                sum(PASSES_OF_OUTPUTS * layer.written + PASSES_OF_INPUTS * layer.read for layer in found)
                for _, _, found in groups
            ]
        ),
        crop_pixels=over_crops([size**2 for _, size, _ in groups]),
    )


def _head(model: Model, features: int) -> tuple[int, int]:
    """Products of one crop, and parameters, of head and prototypes."""
    hidden, dim, prototypes = model.head_hidden, model.projection_dim, model.prototypes
    macs = features * hidden + hidden * dim + dim * prototypes
    return macs, macs + hidden + dim + 2 * hidden  # biases; batch normalisation's scale and offset
