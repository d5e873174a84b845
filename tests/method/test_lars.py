import keras
import numpy as np
import pytest
import tensorflow as tf

from swav_tf.method.optimizers import LARS
from swav_tf.model.replicas import update_on_all_replicas
from tests.graphs import nodes_as_executed


def literal_lars(p, v, g, *, lr, momentum=0.9, wd=1e-6, trust=0.001):
    """Section 5 of the recipe, float64."""
    p_norm, g_norm = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
    if p_norm > 0 and g_norm > 0:
        g = (g + wd * p) * trust * p_norm / (g_norm + wd * p_norm + 1e-8)
    v = momentum * v + g
    return p - lr * v, v


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    # A kernel, a BN gamma, a bias at zero, a kernel whose gradient is zero.
    values = [rng.normal(size=(3, 4)), np.ones(4), np.zeros(5), rng.normal(size=6)]
    gradients = [[rng.normal(size=p.shape) * (i != 3) for i, p in enumerate(values)] for _ in range(4)]
    return values, gradients


# Bugs caught: tensors left out by name (gamma, bias), the rate inside the buffer, decay outside the ratio,
# decay where the gradient is zero, scaling where the parameter is zero.
@pytest.mark.parametrize("weight_decay", [1e-6, 0.1])
def test_steps_equal_the_formula(tensors, weight_decay):
    values, gradients = tensors
    variables = [keras.Variable(p.astype(np.float32)) for p in values]
    rates = [2.0, 1.0, 0.5, 3.0]
    optimizer = LARS(2.0, weight_decay=weight_decay)
    optimizer.build(variables)
    momenta = [np.zeros_like(p) for p in values]
    for rate, step in zip(rates, gradients, strict=True):
        optimizer.learning_rate.assign(rate)
        optimizer.apply([tf.constant(g, tf.float32) for g in step])
        results = [
            literal_lars(p, v, g, lr=rate, wd=weight_decay)
            for p, v, g in zip(values, momenta, step, strict=True)
        ]
        values, momenta = [r[0] for r in results], [r[1] for r in results]
        for variable, expected in zip(variables, values, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-5, atol=1e-6)


# Bug caught: a variable without a wanted update that still moves by momentum or decay.
def test_an_unwanted_update_changes_neither_value_nor_momentum(tensors):
    values, gradients = tensors
    variables = [keras.Variable(p.astype(np.float32)) for p in values]
    optimizer = LARS(2.0)
    optimizer.build(variables)
    optimizer.apply([tf.constant(g, tf.float32) for g in gradients[0]])
    before = [v.numpy() for v in variables], [v.numpy() for v in optimizer.momentums]
    nan = [tf.fill(g.shape, np.float32("nan")) for g in gradients[1]]
    for variable, update, arguments in optimizer.updates(
        nan, variables, [tf.constant(False)] * len(variables)
    ):
        update(variable, *arguments)
    for old, new in zip(before[0] + before[1], variables + optimizer.momentums, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    assert int(optimizer.iterations.numpy()) == 2


# Bug caught: scalars or complete tensors that each variable computes alone. ResNet-50 has 166 variables, most of
# them small: on a GPU thirty operations on each took longer to launch than to run.
def test_operations_of_a_step_on_each_variable():
    def operations(count):
        variables = [keras.Variable(np.full([i + 1, 3], 0.5, np.float32)) for i in range(count)]
        optimizer = LARS(2.0)
        optimizer.build(variables)

        @tf.function(autograph=False)
        def step(gradients, wanted):
            update_on_all_replicas(optimizer.updates(gradients, variables, [wanted] * count))

        nodes = nodes_as_executed(step, [tf.ones(v.shape) for v in variables], tf.constant(True))
        free = {"Placeholder", "_Arg", "Const", "Identity", "NoOp", "ReadVariableOp"}
        return [node.op for node in nodes if node.op not in free]

    few, many = operations(4), operations(12)
    assert few.count("ResourceApplyMomentum") == 4
    assert len(many) - len(few) <= 6 * 8  # two norms, two products, their sum, the update
