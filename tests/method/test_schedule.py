import numpy as np
import pytest

from swav_tf.method.schedule import WarmupCosine
from swav_tf.recipe.pretraining import Optimizer


def literal_schedule(peak, final, start, warmup_epochs, epochs, steps_per_epoch):
    """Section 5 of the recipe, as two arrays."""
    warmup = np.linspace(start, peak, steps_per_epoch * warmup_epochs)
    T = steps_per_epoch * (epochs - warmup_epochs)
    t = np.arange(T)
    return np.concatenate([warmup, final + (peak - final) * (1 + np.cos(np.pi * t / T)) / 2])


# Bugs caught: a warm-up that ends a step late or repeats its peak; a cosine over all steps; rates per epoch.
@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "steps_per_epoch"),
    [(10, 100, 312), (0, 5, 7), (2, 36, 22), (3, 3, 4), (1, 3, 1)],
)
def test_every_step_has_its_rate(warmup_epochs, epochs, steps_per_epoch):
    settings = Optimizer(
        peak_learning_rate=4.8,
        final_learning_rate=0.0048,
        warmup_epochs=warmup_epochs,
        warmup_start_learning_rate=0.3,
    )
    schedule = WarmupCosine.of(settings, epochs=epochs, steps_per_epoch=steps_per_epoch)
    expected = literal_schedule(4.8, 0.0048, 0.3, warmup_epochs, epochs, steps_per_epoch)
    steps = range(0, len(expected), max(len(expected) // 400, 1))
    rates = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(rates, expected[list(steps)], rtol=1e-5, atol=2e-6)
