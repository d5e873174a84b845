import numpy as np
import pytest

from swav_tf.training.logistic import best_penalty, choose_penalty, fit_path


def problem(count=400, features=6, classes=4, seed=0):
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(classes, features)) * 1.5
    labels = draw.integers(0, classes, count)
    x = (centres[labels] + draw.normal(size=(count, features))) * draw.uniform(0.1, 9, features) + 5
    return x.astype(np.float32), labels


# Bugs caught: a penalty that is scaled by the number of images or reaches the bias, features that are standardised in
# the fit and not in the classifier, a bias without the mean: against scikit-learn.
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_fit_is_scikit_learns(penalty):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = problem()
    # A stronger one is fitted first: what it ends with must not matter.
    ours = fit_path(features, labels, class_count=4, penalties=[penalty, 1.0], max_iterations=500)[penalty]
    standard = StandardScaler().fit(features.astype(np.float64))
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=5000)
    theirs.fit(standard.transform(features), labels)
    expected = theirs.predict_proba(standard.transform(features))
    logits = ours.logits(features)
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found / found.sum(axis=1, keepdims=True), expected, atol=2e-3)


# Bugs caught: a feature that never changes and gives NaN; a class that has no image and gives an error.
def test_constant_features_and_absent_classes():
    features, labels = problem(classes=3)
    features[:, 2] = 7.0
    [found] = fit_path(features, labels, class_count=5, penalties=[1e-2], max_iterations=200).values()
    assert np.isfinite(found.kernel).all()
    assert not found.kernel[2].any()
    assert (found.logits(features).argmax(axis=1) == labels).mean() > 0.8


# Bugs caught: held-out images that are learnt from, a weaker penalty where a stronger one is as good.
def test_the_penalty_is_chosen_on_held_out_images():
    draw = np.random.default_rng(1)
    noise, labels = draw.normal(size=(60, 200)).astype(np.float32), draw.integers(0, 2, 60)
    arguments = {"class_count": 2, "held_out_share": 0.5, "seed": 3, "max_iterations": 200}
    accuracies = choose_penalty(noise, labels, penalties=[1e-4, 10.0], **arguments)
    assert max(accuracies.values()) < 0.85  # learnt by heart it would be 1
    assert best_penalty({1e-3: 0.9, 0.1: 0.9, 1.0: 0.8}) == 0.1
