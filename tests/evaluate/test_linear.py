import numpy as np
import pytest
from sklearn.linear_model import Ridge

from evaluate.linear import fit_ridge, linear_accuracy


def some_features(images, features):
    draw = np.random.default_rng(0)
    labels = np.arange(images) % 4
    x = draw.normal(size=(images, features)) + 2 * np.eye(4, features)[labels]
    x = x * draw.uniform(0.1, 30, features) + 5
    x[:, 1] = 7
    return x.astype(np.float32), labels, draw.normal(0, 20, x.shape)


# Bugs caught: a penalty that depends on the number of images, a constant feature that makes everything NaN.
@pytest.mark.parametrize(("images", "features"), [(60, 12), (20, 50)])
def test_ridge_is_least_squares_on_standardized_features(images, features):
    x, labels, noise = some_features(images, features)
    deviation = np.where(np.arange(features) == 1, 1, x.std(axis=0, dtype=np.float64))
    standardized = (x - x.mean(axis=0, dtype=np.float64)) / deviation
    oracle = Ridge(alpha=0.01 * images).fit(standardized, 2.0 * np.eye(4)[labels] - 1)
    queries = x + noise
    expected = oracle.predict((queries - x.mean(axis=0, dtype=np.float64)) / deviation).argmax(axis=1)
    accuracy = np.mean(expected == labels)
    assert 0.3 < accuracy < 1
    found = fit_ridge(x, labels).score(queries, labels)
    assert found == pytest.approx(accuracy, abs=1.5 / images)


def test_linear_accuracy_ignores_scales():
    x, labels, _ = some_features(60, 12)
    accuracy = linear_accuracy(x[:30], labels[:30], x[30:], labels[30:])
    assert 0.5 < accuracy <= 1
    assert linear_accuracy(1000 * x[:30], labels[:30], 1000 * x[30:], labels[30:]) == accuracy
