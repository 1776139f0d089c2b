"""The low-rank form where it goes beyond its coordinates: exact removals, refined effects."""

import numpy as np
import pytest
import torch
from helpers import relative
from hypothesis import given
from hypothesis import strategies as st
from network_helpers import (
    case_of,
    each_network,
    fit_case,
    normal,
    oracle,
    seeded,
    single_steps,
)
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import InfluenceWarning, NotStationaryWarning
from sklearn_dualif.influence._low_rank import LowRankTangent
from sklearn_dualif.losses import SquaredEpsilonInsensitive, SquaredHinge

GROUP = [0, 2, 4, 9, 15]
EXACT = {
    "single": lambda e, X, y: e.influence(X, y, order="exact"),
    "group": lambda e, X, y: e.removal_effect(np.arange(20), X, y, order="exact"),
    "two thirds": lambda e, X, y: e.removal_effect(np.arange(60), X, y, order="exact"),
    "outputs": lambda e, X, y: e.output_change([4, 7], X, order="exact"),
    "relabel": lambda e, X, y: e.relabel_effect([3], 7, X, y, order="exact"),
    "parameters": lambda e, X, y: e.parameter_change([3, 4], order="exact"),
}


@pytest.fixture(scope="module")
def dense(digits):
    model, X, y, _, _ = digits
    return InfluenceEstimator(model, solver="dual").fit(X, y)


def low_rank(model, **options):
    return InfluenceEstimator(model, solver="iterative", random_state=0, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_exact_removals_go_beyond_the_coordinates(digits, dense, tol, dtype):
    model, X, y, X_query, y_query = digits
    influence = low_rank(model, tol=tol, dtype=dtype).fit(X, y)
    for name, answer in EXACT.items():
        found, expected = (answer(each, X_query, y_query) for each in (influence, dense))
        assert relative(found, expected) < tol, name


@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_exact_groups_need_little_rank(digits, dense, tol):
    model, X, y, X_query, y_query = digits
    influence = low_rank(model, tol=tol, memory_limit="2MB")
    with pytest.warns(InfluenceWarning, match=f"more than tol={tol:g}. influence"):
        influence.fit(X, y)
    info = influence.solver_info_
    assert info["rank"] < 100 < 90 * 9
    assert info["relative_error"] > 0.1
    for name in set(EXACT) - {"single"}:
        found, expected = (EXACT[name](each, X_query, y_query) for each in (influence, dense))
        assert relative(found, expected) < tol, name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_first_order_effects_are_refined_where_memory_is_short(digits, dense, tol, dtype):
    model, X, y, X_query, y_query = digits
    influence = low_rank(model, tol=tol, dtype=dtype, memory_limit="2MB")
    with pytest.warns(InfluenceWarning, match="conjugate gradients"):
        influence.fit(X, y)
    found, expected = (e.influence(X_query, y_query, order="first") for e in (influence, dense))
    assert relative(found, expected) < tol
    average = influence.influence(X_query, y_query, order="first", objective="prediction")
    expected = dense.influence(X_query, y_query, order="first", objective="prediction")
    assert relative(average, expected) < tol


def test_exact_self_influence_has_newtons_part_from_beyond(digits):
    model, X, y, _, _ = digits
    exact = InfluenceEstimator(model, solver="dual", order="exact").fit(X, y)
    influence = low_rank(model, order="exact", tol=1e-2).fit(X, y)
    assert relative(influence.self_influence_, exact.self_influence_) < 1e-3
    assert relative(influence.loo_loss_, exact.loo_loss_) < 1e-4


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_exact_removals_of_a_network_that_is_still_moving(alpha):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 5))
    y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)
    with pytest.warns(UserWarning, match="converged"):
        model = MLPClassifier((12,), alpha=alpha, max_iter=30, random_state=0).fit(X, y)
    queries = rng.standard_normal((9, 5))
    changes = []
    for options in ({"solver": "dual"}, {"solver": "iterative", "memory_limit": "90kB"}):
        influence = InfluenceEstimator(FrozenEstimator(model), tol=1e-7, random_state=0, **options)
        with pytest.warns((InfluenceWarning, NotStationaryWarning)):
            influence.fit(X, y)
        changes.append(influence.output_change(np.arange(25), queries, order="exact"))
    assert influence.solver_info_["relative_error"] > 1e-3
    assert relative(changes[1], changes[0]) < 1e-6


def test_exact_effects_of_one_row_are_not_lost_in_those_of_training_on():
    X, y, queries = normal(60, 5), np.arange(60) % 3, normal(9, 5, seed=1)
    with pytest.warns(UserWarning, match="converged"):
        model = MLPClassifier((12,), alpha=0.1, max_iter=30, random_state=0).fit(X, y)
    changes = []
    for options in ({"solver": "dual"}, {"solver": "iterative", "memory_limit": "90kB"}):
        influence = InfluenceEstimator(FrozenEstimator(model), random_state=0, **options)
        with pytest.warns((InfluenceWarning, NotStationaryWarning)):
            influence.fit(X, y)
        changes.append(influence.output_change([7], queries, order="exact"))
    # Training on to the optimum moves the outputs a hundred times as far.
    assert relative(changes[1], changes[0]) < 1e-4


@pytest.mark.parametrize(
    "loss", [SquaredEpsilonInsensitive(0.3), SquaredHinge()], ids=["epsilon", "hinge"]
)
def test_rows_without_a_gradient_come_in_when_others_go(loss):
    X, X_query = normal(40, 4), normal(7, 4, seed=1)
    y = np.where(normal(40, 1, seed=2) > 0, 1.0, -1.0)
    module = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)))
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=30)

    def closure():
        optimizer.zero_grad()
        terms = (torch.from_numpy(y) - module(torch.from_numpy(X))) ** 2
        terms.mean().backward()
        return terms.mean()

    optimizer.step(closure)
    changes = []
    for options in ({"solver": "primal"}, {"solver": "iterative", "memory_limit": "12kB"}):
        model = TorchModel(module, loss=loss, weight_decay=0.01)
        influence = InfluenceEstimator(model, tol=1e-7, random_state=0, **options)
        with pytest.warns((InfluenceWarning, NotStationaryWarning)):
            influence.fit(X, y)
        changes.append(influence.output_change(np.arange(25), X_query, order="exact"))
    assert influence.solver_info_["rank"] < 10
    assert relative(changes[1], changes[0]) < 1e-6


@given(seed=st.integers(0, 2**31), removed=st.sets(st.integers(0, 39), min_size=1, max_size=25))
def test_low_rank_and_primal_agree_on_exact_removals(seed, removed):
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=False)
        ).double()
    model = TorchModel(module, loss="mse", weight_decay=0.1)
    X, y = rng.standard_normal((40, 4)), rng.standard_normal((40, 3))
    changes = []
    for options in ({"solver": "primal"}, {"solver": "iterative", "memory_limit": "60kB"}):
        with pytest.warns(InfluenceWarning):
            influence = InfluenceEstimator(model, tol=1e-9, random_state=0, **options).fit(X, y)
        changes.append(influence.output_change(sorted(removed), X, order="exact"))
    assert influence.solver_info_["rank"] < 30
    assert relative(changes[1], changes[0]) < 1e-7


@pytest.mark.parametrize("order", ["first", "newton", "exact"])
@each_network("linear-mse")
def test_every_network_has_a_low_rank_form(name, order):
    case, dense = case_of(name), oracle(name)
    influence = fit_case(case, solver="iterative", tol=2e-6, random_state=0)
    step = dense.step(GROUP, order)
    assert relative(influence.parameter_change(GROUP, order=order), step) < 1e-5
    effects = influence.removal_effect(GROUP, case.X_query, case.y_query, order=order)
    assert relative(effects, dense.effects(step, order)) < 1e-5
    if order != "exact":
        effects = influence.influence(case.X_query, case.y_query, order=order)
        assert relative(effects, dense.effects(single_steps(dense, order), order).T) < 1e-5


def test_more_pivots_that_rounding_spoils_are_given_up(digits, monkeypatch):
    model, X, y, _, _ = digits
    errors, ranks = iter([0.05, 0.13]), []

    def spoiled(self, curvature):
        ranks.append(self.pivots.rank)
        return next(errors)

    monkeypatch.setattr(LowRankTangent, "_error", spoiled)
    monkeypatch.setattr("sklearn_dualif.influence._low_rank._RANK_STEP", 40)
    influence = low_rank(model, tol=1e-3, dtype="float32")
    with pytest.warns(InfluenceWarning, match="rounding leaves of the kernel.*estimated 0.05"):
        influence.fit(X, y)
    info = influence.solver_info_
    assert info["relative_error"] == 0.05
    assert info["iterations"] == len(ranks) == 2
    assert info["rank"] == ranks[0] < ranks[1]
    basis = influence._engine.problem.low_rank.design.basis
    assert len(basis.corner) == info["rank"]
    assert influence._engine.curvature.width == basis.size
