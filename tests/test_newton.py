"""Newton and first-order effects against the textbook formulas on explicit Jacobians."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from cases import all_cases, case, convex_cases, quadratic_cases, sgd_cases
from helpers import (
    each_form,
    fitted,
    flat,
    forms,
    frozen,
    full,
    group,
    is_kernel,
    losses,
    moved,
    parameters,
    relative,
    response,
)
from references import (
    dense_first_order,
    dense_jacobian,
    dense_leverage,
    dense_newton_removal,
    dense_pieces,
    huber_pieces,
    penalty_share,
)
from scipy.special import softmax
from scipy.stats import linregress
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.preprocessing import scale

from sklearn_dualif import InfluenceEstimator

CONVEX = convex_cases() + sgd_cases()
LINEAR = [each for each in all_cases() if not is_kernel(each)]
FORMULA = {"newton": dense_newton_removal, "first": dense_first_order}
TIGHT = 1e-9


@cache
def _steps(name, order, rows):
    reference = full(case(name))
    share = penalty_share(reference.frozen, list(rows))
    pieces = vars(dense_pieces(reference))
    return FORMULA[order](**pieces, rows=list(rows), share=share)


def step(case, order, rows):
    """Return the dense parameter step of removing rows together, ``[w_k, b_k]`` by outputs."""
    return _steps(case.name, order, tuple(int(row) for row in rows))


def metric_slope(model, X, y):
    """Return the derivative (m, C) of the metric loss with respect to the outputs."""
    objective = model.frozen.objective
    T, z = model.frozen.targets(y), model.outputs(X)
    if objective.kind == "huber":
        return huber_pieces(z[:, 0], model.scale, T[:, 0], objective.epsilon)[1]
    if objective.kind == "softmax" and T.shape[1] > 1:
        return softmax(z, axis=1) - T
    slope = objective.loss.slope(z, T)
    if objective.log_link:
        return 2.0 * slope
    is_mean = objective.loss.reduce is np.mean
    return 2.0 * slope / T.shape[1] if is_mean else slope


def loss_effect(case, order, rows, X, y):
    """Return the dense effect (m,) of removing rows: linear for "first", else evaluated."""
    model, theta = full(case), step(case, order, rows)
    if order == "first":
        J = dense_jacobian(model, model.frozen.design(X))
        return np.einsum("mc,mcp,p->m", metric_slope(model, X, y), J, theta)
    return losses(moved(model, theta), X, y) - losses(model, X, y)


# Removals


@pytest.mark.parametrize("order", ["newton", "first"])
@pytest.mark.parametrize(("case", "solver"), each_form(CONVEX))
def test_single_effects_are_the_textbook_formula(case, solver, order):
    expected = [
        loss_effect(case, order, [row], case.X_query, case.y_query) for row in range(case.n_rows)
    ]
    effects = fitted(case, solver).influence(case.X_query, case.y_query, order=order)
    assert relative(effects, np.stack(expected, axis=1)) < TIGHT


@pytest.mark.parametrize("order", ["newton", "first"])
@pytest.mark.parametrize(("case", "solver"), each_form(CONVEX))
def test_group_effects_are_the_textbook_formula(case, solver, order):
    influence, model = fitted(case, solver), full(case)
    for size in (3, None):
        rows = group(case, size)
        theta = step(case, order, rows)
        change = influence.parameter_change(rows, order=order)
        assert relative(change, flat(model, theta)) < TIGHT, size
        if order == "newton" and model.scale is not None and model.scale + theta[-1] <= 0:
            continue  # the step leaves the losses' domain
        effects = influence.removal_effect(rows, case.X_query, case.y_query, order=order)
        expected = loss_effect(case, order, rows, case.X_query, case.y_query)
        assert relative(effects, expected) < TIGHT, size


@pytest.mark.parametrize(("case", "solver"), each_form(CONVEX))
def test_newton_output_change_is_that_of_the_moved_parameters(case, solver):
    rows = group(case, 4)
    after = moved(full(case), step(case, "newton", rows))
    expected = response(after, case.X_query) - response(full(case), case.X_query)
    assert relative(fitted(case, solver).output_change(rows, case.X_query), expected) < TIGHT


@pytest.mark.parametrize(("case", "solver"), each_form(CONVEX))
def test_first_order_output_change_is_linear(case, solver):
    rows, model = group(case, 4), full(case)
    J = dense_jacobian(model, frozen(case).design(case.X_query))
    expected = (J @ step(case, "first", rows))[:, : model.coef.shape[1]]
    if frozen(case).objective.log_link:
        expected = expected * response(model, case.X_query)
    influence = fitted(case, solver)
    change = influence.output_change(rows, case.X_query, order="first")
    assert relative(change, expected) < TIGHT
    apart = sum(influence.output_change([row], case.X_query, order="first") for row in rows)
    assert relative(apart, change) < TIGHT


# Attributes


@pytest.mark.parametrize(("case", "solver"), each_form(LINEAR))
def test_leverage_is_the_trace_of_the_hat_block(case, solver):
    pieces, influence = dense_pieces(full(case)), fitted(case, solver)
    expected = dense_leverage(pieces.J, pieces.Lam, pieces.R)
    np.testing.assert_allclose(influence.leverage_, expected, atol=1e-10)
    assert (influence.leverage_ >= -1e-12).all()
    assert (influence.leverage_ <= pieces.r.shape[1] + 1e-12).all()
    assert influence.effective_dimension_ == pytest.approx(expected.sum(), rel=1e-9)


def test_kernel_leverage_is_the_hat_matrix_diagonal():
    each = case("kernel-ridge-linear")
    s = each.sample_weight
    K = np.sqrt(s)[:, None] * (each.X @ each.X.T) * np.sqrt(s)
    hat = np.linalg.solve(K + 1.5 * np.eye(each.n_rows), K)
    influence = fitted(each)
    np.testing.assert_allclose(influence.leverage_, np.diag(hat), atol=1e-12)
    assert influence.effective_dimension_ == pytest.approx(np.trace(hat))


def test_free_intercepts_count_in_the_effective_dimension():
    linear, softmax_case = case("linear"), case("softmax-weights")
    assert fitted(linear).effective_dimension_ == pytest.approx(linear.X.shape[1] + 1)
    strong = clone(softmax_case.estimator).set_params(C=1e-8)
    influence = InfluenceEstimator(strong).fit(
        softmax_case.X, softmax_case.y, sample_weight=softmax_case.sample_weight
    )
    # three intercepts, less the shift that they share
    assert influence.effective_dimension_ == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("order", ["newton", "first"])
@pytest.mark.parametrize(("case", "solver"), each_form(CONVEX))
def test_influence_without_validation_rows_is_the_averaged_linear_score(case, solver, order):
    model = full(case)
    J, slope = dense_jacobian(model, frozen(case).X), metric_slope(model, case.X, frozen(case).y)
    target = np.einsum("nc,ncp->p", slope, J) / case.n_rows
    expected = np.array([target @ step(case, order, [row]) for row in range(case.n_rows)])
    influence = fitted(case, solver, order=order)
    each = np.abs(np.einsum("nc,ncp->np", slope, J) @ step(case, order, [1])).mean()
    assert np.abs(influence.influence_ - expected).max() < TIGHT * max(np.abs(expected).max(), each)


@pytest.mark.parametrize("order", ["newton", "first", "exact"])
@pytest.mark.parametrize(
    "name", ["ridge-multi-weights", "softmax-weights", "poisson-weights", "kernel-ridge", "huber"]
)
def test_influence_on_validation_rows_is_the_mean_of_the_matrix(name, order):
    each = case(name)
    for solver in forms(each):
        influence = InfluenceEstimator(clone(each.estimator), order=order, solver=solver)
        influence.fit(each.X, each.y, X_val=each.X_query, y_val=each.y_query, **each.fit_params)
        matrix = influence.influence(each.X_query, each.y_query)
        assert relative(influence.influence_, matrix.mean(axis=0)) < 1e-12


@pytest.mark.parametrize("name", ["softmax", "logistic-weights", "ridge", "poisson"])
def test_averaged_prediction_and_margin(name):
    each = case(name)
    for objective in ("prediction", "margin")[: 1 + (frozen(each).classes is not None)]:
        y_val = each.y_query if objective == "margin" else None
        influence = InfluenceEstimator(clone(each.estimator), objective=objective)
        influence.fit(each.X, each.y, X_val=each.X_query, y_val=y_val, **each.fit_params)
        matrix = influence.influence(each.X_query, y_val)
        np.testing.assert_array_equal(
            matrix, fitted(each).influence(each.X_query, y_val, objective=objective)
        )
        assert relative(influence.influence_, matrix.mean(axis=0)) < 1e-12
        first = InfluenceEstimator(clone(each.estimator), objective=objective, order="first")
        first.fit(each.X, each.y, **each.fit_params)
        on_training = first.influence(each.X, each.y if objective == "margin" else None)
        np.testing.assert_allclose(first.influence_, on_training.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("order", ["newton", "first"])
@pytest.mark.parametrize(("case", "solver"), each_form(quadratic_cases() + CONVEX))
def test_self_influence_is_the_diagonal(case, solver, order):
    influence = fitted(case, solver, order=order)
    diagonal = np.diag(influence.influence(case.X, case.y))
    scale = np.abs(diagonal).max()
    np.testing.assert_allclose(influence.self_influence_, diagonal, atol=1e-10 * scale)


# Default tolerances


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("name", ["logistic", "softmax", "softmax-sparse", "logistic-wide"])
def test_a_default_tolerance_gives_the_numbers_of_a_converged_fit(name, solver):
    each = case(name)
    converged = clone(each.estimator).set_params(tol=1e-12, solver="newton-cholesky")
    loose = InfluenceEstimator(clone(each.estimator), solver=solver).fit(each.X, each.y)
    close = InfluenceEstimator(converged, solver=solver).fit(each.X, each.y)
    assert loose.stationarity_ > 10 * close.stationarity_
    for attribute in ("self_influence_", "influence_", "leverage_", "loo_loss_"):
        assert relative(getattr(loose, attribute), getattr(close, attribute)) < 1e-6, attribute
    for order in ("newton", "first", "exact"):
        queries = each.X_query, each.y_query
        matrix = close.influence(*queries, order=order)
        assert relative(loose.influence(*queries, order=order), matrix) < 1e-6
    # The model and its predictions stay as fitted.
    fitted_alone = clone(each.estimator).fit(each.X, each.y)
    np.testing.assert_array_equal(loose.estimator_.coef_, fitted_alone.coef_)
    np.testing.assert_array_equal(
        loose.decision_function(each.X_query), fitted_alone.decision_function(each.X_query)
    )


@pytest.mark.parametrize("name", ["huber-penalty", "poisson", "svc", "liblinear", "sgd-log"])
def test_parameters_plus_their_change_are_those_of_the_optimum(name):
    each = case(name)
    for solver in forms(each):
        influence = fitted(each, solver)
        unmoved = influence.unlearn(np.zeros(each.n_rows, dtype=bool))
        found = np.concatenate([np.ravel(unmoved.coef_), np.ravel(unmoved.intercept_)])
        expected = parameters(full(each))[: len(found)]
        assert relative(found, expected) < 1e-8


# Real refits


@pytest.mark.parametrize(
    ("load", "model"),
    [
        (load_breast_cancer, SGDClassifier(loss="log_loss")),
        (load_diabetes, SGDRegressor()),
        (load_diabetes, SGDRegressor(loss="huber", epsilon=1.0)),
    ],
    ids=["log-loss", "squared", "huber"],
)
def test_averaged_sgd_moves_as_its_own_refits(load, model):
    X, y = load(return_X_y=True)
    X = scale(X)
    if not is_classifier(model):
        y = scale(y)
    order = np.random.default_rng(0).permutation(len(y))
    X, X_test, y = X[order[:300]], X[order[300:]], y[order[:300]]
    # 1000 passes, of which the last hundred are averaged.
    model = clone(model).set_params(
        alpha=0.01, max_iter=1000, tol=None, average=270_000, random_state=0
    )
    influence = InfluenceEstimator(model, objective="prediction").fit(X, y)
    outputs = "decision_function" if is_classifier(model) else "predict"
    before = getattr(influence, outputs)(X_test)
    rows = np.random.default_rng(1).permutation(300)[:30]
    refits = [
        getattr(model.fit(np.delete(X, row, 0), np.delete(y, row)), outputs)(X_test) for row in rows
    ]
    truth = np.stack(refits, axis=1) - before[:, None]
    effects = influence.influence(X_test, order="exact")[:, rows]
    fit = linregress(effects.ravel(), truth.ravel())
    assert fit.rvalue > 0.99
    assert 0.95 < fit.slope < 1.05


@pytest.mark.slow
def test_softmax_of_the_digits():
    """Newton and exact effects on test losses, pooled over leave-one-outs, against refits."""
    X, y = load_digits(return_X_y=True)
    permuted = np.random.default_rng(0).permutation(len(y))
    X, y = np.column_stack([X[permuted] / 16.0, np.ones(len(y))]), y[permuted]
    X, X_test, y, y_test = X[:1400], X[1400:], y[:1400], y[1400:]
    model = LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    influence = InfluenceEstimator(LogisticRegression(fit_intercept=False)).fit(X, y)
    rows = np.random.default_rng(0).permutation(1400)[:100]
    before = _log_losses(model.fit(X, y), X_test, y_test)
    refits = [
        _log_losses(model.fit(np.delete(X, row, 0), np.delete(y, row)), X_test, y_test)
        for row in rows
    ]
    truth = (np.stack(refits, axis=1) - before[:, None]).ravel()
    newton = influence.influence(X_test, y_test)[:, rows].ravel()
    exact = np.stack(
        [influence.removal_effect([row], X_test, y_test, order="exact") for row in rows], axis=1
    ).ravel()
    fit = linregress(newton, truth)
    assert fit.rvalue > 0.999
    assert 0.95 < fit.slope < 1.05
    fit = linregress(exact, truth)
    assert fit.rvalue > 0.9995
    assert abs(fit.slope - 1.0) < 5e-4


def _log_losses(model, X, y):
    log_p = model.predict_log_proba(X)
    return -log_p[np.arange(len(y)), y]
