"""ResNet v1.5 (arXiv 1512.03385, the stride on the 3x3), any width, and a small one for 32 pixels.

Padding is symmetric, as in the released weights. At stride 1 that is Keras' 'same', which needs no padded
copy, forward or backward. At stride 2 it is explicit: 'same' would pad on the right and below only, which
moves every feature by half a pixel.
"""

from __future__ import annotations

from typing import Any

import keras

from swav_tf.model.architectures import ARCHITECTURES, EXPANSION, STEM_CHANNELS
from swav_tf.model.batch_norm import BatchNorm
from swav_tf.recipe.pretraining import BatchNorm as BatchNormSettings


def build_resnet(name: str, *, width: int = 1, batch_norm: BatchNormSettings) -> keras.Model:
    """Images (n, height, width, 3), normalised, to pooled features (n, channels).

    Args:
        name: a key of ARCHITECTURES.
        width: multiplies the channels of every stage, the stem's too.
        batch_norm: settings of every batch normalisation.

    Raises:
        ValueError: `name` is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"`name` must be one of {', '.join(ARCHITECTURES)}. Received: {name!r}.")
    architecture = ARCHITECTURES[name]
    bottleneck = architecture.block == "bottleneck"

    def conv(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
        if kernel > 1 and stride > 1:
            x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        return keras.layers.Conv2D(
            filters,
            kernel,
            strides=stride,
            padding="same" if stride == 1 else "valid",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            name=name,
        )(x)

    def norm(x: Any, name: str) -> Any:
        return BatchNorm(
            synchronised=batch_norm.synchronised,
            momentum=batch_norm.momentum,
            epsilon=batch_norm.epsilon,
            name=name,
        )(x)

    def relu(x: Any, name: str) -> Any:
        return keras.layers.ReLU(name=name)(x)

    def block(x: Any, channels: int, stride: int, name: str) -> Any:
        # (kernel, filters, stride) of the block's convolutions.
        outputs = channels * EXPANSION[architecture.block]
        if bottleneck:
            plan = [(1, channels, 1), (3, channels, stride), (1, outputs, 1)]
        else:
            plan = [(3, channels, stride), (3, outputs, 1)]
        y = x
        for i, (kernel, filters, step) in enumerate(plan, start=1):
            y = norm(conv(y, filters, kernel, step, f"{name}_conv{i}"), f"{name}_bn{i}")
            if i < len(plan):
                y = relu(y, f"{name}_relu{i}")
        if stride > 1 or x.shape[-1] != outputs:
            x = norm(conv(x, outputs, 1, stride, f"{name}_downsample_conv"), f"{name}_downsample_bn")
        return relu(keras.layers.Add(name=f"{name}_add")([x, y]), f"{name}_out")

    # === Functional model ===
    inputs = keras.Input((None, None, 3), name="images")
    stem_channels = STEM_CHANNELS * width
    if architecture.stem == "imagenet":
        x = conv(inputs, stem_channels, 7, 2, "conv1")
    else:
        x = conv(inputs, stem_channels, 3, 2 if architecture.stem == "halving" else 1, "conv1")
    x = relu(norm(x, "bn1"), "relu1")
    if architecture.stem == "imagenet":
        # Zeros are no maximum over other zeros: after a ReLU, padding with 0 equals padding with -inf.
        x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = keras.layers.MaxPooling2D(3, strides=2, name="pool1")(x)
    for stage, (depth, channels) in enumerate(
        zip(architecture.depths, architecture.channels, strict=True), start=1
    ):
        for i in range(depth):
            stride = 2 if i == 0 and stage > 1 else 1
            x = block(x, channels * width, stride, f"layer{stage}_{i}")
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, features, name=name if width == 1 else f"{name}w{width}")
