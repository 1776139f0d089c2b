"""Functions of outputs and targets as objectives, and subclasses of Objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from objective_helpers import (
    ENGINES,
    N_QUERIES,
    N,
    assert_close,
    fit,
    fitted,
    naive_derivatives,
    naive_effects,
    orders,
    rows,
    scores,
    single_changes,
)
from scipy.special import log_softmax, softmax
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import HuberRegressor, LogisticRegression, PoissonRegressor, Ridge
from sklearn.neural_network import MLPClassifier

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import MemoryLimitError
from sklearn_dualif.objectives import Objective

COSTS = np.linspace(0.5, 2.0, N_QUERIES)


def entropy(outputs, y):
    log_p = torch.log_softmax(outputs, 1)
    return -(log_p.exp() * log_p).sum(1)


def own_entropy(z):
    return -(softmax(z, 1) * log_softmax(z, 1)).sum(1)


def focal(outputs, y):
    return (
        torch.nn.functional.cross_entropy(outputs, y, reduction="none")
        * (1.0 - torch.softmax(outputs, 1).gather(1, y[:, None])[:, 0]) ** 2
    )


def own_focal(z, index):
    log_p = np.take_along_axis(log_softmax(z, 1), index[:, None], 1)[:, 0]
    return -log_p * (1.0 - np.exp(log_p)) ** 2


def costly(outputs, y):
    """An aggregate that is no function of weighted sums over rows."""
    return torch.logsumexp(torch.as_tensor(COSTS) * outputs[:, 0], 0)


def own_costly(z):
    return np.log(np.exp(COSTS * z[:, 0]).sum())


def questions(y):
    """Return each objective with its value by its definition, as a function of outputs."""
    index = np.searchsorted(["ash", "birch", "cedar"], y)
    return {
        "row": (entropy, own_entropy),
        "row with targets": (focal, lambda z: own_focal(z, index)),
        "aggregate": (costly, own_costly),
    }


NAMES = ("row", "row with targets", "aggregate")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ENGINES)
def test_effects_are_those_of_the_value_at_the_changed_outputs(engine, name):
    influence, (_, _, X, y) = fitted(engine, 3), rows(3)
    function, value = questions(y)[name]
    for order in orders(engine) if name == "aggregate" else ["newton"]:
        expected = naive_effects(engine, 3, order, value)
        effects = influence.influence(X, y, objective=function, order=order)
        assert_close(effects, np.atleast_2d(expected), 1e-8)
    z = scores(influence, X)
    expected = value(z + influence.output_change([1, 5], X)) - value(z)
    together = influence.removal_effect([1, 5], X, y, objective=function)
    assert_close(together, np.atleast_1d(expected))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ["dual", "network primal", "network sketched"])
def test_first_order_is_the_derivative(engine, name):
    influence, (_, _, X, y) = fitted(engine, 3), rows(3)
    function, value = questions(y)[name]
    slopes = naive_derivatives(lambda z: np.sum(value(z)), scores(influence, X))
    expected = (slopes * single_changes(engine, 3, "first")).sum(2)
    if name == "aggregate":
        expected = expected.sum(1, keepdims=True)
    effects = influence.influence(X, y, objective=function, order="first")
    assert_close(effects, expected.T, 1e-7)


@pytest.mark.parametrize("model", [Ridge(), PoissonRegressor(), HuberRegressor(), KernelRidge()])
@pytest.mark.parametrize("order", ["first", "newton", "exact"])
def test_numbers(model, order):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3))
    y = np.exp(X @ [0.5, -0.3, 0.2] + 0.2 * rng.standard_normal(30))
    influence = InfluenceEstimator(model).fit(X, y)

    def own(outputs, targets):
        assert outputs.shape == targets.shape and outputs.shape[1] == 1
        return (outputs[:, 0] - targets[:, 0].log()) ** 4

    engine = influence._engine
    z = engine.query_outputs(engine.model.features(X[:5]), order).numpy()[:, 0]
    effects = influence.influence(X[:5], y[:5], objective=own, order=order)
    linear = influence.influence(X[:5], objective=lambda o, _: o[:, 0], order=order)
    gap = z - np.log(y[:5])
    if order == "first":
        expected = 4.0 * gap[:, None] ** 3 * linear
    else:
        expected = (gap[:, None] + linear) ** 4 - gap[:, None] ** 4
    assert_close(effects, expected, 1e-8)


def test_indicators_of_several_labels():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 4))
    y = (X[:, :3] + 0.5 * rng.standard_normal((40, 3)) > 0).astype(int)
    influence = fit(MLPClassifier((3,), max_iter=20, random_state=0), {"ridge": 1.0}, X, y)

    def own(outputs, targets):
        terms = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs, targets, reduction="none"
        )
        return terms.sum(1)

    effects = influence.influence(X[:5], y[:5], objective=own)
    assert_close(effects, influence.influence(X[:5], y[:5]), 1e-7)


# What they may look like


class Confidence(Objective):
    """The probability of the predicted class, of both kinds."""

    def __init__(self, temperature=1.0, total=False):
        self.temperature = temperature
        self.total = total

    @property
    def aggregate(self):
        return self.total

    def value(self, outputs, y):
        assert y is None
        confidence = torch.softmax(outputs / self.temperature, 1).amax(1)
        return confidence.sum() if self.total else confidence


class WithGradient(Confidence):
    """The same with a derivative of its own, a wrong one to be told by."""

    def gradient(self, outputs, y):
        return torch.ones_like(outputs)


def test_subclasses():
    influence, (_, _, X, _) = fitted("primal", 3), rows(3)
    single = influence.influence(X, objective=Confidence(2.0))
    total = influence.influence(X, objective=Confidence(2.0, total=True))
    assert single.shape == (N_QUERIES, N)
    assert_close(total[0], single.sum(0))
    spec = Confidence().set_params(temperature=2.0)
    np.testing.assert_array_equal(influence.influence(X, objective=spec), single)
    same = influence.influence(X, objective=WithGradient(2.0))
    np.testing.assert_array_equal(same, single)
    first = influence.influence(X, objective=WithGradient(2.0), order="first")
    assert np.abs(first).max() < 1e-12  # the outputs of a softmax regression sum to zero


def test_decisions_that_have_no_derivative():
    influence, (_, _, X, y) = fitted("primal", 3), rows(3)

    def accuracy(outputs, targets):
        if float(outputs.detach()[0, 0]) > 1e9:  # what cannot be decided for all removals at once
            return outputs.sum()
        return (outputs.argmax(1) == targets).double().mean()

    together = influence.removal_effect(np.arange(15), X, y, objective=accuracy)
    z, dz = scores(influence, X), influence.output_change(np.arange(15), X)
    index = np.searchsorted(["ash", "birch", "cedar"], y)
    expected = ((z + dz).argmax(1) == index).mean() - (z.argmax(1) == index).mean()
    assert together == pytest.approx([expected])
    assert influence.influence(X, y, objective=accuracy).shape == (1, N)
    with pytest.raises(ValueError, match=r"no derivative by the outputs.*argmax"):
        influence.influence(X, y, objective=accuracy, order="first")


def test_targets_are_there_if_they_were_given():
    influence, (_, _, X, y) = fitted("primal"), rows(2)
    seen = []

    def own(outputs, targets):
        seen.append(targets)
        return outputs[:, 0]

    influence.influence(X, objective=own)
    assert all(targets is None for targets in seen)
    seen.clear()
    influence.influence(X, y, objective=own)
    assert {targets.dtype for targets in seen} == {torch.int64} and seen[0].ndim == 1
    assert set(torch.cat(seen).tolist()) == {0, 1}
    seen.clear()
    influence.removal_effect([0], objective=own)
    assert len(seen[0]) == N


def test_validation_rows_and_training_rows():
    X, y, X_query, _ = rows(2)
    model = LogisticRegression()
    influence = InfluenceEstimator(model, objective=lambda outputs, _: outputs[:, 0] ** 2)
    effects = influence.fit(X, y, X_val=X_query).influence(X_query)
    assert_close(influence.influence_, effects.mean(0))
    first = InfluenceEstimator(model, objective=influence.objective, order="first").fit(X, y)
    assert_close(first.influence_, first.influence(X).mean(0))


# Errors


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda o, y: o, r"<lambda> returned shape \(21, 1\) for 21 rows.*one number a row"),
        (lambda o, y: o[:5, 0], r"returned shape \(5,\) for 21 rows"),
        (lambda o, y: o[:, 0].numpy(), "returned <class 'numpy.ndarray'>"),
        (lambda o, y: 1.0, "returned <class 'float'>.*without dimensions"),
        (lambda o, y: o[:, 0] / 0.0, "NaN or infinite"),
        (lambda o, y: torch.log(o.sum() * 0.0), "NaN or infinite"),
        (lambda o, y: torch.as_tensor(COSTS) * o[:, 0], "returned|must match"),
    ],
)
def test_functions_that_are_none(function, message):
    influence, (_, _, X, y) = fitted("primal"), rows(2)
    with pytest.raises((ValueError, RuntimeError), match=message):
        influence.influence(X, y, objective=function)


def test_subclasses_that_are_none():
    class Nothing(Objective):
        pass

    class Wrong(Confidence):
        def gradient(self, outputs, y):
            return outputs[:, 0]

    class Total(Confidence):
        aggregate = True

    influence, (_, _, X, _) = fitted("primal"), rows(2)
    with pytest.raises(NotImplementedError, match=r"Nothing has no value\(outputs, y\). Define"):
        influence.influence(X, objective=Nothing())
    with pytest.raises(
        ValueError, match=r"gradient of .*Wrong has shape \(21,\).*Return \(21, 1\)"
    ):
        influence.influence(X, objective=Wrong(), order="first")
    with pytest.raises(ValueError, match=r"Total returned shape \(21,\).*aggregate"):
        influence.influence(X, objective=Total())
    Nothing.requires_y = True
    with pytest.raises(ValueError, match="needs the targets y"):
        influence.influence(X, objective=Nothing())


def test_memory_that_there_is_not():
    X, y, X_query, _ = rows(3)
    X_query = np.tile(X_query, (10, 1))
    influence = fit(ENGINES["network primal"][0], {"memory_limit": 60_000}, X, y)

    def largest(outputs, _):
        return torch.logsumexp(outputs[:, 0], 0)

    with pytest.raises(MemoryLimitError, match=r"all 210 queries at once.*order='first'"):
        influence.influence(X_query, objective=largest)
    assert influence.influence(X_query, objective=largest, order="first").shape == (1, N)
    assert influence.influence(X_query, objective=entropy).shape == (len(X_query), N)
