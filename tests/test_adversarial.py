"""Losses on rows moved against the model: where they go, and what removals do to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from network_helpers import assert_untouched, seeded, state_of
from objective_helpers import (
    ENGINES,
    assert_close,
    fit,
    fitted,
    naive_derivatives,
    orders,
    probabilities,
    rows,
)
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import UnsupportedOptionError
from sklearn_dualif.objectives import AdversarialLoss


def moved(influence, spec, X, y):
    """Return the rows (n, d) that an objective moves others to, as the final estimator has them."""
    objective, _ = influence._choices(spec, None)
    features = objective.features(X, y)
    inputs = getattr(features, "inputs", features)
    inputs = getattr(inputs, "matrix", inputs)
    return inputs.numpy()[:, : X.shape[1]]  # without a penalised constant


def index_of(y):
    return np.searchsorted(["ash", "birch", "cedar"], y)


def log_loss(influence, X, y):
    p = influence.predict_proba(X)
    return -np.log(np.take_along_axis(p, index_of(y)[:, None], 1)[:, 0])


def naive_ascent(loss, X, eps, steps, step_size):
    """Return rows after projected signed ascent, with derivatives by central differences."""
    start = X
    for _ in range(steps):
        slopes = naive_derivatives(lambda rows_: loss(rows_).sum(), X)
        X = np.clip(X + step_size * np.sign(slopes), start - eps, start + eps)
    return X


# Where rows go


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("engine", ["primal", "sketched", "network primal", "network iterative"])
def test_signed_ascent(engine, n_classes):
    influence, (_, _, X, y) = fitted(engine, n_classes), rows(n_classes)
    eps = 0.3

    def loss(moved_rows):
        return log_loss(influence, moved_rows, y)

    fgsm = moved(influence, AdversarialLoss(eps, method="fgsm"), X, y)
    np.testing.assert_allclose(fgsm, naive_ascent(loss, X, eps, 1, eps), atol=1e-12)
    pgd = moved(influence, AdversarialLoss(eps, method="pgd"), X, y)
    np.testing.assert_allclose(pgd, naive_ascent(loss, X, eps, 10, 0.075), atol=1e-12)
    own = moved(influence, AdversarialLoss(eps, method="pgd", steps=3, step_size=0.2), X, y)
    np.testing.assert_allclose(own, naive_ascent(loss, X, eps, 3, 0.2), atol=1e-12)
    assert np.abs(pgd - X).max() <= eps * (1 + 1e-12)
    assert (loss(pgd) > loss(X)).all() and loss(pgd).mean() >= loss(fgsm).mean() - 1e-9


def test_one_step_is_the_worst_case_of_a_linear_model():
    influence, (_, _, X, y) = fitted("primal"), rows(2)
    spec = AdversarialLoss(0.2)
    loss = log_loss(influence, moved(influence, spec, X, y), y)
    rng = np.random.default_rng(0)
    for _ in range(200):
        other = X + 0.2 * rng.choice([-1.0, 1.0], X.shape)
        assert (log_loss(influence, other, y) <= loss + 1e-12).all()


def test_numbers_move_away_from_their_targets():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3))
    y = X @ [1.0, -2.0, 0.5] + rng.standard_normal(30)
    influence = InfluenceEstimator(Ridge()).fit(X, y)
    signs = np.sign(influence.predict(X) - y)[:, None] * np.sign(influence.estimator_.coef_)
    found = moved(influence, AdversarialLoss(0.5), X, y)
    np.testing.assert_allclose(found, X + 0.5 * signs, atol=1e-12)


@pytest.mark.parametrize("solver", ["lbfgs", "liblinear"])
def test_through_the_boundary_of_two_classes(solver):
    X, y, X_query, y_query = rows(2)
    influence = InfluenceEstimator(LogisticRegression(solver=solver)).fit(X, y)
    w, z = influence.estimator_.coef_[0], influence.decision_function(X_query)
    found = moved(influence, AdversarialLoss(), X_query, y_query)
    np.testing.assert_allclose(found, X_query - 1.3 * (z / (w @ w))[:, None] * w, atol=1e-12)
    np.testing.assert_allclose(influence.decision_function(found), -0.3 * z, atol=1e-9)


@pytest.mark.parametrize("model", [LogisticRegression(), RidgeClassifier()])
def test_through_the_nearest_boundary_of_several_classes(model):
    X, y, X_query, y_query = rows(3)
    influence = InfluenceEstimator(model).fit(X, y)
    found = moved(influence, AdversarialLoss(method="boundary"), X_query, y_query)
    coef, z = influence.estimator_.coef_, influence.decision_function(X_query)
    for row, scores in enumerate(z):
        best = scores.argmax()
        steps = [
            1.3
            * (scores[best] - scores[k])
            / np.sum((coef[k] - coef[best]) ** 2)
            * (coef[k] - coef[best])
            for k in range(3)
            if k != best
        ]
        shortest = min(steps, key=np.linalg.norm)
        np.testing.assert_allclose(found[row], X_query[row] + shortest, atol=1e-12)
    assert (influence.predict(found) != influence.predict(X_query)).all()


def test_rows_without_a_boundary_stay():
    X, y, *_ = rows(2)
    influence = InfluenceEstimator(LogisticRegression()).fit(0.0 * X, y)
    found = moved(influence, AdversarialLoss(), 0.0 * X, y)
    np.testing.assert_array_equal(found, 0.0 * X)


def test_eps_is_in_the_units_of_the_final_estimator():
    X, y, X_query, y_query = rows(2)
    scale = np.array([1.0, 10.0, 100.0, 0.1])
    model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-12))
    influence = InfluenceEstimator(model).fit(pd.DataFrame(X * scale, columns=[*"pqrs"]), y)
    given = pd.DataFrame(X_query * scale, columns=[*"pqrs"])
    found = moved(influence, AdversarialLoss(0.1), given, y_query)
    standard = influence.estimator_[0].transform(given)
    np.testing.assert_allclose(np.abs(found - standard), 0.1, atol=1e-12)
    effects = influence.influence(given, y_query, objective=AdversarialLoss(0.1))
    inner = InfluenceEstimator(LogisticRegression(tol=1e-12))
    inner.fit(influence.estimator_[0].transform(pd.DataFrame(X * scale, columns=[*"pqrs"])), y)
    assert_close(effects, inner.influence(found, y_query))


# What removals do


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "pipeline"])
def test_effects_are_those_on_the_loss_of_the_moved_rows(engine, n_classes):
    influence, (_, _, X, y) = fitted(engine, n_classes), rows(n_classes)
    for spec in (AdversarialLoss(0.2, method="fgsm"), AdversarialLoss(0.2, method="pgd")):
        found = moved(influence, spec, X, y)
        for order in ["first", *orders(engine)]:
            effects = influence.influence(X, y, objective=spec, order=order)
            assert_close(effects, influence.influence(found, y, order=order), 1e-8)
        one = influence.removal_effect([3, 4], X, y, objective=spec)
        assert_close(one, influence.removal_effect([3, 4], found, y), 1e-8)
    if engine != "network sketched kfac":  # whose leakage is not known
        leaks = influence.leakage(X, y, objective=spec)
        assert_close(leaks, influence.leakage(found, y, objective="loss"), 1e-8)


def test_effects_are_those_of_refits():
    X, y, X_query, y_query = rows(2)
    influence, spec = fitted("primal"), AdversarialLoss()
    found = moved(influence, spec, X_query, y_query)
    refit = clone(influence.estimator_).fit(X[1:], y[1:])
    real = log_loss(refit, found, y_query) - log_loss(influence, found, y_query)
    effects = influence.influence(X_query, y_query, objective=spec, order="exact")
    assert_close(effects[:, 0], real, 1e-7)
    assert probabilities(influence, np.zeros((1, 1))).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("engine", ["dual", "sketched", "network dual"])
def test_the_training_rows_are_moved_alike(engine):
    X, y, X_query, y_query = rows(2)
    model, options = ENGINES[engine]
    spec = AdversarialLoss(0.2, method="fgsm")
    influence = fit(model, {**options, "objective": spec}, X, y)
    effects = influence.influence(X, y)
    assert_close(influence.influence_, effects.mean(0), 1e-8)
    assert_close(influence.removal_effect([5]), effects[:, 5], 1e-8)
    validated = fit(model, {**options, "objective": spec}, X, y, X_val=X_query, y_val=y_query)
    expected = validated.influence(X_query, y_query).mean(0)
    assert_close(validated.influence_, expected)


def test_modules_of_torch():
    X, y, X_query, y_query = rows(3)
    module = seeded(
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)
        )
    )
    model = TorchModel(module, weight_decay=0.1, classes=["ash", "birch", "cedar"])
    before = state_of(module)
    influence = fit(model, {}, X, y)
    spec = AdversarialLoss(0.2)
    found = moved(influence, spec, X_query, y_query)
    assert np.abs(found - X_query).max() <= 0.2 * (1 + 1e-12)
    # Not of each row: at the kink of a ReLU a step can be one down.
    rise = log_loss(influence, found, y_query) - log_loss(influence, X_query, y_query)
    assert np.mean(rise > 0) > 0.9
    effects = influence.influence(X_query, y_query, objective=spec)
    assert_close(effects, influence.influence(found, y_query))
    assert_untouched(module, before)


# Errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eps": -0.1}, "eps=-0.1 is not allowed.*>= 0"),
        ({"eps": np.nan}, "eps=nan is not allowed"),
        ({"eps": True}, "eps=True is not allowed"),
        ({"eps": "0.1"}, "eps='0.1' is not allowed"),
        ({"method": "fgsm"}, "method='fgsm' needs eps"),
        ({"eps": 0.1, "method": "cw"}, "method='cw' is not known. Choose 'auto'"),
        ({"eps": 0.1, "steps": 0}, "steps=0 must be a whole number"),
        ({"eps": 0.1, "steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"eps": 0.1, "step_size": 0.0}, "step_size=0.0 is not allowed"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    influence, (_, _, X, y) = fitted("primal"), rows(2)
    with pytest.raises(ValueError, match=message):
        influence.influence(X, y, objective=AdversarialLoss(**options))


@pytest.mark.parametrize(
    "model", [LinearRegression(), MLPRegressor(hidden_layer_sizes=(2,)), KernelRidge()]
)
def test_models_without_a_boundary(model):
    X, y, *_ = rows(2)
    influence = fit(model, {}, X, index_of(y).astype(float))
    name = type(model).__name__
    with pytest.raises(UnsupportedOptionError, match=f"for linear classifiers, and {name} is none"):
        influence.influence(X, index_of(y).astype(float), objective=AdversarialLoss())


def test_rows_that_cannot_be_moved():
    X, y, *_ = rows(2)
    spec = AdversarialLoss(0.1)
    sparse = InfluenceEstimator(LogisticRegression()).fit(sp.csr_array(X), y)
    with pytest.raises(UnsupportedOptionError, match=r"are sparse.*dense"):
        sparse.influence(sp.csr_array(X), y, objective=spec)
    assert sparse.influence(X, y, objective=spec).shape == (40, 40)
    network = fit(MLPClassifier((2,), max_iter=5), {"ridge": 1.0}, sp.csr_array(X), y)
    assert network.influence(sp.csr_array(X), y, objective=spec).shape == (40, 40)
    kernel = InfluenceEstimator(KernelRidge()).fit(X, index_of(y))
    with pytest.raises(UnsupportedOptionError, match="KernelRidge knows its rows through a kernel"):
        kernel.influence(X, index_of(y), objective=spec)
    module = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    tokens = np.arange(60).reshape(20, 3) % 5
    model = TorchModel(module, weight_decay=0.1, classes=[0, 1])
    words = fit(model, {}, tokens, np.arange(20) % 2)
    with pytest.raises(UnsupportedOptionError, match=r"TorchModel are torch.int64.*floats"):
        words.influence(tokens, np.arange(20) % 2, objective=spec)


def test_targets_that_do_not_fit():
    influence, (_, _, X, y) = fitted("primal"), rows(2)
    with pytest.raises(ValueError, match="needs the targets y"):
        influence.influence(X, objective=AdversarialLoss(0.1))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        influence.influence(X, y[:5], objective=AdversarialLoss(0.1))
