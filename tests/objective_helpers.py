"""What the tests of objectives share: models of each engine, and effects by a naive loop."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import InfluenceWarning
from sklearn_dualif.sketching import FactorizedSketch, GaussianSketch

N, N_QUERIES = 40, 21
LABELS = np.array(["ash", "birch", "cedar"])
GROUPS = np.array([*"aabbbcc" * 3])

_LOGISTIC = LogisticRegression(tol=1e-12, max_iter=1000)
_PERCEPTRON = MLPClassifier(
    (3,), activation="tanh", alpha=0.5, solver="lbfgs", max_iter=30, random_state=0
)
ENGINES = {
    "primal": (_LOGISTIC, {"solver": "primal"}),
    "dual": (_LOGISTIC, {"solver": "dual"}),
    "fisher": (_LOGISTIC, {"curvature": "empirical_fisher"}),
    "pipeline": (make_pipeline(StandardScaler(), _LOGISTIC), {}),
    "sketched": (_LOGISTIC, {"sketch": GaussianSketch(8, random_state=0)}),
    "rest": (SGDClassifier("log_loss", alpha=0.05, average=True, tol=None, random_state=0), {}),
    "network primal": (_PERCEPTRON, {"solver": "primal"}),
    "network dual": (_PERCEPTRON, {"solver": "dual"}),
    "network iterative": (_PERCEPTRON, {"solver": "iterative", "tol": 1e-9}),
    "network kfac": (_PERCEPTRON, {"curvature": "kfac"}),
    "network sketched kfac": (
        _PERCEPTRON,
        {"curvature": "kfac", "sketch": FactorizedSketch(8, random_state=0)},
    ),
    "network sketched": (_PERCEPTRON, {"sketch": GaussianSketch(24, random_state=0)}),
}


@cache
def rows(n_classes):
    """Return X, y and as many query rows of overlapping classes with string labels."""
    rng = np.random.default_rng(n_classes)
    index = (np.arange(N + N_QUERIES) - N) % n_classes  # all classes in each of the groups
    X = rng.standard_normal((N + N_QUERIES, 4)) + rng.standard_normal((n_classes, 4))[index]
    index[: N // 4] = rng.integers(n_classes, size=N // 4)  # no network separates the classes
    return X[:N], LABELS[index][:N], X[N:], LABELS[index][N:]


@cache
def fitted(engine, n_classes=2):
    """Return an `InfluenceEstimator` on `rows`."""
    X, y, _, _ = rows(n_classes)
    return fit(*ENGINES[engine], X, y)


def fit(model, options, X, y, **validation):
    """Fit an `InfluenceEstimator`, whatever it warns of."""
    with warnings.catch_warnings():
        for category in (InfluenceWarning, ConvergenceWarning):
            warnings.simplefilter("ignore", category)
        return InfluenceEstimator(clone(model), **options).fit(X, y, **validation)


def orders(engine):
    """Return the orders of an engine that evaluate objectives at changed outputs."""
    return ["newton"] if engine == "fisher" or "kfac" in engine else ["newton", "exact"]


def assert_close(actual, expected, tolerance=1e-9):
    """Check numbers relative to the largest."""
    assert np.shape(actual) == np.shape(expected)
    top = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * top + 1e-14)


def scores(influence, X, order="newton"):
    """Return the outputs (n, C) that effects start from."""
    engine = influence._engine
    return engine.query_outputs(engine.model.features(X), order).numpy()


def probabilities(influence, z):
    """Return class probabilities of outputs (n, C), as scikit-learn documents them."""
    if z.shape[1] == 1:
        return np.hstack([expit(-z), expit(z)])
    if influence.estimator_.__class__ is SGDClassifier:
        return expit(z) / expit(z).sum(1, keepdims=True)
    return softmax(z, axis=1)


@cache
def single_changes(engine, n_classes, order):
    """Return the changes of the queries' outputs (n_train, n_queries, C) by single removals."""
    influence, X = fitted(engine, n_classes), rows(n_classes)[2]
    return np.stack([influence.output_change([row], X, order=order) for row in range(N)])


def naive_effects(engine, n_classes, order, value):
    """Return the changes (..., n_train) of ``value(outputs)`` under each single removal."""
    z = scores(fitted(engine, n_classes), rows(n_classes)[2], order)
    changes = single_changes(engine, n_classes, order)
    return np.stack([value(z + dz) - value(z) for dz in changes], -1)


def naive_derivatives(value, z, step=1e-5):
    """Return the derivatives of ``value(outputs)`` by each output, by central differences.

    ``value`` returns one number; of a number a row, its sum does.
    """
    slopes = np.empty_like(z)
    for place in np.ndindex(*z.shape):
        move = np.zeros_like(z)
        move[place] = step
        slopes[place] = (value(z + move) - value(z - move)) / (2.0 * step)
    return slopes
