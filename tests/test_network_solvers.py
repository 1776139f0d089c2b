"""The low-rank solver, single precision, the empirical Fisher matrix and linear losses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from network_cases import network_case
from network_references import dense_jacobian, dense_outputs, linearise, loss_pieces
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import scale

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import InfluenceWarning, NotStationaryWarning
from sklearn_dualif.linalg import RandomPivots, pivoted_cholesky
from sklearn_dualif.objectives import Loss


def gap(found, expected):
    """Return the norm of the difference relative to what is expected."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def exact(digits):
    model, X, y, _, _ = digits
    return InfluenceEstimator(model, solver="dual").fit(X, y)


ANSWERS = {
    "first": lambda e, X, y: e.influence(X, y, order="first"),
    "newton": lambda e, X, y: e.influence(X, y),
    "group": lambda e, X, y: e.removal_effect(np.arange(20), X, y),
    "outputs": lambda e, X, y: e.output_change([4], X),
    "relabel": lambda e, X, y: e.relabel_effect([3], 7, X, y),
    "parameters": lambda e, X, y: e.parameter_change([3, 4]),
    "self": lambda e, X, y: e.self_influence_,
    "average": lambda e, X, y: e.influence_,
    "leverage": lambda e, X, y: e.leverage_,
}


# Low rank


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_low_rank_answers_are_as_good_as_asked(digits, exact, tol, dtype):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(
        model, solver="iterative", tol=tol, dtype=dtype, random_state=0
    ).fit(X, y)
    info = influence.solver_info_
    assert influence.solver_ == "iterative"
    assert 0 < info["relative_error"] <= tol
    assert info["rank"] < 90 * 9
    assert len(info["queries"]) == 8
    for name, answer in ANSWERS.items():
        error = gap(answer(influence, X_query, y_query), answer(exact, X_query, y_query))
        assert error < 20 * tol, name


def test_the_error_that_is_stated_is_the_error(digits):
    model, X, y, _, _ = digits
    influence = InfluenceEstimator(model, solver="iterative", tol=1e-2, random_state=1).fit(X, y)
    dense = InfluenceEstimator(model, solver="dual").fit(X, y)
    rows = influence.solver_info_["queries"]
    error = gap(
        influence.influence(X[rows], y[rows], order="first"),
        dense.influence(X[rows], y[rows], order="first"),
    )
    stated = influence.solver_info_["relative_error"]
    assert stated / 10 < error < 10 * stated


@pytest.mark.parametrize("tol", [3e-2, 3e-3, 3e-4])
def test_the_error_that_is_stated_holds_on_unseen_rows(digits, exact, tol):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, solver="iterative", tol=tol, random_state=0).fit(X, y)
    stated = influence.solver_info_["relative_error"]
    errors = {}
    for order in ("first", "newton"):
        expected = exact.influence(X_query, y_query, order=order)
        errors[order] = gap(influence.influence(X_query, y_query, order=order), expected)
    assert stated / 3 < errors["first"] < 3 * stated
    assert errors["newton"] < 2 * stated
    # Rows' own blocks are exact but for the other rows' part in them.
    assert gap(influence.leverage_, exact.leverage_) < 2 * stated
    assert gap(influence.self_influence_, exact.self_influence_) < stated


def test_what_single_precision_cannot_reach_is_said(digits, exact):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(
        model, solver="iterative", tol=1e-9, dtype="float32", random_state=0
    )
    with pytest.warns(InfluenceWarning, match="rounding .* dtype='float64'"):
        influence.fit(X, y)
    stated = influence.solver_info_["relative_error"]
    expected = exact.influence(X_query, y_query, order="first")
    error = gap(influence.influence(X_query, y_query, order="first"), expected)
    assert error < 3 * stated < 1e-2


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kept", [15, 60])
def test_large_groups_leave_by_newton_as_in_the_dual_form(digits, exact, kept, dtype):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(
        model, solver="iterative", tol=1e-4, dtype=dtype, random_state=0
    ).fit(X, y)
    rows = np.arange(kept, 90)
    found, expected = (each.output_change(rows, X_query) for each in (influence, exact))
    assert gap(found, expected) < 2e-3


@pytest.mark.parametrize("solver", ["primal", "dual", "iterative"])
def test_biases_that_only_removed_rows_see_stay(solver):
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.uniform(1.0, 2.0, (6, 1)), rng.uniform(-2.0, -1.0, (14, 1))])
    y = rng.standard_normal(20)
    model = MLPRegressor(hidden_layer_sizes=(2,), alpha=0.1, max_iter=1, random_state=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)
    # A unit for each sign of x: the first six rows are all that see the bias of the first.
    model.coefs_[0][:] = [[1.0, -1.0]]
    model.intercepts_[0][:] = [0.0, -1.5]
    influence = InfluenceEstimator(FrozenEstimator(model), solver=solver, tol=1e-10, random_state=0)
    with pytest.warns(NotStationaryWarning):
        influence.fit(X, y)
    hidden = np.maximum(X @ model.coefs_[0] + model.intercepts_[0], 0.0)
    active = (hidden > 0) * model.coefs_[1][:, 0]
    parts = X * active, active, hidden, np.ones((20, 1))
    jacobian = np.concatenate(parts, axis=1)
    penalty = np.repeat([0.1, 0.0, 0.1, 0.0], [part.shape[1] for part in parts])
    residual = model.predict(X) - y
    hessian = jacobian[6:].T @ jacobian[6:] + np.diag(penalty)
    assert np.linalg.matrix_rank(hessian) == 6
    gradient = jacobian[:6].T @ residual[:6]
    kept = np.arange(7) != 2  # without the bias of the first unit
    expected = np.zeros(7)
    expected[kept] = np.linalg.solve(hessian[kept][:, kept], gradient[kept])
    change = influence.parameter_change(np.arange(6))
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9)


def test_diagnostics_of_the_low_rank_form_wait_until_they_are_asked_for(digits):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, solver="iterative", tol=1e-2, random_state=0)
    assert not hasattr(influence, "leverage_")
    influence.fit(X, y, X_val=X_query, y_val=y_query)
    later = pickle.loads(pickle.dumps(influence))
    average = influence.influence(X_query, y_query).mean(0)
    np.testing.assert_allclose(influence.influence_, average, rtol=1e-9, atol=1e-12)
    for name in ("self_influence_", "leverage_", "loo_loss_", "influence_"):
        np.testing.assert_allclose(getattr(later, name), getattr(influence, name), rtol=1e-9)
    assert later.effective_dimension_ == pytest.approx(later.leverage_.sum())


def test_pivots_come_from_random_state(digits):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, solver="iterative", tol=1e-2, random_state=3)
    first = influence.fit(X, y).influence(X_query, y_query)
    again = clone(influence).fit(X, y).influence(X_query, y_query)
    np.testing.assert_array_equal(first, again)
    other = clone(influence).set_params(random_state=4).fit(X, y).influence(X_query, y_query)
    assert (first != other).any()


def test_too_little_memory_for_the_rank_is_said(digits):
    model, X, y, _, _ = digits
    influence = InfluenceEstimator(
        model, solver="iterative", tol=1e-6, memory_limit="2MB", random_state=0
    )
    with pytest.warns(InfluenceWarning, match="more than tol=1e-06"):
        influence.fit(X, y)
    assert influence.solver_info_["relative_error"] > 1e-6


def test_auto_takes_the_small_side(digits):
    model, X, y, _, _ = digits
    assert InfluenceEstimator(model).fit(X, y).solver_ == "dual"
    few = InfluenceEstimator(model, parameters=["2.*"]).fit(X, y)
    assert few.solver_ == "primal"
    assert few.n_parameters_ == 250


def test_random_pivots_factorise_what_they_say():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((30, 2, 40)) / (1 + np.arange(40.0)))
    root = torch.from_numpy(rng.standard_normal((30, 2, 2)))
    heads = (root.mT @ rows).flatten(0, 1)
    kernel = heads @ heads.T
    pivots = RandomPivots(
        lambda positions: rows.flatten(0, 1) @ heads[positions].T,
        root,
        kernel.diagonal().clone(),
        torch.Generator().manual_seed(0),
        largest=40,
    )
    for rank in (5, 12, 40):
        pivots.grow(rank, block=4)
        factor = pivots.mixed(pivots.factor)
        left = kernel - factor @ factor.T
        np.testing.assert_allclose(pivots.diagonal, left.diagonal().clamp(min=0), atol=1e-9)
        assert float(torch.linalg.eigvalsh(left)[0]) > -1e-9
        corner = pivots.corner @ pivots.corner.T
        np.testing.assert_allclose(corner, kernel[pivots.pivots][:, pivots.pivots], atol=1e-9)
    assert float(left.abs().max()) < 1e-6


def test_pivoted_cholesky_finds_the_rank():
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((9, 4)))
    kernel = rows @ rows.T
    factor = pivoted_cholesky(kernel, 0.0)
    assert len(factor.pivots) == 4
    corner = factor.corner @ factor.corner.T
    np.testing.assert_allclose(corner, kernel[factor.pivots][:, factor.pivots], atol=1e-12)


def test_a_ridge_too_small_for_any_linearisation_is_said():
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X[:100]), scale(y[:100])
    model = MLPRegressor(
        hidden_layer_sizes=(10,), alpha=1e-4, solver="lbfgs", max_iter=20_000, random_state=0
    )
    influence = InfluenceEstimator(FrozenEstimator(model.fit(X, y)))
    with (
        pytest.warns(NotStationaryWarning),
        pytest.warns(InfluenceWarning, match=r"ridge 0.0001 of MLPRegressor .* larger weight"),
    ):
        influence.fit(X, y)
    influence.set_params(ridge=1.0).fit(X, y)
    assert np.abs(influence.influence(X, y)).max() < 10


# Single precision


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("name", ["mlp-relu", "conv2d", "mlp-mse-multi", "transformer"])
def test_single_precision_keeps_the_leading_digits(name, solver):
    each = network_case(name)
    model = TorchModel(
        each.module,
        loss=each.loss,
        weight_decay=each.weight_decay,
        classes=None if each.loss == "mse" else range(each.n_outputs),
    )
    with pytest.warns(InfluenceWarning, match="not at an optimum"):
        double = InfluenceEstimator(model, solver=solver).fit(each.X, each.y)
    with pytest.warns(InfluenceWarning, match="not at an optimum"):
        single = InfluenceEstimator(model, solver=solver, dtype="float32").fit(each.X, each.y)
    for order in ("first", "newton"):
        expected = double.influence(each.X_query, each.y_query, order=order)
        assert gap(single.influence(each.X_query, each.y_query, order=order), expected) < 1e-3


def test_single_precision_on_a_confident_network():
    X, y = load_iris(return_X_y=True)
    module = torch.nn.Linear(4, 3).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[8.0, 18, -26, -20], [2, -6, 4, -6], [-10, -12, 22, 26]]))
        module.bias.zero_()
    model = TorchModel(module, weight_decay=1e-4)
    with pytest.warns(InfluenceWarning, match="not at an optimum"):
        double = InfluenceEstimator(model, order="first").fit(X, y)
    with pytest.warns(InfluenceWarning, match="not at an optimum"):
        single = InfluenceEstimator(model, order="first", dtype="float32").fit(X, y)
    found, expected = single.influence(X, y), double.influence(X, y)
    assert np.isfinite(found).all()
    assert gap(found, expected) < 1e-4


# The empirical Fisher matrix


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_empirical_fisher_of_a_softmax_regression(solver):
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(tol=1e-12, solver="newton-cholesky")
    influence = InfluenceEstimator(
        model, curvature="empirical_fisher", order="first", solver=solver
    ).fit(X, y)
    residual = softmax(influence.decision_function(X), axis=1) - np.eye(3)[y]
    design = np.column_stack([X, np.ones(150)])
    gradients = np.einsum("nc,nd->ncd", residual, design).reshape(150, -1)
    penalty = np.kron(np.eye(3), np.diag([1.0, 1, 1, 1, 0]))
    fisher = gradients.T @ gradients + penalty
    inverse = np.linalg.pinv(fisher)
    assert gap(influence.influence(X, y), gradients @ inverse @ gradients.T) < 1e-8
    hat = np.einsum("nd,de,ne->n", gradients, inverse, gradients)
    np.testing.assert_allclose(influence.leverage_, hat, atol=1e-10)
    step = np.linalg.pinv(fisher - np.outer(gradients[7], gradients[7])) @ gradients[7]
    change = design @ step.reshape(3, 5).T
    assert gap(influence.output_change([7], X, order="newton"), change) < 1e-8


@pytest.mark.parametrize("model", [Ridge(0.5), KernelRidge(alpha=2.0, kernel="rbf", gamma=3.0)])
def test_empirical_fisher_of_several_outputs_is_one_of_each(model):
    X, y = load_diabetes(return_X_y=True)
    Y = np.column_stack([y, np.sqrt(y)]) / 50
    influence = InfluenceEstimator(model, curvature="empirical_fisher").fit(X, Y)
    alone = [
        InfluenceEstimator(model, curvature="empirical_fisher").fit(X, Y[:, k]) for k in (0, 1)
    ]
    leverage = alone[0].leverage_ + alone[1].leverage_
    np.testing.assert_allclose(influence.leverage_, leverage, atol=1e-9)
    change = np.column_stack([each.output_change([3, 9], X[:5]) for each in alone])
    assert gap(influence.output_change([3, 9], X[:5]), change) < 1e-8


@pytest.mark.parametrize("model", [PoissonRegressor(tol=1e-10), LinearRegression()])
def test_empirical_fisher_has_no_exact_order(model):
    X, y = load_diabetes(return_X_y=True)
    influence = InfluenceEstimator(model, curvature="empirical_fisher")
    influence.fit(X, y)
    assert np.isfinite(influence.self_influence_).all()
    with pytest.raises(ValueError, match=r"order='exact'.*choose order='newton'"):
        influence.influence(X, y, order="exact")
    with pytest.raises(ValueError, match=r"curvature='empirical_fisher'"):
        clone(influence).set_params(order="exact").fit(X, y)


@pytest.mark.parametrize("solver", ["primal", "dual", "iterative"])
@pytest.mark.parametrize("name", ["mlp-tanh", "conv1d", "mlp-free-biases"])
def test_empirical_fisher_of_a_network(name, solver):
    each = network_case(name)
    reference = linearise(each).reference()
    J, z = dense_jacobian(each.module, each.X), dense_outputs(each.module, each.X)
    _, r, _ = loss_pieces(each.loss, z, each.y, each.weights)
    gradients = np.einsum("nc,ncd->nd", r, J)
    fisher = gradients.T @ gradients + np.diag(np.broadcast_to(reference.R, J.shape[2]))
    removed = gradients[1] + reference.share([1]) * reference.R * reference.theta
    step = np.linalg.pinv(fisher, hermitian=True, rcond=1e-13) @ removed
    model = TorchModel(each.module, weight_decay=each.weight_decay, classes=range(each.n_outputs))
    influence = InfluenceEstimator(
        model, curvature="empirical_fisher", order="first", solver=solver, tol=1e-8
    )
    with pytest.warns(InfluenceWarning, match="not at an optimum"):
        influence.fit(each.X, each.y)
    assert gap(influence.parameter_change([1]), step) < 1e-8


# Linear losses


def test_a_linear_loss_keeps_newtons_coefficients(digits):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, objective=Loss(linear=True)).fit(X, y)
    p = softmax(influence.decision_function(X_query), axis=1)
    slope = p - np.eye(10)[y_query]
    effects = influence.influence(X_query, y_query)
    for row in (0, 5):
        change = influence.output_change([row], X_query)
        np.testing.assert_allclose(effects[:, row], (slope * change).sum(1), atol=1e-12)
    group = influence.removal_effect([1, 2], X_query, y_query)
    change = influence.output_change([1, 2], X_query)
    np.testing.assert_allclose(group, (slope * change).sum(1), atol=1e-12)
    assert repr(influence.objective) == "Loss(linear=True)"
