"""Networks that are other models too: linear models, perceptrons, expansions that are retrained."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import relative
from network_helpers import (
    PERCEPTRONS,
    Oracle,
    each_order,
    each_solver,
    fit_quietly,
    moved,
    normal,
    not_at_the_optimum,
    perceptron_problem,
    predictions,
    probabilities,
    seeded,
    single_steps,
)
from network_references import (
    LinearisedNetwork,
    dense_jacobian,
    dense_outputs,
    loss_effects,
    loss_values,
    output_changes,
    parameter_vector,
)
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel, linearize
from sklearn_dualif.losses import HalfTweedieDeviance

TIGHT = 1e-8
ROWS = [0, 3, 11, 25]


# Linear models


def linear_module(model):
    """Return a fitted linear model as a torch layer."""
    coef, intercept = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    layer = nn.Linear(coef.shape[1], coef.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(coef))
        layer.bias.copy_(torch.as_tensor(intercept))
    return layer


def perceptron(model, X, y):
    """Return an MLP without hidden layers that has a linear model's coefficients."""
    kind = MLPRegressor if isinstance(model, Ridge) else MLPClassifier
    alpha = model.alpha if isinstance(model, Ridge) else 1.0 / model.C
    net = kind(hidden_layer_sizes=(), alpha=alpha, solver="lbfgs", max_iter=1)
    with not_at_the_optimum():
        net.fit(X, y)
    net.coefs_ = [np.atleast_2d(model.coef_).T]
    net.intercepts_ = [np.atleast_1d(model.intercept_)]
    return net


def linear_problem(kind):
    """Return a linear model at its optimum with rows and targets."""
    X, label = make_classification(
        40, 4, n_informative=3, n_redundant=0, n_classes=3, n_clusters_per_class=1, random_state=0
    )
    if kind == "Ridge":
        y = X @ normal(4, 2) + normal(40, 2, seed=1)
        return Ridge(2.0, solver="svd").fit(X, y), X, y
    y = label if kind == "multinomial" else (label > 0).astype(int)
    return LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-14).fit(X, y), X, y


each_linear = pytest.mark.parametrize("kind", ["Ridge", "binary", "multinomial"])


@each_solver
@each_linear
def test_a_perceptron_without_hidden_layers_is_the_linear_model(kind, solver):
    model, X, y = linear_problem(kind)
    network = FrozenEstimator(perceptron(model, X, y))
    own = InfluenceEstimator(network, solver=solver).fit(X, y)
    linear = InfluenceEstimator(model, solver=solver).fit(X, y)
    assert own.ridge_ == pytest.approx(linear.ridge_)
    assert relative(own.leverage_, linear.leverage_) < TIGHT
    assert relative(own.self_influence_, linear.self_influence_) < TIGHT
    assert relative(own.influence_, linear.influence_) < TIGHT
    assert relative(own.loo_predict(), linear.loo_predict()) < TIGHT
    for order in ("first", "newton", "exact"):
        effects = own.influence(X, y, order=order)
        assert relative(effects, linear.influence(X, y, order=order)) < TIGHT, order
        together = own.removal_effect(ROWS, X, y, order=order)
        assert relative(together, linear.removal_effect(ROWS, X, y, order=order)) < TIGHT, order


def as_torch_model(model, n_rows):
    """Return the `TorchModel` of a linear model, whose decay is on the mean loss."""
    decay = model.alpha * 2.0 / model.coef_.shape[0] if isinstance(model, Ridge) else 1.0 / model.C
    loss = "mse" if isinstance(model, Ridge) else "cross_entropy"
    if loss == "cross_entropy" and len(model.coef_) == 1:
        loss = "binary_cross_entropy"
    return TorchModel(
        linear_module(model),
        loss=loss,
        weight_decay={"weight": decay / n_rows},
        classes=None if loss == "mse" else list(model.classes_),
    )


@each_solver
@each_linear
def test_a_linear_layer_is_the_linear_model(kind, solver):
    """All but that a removed row takes its share of a decay on the mean loss along."""
    model, X, y = linear_problem(kind)
    own = InfluenceEstimator(as_torch_model(model, len(X)), solver=solver).fit(X, y)
    linear = InfluenceEstimator(model, solver=solver).fit(X, y)
    assert own.ridge_ == pytest.approx(linear.ridge_)
    assert own.stationarity_ < 1e-8
    assert relative(own.leverage_, linear.leverage_) < TIGHT
    y_new = y[ROWS][::-1] + 1.0 if kind == "Ridge" else (y[ROWS] + 1) % len(model.classes_)
    for order in ("first", "newton", "exact"):
        effects = own.relabel_effect(ROWS, y_new, X, y, order=order)
        assert relative(effects, linear.relabel_effect(ROWS, y_new, X, y, order=order)) < TIGHT


@each_solver
@each_linear
def test_exact_removals_of_a_linear_layer_are_refits(kind, solver):
    model, X, y = linear_problem(kind)
    own = InfluenceEstimator(as_torch_model(model, len(X)), solver=solver).fit(X, y)
    kept = np.delete(np.arange(len(X)), ROWS)
    share = len(kept) / len(X)
    less = {"alpha": share * model.alpha} if kind == "Ridge" else {"C": model.C / share}
    refit = clone(model).set_params(**less).fit(X[kept], y[kept])
    shown = "predict" if kind == "Ridge" else "decision_function"
    expected = getattr(refit, shown)(X) - getattr(model, shown)(X)
    change = own.output_change(ROWS, X, order="exact")
    assert relative(change, expected.reshape(change.shape)) < TIGHT
    forgotten = own.unlearn(ROWS, order="exact").module
    assert relative(forgotten.weight.detach().numpy(), np.atleast_2d(refit.coef_)) < TIGHT


@each_solver
def test_a_linear_layer_is_the_poisson_regression(solver):
    X = normal(40, 4)
    y = np.random.default_rng(1).poisson(np.exp(0.5 * X[:, 0]))
    model = PoissonRegressor(alpha=0.2, solver="newton-cholesky", tol=1e-14).fit(X, y)
    module = TorchModel(
        linear_module(model), loss=HalfTweedieDeviance(1), weight_decay={"weight": 0.2}
    )
    own = InfluenceEstimator(module, solver=solver).fit(X, y)
    linear = InfluenceEstimator(model, solver=solver).fit(X, y)
    assert relative(own.leverage_, linear.leverage_) < TIGHT
    for order in ("first", "newton", "exact"):
        effects = own.influence(X, y, order=order)
        assert relative(effects, linear.influence(X, y, order=order)) < TIGHT, order
        change = own.output_change(ROWS, X, order=order)
        assert relative(change, linear.output_change(ROWS, X, order=order)) < TIGHT, order
    assert relative(own.loo_predict(), linear.loo_predict()) < TIGHT


# Scikit-learn's perceptrons

N_BATCHES = {"adam": 3}
ACTIVATIONS = {"identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}
each_perceptron = pytest.mark.parametrize("kind", PERCEPTRONS)


def perceptron_module(model):
    """Return the outputs of a fitted perceptron, before the last activation, as a torch module."""
    layers = []
    for coef, intercept in zip(model.coefs_, model.intercepts_, strict=True):
        layer = nn.Linear(*coef.shape).double()
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(coef.T))
            layer.bias.copy_(torch.as_tensor(intercept))
        layers += [layer, ACTIVATIONS[model.activation]()]
    return nn.Sequential(*layers[:-1])


def perceptron_oracle(kind, model, X, y, weights, X_query, y_query):
    """Return the oracle of a fitted perceptron.

    Its objective is the sum of log losses, of half squared errors over outputs or of half
    deviances, and half of alpha for each batch times the squared weights; intercepts are free.
    """
    module = perceptron_module(model)
    J, z = dense_jacobian(module, X), dense_outputs(module, X)
    loss, unit = "cross_entropy", 1.0
    if kind in ("binary", "multilabel"):
        loss = "binary_cross_entropy"
    elif kind == "poisson":
        loss, unit = "poisson", 2.0
    elif isinstance(model, MLPRegressor):
        loss, unit = "mse", 2.0 / z.shape[1]
    if kind == "binary":
        y, y_query = y == "yes", y_query == "yes"
    penalized = [np.full(p.numel(), p.ndim == 2) for p in module.parameters()]
    R = unit * model.alpha * N_BATCHES.get(kind, 1) * np.concatenate(penalized)
    theta = parameter_vector(module)
    net = LinearisedNetwork(J, z, theta, loss, y, weights, R, penalty_scales=False)
    return Oracle(net, dense_jacobian(module, X_query), dense_outputs(module, X_query), y_query)


def perceptron_weights(n_rows, weighted):
    return np.linspace(0.0, 2.0, n_rows) if weighted else np.ones(n_rows)


@cache
def perceptron_fit(kind, solver, weighted=False):
    """Return the fitted influence of a perceptron."""
    model, X, y, _, _ = perceptron_problem(kind)
    given = {"sample_weight": perceptron_weights(len(X), weighted)} if weighted else {}
    return fit_quietly(InfluenceEstimator(model, solver=solver), X, y, **given)


@cache
def perceptron_dense(kind, weighted=False):
    """Return the oracle of a perceptron, which every fit of it shares."""
    _, X, y, X_query, y_query = perceptron_problem(kind)
    model = perceptron_fit(kind, "primal", weighted).estimator_
    weights = perceptron_weights(len(X), weighted)
    return perceptron_oracle(kind, model, X, y, weights, X_query, y_query)


@each_order
@each_solver
@each_perceptron
def test_effects_on_a_perceptron(kind, solver, order):
    influence, dense = perceptron_fit(kind, solver), perceptron_dense(kind)
    _, _, _, X, y = perceptron_problem(kind)
    step = dense.step(ROWS, order)
    assert relative(influence.parameter_change(ROWS, order=order), step) < TIGHT
    assert (
        relative(influence.removal_effect(ROWS, X, y, order=order), dense.effects(step, order))
        < TIGHT
    )
    effects = influence.influence(X[:3], y[:3], order=order)
    assert relative(effects, dense.effects(single_steps(dense, order), order)[:, :3].T) < TIGHT


@each_solver
@each_perceptron
def test_attributes_of_a_perceptron(kind, solver):
    influence, dense = perceptron_fit(kind, solver), perceptron_dense(kind)
    net, steps = dense.network, single_steps(dense, "newton")
    z = net.z + np.einsum("ncd,nd->nc", net.J, steps)
    own = np.diag(dense.effects(steps, "newton", training=True))
    assert influence.ridge_ == 0.5 * N_BATCHES.get(kind, 1)
    assert relative(influence.leverage_, dense.reference.leverages()) < TIGHT
    assert relative(influence.self_influence_, own) < TIGHT
    assert relative(influence.loo_loss_, loss_values(net.loss, z, net.y)) < TIGHT
    linear = dense.effects(steps, "first", training=True).mean(1)
    assert relative(influence.influence_, linear) < TIGHT
    if net.loss in ("mse", "poisson"):
        z = np.exp(z) if net.loss == "poisson" else z
        assert relative(influence.loo_predict(), predictions("mse", z)) < TIGHT
    else:
        assert relative(influence.loo_predict_proba(), probabilities(net.loss, z)) < TIGHT
        labels = predictions(net.loss, z)
        labels = labels if kind == "multilabel" else influence.classes_[labels]
        np.testing.assert_array_equal(influence.loo_predict(), labels)


@each_solver
@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_weights_of_a_perceptron(kind, solver):
    influence, dense = perceptron_fit(kind, solver, True), perceptron_dense(kind, True)
    for order in ("first", "newton", "exact"):
        change = influence.parameter_change(ROWS, order=order)
        assert relative(change, dense.step(ROWS, order)) < TIGHT, order
    assert relative(influence.leverage_, dense.reference.leverages()) < TIGHT


@each_perceptron
def test_unlearning_a_perceptron(kind):
    influence, dense = perceptron_fit(kind, "primal"), perceptron_dense(kind)
    X = perceptron_problem(kind)[3]
    model, change = influence.estimator_, influence.parameter_change(ROWS)
    forgotten = influence.unlearn(ROWS)
    z = dense_outputs(moved(perceptron_module(model), change), X)
    if dense.network.loss in ("mse", "poisson"):
        z = np.exp(z) if kind == "poisson" else z
        assert relative(forgotten.predict(X), predictions("mse", z)) < TIGHT
    else:
        assert relative(forgotten.predict_proba(X), probabilities(dense.network.loss, z)) < TIGHT
    for entry, value in zip(influence.parameter_names_, change, strict=True):
        name, layer, index = entry.replace("]", "").split("[")
        at = int(layer), tuple(map(int, index.split(",")))
        after, before = (getattr(owner, name)[at[0]][at[1]] for owner in (forgotten, model))
        assert after - before == pytest.approx(value, abs=1e-12)


@each_solver
def test_outputs_of_a_poisson_perceptron_are_means(solver):
    influence, dense = perceptron_fit("poisson", solver), perceptron_dense("poisson")
    X = perceptron_problem("poisson")[3]
    dz = output_changes(dense.J_query, dense.step(ROWS, "newton"))
    change = influence.output_change(ROWS, X)
    assert relative(change, np.exp(dense.z_query + dz) - np.exp(dense.z_query)) < TIGHT


def glorot_draws(widths, factor, seed):
    """Return the parameters that scikit-learn draws for a perceptron."""
    rng, drawn = np.random.RandomState(seed), []
    for before, after in pairwise(widths):
        bound = np.sqrt(factor / (before + after))
        drawn.append(rng.uniform(-bound, bound, (before, after)))
        drawn.append(rng.uniform(-bound, bound, after))
    return np.concatenate([part.ravel() for part in drawn])


@pytest.mark.parametrize("activation", ["tanh", "logistic"])
@pytest.mark.parametrize(
    "make, y, n_outputs",
    [
        (MLPClassifier, np.arange(30) % 2, 1),
        (MLPClassifier, np.array(["a", "b", "c"])[np.arange(30) % 3], 3),
        (MLPClassifier, normal(30, 2) > 0, 2),
        (MLPRegressor, normal(30), 1),
        (MLPRegressor, normal(30, 2), 2),
    ],
    ids=["binary", "multiclass", "multilabel", "regression", "multi-output"],
)
def test_relative_move_of_a_perceptron(make, y, n_outputs, activation):
    X = normal(30, 4)
    model = make(
        hidden_layer_sizes=(6, 5),
        activation=activation,
        solver="lbfgs",
        alpha=0.5,
        max_iter=5000,
        random_state=3,
    )
    influence = fit_quietly(InfluenceEstimator(model, parameters=["*"]), X, y)
    fitted = influence.estimator_
    parts = zip(fitted.coefs_, fitted.intercepts_, strict=True)
    found = np.concatenate([part.ravel() for layer in parts for part in layer])
    start = glorot_draws((4, 6, 5, n_outputs), 2 if activation == "logistic" else 6, 3)
    expected = np.linalg.norm(found - start) / np.linalg.norm(start)
    assert influence.relative_move_ == pytest.approx(expected, rel=1e-12)
    unknown = clone(influence).set_params(estimator__random_state=np.random.RandomState(3))
    assert fit_quietly(unknown, X, y).relative_move_ is None


def test_relative_move_of_an_expansion():
    module, expansion, X, _ = expansion_problem(2)
    with torch.no_grad():
        for parameter in expansion.parameters():
            parameter.mul_(1.5)
    influence = InfluenceEstimator(TorchModel(expansion, weight_decay=0.1))
    influence = fit_quietly(influence, X, np.arange(len(X)) % 2)
    assert influence.relative_move_ == pytest.approx(0.5)
    other = fit_quietly(
        InfluenceEstimator(TorchModel(module, weight_decay=0.1)), X, np.arange(len(X)) % 2
    )
    assert other.relative_move_ is None


def test_a_ridge_sets_alpha():
    model, X, y, _, _ = perceptron_problem("adam")
    influence = fit_quietly(InfluenceEstimator(model, ridge=3.0), X, y)
    assert influence.estimator_.alpha == pytest.approx(1.0)  # three batches an epoch
    assert influence.ridge_ == pytest.approx(3.0)


def test_a_search_over_ridges_is_one_over_alphas():
    model, X, y, _, _ = perceptron_problem("regression")
    values = [0.1, 1.0, 100.0]
    with not_at_the_optimum():
        over = {"cv": 3, "error_score": "raise"}
        own = GridSearchCV(InfluenceEstimator(model), {"ridge": values}, **over).fit(X, y)
        plain = GridSearchCV(model, {"alpha": values}, **over).fit(X, y)
    assert own.best_params_["ridge"] == plain.best_params_["alpha"]
    for key in ("mean_test_score", "rank_test_score"):
        np.testing.assert_allclose(own.cv_results_[key], plain.cv_results_[key])
    assert relative(own.best_estimator_.predict(X), plain.predict(X)) < TIGHT


# Networks that are linear in their parameters


def expansion_problem(n_outputs):
    """Return a network, its expansion, rows and query rows."""
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, n_outputs)))
    X, X_query = normal(24, 4), normal(6, 4, seed=1)
    return module, linearize(module), X, X_query


@each_solver
@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("n_removed", [1, 3, 8])
def test_removals_from_an_expansion_are_retrained_optima(n_removed, n_outputs, solver):
    """(2 / C J'J + n decay) theta = 2 / C J' (y - f0 + J theta0), with and without the rows."""
    module, expansion, X, X_query = expansion_problem(n_outputs)
    decay, y = 0.1, normal(24, n_outputs, seed=2)
    J, start = dense_jacobian(module, X), parameter_vector(module)
    targets = y - dense_outputs(module, X) + J @ start

    def optimum(rows):
        flat = J[rows].reshape(-1, len(start))
        hessian = 2.0 / n_outputs * flat.T @ flat + len(rows) * decay * np.eye(len(start))
        return np.linalg.solve(hessian, 2.0 / n_outputs * flat.T @ targets[rows].ravel())

    removed = np.arange(0, 24, 3)[:n_removed]
    full, less = optimum(np.arange(24)), optimum(np.delete(np.arange(24), removed))
    trained = moved(expansion, full - start)
    model = TorchModel(trained, loss="mse", weight_decay=decay)
    influence = InfluenceEstimator(model, solver=solver).fit(X, y)
    assert influence.stationarity_ < 1e-8
    retrained = moved(expansion, less - start)
    z, after = (dense_outputs(each, X_query) for each in (trained, retrained))
    for order in ("newton", "exact"):
        assert relative(influence.parameter_change(removed, order=order), less - full) < TIGHT
        change = influence.output_change(removed, X_query, order=order)
        assert relative(change, after - z) < TIGHT
    y_query = normal(6, n_outputs, seed=3)
    effects = influence.removal_effect(removed, X_query, y_query)
    expected = loss_effects("mse", z, y_query, after - z)
    assert relative(effects, expected) < TIGHT
    predicted = influence.unlearn(removed).predict(X_query)
    assert relative(predicted.reshape(after.shape), after) < TIGHT


def train(expansion, X, y, decays):
    """Bring a copy of an expansion to the optimum of its mean cross-entropy with decay."""
    expansion = copy.deepcopy(expansion)
    parameters = list(expansion.parameters())
    inputs, labels = torch.as_tensor(X), torch.as_tensor(y)

    def objective():
        expansion.zero_grad()
        total = nn.functional.cross_entropy(expansion(inputs), labels)
        for parameter, decay in zip(parameters, decays, strict=True):
            total = total + 0.5 * decay * (parameter**2).sum()
        total.backward()
        return total

    # Close to the optimum, steps without a search on values end nearer to it.
    for search, steps in (("strong_wolfe", 150), (None, 80)):
        torch.optim.LBFGS(
            parameters,
            max_iter=steps,
            tolerance_grad=1e-12,
            tolerance_change=0.0,
            history_size=60,
            line_search_fn=search,
        ).step(objective)
    objective()
    assert max(float(parameter.grad.abs().max()) for parameter in parameters) < 1e-9
    return expansion


@pytest.mark.parametrize(
    "weight_decay",
    [pytest.param(0.05, marks=pytest.mark.slow), {"*weight": 0.05, "*bias": 0.0}],
    ids=["all", "free biases"],
)
def test_exact_removals_from_an_expansion_are_retrained_classifiers(weight_decay):
    module, expansion, X, X_query = expansion_problem(3)
    y, y_query = np.arange(24) % 3, np.arange(6) % 3
    free = isinstance(weight_decay, dict)
    decays = [0.0 if free and p.ndim == 1 else 0.05 for p in expansion.parameters()]
    trained = train(expansion, X, y, decays)
    z = dense_outputs(trained, X_query)
    fits = [
        InfluenceEstimator(TorchModel(trained, weight_decay=weight_decay), solver=solver).fit(X, y)
        for solver in ("primal", "dual")
    ]
    for removed in ([0], [1, 6, 20], [0, 4, 5, 9, 10, 14, 15, 23]):
        kept = np.delete(np.arange(24), removed)
        after = dense_outputs(train(trained, X[kept], y[kept], decays), X_query)
        expected = loss_values("cross_entropy", after, y_query) - loss_values(
            "cross_entropy", z, y_query
        )
        for influence in fits:
            effects = influence.removal_effect(removed, X_query, y_query, order="exact")
            assert relative(effects, expected) < 1e-6
            change = influence.output_change(removed, X_query, order="exact")
            assert relative(change, after - z) < 1e-6
