"""The projection head and the prototypes (paper, section 3.2 and appendix A)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from swav_tf.model.batch_norm import BatchNorm
from swav_tf.recipe.pretraining import Model


def _uniform_by_fan_in(fan_in: int) -> keras.initializers.Initializer:
    limit = fan_in**-0.5
    return keras.initializers.RandomUniform(-limit, limit)


def build_head(settings: Model, *, feature_dim: int) -> keras.Model:
    """Build a model from features (n, F) to projections (n, D) before normalization: Dense, BN, ReLU, Dense."""
    layers = keras.layers
    hidden = settings.head_hidden
    inputs = keras.Input((feature_dim,), name="features")
    x = layers.Dense(
        hidden,
        kernel_initializer=_uniform_by_fan_in(feature_dim),
        bias_initializer=_uniform_by_fan_in(feature_dim),
        name="hidden",
    )(inputs)
    x = BatchNorm.of(settings.batch_norm, "hidden_bn")(x)
    x = layers.ReLU(name="hidden_relu")(x)
    x = layers.Dense(
        settings.projection_dim,
        kernel_initializer=_uniform_by_fan_in(hidden),
        bias_initializer=_uniform_by_fan_in(hidden),
        name="projection",
    )(x)
    return keras.Model(inputs, x, name="head")


@keras.saving.register_keras_serializable("swav_tf")
class Prototypes(keras.layers.Layer):
    """K unit vectors, no bias; scores are cosines with the projections, in float32 under any policy.

    Half precision would put an error of 1e-3 on every score, which Sinkhorn divides by epsilon.
    """

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **{key: value for key, value in kwargs.items() if key != "dtype"})
        self.count = count

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Create the (D, K) kernel, one normalized prototype per column."""
        dim = input_shape[-1]
        uniform = _uniform_by_fan_in(dim)
        self.kernel = self.add_weight(
            shape=(dim, self.count),
            initializer=lambda shape, dtype=None: tf.math.l2_normalize(uniform(shape, dtype=dtype), axis=0),
            name="kernel",
        )

    def call(self, projections: tf.Tensor) -> tf.Tensor:
        """Return scores (..., K) of normalized projections (..., D)."""
        return tf.matmul(tf.cast(projections, tf.float32), tf.convert_to_tensor(self.kernel))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return (..., K) for (..., D)."""
        return (*input_shape[:-1], self.count)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this layer."""
        return {**super().get_config(), "count": self.count}
