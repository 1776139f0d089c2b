"""The search for the optimum: what it factorises, in what precision, and what it makes of steps."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.influence import _problem
from sklearn_dualif.influence._secants import SecantInverse


def rows(n_features=6, n_classes=4):
    return make_classification(
        90,
        n_features,
        n_informative=5,
        n_redundant=0,
        n_classes=n_classes,
        n_clusters_per_class=1,
        random_state=0,
    )


def problem_of(X, y, model=None, solver="primal"):
    influence = InfluenceEstimator(LogisticRegression(C=0.1, tol=1e-3) if model is None else model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of searches that are to be stopped early
        return influence.set_params(solver=solver).fit(X, y)._engine.problem


def searched(problem):
    start = problem.model.start() if problem.form.name == "primal" else None
    return _problem.minimise(problem, start, problem.fitted_outputs)


def factorizations(problem, monkeypatch):
    """Return a list that grows by the options of each factorization."""
    made, form = [], problem.form

    def factorized(*args, **options):
        made.append(options)
        return form(*args, **options)

    monkeypatch.setitem(problem.__dict__, "form", factorized)
    return made


def test_a_factorization_is_kept_for_as_many_steps_as_it_is_worth():
    problem = problem_of(*rows())
    small, large = (problem.curvature(problem.fitted_outputs) for _ in range(2))
    large.__class__ = type("Large", (type(large),), {"factor_rows": 2000})
    assert small.factor_steps < 1
    assert 100 < large.factor_steps < 200


def test_the_curvature_is_that_of_the_point_where_the_search_ends(monkeypatch):
    problem = problem_of(*rows(), LogisticRegression(tol=1e-2))
    exact = _problem.line_search

    def short_sighted(problem, z, dz, *terms):
        return exact(problem, z, dz, *terms) if float(dz.abs().max()) > 1e-6 else 0.0

    # Every step from a curvature of its own, and the last one below what the objective tells.
    monkeypatch.setattr(_problem, "line_search", short_sighted)
    monkeypatch.setattr(_problem, "_FAST", 0.0)
    found = searched(problem)
    assert found.converged
    ends, wanted = found.curvature(), problem.curvature(found.z)
    torch.testing.assert_close(
        ends.row_quadratics(slice(None)), wanted.row_quadratics(slice(None)), rtol=1e-11, atol=0
    )


def test_two_factorizations_from_a_usual_fit(monkeypatch):
    problem = problem_of(*rows(60))
    made = factorizations(problem, monkeypatch)
    found = _problem.minimise(problem, problem.model.start(), problem.fitted_outputs)
    assert [options["single"] for options in made] == [True]
    found.curvature()
    assert [options["single"] for options in made] == [True, False]


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_one_factorization_from_an_optimum(monkeypatch, solver):
    problem = problem_of(*rows(), solver=solver)
    found = searched(problem)
    made = factorizations(problem, monkeypatch)
    start = found.state if solver == "primal" else None
    again = _problem.minimise(problem, start, found.z)
    again.curvature()
    # The dual form's first is for a step from the outputs to a state.
    assert len(made) == (1 if solver == "primal" else 2)


# Single precision


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_steps_in_single_precision(fit_intercept):
    X, y = rows(60)
    offset = 1e5 if fit_intercept else 0.0
    model = LogisticRegression(C=0.1, fit_intercept=fit_intercept, solver="newton-cholesky")
    problem = problem_of(X + offset, y, model)
    z = problem.fitted_outputs
    single, double = problem.step_curvature(z, single=True), problem.curvature(z)
    assert single._factors[0].upper.dtype == torch.float32
    assert double._factors[0].upper.dtype == torch.float64
    gradients = torch.randn(1, len(double.map[0]), 3, dtype=torch.float64)
    found, wanted = single.solve(gradients), double.solve(gradients)
    assert found.dtype == torch.float64
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_double_precision_where_a_condition_asks_for_it():
    X, y = rows(60)
    twins = np.column_stack([X, X[:, 0] + 1e-3 * X[:, 1]])
    problem = problem_of(twins, y, LogisticRegression(C=1e6, solver="newton-cholesky"))
    curvature = problem.step_curvature(0.0 * problem.fitted_outputs, single=True)
    assert curvature._factors[0].upper.dtype == torch.float64


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_features_beyond_the_range_of_single_precision(scale):
    problem = problem_of(*rows(60))
    problem.features.matrix[:, 3] *= scale
    z = problem.fitted_outputs
    single, double = problem.step_curvature(z, single=True), problem.curvature(z)
    gradients = torch.ones(1, len(double.map[0]), 1, dtype=torch.float64)
    found, wanted = single.solve(gradients), double.solve(gradients)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize("spoilt", ["wrong", "infinite"])
def test_a_bad_guide_is_replaced(monkeypatch, spoilt):
    problem = problem_of(*rows(60), LogisticRegression(C=0.1, tol=1e-1))
    exact = problem.form.solve

    def solve(self, gradients, shift=None):
        if not self.single:
            return exact(self, gradients, shift)
        return -gradients if spoilt == "wrong" else torch.inf * gradients

    monkeypatch.setattr(problem.form, "solve", solve)
    made = factorizations(problem, monkeypatch)
    found = _problem.minimise(problem, problem.model.start(), problem.fitted_outputs)
    assert found.converged and [options["single"] for options in made][:2] == [True, False]
    found = _problem.minimise(problem, found.state, found.z)
    assert found.converged


# Corrections by steps


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_secants_are_met(solver):
    X, y = rows()
    problem = problem_of(X, y, PoissonRegressor(alpha=0.1), solver)
    curvature = problem.curvature(problem.fitted_outputs)
    inverse = SecantInverse(curvature)
    size = curvature.width + curvature.n_free
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(4, 1, size, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inverse.solve(gradients[0]), curvature.solve(gradients[0]))
    for before, after in pairwise(gradients):
        step = curvature.solve(after - before) * 1.5
        inverse.take(step)
        inverse.solve(after)
        # The last gradient counts, so that a later one is told from it without another step.
        torch.testing.assert_close(inverse.solve(after - before), step)
        inverse.solve(after)


def test_a_step_along_which_the_gradient_falls_teaches_nothing():
    problem = problem_of(*rows())
    curvature = problem.curvature(problem.fitted_outputs)
    inverse = SecantInverse(curvature)
    gradient = torch.ones(1, len(curvature.map[0]), 1, dtype=torch.float64)
    inverse.solve(gradient)
    inverse.take(gradient)
    torch.testing.assert_close(inverse.solve(-gradient), -curvature.solve(gradient))
