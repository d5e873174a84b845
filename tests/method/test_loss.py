import numpy as np
import pytest
import tensorflow as tf

from swav_tf.method.loss import swapped_prediction_loss


def literal_loss(scores, codes, temperature):
    """Equation 2 term by term, float64."""
    scores, codes = scores.astype(np.float64) / temperature, codes.astype(np.float64)
    total = 0.0
    for i in range(len(codes)):
        terms = []
        for v in range(len(scores)):
            if v != i:
                p = np.exp(scores[v]) / np.exp(scores[v]).sum(axis=1, keepdims=True)
                terms.append(np.mean(-np.sum(codes[i] * np.log(p), axis=1)))
        total += np.mean(terms)
    return total / len(codes)


# Bugs caught: a crop that predicts its own codes, sums for means, terms that weigh unequally.
@pytest.mark.parametrize("crops", [2, 3, 8])
def test_loss_equals_the_formula(crops):
    rng = np.random.default_rng(crops)
    scores = rng.uniform(-1, 1, (crops, 6, 5)).astype(np.float32)
    codes = rng.dirichlet(np.ones(5), (2, 6)).astype(np.float32)
    loss = swapped_prediction_loss(tf.constant(scores), tf.constant(codes), temperature=0.1)
    assert float(loss) == pytest.approx(literal_loss(scores, codes, 0.1), rel=1e-5)


# Bug caught: a lost factor: a collapsed run would not show ln K.
def test_uniform_predictions_cost_ln_k():
    codes = tf.constant(np.random.default_rng(0).dirichlet(np.ones(7), (2, 4)), tf.float32)
    assert float(swapped_prediction_loss(tf.zeros([8, 4, 7]), codes, temperature=0.1)) == pytest.approx(
        np.log(7)
    )


# Bug caught: a gradient of the wrong size or sign; the oracle is a central difference in float64.
def test_gradient_equals_finite_differences():
    rng = np.random.default_rng(1)
    scores = rng.uniform(-1, 1, (3, 2, 4))
    codes = rng.dirichlet(np.ones(4), (2, 2))
    variable = tf.Variable(scores.astype(np.float32))
    with tf.GradientTape() as tape:
        loss = swapped_prediction_loss(variable, tf.constant(codes, tf.float32), temperature=0.1)
    gradient = tape.gradient(loss, variable).numpy()
    for index in np.ndindex(scores.shape):
        high, low = scores.copy(), scores.copy()
        high[index] += 1e-5
        low[index] -= 1e-5
        slope = (literal_loss(high, codes, 0.1) - literal_loss(low, codes, 0.1)) / 2e-5
        assert gradient[index] == pytest.approx(slope, abs=2e-5)
