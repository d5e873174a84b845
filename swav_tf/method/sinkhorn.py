"""Codes by the Sinkhorn-Knopp algorithm (paper, section 3.1, equations 3 to 5).

Q = exp(scores / epsilon) is scaled alternately so that every prototype has the same
total over all samples of all replicas, and every sample the same total. Scaling
rows and columns only multiplies Q by diag(u) on one side and diag(v) on the
other, so Q itself is computed once and u and v are matrix-vector products.
"""

from __future__ import annotations

import tensorflow as tf

from swav_tf.model.replicas import gather_from_replicas, sum_over_replicas

# exp((score - 1) / epsilon) with scores in [-1, 1] leaves float32's normal numbers below this epsilon.
SMALLEST_PLAIN_EPSILON = 0.025


def sinkhorn(
    scores: tf.Tensor,
    *,
    epsilon: float,
    iterations: int,
    row_weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Return codes of the samples of this replica, balanced over the samples of all replicas.

    Args:
        scores: (C, B, K) cosines in [-1, 1] of B samples and K prototypes, for C assign
            crops that are balanced separately but share their collectives. Any float
            dtype; everything is computed in float32.
        epsilon: entropy weight, > 0; small values are computed in logarithms.
        iterations: rounds of (prototypes, then samples), >= 1. One all-reduce each.
        row_weights: (B,) 1 for the samples that take part, 0 for those that do not
            (a queue that is not full yet). Their codes are still returned.

    Returns:
        (C, B, K) float32 codes; each sample's sum to 1. No gradient flows through them.
    """
    scores = tf.stop_gradient(tf.cast(scores, tf.float32))
    if row_weights is None:
        row_weights = tf.ones(tf.shape(scores)[1:2])
    row_weights = tf.cast(row_weights, tf.float32)[tf.newaxis, :, tf.newaxis]
    solve = _solve_plain if epsilon >= SMALLEST_PLAIN_EPSILON else _solve_logarithmic
    return tf.stop_gradient(solve(scores, epsilon, iterations, row_weights))


def _solve_plain(scores: tf.Tensor, epsilon: float, iterations: int, row_weights: tf.Tensor) -> tf.Tensor:
    # Any constant may be subtracted; cosines are at most 1, so this one needs no maximum over replicas.
    q = tf.exp((scores - 1.0) / epsilon)  # (C, B, K)
    u = row_weights  # (C or 1, B, 1), the samples' factors
    for _ in range(iterations):
        [prototype_totals] = sum_over_replicas([tf.matmul(u, q, transpose_a=True)])
        v = 1.0 / prototype_totals  # each prototype's total becomes equal...
        v /= tf.reduce_mean(v, axis=2, keepdims=True)  # (a common factor, which u undoes: no drift)
        sample_totals = tf.matmul(q, v, transpose_b=True)  # (C, B, 1)
        u = row_weights / sample_totals  # ...then each sample's
    return q * v / sample_totals


def _solve_logarithmic(
    scores: tf.Tensor, epsilon: float, iterations: int, row_weights: tf.Tensor
) -> tf.Tensor:
    log_q = scores / epsilon
    log_weights = tf.math.log(row_weights)  # 0, or -inf for samples that do not take part
    log_u = log_weights
    for _ in range(iterations):
        local = tf.reduce_logsumexp(log_q + log_u, axis=1, keepdims=True)  # (C, 1, K)
        log_v = -tf.reduce_logsumexp(gather_from_replicas(local), axis=0)
        log_sample_totals = tf.reduce_logsumexp(log_q + log_v, axis=2, keepdims=True)
        log_u = log_weights - log_sample_totals
    return tf.exp(log_q + log_v - log_sample_totals)
