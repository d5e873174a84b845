import keras
import numpy as np
import pytest
import tensorflow as tf

from swav_tf.model.batch_norm import BatchNorm, StatisticsOfParts, replace_keras_batch_norm
from tests.replicas import run_on_shares


def steps(layer, x, dy):
    """Outputs and gradients of x, gamma and beta of one training call."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * dy)
    return [y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])]


@pytest.fixture(params=[(6, 5, 5, 4), (16, 4)], ids=["images", "vectors"])
def tensors(request):
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 3.0, request.param).astype(np.float32)
    return x, rng.normal(size=request.param).astype(np.float32)


# Bugs caught: Bessel's correction in the running variance, a silently raised epsilon, swapped momentum.
def test_equals_keras_in_training_and_inference(tensors):
    x, dy = tensors
    own = BatchNorm(momentum=0.9, epsilon=1e-5)
    reference = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    for _ in range(3):
        for a, b in zip(steps(own, x, dy), steps(reference, x, dy), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    for a, b in zip(own.weights, reference.weights, strict=True):
        assert a.path.split("/")[-1] == b.path.split("/")[-1]
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own(x, training=False), reference(x, training=False), rtol=1e-4, atol=1e-5)


# Bugs caught: statistics of one replica; a gradient that forgets the other replicas.
def test_synchronized_replicas_equal_one(mirrored, tensors):
    x, dy = tensors
    alone = BatchNorm(synchronized=True)
    expected = steps(alone, x, dy)
    with mirrored.scope():
        shared = BatchNorm(synchronized=True)
        shared.build(x.shape)
    y, dx, d_gamma, d_beta = run_on_shares(mirrored, lambda x, dy: steps(shared, x, dy), x, dy)
    np.testing.assert_allclose(np.concatenate(y), expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(dx), expected[1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(sum(d_gamma), expected[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sum(d_beta), expected[3], rtol=1e-4, atol=1e-5)
    for a, b in zip(alone.weights, shared.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def literal_batch_norm(x, dy, gamma, beta, epsilon=1e-5):
    """The formula and its gradients over all samples, float64."""
    x, dy = np.float64(x), np.float64(dy)
    axes = tuple(range(x.ndim - 1))
    deviation = np.sqrt(x.var(axes) + epsilon)
    standardized = (x - x.mean(axes)) / deviation
    d_beta, d_gamma = dy.sum(axes), (dy * standardized).sum(axes)
    count = x.size // x.shape[-1]
    dx = gamma / deviation * (dy - (d_beta + standardized * d_gamma) / count)
    return standardized * gamma + beta, dx, d_gamma, d_beta


# Bugs caught: an unbiased variance among the sums of the replicas, gamma or beta left out of the gradient, a
# gradient in half precision that is more than rounded.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2)]
)
def test_synchronized_replicas_equal_the_formula(mirrored, tensors, dtype, tolerance):
    x, dy = (
        np.asarray(tf.cast(tf.cast(t, keras.DTypePolicy(dtype).compute_dtype), tf.float32)) for t in tensors
    )
    gamma, beta = np.linspace(-1.5, 2.0, 4), np.linspace(0.5, -1.0, 4)
    with mirrored.scope():
        layer = BatchNorm(synchronized=True, dtype=dtype)
        layer.build(x.shape)
        layer.gamma.assign(gamma)
        layer.beta.assign(beta)
    parts = run_on_shares(mirrored, lambda x, dy: steps(layer, x, dy), x, dy)
    y, dx = (np.concatenate(part).astype(np.float64) for part in parts[:2])
    sums = [np.sum(part, axis=0) for part in parts[2:]]
    for found, exact in zip((y, dx, *sums), literal_batch_norm(x, dy, gamma, beta), strict=True):
        np.testing.assert_allclose(found, exact, rtol=tolerance, atol=tolerance * np.abs(exact).max())


# Bug caught: an option that is accepted and ignored.
def test_replicas_without_synchronization_are_independent(mirrored, tensors):
    x, dy = tensors
    with mirrored.scope():
        layer = BatchNorm(synchronized=False)
        layer.build(x.shape)
    y, *_ = run_on_shares(mirrored, lambda x, dy: steps(layer, x, dy), x, dy)
    half = len(x) // 2
    np.testing.assert_allclose(y[1], BatchNorm()(x[half:], training=True), rtol=1e-4, atol=1e-5)


# Bug caught: one overflow that stays in the running averages.
def test_a_non_finite_batch_leaves_the_running_averages():
    layer = BatchNorm()
    x = np.ones((4, 3), np.float32)
    x[0, 1] = np.inf
    layer(x, training=True)
    assert np.all(np.isfinite(layer.moving_mean.numpy()))
    assert np.all(np.isfinite(layer.moving_variance.numpy()))


# Bug caught: statistics in half precision, or float32 that leaves a half-precision layer.
def test_half_precision_keeps_float32_statistics():
    layer = BatchNorm(dtype="mixed_bfloat16")
    x = np.random.default_rng(0).normal(3, 1, (64, 4)).astype(np.float32)
    y = layer(x, training=True)
    assert y.dtype == tf.bfloat16
    assert {v.dtype for v in layer.weights} == {"float32"}
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * x.mean(axis=0), rtol=1e-2)


# Bug caught: a frozen layer whose averages move.
def test_inference_changes_nothing():
    layer = BatchNorm()
    layer.build((None, 3))
    before = layer.get_weights()
    layer(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), training=False)
    layer.trainable = False
    layer(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), training=True)
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# Bugs caught: a layer inside of a block that stays Keras'; averages of it that move once a part; another momentum.
def test_batch_norm_of_keras_becomes_ours():
    x = np.random.default_rng(0).normal(2.0, 3.0, (8, 5)).astype(np.float32)
    block = keras.Sequential([keras.layers.BatchNormalization(momentum=0.7, epsilon=1e-3)])
    network = keras.Sequential([block, keras.layers.BatchNormalization(scale=False)])
    network.build((None, 5))
    expected = network(x, training=True).numpy(), block.get_weights()
    network.set_weights(
        [np.full(w.shape, "gamma" in w.path or "variance" in w.path) for w in network.weights]
    )
    replace_keras_batch_norm(network, synchronized=True)
    [inner], [_, other] = block.layers, network.layers
    assert type(inner) is BatchNorm
    assert inner.synchronized
    assert type(other) is keras.layers.BatchNormalization  # one without gamma is left alone
    statistics = StatisticsOfParts()
    with statistics.collect() as part:
        outputs = network(x, training=True)
    np.testing.assert_array_equal(inner.moving_mean, np.zeros(5))
    statistics.move_averages(part)
    np.testing.assert_allclose(outputs, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inner.moving_mean, expected[1][2], rtol=1e-5)


# Bugs caught: averages that move during the parts; the mean of the parts' variances alone; calls of one layer in another
# order, or joined.
def test_parts_move_the_averages_as_the_whole_batch_does():
    x = np.random.default_rng(0).normal(2.0, 3.0, (2, 12, 5)) + np.arange(12)[:, None]
    layer, statistics = BatchNorm(momentum=0.9), StatisticsOfParts()
    layer.build((None, 5))
    parts = []
    for part in range(3):
        with statistics.collect() as found:
            for group in x:  # two calls a pass, as for two sizes of crops
                layer(tf.constant(group[part * 4 : part * 4 + 4], tf.float32), training=True)
        parts += found
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(5))
    statistics.move_averages(parts)
    mean, variance = np.zeros(5), np.ones(5)
    for group in x:
        mean, variance = 0.9 * mean + 0.1 * group.mean(0), 0.9 * variance + 0.1 * group.var(0)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)
