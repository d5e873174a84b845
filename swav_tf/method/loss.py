"""The swapped-prediction loss (paper, equations 1, 2 and 6)."""

from __future__ import annotations

import tensorflow as tf


def swapped_prediction_loss(scores: tf.Tensor, codes: tf.Tensor, *, temperature: float) -> tf.Tensor:
    """Return the mean cross-entropy between each assign crop's codes and all other crops' predictions.

    loss = 1/A sum_i 1/(V-1) sum_{v != i} mean_b ( - sum_k q_i log softmax(scores_v / temperature) )

    Args:
        scores: (V, B, K) of all crops; crops 0 .. A-1 are the assign crops.
        codes: (A, B, K) of the assign crops, each summing to 1 over K.
        temperature: > 0, in the softmax only.

    Returns:
        A float32 scalar; ln K when predictions are independent of the codes.
    """
    crop_count, assign_count = scores.shape[0], codes.shape[0]
    log_p = tf.nn.log_softmax(tf.cast(scores, tf.float32) / temperature)
    # The crops other than i: all of them, less i itself. A * (V - 1) terms from A products.
    others = tf.reduce_sum(log_p, axis=0, keepdims=True) - log_p[:assign_count]  # (A, B, K)
    cross_entropy = -tf.reduce_sum(codes * others, axis=-1)  # (A, B)
    return tf.reduce_mean(cross_entropy) / (crop_count - 1)
