"""Batch normalisation: the fused kernel on one replica, one all-reduce each way over several."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from swav_tf.replicas import replica_count, sum_over_replicas


@keras.saving.register_keras_serializable("swav_tf")
class BatchNorm(keras.layers.Layer):
    """Batch normalisation over all axes but the last (channels).

    Statistics and running averages are float32 whatever the dtype policy. The weights have
    Keras' names, shapes and meaning (`gamma`, `beta`, `moving_mean`, `moving_variance`).

    Args:
        synchronised: in training, take the statistics over the samples of all replicas.
        momentum: share of the old running average that is kept each step.
        epsilon: added to the variance.
    """

    def __init__(
        self, *, synchronised: bool = False, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.synchronised = synchronised
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the four vectors of length channels."""
        shape = (input_shape[-1],)
        vector: dict[str, Any] = {"shape": shape, "dtype": "float32", "autocast": False}
        self.gamma = self.add_weight(name="gamma", initializer="ones", **vector)
        self.beta = self.add_weight(name="beta", initializer="zeros", **vector)
        # Unsynchronised replicas each move their own running averages; the first one's are saved.
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", trainable=False, **vector)
        self.moving_variance = self.add_weight(
            name="moving_variance", initializer="ones", trainable=False, **vector
        )

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalises (..., channels); same shape and dtype."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not (training and self.trainable):
            mean, variance = (
                tf.convert_to_tensor(self.moving_mean),
                tf.convert_to_tensor(self.moving_variance),
            )
            return _fused(inputs, gamma, beta, mean, variance, self.epsilon, training=False)[0]
        if self.synchronised and replica_count() > 1:
            outputs, mean, variance = _synchronised(inputs, gamma, beta, self.epsilon)
        else:
            empty = tf.zeros([0])
            outputs, mean, variance = _fused(inputs, gamma, beta, empty, empty, self.epsilon, training=True)
        self._move(self.moving_mean, mean)
        self._move(self.moving_variance, variance)
        return outputs

    def _move(self, average: keras.Variable, value: tf.Tensor) -> None:
        # One overflow in half precision must not stay in the running average for ever.
        old = tf.convert_to_tensor(average)
        new = self.momentum * old + (1.0 - self.momentum) * value
        average.assign(tf.where(tf.math.is_finite(new), new, old))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What Keras needs to make this layer again."""
        config = super().get_config()
        config.update(synchronised=self.synchronised, momentum=self.momentum, epsilon=self.epsilon)
        return config


def _fused(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
    *,
    training: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """TensorFlow's one kernel; gives (normalised, batch mean, biased batch variance)."""
    is_flat = x.shape.rank != 4
    images = tf.reshape(x, [-1, 1, 1, x.shape[-1]]) if is_flat else x
    # The raw op, since tf.nn's wrapper raises epsilon to 1.001e-5 without a word.
    result = tf.raw_ops.FusedBatchNormV3(
        x=images,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=training,
    )
    outputs = tf.reshape(result.y, tf.shape(x)) if is_flat else result.y
    if not training:
        return outputs, mean, variance
    count = tf.cast(tf.size(images) // tf.shape(images)[-1], tf.float32)
    biased = result.batch_variance * ((count - 1.0) / count)
    return outputs, result.batch_mean, biased


def _synchronised(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Statistics over all replicas: one all-reduce forward, one backward.

    The loss of the step is the mean of the replicas' losses, so each replica's gradient of x
    needs the sums of all of them, while those of gamma and beta stay local: they are summed
    with all other gradients at the end of the step.
    """
    axes = list(range(x.shape.rank - 1))

    @tf.custom_gradient
    def normalise(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        x32 = tf.cast(x, tf.float32)
        count = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
        totals, squares, count = sum_over_replicas(
            [tf.reduce_sum(x32, axes), tf.reduce_sum(tf.square(x32), axes), count]
        )
        mean = totals / count
        variance = tf.maximum(squares / count - tf.square(mean), 0.0)
        inverse_deviation = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse_deviation
        outputs = tf.cast(x32 * scale + (beta - mean * scale), x.dtype)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            dy32 = tf.cast(dy, tf.float32)
            standardised = (tf.cast(x, tf.float32) - mean) * inverse_deviation
            d_beta, d_gamma = tf.reduce_sum(dy32, axes), tf.reduce_sum(dy32 * standardised, axes)
            all_beta, all_gamma = sum_over_replicas([d_beta, d_gamma])
            dx = scale * (dy32 - (all_beta + standardised * all_gamma) / count)
            return tf.cast(dx, x.dtype), d_gamma, d_beta

        return (outputs, mean, variance), gradient

    outputs, mean, variance = normalise(x, gamma, beta)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)
