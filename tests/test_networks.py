"""Influences on networks: against dense formulas on their linearisation."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import relative
from network_helpers import (
    Composed,
    assert_untouched,
    case_of,
    each_network,
    each_order,
    each_solver,
    fit_case,
    fit_quietly,
    fitted,
    moved,
    normal,
    oracle,
    oracle_of,
    perceptron_problem,
    predictions,
    probabilities,
    seeded,
    single_steps,
    state_of,
    torch_model,
)
from network_references import (
    dense_outputs,
    linearise,
    loss_values,
    output_changes,
    parameter_vector,
    trainable,
)
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel, linearize
from sklearn_dualif.exceptions import (
    InfluenceWarning,
    MemoryLimitError,
    NotStationaryWarning,
    UnsupportedOptionError,
)

TIGHT = 1e-8
GROUP = [0, 2, 4, 9, 15]
FEW = [
    "mlp-relu",
    "mlp-free-biases",
    "mlp-mse-multi",
    "mlp-mse-weights",
    "mlp-binary",
    "mlp-multilabel-weights",
    "conv2d-stride",
    "embedding-padding",
    "tied-embedding",
]
# Without weight decay a damping stands in for it, which has tests of its own.
each_decayed_network = each_network("linear-mse")
few_networks = pytest.mark.parametrize("name", FEW)


# Removals


@pytest.mark.parametrize("order", ["first", "newton"])
@each_solver
@each_decayed_network
def test_single_effects_are_the_dense_formula(name, solver, order):
    case, dense = case_of(name), oracle(name)
    effects = fitted(name, solver).influence(case.X_query, case.y_query, order=order)
    assert relative(effects, dense.effects(single_steps(dense, order), order).T) < TIGHT


@each_solver
@few_networks
def test_single_exact_effects_are_differences_of_optima(name, solver):
    case, dense = case_of(name), oracle(name)
    effects = fitted(name, solver).influence(case.X_query, case.y_query, order="exact")
    assert relative(effects, dense.effects(single_steps(dense, "exact"), "exact").T) < TIGHT


@cache
def group_step(name, order):
    return oracle(name).step(GROUP, order)


@each_order
@each_solver
@each_decayed_network
def test_group_effects_are_the_dense_formula(name, solver, order):
    case, influence, step = case_of(name), fitted(name, solver), group_step(name, order)
    assert relative(influence.parameter_change(GROUP, order=order), step) < TIGHT
    effects = influence.removal_effect(GROUP, case.X_query, case.y_query, order=order)
    assert relative(effects, oracle(name).effects(step, order)) < TIGHT


@each_order
@each_solver
@few_networks
def test_group_effects_on_outputs_and_on_training_rows(name, solver, order):
    case, dense, influence = case_of(name), oracle(name), fitted(name, solver)
    step = group_step(name, order)
    mask = np.isin(np.arange(case.n_rows), GROUP)
    effects = influence.removal_effect(mask, order=order)
    assert relative(effects, dense.effects(step, order, training=True)) < TIGHT
    change = influence.output_change(GROUP, case.X_query, order=order)
    assert relative(change, output_changes(dense.J_query, step)) < TIGHT
    assert relative(influence.output_change(GROUP, order=order), dense.network.J @ step) < TIGHT


@each_solver
@each_decayed_network
def test_single_parameter_changes(name, solver):
    influence, steps = fitted(name, solver), single_steps(oracle(name), "newton")
    changes = np.stack([influence.parameter_change([row]) for row in range(len(steps))])
    assert relative(changes, steps) < TIGHT


@each_solver
@each_decayed_network
def test_leverages_sum_to_the_effective_dimension(name, solver):
    influence, reference = fitted(name, solver), oracle(name).reference
    assert relative(influence.leverage_, reference.leverages()) < TIGHT
    assert relative(influence.effective_dimension_, reference.effective_dimension()) < TIGHT
    assert influence.n_parameters_ == len(reference.theta)
    assert influence.solver_ == solver


@each_solver
@few_networks
def test_stationarity_is_the_gradient_in_units_of_a_typical_rows(name, solver):
    reference = oracle(name).reference
    rows = np.linalg.norm(np.einsum("ncd,nc->nd", reference.J, reference.r), axis=1)
    typical = np.quantile(rows[rows > 0], 0.5, method="lower")
    expected = np.linalg.norm(reference.gradient) / typical
    assert relative(fitted(name, solver).stationarity_, expected) < TIGHT


# What the estimator shows of them


@each_order
@each_solver
@few_networks
def test_self_influence_is_the_diagonal(name, solver, order):
    case, dense = case_of(name), oracle(name)
    influence = fitted(name, solver, order)
    expected = np.diag(dense.effects(single_steps(dense, order), order, training=True))
    assert relative(influence.self_influence_, expected) < TIGHT
    assert relative(np.diag(influence.influence(case.X, case.y)), expected) < TIGHT


@each_solver
@few_networks
def test_influence_on_the_mean_loss(name, solver):
    case, dense = case_of(name), oracle(name)
    steps = single_steps(dense, "newton")
    linear = dense.effects(steps, "first", training=True).mean(1)
    assert relative(fitted(name, solver).influence_, linear) < TIGHT
    validated = fit_case(case, solver=solver, X_val=case.X_query, y_val=case.y_query)
    assert relative(validated.influence_, dense.effects(steps, "newton").mean(1)) < TIGHT


@each_order
@each_solver
@few_networks
def test_leave_one_out_predictions(name, solver, order):
    case, dense = case_of(name), oracle(name)
    net, influence = dense.network, fitted(name, solver, order)
    z = net.z + np.einsum("ncd,nd->nc", net.J, single_steps(dense, order))
    assert relative(influence.loo_loss_, loss_values(case.loss, z, case.y)) < TIGHT
    if case.loss == "mse":
        assert relative(influence.loo_predict(), predictions(case.loss, z)) < TIGHT
        return
    assert relative(influence.loo_predict_proba(), probabilities(case.loss, z)) < TIGHT
    np.testing.assert_array_equal(influence.loo_predict(), predictions(case.loss, z))
    shown = influence.loo_decision_function().reshape(z.shape)
    assert relative(shown, z) < TIGHT


@each_decayed_network
def test_unlearning_moves_the_parameters(name):
    case, influence = case_of(name), fitted(name, "primal")
    before = state_of(influence.estimator_.module)
    forgotten = influence.unlearn(GROUP)
    z = dense_outputs(moved(case.module, influence.parameter_change(GROUP)), case.X_query)
    shown = forgotten.predict if case.loss == "mse" else forgotten.decision_function
    assert relative(shown(case.X_query).reshape(z.shape), z) < TIGHT
    assert_untouched(influence.estimator_.module, before)


@each_order
@few_networks
def test_unlearning_is_alike_in_both_forms(name, order):
    forgotten = [fitted(name, solver).unlearn(GROUP, order=order) for solver in ("primal", "dual")]
    assert relative(*(parameter_vector(model.module) for model in forgotten)) < TIGHT


# Relabelling


def relabelled(case):
    """Return other targets of `GROUP`, and those of all rows with them."""
    y = case.y.copy()
    y[GROUP] = (y[GROUP] + 1) % case.n_outputs if case.loss == "cross_entropy" else 1 - y[GROUP]
    return y[GROUP], y


@each_order
@each_solver
@few_networks
def test_relabelling(name, solver, order):
    case, dense = case_of(name), oracle(name)
    y_new, y = relabelled(case)
    net = replace(dense.network, y=y)
    if order == "exact":
        step = net.optimum() - dense.optimum
    else:
        # A label shifts the gradient alone, of every loss of the zoo.
        changed = net.reference()
        gradient = changed.gradient - dense.reference.gradient
        step = -np.linalg.pinv(changed.hessian, rcond=1e-13, hermitian=True) @ gradient
    influence = fitted(name, solver)
    effects = influence.relabel_effect(GROUP, y_new, case.X_query, case.y_query, order=order)
    assert relative(effects, dense.effects(step, order)) < TIGHT
    effects = influence.relabel_effect(GROUP, y_new, order=order)
    assert relative(effects, dense.effects(step, order, training=True)) < TIGHT


# Which parameters move, and how strongly they are held


@each_solver
@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("mlp-relu", ["2.*"]),
        ("mlp-free-biases", ["*.weight"]),
        ("transformer", ["*norm*", "2.bias"]),
        ("tied-weight", "0.*"),
        ("embedding-padding", ["0.*"]),
    ],
)
def test_chosen_parameters_are_the_only_trainable_ones(name, patterns, solver):
    case = case_of(name)
    chosen = fit_case(case, solver=solver, parameters=patterns)
    names = {entry.split("[")[0] for entry in chosen.parameter_names_}
    module = copy.deepcopy(case.module)
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(key in names)
    others = replace(case, module=module)
    frozen, dense = fit_case(others, solver=solver), oracle_of(others)
    assert 0 < len(names) < len(trainable(case.module))
    assert chosen.parameter_names_[:] == frozen.parameter_names_[:]
    effects = chosen.influence(case.X_query, case.y_query)
    assert relative(effects, frozen.influence(case.X_query, case.y_query)) < TIGHT
    assert relative(effects, dense.effects(single_steps(dense, "newton"), "newton").T) < TIGHT
    forgotten = chosen.unlearn(GROUP).module
    for key, parameter in module.named_parameters():
        same = torch.equal(parameter, forgotten.get_parameter(key))
        assert same == (key not in names)


def test_parameter_names_are_those_of_the_entries():
    influence = fitted("conv2d-groups", "primal")
    names, change = influence.parameter_names_, influence.parameter_change(GROUP)
    before = dict(influence.estimator_.module.named_parameters())
    after = dict(influence.unlearn(GROUP).module.named_parameters())
    assert len(names) == len(change) == influence.n_parameters_
    for entry, value in zip(names, change, strict=True):
        name, index = entry.rstrip("]").split("[")
        at = tuple(map(int, index.split(",")))
        moved = (after[name][at] - before[name][at]).detach()
        assert float(moved) == pytest.approx(value, abs=1e-12)
    assert (names[-1], names[1:3]) == (list(names)[-1], list(names)[1:3])


def damped(dense, ridge):
    """Return an oracle whose curvature has another penalty, in units of the half squared error.

    What a removed row takes along of the objective's gradient stays the model's own.
    """
    net = dense.network
    if net.loss == "mse":
        ridge *= 2.0 / net.z.shape[1]
    R = np.where(net.R > 0, ridge, 0.0)
    return replace(dense.reference, R=R, theta=net.theta * net.R / ridge)


@each_solver
@pytest.mark.parametrize("name", ["mlp-relu", "mlp-free-biases", "mlp-mse-multi", "mlp-weights"])
def test_a_float_ridge_damps_the_curvature_alone(name, solver):
    case, dense = case_of(name), oracle(name)
    influence, expected = fit_case(case, solver=solver, ridge=3.0), damped(dense, 3.0)
    assert influence.ridge_ == 3.0
    assert relative(influence.leverage_, expected.leverages()) < TIGHT
    for order, step in (("first", expected.first_order), ("newton", expected.newton)):
        change = influence.parameter_change(GROUP, order=order)
        assert relative(change, step(GROUP)) < TIGHT, order
    exact = influence.parameter_change(GROUP, order="exact")
    assert relative(exact, group_step(name, "exact")) < TIGHT
    assert influence.stationarity_ == pytest.approx(fitted(name, solver).stationarity_)


def centred(case, ridge):
    """Return the oracle of a case without decay, under a ridge about the fitted parameters."""
    ridge *= 2.0 / case.n_outputs if case.loss == "mse" else 1.0
    dense = oracle_of(replace(case, weight_decay=0.0), penalty_scales=False)
    theta = 0.0 * dense.network.theta
    return replace(dense, network=replace(dense.network, theta=theta, R=ridge + theta))


def fit_without_decay(case, **params):
    model = torch_model(replace(case, weight_decay=0.0))
    return fit_quietly(InfluenceEstimator(model, **params), case.X, case.y)


@each_solver
@pytest.mark.parametrize("name", ["linear-mse", "mlp-mse-multi", "mlp-relu", "mlp-multilabel"])
def test_without_decay_a_hundredth_of_the_mean_eigenvalue(name, solver):
    case = case_of(name)
    with pytest.warns(InfluenceWarning, match=r"trained without weight decay.*set ridge="):
        influence = fit_without_decay(case, solver=solver)
    hessian = linearise(replace(case, weight_decay=0.0)).reference().hessian
    trace = np.trace(hessian) * (case.n_outputs / 2.0 if case.loss == "mse" else 1.0)
    rank = case.n_outputs - (case.loss == "cross_entropy")  # of the curvature of a row's loss
    assert influence.ridge_ == pytest.approx(0.01 * trace / (case.n_rows * rank), rel=1e-10)
    given = fit_without_decay(case, solver=solver, ridge=influence.ridge_)
    dense = centred(case, influence.ridge_)
    for order in ("first", "newton", "exact"):
        step = dense.step(GROUP, order)
        assert relative(influence.parameter_change(GROUP, order=order), step) < TIGHT, order
        assert relative(given.parameter_change(GROUP, order=order), step) < TIGHT, order
    assert relative(influence.leverage_, dense.reference.leverages()) < TIGHT


@each_solver
def test_weights_are_repetitions(solver):
    case = case_of("mlp-free-biases")
    repeats = np.arange(case.n_rows) % 4
    weighted = fit_case(replace(case, sample_weight=repeats.astype(float)), solver=solver)
    origin = np.repeat(np.arange(case.n_rows), repeats)
    repeated = fit_case(replace(case, X=case.X[origin], y=case.y[origin]), solver=solver)
    for rows in ([1], [2, 3, 5]):
        change = weighted.parameter_change(rows)
        assert relative(change, repeated.parameter_change(np.isin(origin, rows))) < TIGHT
    leverage = np.bincount(origin, repeated.leverage_, case.n_rows)
    assert relative(weighted.leverage_, leverage) < TIGHT
    assert np.all(weighted.parameter_change([0, 4]) == 0.0)


@each_solver
def test_the_unit_of_weights_is_nothing(solver):
    case = case_of("mlp-weights")
    scaled = fit_case(replace(case, sample_weight=7.0 * case.sample_weight), solver=solver)
    influence = fitted("mlp-weights", solver)
    assert relative(scaled.ridge_, 7.0 * influence.ridge_) < TIGHT
    assert relative(scaled.influence_, influence.influence_) < TIGHT
    assert relative(scaled.parameter_change(GROUP), influence.parameter_change(GROUP)) < TIGHT


def test_a_network_that_still_moves_is_warned_of():
    case, dense = case_of("mlp-tanh"), oracle("mlp-tanh")
    with pytest.warns(NotStationaryWarning, match=r"stationarity_ = .*above 0\.1 matters"):
        still = InfluenceEstimator(torch_model(case)).fit(case.X, case.y)
    assert still.stationarity_ > 0.1
    trained = moved(linearize(case.module), dense.optimum - dense.network.theta)
    rested = InfluenceEstimator(torch_model(case, trained)).fit(case.X, case.y)
    assert rested.stationarity_ < 1e-8


# Around the estimator


def wrapped(kind):
    """Return an unfitted wrapped network with rows and targets."""
    if kind == "perceptron":
        model, X, y, _, _ = perceptron_problem("binary")
        return model, X, y
    case = case_of("mlp-free-biases")
    return torch_model(case), case.X, case.y


each_kind = pytest.mark.parametrize("kind", ["torch", "perceptron"])


@each_kind
@each_solver
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda fit: pickle.loads(pickle.dumps(fit))], ids=["copy", "pickle"]
)
def test_copies_answer_alike(kind, solver, copied):
    model, X, y = wrapped(kind)
    influence = fit_quietly(InfluenceEstimator(model, solver=solver), X, y)
    other = copied(influence)
    assert other.estimator_ is not influence.estimator_
    for order in ("newton", "exact"):
        effects = influence.influence(X[:4], y[:4], order=order)
        np.testing.assert_array_equal(other.influence(X[:4], y[:4], order=order), effects)
    np.testing.assert_array_equal(other.parameter_change(GROUP), influence.parameter_change(GROUP))
    np.testing.assert_array_equal(
        other.unlearn(GROUP).predict(X), influence.unlearn(GROUP).predict(X)
    )


@each_kind
def test_clones_are_unfitted_and_fit_alike(kind):
    model, X, y = wrapped(kind)
    influence = fit_quietly(InfluenceEstimator(model, order="first", solver="dual"), X, y)
    other = clone(influence)
    assert not hasattr(other, "estimator_") and other.order == "first"
    assert relative(fit_quietly(other, X, y).influence_, influence.influence_) < TIGHT


@each_kind
def test_pipelines_with_frames(kind):
    model, X, y = wrapped(kind)
    index = [f"row {i}" for i in range(len(X))]
    frame = pd.DataFrame(3.0 * X + 1.0, columns=list("abcd"), index=index)
    influence = fit_quietly(InfluenceEstimator(make_pipeline(StandardScaler(), model)), frame, y)
    scaled = StandardScaler().fit_transform(frame)
    plain = fit_quietly(InfluenceEstimator(model), scaled, y)
    assert list(influence.feature_names_in_) == list("abcd")
    assert relative(influence.influence_, plain.influence_) < TIGHT
    effects = influence.influence(frame[:4], y[:4])
    assert relative(effects, plain.influence(scaled[:4], y[:4])) < TIGHT
    after = [each.unlearn(GROUP) for each in (influence, plain)]
    assert relative(after[0].predict_proba(frame), after[1].predict_proba(scaled)) < TIGHT
    table = influence.explain(frame[:1], y[:1], k=3, objective="loss")
    assert list(table["query"]) == ["row 0"] * 3
    assert list(table["train_index"]) == [index[i] for i in table["position"]]
    assert list(table["effect"]) == pytest.approx(effects[0, table["position"]], rel=TIGHT)


@pytest.mark.parametrize("labels", [["a", "c", "b"], ["b", "a", "c"], ["c", "b", "a"]])
def test_labels_in_any_order(labels):
    case, influence = case_of("mlp-relu"), fitted("mlp-relu", "primal")
    model = torch_model(case).set_params(classes=labels)
    y, y_query = np.array(labels)[case.y], np.array(labels)[case.y_query]
    named = fit_quietly(InfluenceEstimator(model, solver="primal"), case.X, y)
    effects = named.influence(case.X_query, y_query)
    assert relative(effects, influence.influence(case.X_query, case.y_query)) < TIGHT
    assert relative(named.loo_predict_proba(), influence.loo_predict_proba()) < TIGHT
    np.testing.assert_array_equal(named.loo_predict(), np.array(labels)[influence.loo_predict()])
    relabelled = named.relabel_effect([0], labels[1:2], case.X_query, y_query)
    expected = influence.relabel_effect([0], [1], case.X_query, case.y_query)
    assert relative(relabelled, expected) < TIGHT


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("mlp-relu", torch.as_tensor),
        ("mlp-relu", np.ndarray.tolist),
        ("mlp-relu", np.asfortranarray),
        ("embedding", torch.as_tensor),
        ("embedding", lambda X: X.astype(np.int32)),
        ("embedding", lambda X: X.astype(np.uint8)),
    ],
    ids=["tensor", "list", "fortran", "tokens", "int32", "uint8"],
)
@each_solver
def test_rows_of_any_kind(name, given, solver):
    case, influence = case_of(name), fitted(name, solver)
    other = fit_case(replace(case, X=given(case.X)), solver=solver)
    assert relative(other.influence_, influence.influence_) < TIGHT
    effects = other.influence(given(case.X_query), case.y_query)
    assert relative(effects, influence.influence(case.X_query, case.y_query)) < TIGHT


def test_booleans_are_floats():
    case = case_of("mlp-relu")
    booleans, floats = (
        fit_case(replace(case, X=kind(case.X > 0.0))) for kind in (np.asarray, np.float64)
    )
    assert relative(booleans.influence_, floats.influence_) < TIGHT


@pytest.mark.parametrize("fails", [False, True])
@each_solver
def test_the_callers_module_is_untouched(solver, fails):
    def forward(module, x):
        if bool((x > 10.0).any()):
            raise RuntimeError("too large")
        return module.layers(x)

    layers = seeded(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    )
    module = Composed(forward, layers=layers).train()
    module.layers[1].eval()
    case = case_of("mlp-relu")
    before = state_of(module)
    frozen = FrozenEstimator(TorchModel(module, weight_decay=0.1, classes=[0, 1, 2]))
    influence = fit_quietly(InfluenceEstimator(frozen, solver=solver), case.X, case.y)
    if fails:
        with pytest.raises(RuntimeError, match="too large"):
            influence.influence(20.0 * case.X, case.y)
    for order in ("first", "newton", "exact"):
        influence.influence(case.X_query, case.y_query, order=order)
        influence.removal_effect(GROUP, order=order)
    influence.unlearn(GROUP).predict(case.X)
    influence.loo_predict()
    assert influence.estimator_.estimator.module is module
    assert_untouched(module, before)


@each_solver
@few_networks
def test_single_precision_is_close_to_double(name, solver):
    case = case_of(name)
    single = fit_case(case, solver=solver, dtype="float32")
    effects = single.influence(case.X_query, case.y_query)
    assert relative(effects, fitted(name, solver).influence(case.X_query, case.y_query)) < 1e-3


@pytest.mark.parametrize(("name", "solver"), [("mlp-free-biases", "primal"), ("conv2d", "dual")])
def test_the_smaller_form_is_chosen(name, solver):
    influence = fit_case(case_of(name))
    assert influence.solver_ == solver
    assert relative(influence.influence_, fitted(name, solver).influence_) < TIGHT


@each_solver
def test_no_memory(solver):
    with pytest.raises(MemoryLimitError, match=rf"{solver} form .* needs about .* GB"):
        fit_case(case_of("mlp-relu"), solver=solver, memory_limit="1KB")


def test_no_grid_of_ridges_for_a_module():
    with pytest.raises(UnsupportedOptionError, match="has no penalty"):
        fit_case(case_of("mlp-mse"), ridge="loo")


def test_rows_held_out_of_training():
    model = MLPClassifier(early_stopping=True)
    with pytest.raises(UnsupportedOptionError, match="early_stopping=True"):
        InfluenceEstimator(model).fit(normal(20, 4), np.arange(20) % 2)
