"""Batch normalization by fused kernels, with one all-reduce each way over several replicas."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from swav_tf.model.replicas import replica_count, sum_over_replicas
from swav_tf.recipe.pretraining import BatchNorm as Settings


@keras.saving.register_keras_serializable("swav_tf")
class BatchNorm(keras.layers.Layer):
    """Batch normalization over all axes but the last (channels).

    Statistics and running averages are float32 under any dtype policy. The weights have
    Keras' names, shapes and meaning (`gamma`, `beta`, `moving_mean`, `moving_variance`).

    Args:
        synchronized: in training, take the statistics over the samples of all replicas.
        momentum: share of the running average that each step keeps.
        epsilon: added to the variance.
    """

    def __init__(
        self, *, synchronized: bool = False, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.synchronized = synchronized
        self.momentum = momentum
        self.epsilon = epsilon

    @classmethod
    def of(cls, settings: Settings, name: str) -> BatchNorm:
        """Return the layer that a recipe describes."""
        return cls(
            synchronized=settings.synchronised,
            momentum=settings.momentum,
            epsilon=settings.epsilon,
            name=name,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the four vectors of length channels."""
        shape = (input_shape[-1],)
        vector: dict[str, Any] = {"shape": shape, "dtype": "float32", "autocast": False}
        self.gamma = self.add_weight(name="gamma", initializer="ones", **vector)
        self.beta = self.add_weight(name="beta", initializer="zeros", **vector)
        # Replicas that are not synchronized update their own running averages; the first one's are saved.
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", trainable=False, **vector)
        self.moving_variance = self.add_weight(
            name="moving_variance", initializer="ones", trainable=False, **vector
        )

    def call(self, inputs: tf.Tensor, training: bool = False, mask: None = None) -> tf.Tensor:
        """Normalize (..., channels); same shape and dtype. `mask` is what Keras' own layer is called with."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not (training and self.trainable):
            mean, variance = (
                tf.convert_to_tensor(self.moving_mean),
                tf.convert_to_tensor(self.moving_variance),
            )
            return _normalize_by(mean, variance, inputs, gamma, beta, self.epsilon)
        if self.synchronized and replica_count() > 1:
            outputs, mean, variance = _synchronized(inputs, gamma, beta, self.epsilon)
        else:
            variance, own = _normalize_by_own(inputs, gamma, beta, self.epsilon)
            outputs, mean = _shaped(own.y, like=inputs), own.batch_mean
        collected = getattr(_collecting, "calls", None)
        if collected is None:
            self.move_averages(mean, variance)
        else:
            collected.append((self, mean, variance))
        return outputs

    def move_averages(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Move the running averages towards the statistics of one batch, each (channels,)."""
        self._move(self.moving_mean, mean)
        self._move(self.moving_variance, variance)

    def _move(self, average: keras.Variable, value: tf.Tensor) -> None:
        # One overflow in half precision must not stay in the running average.
        old = tf.convert_to_tensor(average)
        new = self.momentum * old + (1.0 - self.momentum) * value
        average.assign(tf.where(tf.math.is_finite(new), new, old))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what Keras needs to rebuild this layer."""
        config = super().get_config()
        config.update(synchronized=self.synchronized, momentum=self.momentum, epsilon=self.epsilon)
        return config


def replace_keras_batch_norm(network: keras.Model, *, synchronized: bool) -> None:
    """Let the layers of Keras in a network do as `BatchNorm` does; they keep their weights, momentum and epsilon.

    They change their class in place: a copy of the network would miss the layers that are inside of blocks.
    """
    for layer in network._flatten_layers():
        same_axes = isinstance(layer, keras.layers.BatchNormalization) and layer.axis in (-1, 3)
        if same_axes and layer.center and layer.scale and not layer.renorm:
            layer.__class__ = BatchNorm
            layer.synchronized = synchronized


_collecting = threading.local()  # a strategy traces each replica in a thread of its own


class StatisticsOfParts:
    """Statistics of a batch whose parts come one after the other; running averages move once, after the last part."""

    def __init__(self) -> None:
        self._layers: tuple[BatchNorm, ...] = ()  # in the order of their calls

    @contextmanager
    def collect(self) -> Iterator[list[tf.Tensor]]:
        """Keep the running averages inside the block; then append the statistics, (2, channels of all calls)."""
        calls: list[tuple[BatchNorm, tf.Tensor, tf.Tensor]] = []
        statistics: list[tf.Tensor] = []
        _collecting.calls = calls
        try:
            yield statistics
        finally:
            _collecting.calls = None
        self._layers = tuple(layer for layer, _, _ in calls)
        means, variances = [mean for _, mean, _ in calls], [variance for _, _, variance in calls]
        joined = [tf.concat(vectors, axis=0) for vectors in (means, variances)] if calls else tf.zeros([2, 0])
        statistics.append(tf.stack(joined))

    def move_averages(self, parts: Sequence[tf.Tensor]) -> None:
        """Move all running averages once, by what `collect` appended for each of P equal parts.

        With m_p and v_p of part p, the mean is m = mean of m_p, and the variance mean of v_p + mean of (m_p - m)^2.
        """
        stacked = tf.stack(parts)  # (P, 2, channels of all calls)
        means, variances = stacked[:, 0], stacked[:, 1]
        mean = tf.reduce_mean(means, axis=0)
        variance = tf.reduce_mean(variances + tf.square(means - mean), axis=0)
        sizes = [layer.moving_mean.shape[0] for layer in self._layers]
        if not sizes:
            return
        of_calls = zip(self._layers, tf.split(mean, sizes), tf.split(variance, sizes), strict=True)
        for layer, own_mean, own_variance in of_calls:
            layer.move_averages(own_mean, own_variance)


def _normalize_by_own(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, Any]:
    """Run TensorFlow's training kernel; return the biased variance of this replica's x, and all outputs."""
    images, empty = _as_images(x), tf.zeros([0])
    # The raw op, since tf.nn's wrapper silently raises epsilon to 1.001e-5.
    own = tf.raw_ops.FusedBatchNormV3(
        x=images, scale=gamma, offset=beta, mean=empty, variance=empty, epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.size(images) // tf.shape(images)[-1], tf.float32)
    return own.batch_variance * ((count - 1.0) / count), own


def _normalize_by(
    mean: tf.Tensor, variance: tf.Tensor, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """Run TensorFlow's inference kernel: normalize x by a given mean and variance."""
    images = tf.raw_ops.FusedBatchNormV3(
        x=_as_images(x), scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon,
        is_training=False,
    )  # fmt: skip
    return _shaped(images.y, like=x)


def _synchronized(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalize by statistics over all replicas: one all-reduce forward, one backward.

    The loss of the step is the mean of the replicas' losses, so each replica's gradient of x
    needs the sums of all of them, while those of gamma and beta stay local: they are summed
    with all other gradients at the end of the step.

    Only TensorFlow's fused kernels touch x. They read half precision and compute in float32. Written out, it would
    take some thirty passes over x in memory, longer on a GPU than the convolutions. The kernels normalize by this
    replica's own statistics; a few numbers per channel correct them to those of all replicas.
    """

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        own_count = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
        own_variance, own = _normalize_by_own(x, gamma, beta, epsilon)
        own_mean = own.batch_mean
        sums = [own_mean * own_count, (own_variance + tf.square(own_mean)) * own_count, own_count]
        totals, squares, count = sum_over_replicas(sums)
        mean = totals / count
        variance = tf.maximum(squares / count - tf.square(mean), 0.0)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            # With s the standardized x, and the sums of dy and of dy s over all samples, it is
            #     gamma / deviation * (dy - (sum dy + s * sum dy s) / count).
            # The kernel computes the same from its own s, which is slope * s + shift, its own sums and count.
            inverse, own_inverse = tf.math.rsqrt(variance + epsilon), tf.math.rsqrt(own_variance + epsilon)
            slope, shift = own_inverse / inverse, (mean - own_mean) * own_inverse
            kernel = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=_as_images(dy), x=_as_images(x), scale=gamma / slope, epsilon=epsilon,
                reserve_space_1=own.reserve_space_1, reserve_space_2=own.reserve_space_2,
                reserve_space_3=own.reserve_space_3,
            )  # fmt: skip
            sum_dy, own_sum = kernel.offset_backprop, kernel.scale_backprop
            sum_dy_s = (own_sum - shift * sum_dy) / slope
            all_dy, all_dy_s = sum_over_replicas([sum_dy, sum_dy_s])
            of_s = slope * own_sum / own_count - all_dy_s / count
            constant = (sum_dy + shift * own_sum) / own_count - all_dy / count
            scale = gamma * inverse
            difference = _normalize_by(mean, variance, x, scale * of_s, scale * constant, epsilon)
            return _shaped(kernel.x_backprop, like=x) + difference, sum_dy_s, sum_dy

        outputs = _normalize_by(mean, variance, x, gamma, beta, epsilon)
        return (outputs, mean, variance), gradient

    outputs, mean, variance = normalize(x, gamma, beta)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _as_images(x: tf.Tensor) -> tf.Tensor:
    """Reshape to the layout of the fused kernels: (samples, height, width, channels)."""
    return x if x.shape.rank == 4 else tf.reshape(x, [-1, 1, 1, x.shape[-1]])


def _shaped(images: tf.Tensor, *, like: tf.Tensor) -> tf.Tensor:
    return images if like.shape.rank == 4 else tf.reshape(images, tf.shape(like))
