"""The backbone that a recipe names: a native ResNet, or any of KerasCV's classes.

Native is ResNet v1.5 (arXiv 1512.03385, the stride on the 3x3), any width, and a small one for 32 pixels. Padding is
symmetric, as in the released weights. At stride 1 that is Keras' 'same', which needs no padded copy, forward or
backward. At stride 2 it is explicit: 'same' would pad only on the right and at the bottom, which moves every feature by
half a pixel.
"""

from __future__ import annotations

from typing import Any

import keras

from swav_tf.model.architectures import ARCHITECTURES
from swav_tf.model.batch_norm import BatchNorm, replace_keras_batch_norm
from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.pretraining import BatchNorm as Settings
from swav_tf.recipe.pretraining import Model


def build_backbone(settings: Model) -> keras.Model:
    """Build a model from normalized images (n, height, width, 3) to pooled features (n, F)."""
    backbone = settings.backbone
    if backbone.library == "keras_cv":
        return _keras_cv_backbone(settings)
    return build_resnet(backbone.name, width=backbone.width, batch_norm=settings.batch_norm)


def _keras_cv_backbone(settings: Model) -> keras.Model:
    import keras_cv  # late: takes seconds, and few recipes need it

    wanted = settings.backbone
    names = sorted(name for name in dir(keras_cv.models) if name.endswith("Backbone") and name != "Backbone")
    if wanted.name not in names:
        raise RecipeError(
            f"model.backbone.name must be a backbone class of KerasCV: {', '.join(names)}. Received: {wanted.name!r}."
        )
    backbone_class = getattr(keras_cv.models, wanted.name)
    # The images are normalized already; rescaling inside the network would undo that.
    arguments = {"include_rescaling": False, "input_shape": (None, None, 3), **wanted.arguments}
    try:
        preset = wanted.preset
        network = backbone_class.from_preset(preset) if preset else backbone_class(**arguments)
    except Exception as error:  # a preset that cannot be fetched is a plain Exception
        raise RecipeError(
            f"KerasCV could not build model.backbone.name={wanted.name} from preset={wanted.preset!r}, "
            f"arguments={wanted.arguments}: {error}"
        ) from error
    replace_keras_batch_norm(network, synchronized=settings.batch_norm.synchronised)
    outputs = network.output
    if len(outputs.shape) == 4:
        outputs = keras.layers.GlobalAveragePooling2D(name="features")(outputs)
    return keras.Model(network.input, outputs, name=wanted.name)


def build_resnet(name: str, *, width: int = 1, batch_norm: Settings) -> keras.Model:
    """Build a model from normalized images (n, height, width, 3) to pooled features (n, channels).

    Its name is a key of ARCHITECTURES; `width` is a factor on the channels of every stage and of the stem.
    """
    architecture = ARCHITECTURES[name]
    inputs = keras.Input((None, None, 3), name="images")
    kernel, stride = {"imagenet": (7, 2), "plain": (3, 1), "halving": (3, 2)}[architecture.stem]
    x = _conv(inputs, architecture.channels[0] * width, kernel, stride, "conv1")
    x = keras.layers.ReLU(name="relu1")(BatchNorm.of(batch_norm, "bn1")(x))
    if architecture.stem == "imagenet":
        # After a ReLU, padding with 0 equals padding with -inf.
        x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = keras.layers.MaxPooling2D(3, strides=2, name="pool1")(x)
    for stage, depth in enumerate(architecture.depths):
        channels = architecture.block_channels(stage, width)
        for i in range(depth):
            stride = 2 if i == 0 and stage > 0 else 1
            x = _block(x, architecture.block, channels, stride, f"layer{stage + 1}_{i}", batch_norm)
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, features, name=name if width == 1 else f"{name}w{width}")


def _block(x: Any, kind: str, channels: tuple[int, int], stride: int, name: str, batch_norm: Settings) -> Any:
    inner, outputs = channels
    # (kernel, filters, stride) of the block's convolutions.
    if kind == "bottleneck":
        plan = [(1, inner, 1), (3, inner, stride), (1, outputs, 1)]
    else:
        plan = [(3, inner, stride), (3, outputs, 1)]
    y = x
    for i, (kernel, filters, step) in enumerate(plan, start=1):
        y = BatchNorm.of(batch_norm, f"{name}_bn{i}")(_conv(y, filters, kernel, step, f"{name}_conv{i}"))
        if i < len(plan):
            y = keras.layers.ReLU(name=f"{name}_relu{i}")(y)
    if stride > 1 or x.shape[-1] != outputs:
        x = _conv(x, outputs, 1, stride, f"{name}_downsample_conv")
        x = BatchNorm.of(batch_norm, f"{name}_downsample_bn")(x)
    return keras.layers.ReLU(name=f"{name}_out")(keras.layers.Add(name=f"{name}_add")([x, y]))


def _conv(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
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
