"""What the tests of the estimator share: each case's fits and refits, computed once a run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cases import case as case_of
from references import FrozenModel, ReferenceModel, freeze, metric_loss, tighten
from scipy import sparse
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from sklearn_dualif import InfluenceEstimator


def relative(a, b):
    """Return the largest difference relative to the largest entry of b (or absolute, b = 0)."""
    assert np.shape(a) == np.shape(b), f"{np.shape(a)} is not {np.shape(b)}"
    top = np.max(np.abs(b), initial=0.0)
    return np.max(np.abs(np.subtract(a, b)), initial=0.0) / (top or 1.0)


def sparse_rows(n, d, density):
    """Return random CSR rows (n, d)."""
    rng = np.random.default_rng(0)
    return sparse.csr_array(np.where(rng.random((n, d)) < density, rng.random((n, d)), 0.0))


# Cases by form


def final(estimator):
    """Return the estimator at the end of pipelines, searches and frozen wrappers."""
    while True:
        if isinstance(estimator, Pipeline):
            estimator = estimator.steps[-1][1]
        elif isinstance(estimator, FrozenEstimator | GridSearchCV):
            estimator = estimator.estimator
        else:
            return estimator


def is_kernel(case):
    """Tell whether the parameters are one coefficient a row."""
    return isinstance(final(case.estimator), KernelRidge | GaussianProcessRegressor)


def forms(case):
    """Return the solvers that a case allows: kernels have no primal, no penalty has no dual."""
    model = final(case.estimator)
    if is_kernel(case):
        return ("dual",)
    free = isinstance(model, LinearRegression) or getattr(model, "C", None) == np.inf
    if free or np.any(np.asarray(getattr(model, "alpha", 1.0)) == 0.0):
        return ("primal",)
    return ("primal", "dual")


def each_form(cases):
    """Return the parameter sets (case, solver) for ``pytest.mark.parametrize``."""
    return [
        pytest.param(case, solver, id=f"{case.name}-{solver}")
        for case in cases
        for solver in forms(case)
    ]


def last_form(cases):
    """Return the same with one solver a case: the dual where there is one."""
    return [pytest.param(case, forms(case)[-1], id=case.name) for case in cases]


# Fits and refits


@cache
def _fitted(name, solver, params):
    case = case_of(name)
    influence = InfluenceEstimator(clone(case.estimator), solver=solver, **dict(params))
    return influence.fit(case.X, case.y, **case.fit_params)


def fitted(case, solver="auto", **params):
    """Return an `InfluenceEstimator` fitted on a case."""
    return _fitted(case.name, solver, tuple(sorted(params.items())))


@cache
def _frozen(name) -> FrozenModel:
    case = case_of(name)
    return freeze(case.estimator, case.X, case.y, case.sample_weight)


def frozen(case):
    """Return the frozen reference of a case."""
    return _frozen(case.name)


@cache
def _full(name) -> ReferenceModel:
    return _frozen(name).refit()


def full(case):
    """Return the reference optimum on all rows."""
    return _full(case.name)


@cache
def _loo_models(name):
    return [_frozen(name).without([row]) for row in range(case_of(name).n_rows)]


def loo_models(case):
    """Return the reference optima without each row."""
    return _loo_models(case.name)


@cache
def _without(name, size):
    return _frozen(name).without(group(case_of(name), size))


def without(case, size):
    """Return the reference optimum without `group`."""
    return _without(case.name, size)


def group(case, size):
    """Return ``size`` of the rows that `Case.third` draws, or with None all of them."""
    return case.third()[:size]


# Numbers of reference models


def response(model, X):
    """Return outputs (m, K) as the estimator shows them: through the inverse link."""
    z = model.outputs(X)
    return np.exp(z) if model.frozen.objective.log_link else z


def losses(model, X, y):
    """Return the metric loss of each row."""
    return metric_loss(model, model.outputs(X), y)


def parameters(model):
    """Return the parameters in the order of ``parameter_names_``."""
    plain = model.frozen.plain
    if isinstance(plain, KernelRidge):
        return model.coef.ravel()
    if isinstance(plain, GaussianProcessRegressor):
        return (model.coef * plain._y_train_std).ravel()
    parts = [model.coef.T.ravel()]
    if plain.fit_intercept:
        parts.append(model.intercept)
    if model.scale is not None:
        parts.append([model.scale])
    return np.concatenate(parts)


def flat(model, theta):
    """Return dense parameters ``[w_1, b_1, w_2, ...]`` in the order of ``parameter_names_``."""
    return parameters(_at(model, theta))


def moved(model, step):
    """Return a linear reference model at its parameters plus a dense step."""
    shift = _at(model, step)
    return replace(
        model,
        coef=model.coef + shift.coef,
        intercept=model.intercept + shift.intercept,
        scale=None if model.scale is None else model.scale + shift.scale,
    )


def _at(model, theta):
    scale = None
    if model.scale is not None:
        theta, scale = theta[:-1], theta[-1]
    table = np.reshape(theta, (model.coef.shape[1], -1))
    if model.frozen.plain.fit_intercept:
        return replace(model, coef=table[:, :-1].T, intercept=table[:, -1], scale=scale)
    return replace(model, coef=table.T, intercept=np.zeros(len(table)), scale=scale)


def probabilities(model, z):
    """Return class probabilities of outputs z (m, K), as scikit-learn documents them."""
    if z.shape[1] == 1:
        return np.column_stack([expit(-z), expit(z)])
    if model.frozen.objective.kind == "softmax":
        return softmax(z, axis=1)
    p = expit(z)
    return p / p.sum(axis=1, keepdims=True)


def labels(model, z):
    """Return the predictions for outputs z (m, K), (m,) or (m, n_targets)."""
    classes = model.frozen.classes
    if classes is None:
        z = np.exp(z) if model.frozen.objective.log_link else z
        return z[:, 0] if np.ndim(model.frozen.y) == 1 else z
    return classes[(z[:, 0] > 0).astype(int) if z.shape[1] == 1 else z.argmax(axis=1)]


def shown(estimator, X):
    """Return what a fitted scikit-learn estimator shows of its outputs, (m, K)."""
    method = "decision_function" if hasattr(estimator, "decision_function") else "predict"
    values = np.asarray(getattr(estimator, method)(X))
    return values.reshape(len(values), -1)


def tight(estimator):
    """Return a clone that runs to its optimum."""
    return tighten(estimator)
