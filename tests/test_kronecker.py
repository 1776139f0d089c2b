"""Curvature taken layer by layer: against dense matrices built from their definitions."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import relative
from kronecker_references import Naive, assert_as_dense, naive
from network_cases import NetworkCase, network_case
from network_helpers import (
    PERCEPTRONS,
    Composed,
    case_of,
    digits_network,
    each_network,
    fit_case,
    fit_quietly,
    normal,
    oracle,
    oracle_of,
    perceptron_problem,
    seeded,
)
from scipy.stats import spearmanr
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.curvature import KroneckerCurvature, _kronecker
from sklearn_dualif.exceptions import InfluenceWarning, MemoryLimitError, UnsupportedOptionError
from sklearn_dualif.kernels import _kronecker as kernels_kronecker
from sklearn_dualif.losses import empirical_fisher
from sklearn_dualif.sketching import FactorizedSketch, GaussianSketch

approximate_orders = pytest.mark.parametrize("order", ["first", "newton"])


# On an image that wraps around, factors of inputs have eigenvalues of multiplicity two, whose
# eigenvectors are nobody's in particular.
@approximate_orders
@each_network("linear-mse", "conv2d-circular")
def test_effects_are_those_of_the_dense_matrix(name, order):
    case = case_of(name)
    found = fit_case(case, curvature="kfac", order=order)
    assert found.solver_ == "kfac"
    assert_as_dense(found, case, oracle(name), naive(name), order)


@approximate_orders
@pytest.mark.parametrize("name", ["lstm", "embedding-padding", "raw-parameter", "tied-weight"])
def test_large_tensors_without_factors_keep_their_diagonal(name, order, monkeypatch):
    monkeypatch.setattr(kernels_kronecker, "LARGEST_DENSE", 4)
    case, dense = case_of(name), oracle(name)
    found = fit_case(case, curvature="kfac", order=order)
    assert found.solver_info_["diagonal"] > 0
    expected = Naive(case.module, case.X, dense.network, largest_dense=4)
    assert_as_dense(found, case, dense, expected, order)


def one_row_alone():
    """Return a case in which a free parameter matters to the first row alone."""
    module = seeded(
        lambda: Composed(
            lambda own, x: own.body(x[:, :4]) + own.free(x[:, 4:]),
            body=nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)),
            free=nn.Linear(1, 3, bias=False),
        )
    )
    base = network_case("mlp-tanh")
    X = np.c_[base.X, np.arange(len(base.X)) == 0].astype(float)
    X_query = np.c_[base.X_query, np.ones(len(base.X_query))]
    decay = {"body.*": 0.02, "free.*": 0.0}
    return NetworkCase(
        "one row", module, X, base.y, base.loss, 3, decay, None, X_query, base.y_query
    )


@approximate_orders
def test_free_parameters_that_nothing_determines_stay(order):
    case = one_row_alone()
    dense = oracle_of(case)
    found = fit_case(case, curvature="kfac", order=order)
    assert_as_dense(found, case, dense, Naive(case.module, case.X, dense.network), order)


def test_removals_are_edits_that_take_all():
    model, X, y, _, _ = perceptron_problem("multiclass")
    found = fit_quietly(InfluenceEstimator(model, curvature="kfac"), X, y)
    curvature = found._engine.curvature
    rows = torch.tensor([1, 4])
    root = curvature.expansion.root[0, rows]
    edited = curvature.edit(rows, -curvature.expansion.gradient[:, rows], (-root @ root.mT)[None])
    assert curvature.shares is None
    torch.testing.assert_close(edited, curvature.remove(rows))


@approximate_orders
@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_perceptrons(kind, order):
    model, X, y, X_query, y_query = perceptron_problem(kind)
    found = fit_quietly(InfluenceEstimator(model, curvature="kfac", order=order), X, y)
    effects = found.influence(X_query, y_query)
    assert np.isfinite(effects).all()
    for row in (0, 7):
        assert relative(found.removal_effect([row], X_query, y_query), effects[:, row]) < 1e-8
    assert len(found.parameter_change([3, 5])) == found.n_parameters_
    assert found.effective_dimension_ == pytest.approx(found.leverage_.sum())
    moved = found.unlearn([3]).coefs_[0] - found.estimator_.coefs_[0]
    change = found.parameter_change([3])[: moved.size]
    assert relative(change, moved.T.ravel()) < 1e-8


def test_relabelling_is_a_step_with_the_matrix(digits):
    model, X, y, X_query, y_query = digits
    found = InfluenceEstimator(model, curvature="kfac", order="first").fit(X, y)
    other = (y[3] + 1) % 10
    effect = found.relabel_effect([3], other, X_query, y_query)
    curvature = found._engine.curvature
    change = torch.zeros(1, 1, 10, dtype=torch.float64)
    change[0, 0, y[3]], change[0, 0, other] = 1.0, -1.0
    gradient = curvature.row_gradients(torch.tensor([3]), change)
    state = -gradient / (curvature.eigenvalues + curvature.ridge)[:, None]
    objective = found._choices(None, None)[0]
    features, targets = found._queries(X_query, y_query, objective)
    expected = found._engine.state_effect(state, features, targets, objective, "first")
    assert relative(effect, expected.numpy()) < 1e-10


@pytest.fixture(scope="module")
def digits():
    return digits_network()


@approximate_orders
def test_scores_agree_with_those_of_the_exact_matrix(digits, order):
    model, X, y, X_query, y_query = digits
    exact, found = (
        InfluenceEstimator(model, curvature=curvature, order=order).fit(X, y)
        for curvature in ("gauss_newton", "kfac")
    )
    pairs = [each.influence(X_query, y_query) for each in (found, exact)]
    assert np.corrcoef(*(pair.ravel() for pair in pairs))[0, 1] > 0.75
    ranks = [spearmanr(*each)[0] for each in zip(*pairs, strict=True)]
    assert np.mean(ranks) > 0.5
    assert np.corrcoef(found.self_influence_, exact.self_influence_)[0, 1] > 0.95


@pytest.mark.parametrize("weighted", [False, True])
def test_one_layer_of_one_output_and_squared_loss_is_exact(weighted):
    X, y = normal(40, 5), normal(40, seed=1)
    weights = {"sample_weight": np.linspace(0.1, 2.0, 40)} if weighted else {}
    model = TorchModel(seeded(lambda: nn.Linear(5, 1)), loss="mse", weight_decay=0.1)
    answers = []
    for curvature in ("gauss_newton", "kfac"):
        influence = InfluenceEstimator(model, curvature=curvature, order="first")
        fit_quietly(influence, X, y, **weights)
        answers.append([influence.influence(X[:7], y[:7]), influence.leverage_])
    for exact, found in zip(*answers, strict=True):
        assert relative(found, exact) < 1e-10


@pytest.mark.parametrize("name", ["mlp-tanh", "conv2d", "layer-norm", "mlp-free-biases"])
def test_the_trace_is_that_of_the_exact_matrix(name):
    expected = naive(name)
    found = fit_case(case_of(name), curvature="kfac")._engine.curvature
    trace = np.einsum("nce,ncp,nep->", expected.Lam, expected.J, expected.J)
    assert float(found.eigenvalues.sum()) == pytest.approx(trace)


def test_the_empirical_fisher_matrix_in_its_own_eigenbasis():
    found = fit_case(case_of("mlp-weights"), curvature="kfac")._engine
    problem = found.problem
    expansion = empirical_fisher(problem.expansion, problem.weights)
    curvature = KroneckerCurvature(
        problem.tangent,
        problem.layout,
        problem.model.free_jacobian,
        expansion,
        problem.ridge,
        shiftable=False,
    )
    rows = torch.arange(curvature.n_rows)
    gradients = curvature.row_gradients(rows, curvature.expansion.gradient)[0]
    weights = torch.where(problem.weights > 0, problem.weights, 1.0)
    expected = (gradients**2 / weights).sum(1)
    torch.testing.assert_close(curvature.eigenvalues, expected)


@approximate_orders
def test_numbers_do_not_depend_on_blocks(digits, order, monkeypatch):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, curvature="kfac", order=order)
    expected = influence.fit(X, y).influence(X_query, y_query), influence.self_influence_
    group = influence.removal_effect([1, 2, 5], X_query, y_query)
    monkeypatch.setattr(_kronecker, "_BLOCK_DOUBLES", 1)
    influence.set_params(batch_size=3).fit(X, y)
    assert relative(influence.influence(X_query, y_query), expected[0]) < 1e-12
    assert relative(influence.self_influence_, expected[1]) < 1e-12
    assert relative(influence.removal_effect([1, 2, 5], X_query, y_query), group) < 1e-12


def test_single_precision(digits):
    model, X, y, X_query, y_query = digits
    effects = [
        InfluenceEstimator(model, curvature="kfac", dtype=dtype)
        .fit(X, y)
        .influence(X_query, y_query)
        for dtype in ("float32", "float64")
    ]
    assert relative(*effects) < 1e-3


@approximate_orders
def test_damping_of_a_frozen_network(digits, order):
    model, X, y, X_query, y_query = digits
    exact, found = (
        InfluenceEstimator(model, ridge=1e4, curvature=curvature, order=order).fit(X, y)
        for curvature in ("gauss_newton", "kfac")
    )
    assert found.ridge_ == exact.ridge_ == 1e4
    # A ridge above all curvature leaves nothing to approximate.
    pairs = [each.influence(X_query, y_query) for each in (found, exact)]
    assert relative(*pairs) < 0.05


def test_without_any_ridge(digits):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, ridge=0.0, curvature="kfac")
    with pytest.warns(InfluenceWarning, match="The ridge 0 of TorchModel"):
        found = influence.fit(X, y)
    assert np.isfinite(found.influence(X_query, y_query)).all()


def test_what_is_reported(digits):
    model, X, y, X_query, y_query = digits
    found = InfluenceEstimator(model, curvature="kfac", solver="primal").fit(X, y)
    assert found.solver_ == "kfac"
    assert found.solver_info_ == {"size": 1810, "layers": 2, "dense": 0, "diagonal": 0}
    assert found.stationarity_ == pytest.approx(
        InfluenceEstimator(model).fit(X, y).stationarity_, rel=1e-6
    )
    copied = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(
        copied.influence(X_query, y_query), found.influence(X_query, y_query)
    )
    case = fit_case(case_of("layer-norm"), curvature="kfac")
    assert case.solver_info_ == {"size": 53, "layers": 2, "dense": 10, "diagonal": 0}


# What does not go with it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "dual"}, r"solver='dual' works on.*Use solver='auto'"),
        ({"solver": "iterative"}, r"solver='iterative' works on.*Use solver='auto'"),
        ({"sketch": GaussianSketch(50)}, r"sketch=GaussianSketch.*Use FactorizedSketch\(n_comp"),
        ({"sketch": FactorizedSketch()}, r"n_components='auto' goes by the error.*Give a number"),
        ({"sketch": FactorizedSketch(50, store="rows")}, r"store='rows' keeps.*Use store=None"),
        ({"order": "exact"}, r"order='exact'.*curvature='kfac' choose order='newton'"),
        ({"memory_limit": 1000}, r"curvature='kfac' of TorchModel needs.*allows.*FactorizedSketch"),
    ],
)
def test_options_that_do_not_go_with_it(digits, options, message):
    model, X, y, _, _ = digits
    with pytest.raises(ValueError, match=message) as error:
        InfluenceEstimator(model, curvature="kfac", **options).fit(X, y)
    assert isinstance(error.value, MemoryLimitError) == ("memory_limit" in options)


@pytest.mark.parametrize("model", [LogisticRegression(), KernelRidge()])
def test_models_with_an_exact_form(model):
    X, y = normal(20, 3), np.arange(20) % 2
    with pytest.raises(UnsupportedOptionError, match=r"for networks.*'gauss_newton', which is"):
        InfluenceEstimator(model, curvature="kfac").fit(X, y)
