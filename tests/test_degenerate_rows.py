"""Rows that a model cannot do without: last of a class, of leverage one, alone with a weight."""

from __future__ import annotations

import re
from contextlib import nullcontext

import numpy as np
import pytest
from cases import binary, counts, regression, three_classes
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import InfluenceWarning, NotStationaryWarning

CLS, THREE = binary(1), three_classes(2)


# The last row of a class


def singleton(data, label, row=4):
    """Return targets with one row of a class and the others spread over the rest."""
    y = np.array(data.y)
    others = np.setdiff1d(y, [label])
    y[y == label] = others[np.arange((y == label).sum()) % len(others)]
    y[row] = label
    return y


SINGLETONS = [
    (LogisticRegression(), CLS, 1),
    (LogisticRegression(), THREE, "cedar"),
    (LogisticRegression(solver="liblinear"), CLS, 1),
    (LogisticRegression(C=100.0), THREE, "ash"),
    (LinearSVC(), CLS, 1),
    (LinearSVC(), THREE, "cedar"),
    (make_pipeline(StandardScaler(), LogisticRegression()), THREE, "birch"),
]
SINGLETON_NAMES = [f"{type(case[0]).__name__}-{case[2]}-{i}" for i, case in enumerate(SINGLETONS)]


@pytest.mark.parametrize(("model", "data", "label"), SINGLETONS, ids=SINGLETON_NAMES)
@pytest.mark.parametrize("order", ["first", "newton", "exact"])
def test_fit_survives_a_class_of_one_row(model, data, label, order):
    y = singleton(data, label)
    expectation = nullcontext()
    if order == "exact":
        expectation = pytest.warns(InfluenceWarning, match="Row 4 is the last row of its class")
    with expectation:
        influence = InfluenceEstimator(model, order=order).fit(data.X, y)
    for name in ("self_influence_", "influence_", "loo_loss_", "leverage_"):
        assert np.isfinite(getattr(influence, name)).all(), name
    assert np.isfinite(influence.influence(data.X, y)).all()
    # The model knows the class from this row alone.
    assert influence.loo_predict()[4] != label


@pytest.mark.parametrize(("model", "data", "label"), SINGLETONS, ids=SINGLETON_NAMES)
def test_removing_the_last_row_of_a_class(model, data, label):
    y = singleton(data, label)
    influence = InfluenceEstimator(model).fit(data.X, y)
    newton = influence.influence(data.X, y)[:, 4]
    last = rf"last row of class .*{label}"
    with pytest.warns(InfluenceWarning, match=last):
        effect = influence.removal_effect([4], data.X, y)
    np.testing.assert_allclose(effect, newton, rtol=1e-7, atol=1e-10)
    with pytest.warns(InfluenceWarning, match=last):
        assert np.isfinite(influence.removal_effect([4, 9, 1], order="first")).all()
    with pytest.warns(InfluenceWarning, match=last):
        unlearned = influence.unlearn([4])
    np.testing.assert_array_equal(unlearned.classes_, influence.classes_)
    pattern = f"{last}.*Keep one of its rows, or use order='newton'"
    for method in ("removal_effect", "output_change", "parameter_change", "unlearn"):
        with pytest.raises(ValueError, match=pattern):
            getattr(influence, method)([4], order="exact")
        with pytest.raises(ValueError, match=pattern):
            getattr(influence, method)([0, 4], order="exact")
    # Without the class's row among them the others can go as they please.
    assert np.isfinite(influence.removal_effect([0, 1], order="exact")).all()


def test_the_last_row_of_a_class_that_has_weight():
    y = THREE.y
    weight = np.where(y == "cedar", 0.0, 1.0)
    row = int(np.flatnonzero(y == "cedar")[2])
    weight[row] = 1.0
    influence = InfluenceEstimator(LogisticRegression()).fit(THREE.X, y, sample_weight=weight)
    with pytest.warns(InfluenceWarning, match=r"last row of class .*cedar"):
        influence.removal_effect([row])
    with pytest.raises(ValueError, match=r"last row of class .*cedar.*order='newton'"):
        influence.removal_effect([row], order="exact")


def test_relabelling_the_last_row_of_a_class():
    y = singleton(THREE, "cedar")
    influence = InfluenceEstimator(LogisticRegression()).fit(THREE.X, y)
    with pytest.raises(ValueError, match="order='newton'"):
        influence.relabel_effect([4], "ash", order="exact")


def test_classes_without_a_finite_optimum():
    x = np.r_[np.linspace(-2, -1, 6), np.linspace(1, 2, 6)][:, None]
    y = np.repeat([0, 1], 6)
    model = LogisticRegression(C=np.inf)
    with pytest.warns(NotStationaryWarning, match="separable.*give the model a ridge"):
        influence = InfluenceEstimator(model).fit(x, y)
    assert np.isfinite(influence.self_influence_).all()
    overlapping = y.copy()
    overlapping[0] = 1
    influence = InfluenceEstimator(LogisticRegression(C=np.inf, tol=1e-8)).fit(x, overlapping)
    with pytest.raises(ValueError, match=r"no optimum.*order='newton', or give the model a ridge"):
        influence.removal_effect([0], order="exact")


# Leverage one


def alone(seed, n=16, d=4):
    """Return rows of which the sixth alone has a 1 in the last column."""
    data = regression(seed, n=n, d=d)
    data.X[:, -1] = 0.0
    data.X[5, -1] = 1.7
    return data


LEVERAGE_ONE = [
    (LinearRegression(), alone(11)),
    (LinearRegression(fit_intercept=False), alone(12)),
    (Ridge(alpha=0.0), alone(13)),
    (LinearRegression(), regression(14, n=7, d=12)),
    (LinearRegression(fit_intercept=False), regression(15, n=7, d=12)),
    (LinearRegression(), regression(16, n=8, d=8)),
    (LinearRegression(), regression(17, n=7, d=12, n_targets=2)),
]


@pytest.mark.parametrize(
    ("model", "data"),
    LEVERAGE_ONE,
    ids=["dummy", "dummy-origin", "dummy-ridge", "wide", "wide-origin", "square", "wide-multi"],
)
def test_leverage_one_is_the_least_norm_refit(model, data):
    n = data.X.shape[0]
    influence = InfluenceEstimator(model).fit(data.X, data.y)
    assert influence.leverage_[5] == pytest.approx(influence.n_outputs_)
    plain = LinearRegression(fit_intercept=model.fit_intercept)

    def refit(rows):
        kept = np.setdiff1d(np.arange(n), rows)
        return clone(plain).fit(data.X[kept], data.y[kept])

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)

    def losses(fitted):
        residual = (fitted.predict(data.X_query) - data.y_query).reshape(7, -1)
        return (residual**2).mean(axis=1)

    full = refit([])
    singles = [refit([row]) for row in range(n)]
    change = np.column_stack([losses(single) - losses(full) for single in singles])
    close(influence.influence(data.X_query, data.y_query), change)
    unseen = [single.predict(data.X[[row]])[0] for row, single in enumerate(singles)]
    close(influence.loo_predict(), unseen)
    for group in ([5], [0, 5], [1, 2, 6]):
        without = refit(group)
        close(
            influence.removal_effect(group, data.X_query, data.y_query),
            losses(without) - losses(full),
        )
        moved = without.predict(data.X_query) - full.predict(data.X_query)
        close(influence.output_change(group, data.X_query), moved.reshape(7, -1))
        close(influence.unlearn(group).predict(data.X_query), without.predict(data.X_query))
        parameters = np.ravel(without.coef_ - full.coef_)
        if model.fit_intercept:
            parameters = np.append(parameters, np.ravel(without.intercept_ - full.intercept_))
        close(influence.parameter_change(group), parameters)
    for name in ("influence_", "self_influence_", "loo_loss_"):
        assert np.isfinite(getattr(influence, name)).all()


# Rows without weight


@pytest.mark.parametrize(
    "model",
    [
        Ridge(),
        Ridge(fit_intercept=False),
        Ridge(alpha=1e4),
        LinearRegression(),
        KernelRidge(),
        PoissonRegressor(),
        PoissonRegressor(fit_intercept=False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("solver", ["auto", "primal"])
def test_one_row_alone_has_weight(model, solver):
    data = counts(18)
    weight = np.zeros(40)
    weight[3] = 1.0
    solver = "auto" if isinstance(model, KernelRidge) else solver
    influence = InfluenceEstimator(model, solver=solver)
    # Without this row there is no model: to say so is as good an answer as a number, NaN is none.
    try:
        influence.fit(data.X, data.y, sample_weight=weight)
    except ValueError as error:
        assert re.search("weight", str(error)), error
        return
    for name in ("self_influence_", "influence_", "loo_loss_", "leverage_"):
        values = getattr(influence, name)
        assert np.isfinite(values).all(), name
    assert not np.delete(influence.self_influence_, 3).any()
    with pytest.raises(ValueError, match=r"positive weight.*Keep at least one"):
        influence.removal_effect([3])


# Rows that a small ridge alone holds


@pytest.mark.parametrize(
    "model",
    [
        GaussianProcessRegressor(RBF(0.05), optimizer=None),
        KernelRidge(alpha=1e-11, kernel="rbf", gamma=200.0),
        Ridge(1e-9),
    ],
    ids=["gaussian-process", "kernel-ridge", "more-features-than-rows"],
)
def test_a_small_ridge_does_not_hide_what_a_row_does(model):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 50)), rng.normal(size=20)
    found = InfluenceEstimator(model, solver="dual").fit(X, y).loo_predict()
    kept = [np.delete(np.arange(20), row) for row in range(20)]
    wanted = [clone(model).fit(X[k], y[k]).predict(X[[r]])[0] for r, k in enumerate(kept)]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found - y).max() > 1.0
