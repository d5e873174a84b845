"""The backbone that a recipe names: a native ResNet, or any of KerasCV's classes."""

from __future__ import annotations

import keras

from swav_tf.model.batch_norm import replace_keras_batch_norm
from swav_tf.model.resnet import build_resnet
from swav_tf.plumbing.errors import RecipeError
from swav_tf.recipe.pretraining import Model


def build_backbone(settings: Model) -> keras.Model:
    """Build a model from normalized images (n, height, width, 3) to pooled features (n, F).

    Raises:
        RecipeError: the library has no such backbone, or refuses the arguments.
    """
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
