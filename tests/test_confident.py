"""Confident logistic models against 40 digits: rows whose loss, slope and curvature vanish."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from references import mp_logistic_loo, mp_logistic_optimum
from scipy.special import log_softmax
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import NotStationaryWarning

N = 9
RIDGES = [1e-3, 1e-12, 1e-36]
DIGITS = 40  # of twice as many that the oracles compute with


def separable_rows(n_classes):
    """Return separable rows, and queries of which some carry a wrong label."""
    rng = np.random.default_rng(4)
    index = np.arange(N + 5) % n_classes
    X = np.column_stack([np.eye(n_classes)[index], 0.2 * rng.standard_normal(N + 5)])
    y_query = index[N:].copy()
    y_query[0] = (y_query[0] + 1) % n_classes
    return X[:N], index[:N], X[N:], y_query


def frozen_at(X, index, coef, intercept, ridge, fit_intercept):
    """Return a frozen LogisticRegression with these parameters."""
    model = LogisticRegression(C=1.0 / ridge, fit_intercept=fit_intercept, max_iter=1)
    with pytest.warns(UserWarning, match="converge"):
        model.fit(X, index)
    model.coef_, model.intercept_ = np.array(coef), np.array(intercept)
    return FrozenEstimator(model)


@cache
def separable(n_classes, fit_intercept, ridge):
    """Return rows, the optimum of a separable problem, and its leave-one-out changes."""
    X, index, X_query, y_query = separable_rows(n_classes)
    coef, intercept = mp_logistic_optimum(
        X, index, ridge, fit_intercept=fit_intercept, digits=DIGITS
    )
    both = np.vstack([X, X_query]), np.concatenate([index, y_query])
    changes = mp_logistic_loo(X, index, coef, intercept if fit_intercept else None, ridge, *both)
    return (X, index, X_query, y_query), coef, intercept, changes


def assert_close(effects, expected):
    """Compare to 1e-8 of each number, or 1e-10 of the largest of its query."""
    assert np.isfinite(effects).all()
    slack = 1e-10 * np.abs(expected).max(axis=-1, keepdims=True)
    assert (np.abs(effects - expected) <= 1e-8 * np.abs(expected) + slack).all()


def shiftless(values):
    """Return output changes without the shift that all classes of a softmax may share."""
    return values - values.mean(axis=-1, keepdims=True) if values.shape[-1] > 1 else values


def _takes_long(n_classes, fit_intercept, ridge):
    return n_classes == 3 and fit_intercept and ridge == RIDGES[-1]


PROBLEMS = [
    pytest.param(*problem, marks=[pytest.mark.slow] if _takes_long(*problem) else [])
    for problem in product((2, 3), (True, False), RIDGES)
]


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize(("n_classes", "fit_intercept", "ridge"), PROBLEMS)
def test_separable_rows_with_a_small_ridge(n_classes, fit_intercept, ridge, solver):
    rows, coef, intercept, (dz, dl) = separable(n_classes, fit_intercept, ridge)
    X, index, X_query, y_query = rows
    model = frozen_at(X, index, coef, intercept, ridge, fit_intercept)
    influence = InfluenceEstimator(model, solver=solver).fit(X, index)
    own = np.diag(dl)
    np.testing.assert_allclose(influence.self_influence_, own, rtol=1e-8)
    assert (influence.self_influence_ > 0).all()
    assert_close(influence.influence(X_query, y_query), dl[N:])
    assert_close(influence.influence(X, index), dl[:N])
    for row in (0, N - 1):
        change = influence.output_change([row], X_query)
        assert_close(shiftless(change).T, shiftless(dz[row, N:]).T)
    z = X @ coef.T + intercept
    before = -log_softmax(np.column_stack([0 * z, z]) if n_classes == 2 else z, axis=1)
    before = before[np.arange(N), index]
    np.testing.assert_allclose(influence.loo_loss_, before + own, rtol=1e-8, atol=1e-15)
    assert np.isfinite(influence.loo_predict_proba()).all()
    assert (influence.leverage_ >= 0).all()
    assert (influence.leverage_ <= n_classes - 1 + 1e-9).all()


def test_the_smallest_ridge_brings_logits_of_eighty():
    for n_classes in (2, 3):
        rows, coef, intercept, _ = separable(n_classes, n_classes == 2, RIDGES[-1])
        z = rows[0] @ coef.T + intercept
        gap = np.abs(z) if n_classes == 2 else np.ptp(z, axis=1)
        assert gap.max() > 79


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_of_eighty_with_right_and_wrong_labels(n_classes, fit_intercept, ridge, solver):
    # A ridge on a frozen model damps the curvature: the parameters are taken as they are.
    X, index, X_query, y_query = separable_rows(n_classes)
    index[[1, 3]] = (index[[1, 3]] + 1) % n_classes
    coef = 80.0 * np.eye(n_classes, n_classes + 1)
    coef = 160.0 * np.eye(1, 3, 1) if n_classes == 2 else coef
    intercept = np.full(1, -80.0) if n_classes == 2 else np.zeros(3)
    if not fit_intercept:
        X, X_query = (np.where(A == 0.0, -1.0, A) for A in (X, X_query))
        coef, intercept = coef / 2.0, 0.0 * intercept
    z = X @ coef.T + intercept
    assert (np.abs(z) if n_classes == 2 else np.ptp(z, axis=1)).min() > 79
    s = np.linspace(0.5, 2.0, N)
    dz, dl = mp_logistic_loo(
        X, index, coef, intercept if fit_intercept else None, ridge, X_query, y_query, s
    )
    own = mp_logistic_loo(X, index, coef, intercept if fit_intercept else None, ridge, X, index, s)[
        1
    ]
    model = frozen_at(X, index, coef, intercept, 1.0, fit_intercept)
    influence = InfluenceEstimator(model, ridge=ridge, solver=solver)
    influence.fit(X, index, sample_weight=s)
    assert influence.ridge_ == ridge
    assert_close(influence.influence(X_query, y_query), dl)
    np.testing.assert_allclose(influence.self_influence_, np.diag(own), rtol=1e-8, atol=1e-300)
    change = np.stack([influence.output_change([row], X_query) for row in range(N)])
    assert_close(shiftless(change), shiftless(dz))


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_exact_removal_from_separable_rows(n_classes, solver):
    ridge = 1e-12
    (X, index, X_query, y_query), coef, intercept, _ = separable(n_classes, True, ridge)
    model = frozen_at(X, index, coef, intercept, ridge, True)
    influence = InfluenceEstimator(model, solver=solver).fit(X, index)
    effects = influence.influence(X_query, y_query, order="exact")
    before = query_losses(X_query, y_query, coef, intercept)
    for row in (0,) if n_classes == 3 else (0, 7):
        kept = np.arange(N) != row
        without = mp_logistic_optimum(
            X[kept], index[kept], ridge, fit_intercept=True, digits=DIGITS
        )
        expected = query_losses(X_query, y_query, *without) - before
        np.testing.assert_allclose(effects[:, row], expected, rtol=1e-8)


def query_losses(X, y, coef, intercept):
    """Return log losses, those of confident rows to all digits."""
    z = X @ coef.T + intercept
    z = np.column_stack([np.zeros(len(z)), z]) if z.shape[1] == 1 else z
    gaps = z - z[np.arange(len(y)), y][:, None]
    gaps[np.arange(len(y)), y] = -np.inf
    top = gaps.max(axis=1)
    rest = np.exp(gaps - top[:, None]).sum(axis=1)
    return np.where(top > 0, top + np.log(rest + np.exp(-top)), np.log1p(rest * np.exp(top)))


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_model_fitted_in_doubles_is_brought_to_the_same_optimum(n_classes, solver):
    ridge = 1e-12
    (X, index, X_query, y_query), *_, (_, dl) = separable(n_classes, True, ridge)
    # 1e-10 is a hundred times the gradient of a row here, and said to be.
    model = LogisticRegression(C=1.0 / ridge, solver="newton-cholesky", tol=1e-10, max_iter=500)
    influence = InfluenceEstimator(model, solver=solver)
    with pytest.warns(NotStationaryWarning, match="Lower its tol"):
        influence.fit(X, index)
    assert influence.stationarity_ > 1.0
    assert_close(influence.influence(X_query, y_query), dl[N:])
    np.testing.assert_allclose(influence.self_influence_, np.diag(dl), rtol=1e-8)
