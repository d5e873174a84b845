import numpy as np
import pytest
from sklearn.linear_model import Ridge

from evaluate.linear import fit_ridge


# Bugs caught: a penalty that depends on the number of images, a penalised bias, the form for few images that is another
# problem, a feature that never changes and makes everything NaN.
@pytest.mark.parametrize(("images", "features"), [(60, 12), (20, 50)])
def test_like_scikit_learn(images, features):
    draw = np.random.default_rng(0)
    labels = np.arange(images) % 4
    x = (draw.normal(size=(images, features)) + 2 * np.eye(4, features)[labels]).astype(np.float32)
    x = x * draw.uniform(0.1, 30, features).astype(np.float32) + 5
    x[:, 1] = 7
    wide = x.astype(np.float64)
    deviation = np.where(np.arange(features) == 1, 1, wide.std(axis=0))
    standardised = (wide - wide.mean(axis=0)) / deviation
    targets = 2.0 * np.eye(4)[labels] - 1
    theirs = Ridge(alpha=0.03 * images).fit(standardised, targets)
    ours = fit_ridge(x, labels, penalty=0.03)
    np.testing.assert_allclose(ours.kernel, theirs.coef_.T, atol=1e-7)
    np.testing.assert_allclose(ours.bias, theirs.intercept_, atol=1e-7)
    queries = x + draw.normal(0, 20, x.shape)
    wanted = theirs.predict((queries - wide.mean(axis=0)) / deviation).argmax(axis=1)
    assert 0.3 < np.mean(wanted == labels) < 1
    assert ours.accuracy(queries, labels) == pytest.approx(np.mean(wanted == labels))
