import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from swav_tf.method.optimizers import SGD, Adam, EpochSchedule, epoch_shares
from swav_tf.recipe.classifier import FinetuneOptimizer, ProbeOptimizer


# Bugs caught: decay that is decoupled, the rate inside the buffer, one rate for all parts, a rate that moves
# within an epoch or an epoch late.
def test_steps_equal_the_formula_in_float64():
    draw = np.random.default_rng(0)
    values = [draw.normal(size=(3, 4)), draw.normal(size=5)]
    rates, momentum, decay = [0.01, 0.2], 0.9, 0.05
    shares = [1.0, 0.6, 0.1]
    variables = [keras.Variable(p.astype(np.float32)) for p in values]
    optimizer = SGD(
        EpochSchedule(shares, steps_per_epoch=2), rates=rates, momentum=momentum, weight_decay=decay
    )
    optimizer.build(variables)
    buffers = [np.zeros_like(p) for p in values]
    for step in range(6):
        gradients = [draw.normal(size=p.shape) for p in values]
        optimizer.apply([tf.constant(g, tf.float32) for g in gradients])
        for i, gradient in enumerate(gradients):
            buffers[i] = momentum * buffers[i] + gradient + decay * values[i]
            values[i] = values[i] - shares[step // 2] * rates[i] * buffers[i]
        for variable, value in zip(variables, values, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


# Bugs caught: a decay that comes an epoch early or late; a cosine that reaches 0 within the run.
def test_shares_equal_the_published_schedules():
    steps = FinetuneOptimizer(
        backbone_learning_rate=0.01, classifier_learning_rate=0.2, decay="steps", decay_epochs=(12, 16)
    )
    shares = epoch_shares(steps, epochs=20)
    assert shares[:12] == [1.0] * 12
    assert shares[12:16] == [0.2] * 4
    assert shares[16:] == pytest.approx([0.04] * 4)
    cosine = epoch_shares(ProbeOptimizer(learning_rate=0.3), epochs=100)
    assert cosine[0] == 1.0
    assert cosine[50] == pytest.approx(0.5)
    assert cosine[99] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert 0 < cosine[99] < 3e-4


# Bug caught: a variable or a step that must be skipped and is not.
def test_a_skipped_update_changes_nothing():
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer = SGD(1.0, rates=[0.5], weight_decay=0.1)
    optimizer.build([variable])
    for target, function, arguments in optimizer.updates(
        [tf.constant([np.nan] * 3)], [variable], [tf.constant(False)]
    ):
        function(target, *arguments)
    np.testing.assert_array_equal(variable.numpy(), np.ones(3))
    np.testing.assert_array_equal(optimizer.momentums[0].numpy(), np.zeros(3))
    assert int(optimizer.iterations) == 1


# Bugs caught: bias corrections of the wrong step, decoupled decay, moments that move although a step is skipped, a
# variable that counts steps while it is skipped.
def test_adam_equals_the_formula_in_float64():
    draw = np.random.default_rng(0)
    values = [draw.normal(size=(3, 4)), draw.normal(size=5)]
    variables = [keras.Variable(p.astype(np.float32)) for p in values]
    optimizer = Adam(0.1, weight_decay=0.05)
    optimizer.build(variables)
    first, second = ([np.zeros_like(p) for p in values] for _ in range(2))
    counts = [0, 0]
    for step in range(6):
        gradients = [draw.normal(size=p.shape) for p in values]
        applied = [True, step >= 2]
        if not applied[1]:
            gradients[1][0] = np.nan
        for target, function, arguments in optimizer.updates(
            [tf.constant(g, tf.float32) for g in gradients], variables, [tf.constant(a) for a in applied]
        ):
            function(target, *arguments)
        for i in np.flatnonzero(applied):
            counts[i] += 1
            gradient = gradients[i] + 0.05 * values[i]
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            corrected = first[i] / (1 - 0.9 ** counts[i]), second[i] / (1 - 0.999 ** counts[i])
            values[i] = values[i] - 0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        for variable, value in zip(variables, values, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
