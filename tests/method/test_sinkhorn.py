import numpy as np
import pytest
import tensorflow as tf

from swav_tf.method.sinkhorn import sinkhorn
from tests.replicas import run_on_shares


def cosines(rng, crops, samples, prototypes, dim=16):
    z = rng.normal(size=(crops, samples, dim))
    c = rng.normal(size=(dim, prototypes))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    c /= np.linalg.norm(c, axis=0)
    return z @ c


def literal_sinkhorn(scores, epsilon, iterations):
    """The paper's equations 3 to 5 literally, one crop (B, K), float64, in logarithms."""
    log_q = scores.astype(np.float64).T / epsilon  # K x B, as in the paper
    K, B = log_q.shape

    def log_sum(x, axis):
        top = x.max(axis=axis, keepdims=True)
        return top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True))

    log_q = log_q - log_sum(log_q, None)
    for _ in range(iterations):
        log_q = log_q - log_sum(log_q, 1) - np.log(K)
        log_q = log_q - log_sum(log_q, 0) - np.log(B)
    return (np.exp(log_q) * B).T


# Bugs caught: temperature for epsilon, rows before columns, one iteration more or less, a lost constant.
@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.001, 0.005, 0.02, 0.03, 0.05, 0.5])
def test_codes_equal_the_formula(epsilon, iterations):
    scores = cosines(np.random.default_rng(0), 2, 24, 10)
    codes = sinkhorn(tf.constant(scores, tf.float32), epsilon=epsilon, iterations=iterations).numpy()
    for crop in range(2):
        expected = literal_sinkhorn(scores[crop].astype(np.float32), epsilon, iterations)
        # float32 scores / epsilon: an error of 6e-8 / epsilon in the exponent.
        np.testing.assert_allclose(codes[crop], expected, rtol=2e-5 + 2e-6 / epsilon, atol=1e-6)


# Bug caught: normalising in the wrong order leaves samples that do not sum to 1.
def test_marginals_of_many_iterations_are_uniform():
    scores = cosines(np.random.default_rng(1), 2, 40, 8)
    codes = sinkhorn(tf.constant(scores, tf.float32), epsilon=0.1, iterations=100).numpy()
    np.testing.assert_allclose(codes.sum(axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(codes.sum(axis=1), 40 / 8, rtol=1e-4)


# Bug caught: exp(score / epsilon) in half precision overflows above a score of 0.554.
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_scores_are_balanced_in_float32(dtype):
    scores = tf.cast(cosines(np.random.default_rng(2), 1, 16, 6) * 0.5 + 0.5, dtype)
    codes = sinkhorn(scores, epsilon=0.05, iterations=3)
    assert codes.dtype == tf.float32
    expected = literal_sinkhorn(tf.cast(scores, tf.float32).numpy()[0], 0.05, 3)
    np.testing.assert_allclose(codes[0], expected, rtol=1e-4, atol=1e-6)


# Bugs caught: sums over one replica only; a mean where a sum must be; replicas in the wrong order.
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_two_replicas_equal_one(mirrored, epsilon):
    scores = cosines(np.random.default_rng(3), 2, 24, 10).astype(np.float32)
    one = sinkhorn(tf.constant(scores), epsilon=epsilon, iterations=3).numpy()
    shares = run_on_shares(
        mirrored, lambda share: sinkhorn(share, epsilon=epsilon, iterations=3), scores, axis=1
    )
    np.testing.assert_allclose(np.concatenate(shares, axis=1), one, rtol=1e-4, atol=1e-6)


# Bug caught: rows of an unfilled queue that take part in the balance.
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_rows_of_weight_zero_do_not_take_part(epsilon):
    scores = cosines(np.random.default_rng(4), 2, 24, 10).astype(np.float32)
    weights = tf.constant([0.0] * 8 + [1.0] * 16)
    codes = sinkhorn(tf.constant(scores), epsilon=epsilon, iterations=3, row_weights=weights)
    alone = sinkhorn(tf.constant(scores[:, 8:]), epsilon=epsilon, iterations=3)
    np.testing.assert_allclose(codes[:, 8:], alone, rtol=1e-5, atol=1e-7)


# Bug caught: a gradient that flows through the codes.
def test_no_gradient_through_codes():
    scores = tf.Variable(cosines(np.random.default_rng(5), 1, 8, 4).astype(np.float32))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(sinkhorn(scores, epsilon=0.05, iterations=3) ** 2)
    assert tape.gradient(total, scores) is None


# Bug caught: an all-reduce for the total or for each crop, where three in all will do.
def test_three_sums_over_replicas_for_both_crops(monkeypatch):
    from swav_tf.method import sinkhorn as module

    calls = []
    monkeypatch.setattr(module, "sum_over_replicas", lambda tensors: calls.append(len(tensors)) or tensors)
    sinkhorn(tf.zeros([2, 8, 4]), epsilon=0.05, iterations=3)
    assert calls == [1, 1, 1]
