"""Nets of skorch: their loss, penalty, training rows, labels and data, against dense oracles."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import relative
from network_cases import NetworkCase
from network_references import (
    dense_jacobian,
    dense_outputs,
    linearise,
    loss_effects,
    output_changes,
    parameter_vector,
)
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import nn
from torch.utils.data import Subset

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import (
    InfluenceWarning,
    UnsupportedModelError,
    UnsupportedOptionError,
)

N, M, D = 30, 6, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
X_QUERY = RNG.normal(size=(M, D))
CODES = np.arange(N) % 3
CODES_QUERY = np.arange(M) % 3
NAMES = np.array(["ash", "elm", "oak"])
NUMBERS = RNG.normal(size=(N, 2)) + X[:, :2]
FREE_BIASES = [("*bias", {"weight_decay": 0.0})]

far = pytest.mark.filterwarnings("ignore::sklearn_dualif.exceptions.NotStationaryWarning")


def body(n_outputs, *tail, seed=0):
    """A small network in double precision at random parameters."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, n_outputs)
    return nn.Sequential(*layers, *tail).double()


def net_of(kind, module, **params):
    """A net with a given module, ready to predict and never trained."""
    options = {"train_split": None, "verbose": 0, "optimizer__weight_decay": 0.05, **params}
    return kind(module, **options)


def frozen(kind, module, **params):
    """The same, initialized and frozen."""
    return FrozenEstimator(net_of(kind, module, **params).initialize())


def case_of(module, loss, y, y_query, **params):
    """The `NetworkCase` of a module on the rows of this file."""
    params = {"weight_decay": 0.05, "sample_weight": None, **params}
    n_outputs = module[-1].out_features
    return NetworkCase(
        "net", module, X, y, loss, n_outputs, X_query=X_QUERY, y_query=y_query, **params
    )


def expected_effects(case):
    """Each row's removal effect (m, n) on the loss of the query rows, by dense Newton steps."""
    steps = linearise(case).reference().leave_one_out("newton")
    dz = output_changes(dense_jacobian(case.module, case.X_query), steps)
    return loss_effects(case.loss, dense_outputs(case.module, case.X_query), case.y_query, dz).T


def effects(influence, case):
    return influence.influence(case.X_query, case.y_query)


CLASSES, BINARY = (CODES, CODES_QUERY), (CODES % 2, CODES_QUERY % 2)
ONE = (NUMBERS[:, 0], NUMBERS[:M, 0])
TWO = (NUMBERS, NUMBERS[:M])
KINDS = {
    "cross_entropy": (NeuralNetClassifier, nn.CrossEntropyLoss, 3, (), "cross_entropy", CLASSES),
    "nll": (NeuralNetClassifier, nn.NLLLoss, 3, (nn.Softmax(1),), "cross_entropy", CLASSES),
    "binary": (
        NeuralNetBinaryClassifier,
        nn.BCEWithLogitsLoss,
        1,
        (),
        "binary_cross_entropy",
        BINARY,
    ),
    "binary-flat": (
        NeuralNetBinaryClassifier,
        nn.BCEWithLogitsLoss,
        1,
        (nn.Flatten(0),),
        "binary_cross_entropy",
        BINARY,
    ),
    "regression": (NeuralNetRegressor, nn.MSELoss, 1, (), "mse", ONE),
    "regression-flat": (NeuralNetRegressor, nn.MSELoss, 1, (nn.Flatten(0),), "mse", ONE),
    "regression-2": (NeuralNetRegressor, nn.MSELoss, 2, (), "mse", TWO),
}


def built(name, **params):
    """A frozen net of a kind, and the case of the same parameters."""
    kind, criterion, n_outputs, tail, loss, targets = KINDS[name]
    net = frozen(kind, body(n_outputs, *tail), criterion=criterion, **params)
    return net, case_of(body(n_outputs), loss, *targets)


# The objective


@far
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("name", KINDS)
def test_effects_are_those_of_the_dense_oracle(name, solver):
    net, case = built(name)
    influence = InfluenceEstimator(net, solver=solver).fit(X, case.y)
    assert relative(effects(influence, case), expected_effects(case)) < 1e-8
    assert influence.n_parameters_ == len(parameter_vector(case.module))
    assert influence.parameter_names_[0] == "0.weight[0, 0]"
    step = linearise(case).reference().newton([3, 5])
    assert relative(influence.parameter_change([3, 5]), step) < 1e-8


@far
@pytest.mark.parametrize("name", ["cross_entropy", "binary", "regression-2"])
def test_parameter_groups_have_their_own_decay(name):
    net, case = built(name, optimizer__param_groups=FREE_BIASES)
    case = replace(case, weight_decay={"*weight": 0.05, "*bias": 0.0})
    influence = InfluenceEstimator(net).fit(X, case.y)
    assert relative(effects(influence, case), expected_effects(case)) < 1e-8


@far
def test_parameters_that_the_optimizer_does_not_have_stay():
    net, case = built("cross_entropy")
    optimizer = net.estimator.optimizer_
    del optimizer.param_groups[0]["params"][:2]
    for name, parameter in case.module.named_parameters():
        parameter.requires_grad_(name.startswith("2"))
    influence = InfluenceEstimator(net).fit(X, case.y)
    assert influence.parameter_names_[0] == "2.weight[0, 0]"
    assert relative(effects(influence, case), expected_effects(case)) < 1e-8


@far
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_class_weights_weigh_rows_and_the_penalty(criterion):
    weight = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    tail = (nn.Softmax(1),) if criterion is nn.NLLLoss else ()
    options = {"criterion": criterion, "criterion__weight": weight}
    net = frozen(NeuralNetClassifier, body(3, *tail), **options)
    case = case_of(body(3), "cross_entropy", *CLASSES, sample_weight=weight.numpy()[CODES])
    influence = InfluenceEstimator(net).fit(X, CODES)
    assert relative(effects(influence, case), expected_effects(case)) < 1e-8
    assert influence.ridge_ == pytest.approx(0.05 * weight.numpy()[CODES].sum())


@far
def test_sample_weights_of_a_frozen_net():
    net, case = built("binary")
    case = replace(case, sample_weight=RNG.uniform(0.5, 2.0, N))
    influence = InfluenceEstimator(net).fit(X, case.y, sample_weight=case.sample_weight)
    assert relative(effects(influence, case), expected_effects(case)) < 1e-8


def test_nets_torch_models_and_logistic_regression_agree():
    y = BINARY[0]
    logistic = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(X, y)
    module = nn.Linear(D, 1, dtype=torch.float64)
    weight, bias = map(torch.from_numpy, (logistic.coef_, logistic.intercept_))
    module.load_state_dict({"weight": weight, "bias": bias})
    models = (
        logistic,
        TorchModel(module, loss="binary_cross_entropy", classes=[0, 1]),
        net_of(NeuralNetBinaryClassifier, module, optimizer__weight_decay=0.0).initialize(),
    )
    each = [InfluenceEstimator(FrozenEstimator(m), ridge=0.0).fit(X, y) for m in models]
    first, *others = (influence.influence(X_QUERY, BINARY[1]) for influence in each)
    for other in others:
        assert relative(other, first) < 1e-8


@far
def test_a_penalised_net_is_a_torch_model():
    net, case = built("regression-2", optimizer__param_groups=FREE_BIASES)
    model = TorchModel(case.module, loss="mse", weight_decay={"*bias": 0.0, "*": 0.05})
    mine, other = (InfluenceEstimator(m).fit(X, case.y) for m in (net, model))
    assert relative(effects(mine, case), effects(other, case)) < 1e-12
    assert mine.ridge_ == other.ridge_


@far
@pytest.mark.parametrize(
    "optimizer", ["SGD", "Adam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "NAdam", "RAdam"]
)
def test_optimizers_with_an_l2_penalty(optimizer):
    net, case = built("regression", optimizer=getattr(torch.optim, optimizer))
    assert InfluenceEstimator(net).fit(X, case.y).ridge_ == pytest.approx(0.05 * N / 2)


@far
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": torch.optim.AdamW},
        {"optimizer": torch.optim.RAdam, "optimizer__decoupled_weight_decay": True},
    ],
    ids=["AdamW", "RAdam"],
)
def test_a_decoupled_decay_is_announced(options):
    net, case = built("regression", **options)
    with pytest.warns(InfluenceWarning, match="no L2 penalty.* of the same strength is assumed"):
        influence = InfluenceEstimator(net).fit(X, case.y)
    assert relative(effects(influence, case), expected_effects(case)) < 1e-8
    net, case = built("regression", **{**options, "optimizer__weight_decay": 0.0})
    InfluenceEstimator(net, ridge=1.0).fit(X, case.y)


@far
def test_no_decay_is_announced():
    net, case = built("regression", optimizer__weight_decay=0.0)
    with pytest.warns(InfluenceWarning, match="without weight decay"):
        InfluenceEstimator(net).fit(X, case.y)


# Rows trained on


def folds(y, stratified):
    """The training rows of scikit-learn's first of five folds, as a mask."""
    splitter = StratifiedKFold(5) if stratified else KFold(5)
    rows, _ = next(splitter.split(X, y))
    return np.isin(np.arange(N), rows)


def split_some(dataset, y):
    """A split that leaves rows out and takes one twice."""
    rows = [0, 0, *range(2, N)]
    return Subset(Subset(dataset, range(N)), rows), Subset(dataset, [1])


SPLITS = {
    "default": (None, folds(CODES, True)),
    "plain": (ValidSplit(5), folds(CODES, False)),
    "given": (ValidSplit([(np.arange(7), np.arange(7, N))]), np.arange(N) < 7),
    "predefined": (predefined_split(Dataset(X[:2], CODES[:2])), np.ones(N)),
    "none": (False, np.ones(N)),
    "function": (split_some, np.r_[2.0, 0.0, np.ones(N - 2)]),
}


@far
@pytest.mark.parametrize("name", SPLITS)
def test_only_rows_trained_on_have_influence(name):
    split, times = SPLITS[name]
    options = {} if split is None else {"train_split": split or None}
    net = NeuralNetClassifier(
        body(3), criterion=nn.CrossEntropyLoss, optimizer__weight_decay=0.05, verbose=0, **options
    )
    case = case_of(body(3), "cross_entropy", *CLASSES, sample_weight=np.asarray(times, float))
    influence = InfluenceEstimator(FrozenEstimator(net.initialize())).fit(X, NAMES[CODES])
    matrix = influence.influence(X_QUERY, NAMES[CODES_QUERY])
    assert relative(matrix, expected_effects(case)) < 1e-8
    held_out = np.asarray(times) == 0
    for values in (influence.influence_, influence.self_influence_, influence.leverage_):
        assert (values[held_out] == 0).all()
    assert (matrix[:, held_out] == 0).all()
    assert influence.ridge_ == pytest.approx(0.05 * np.sum(times))


def test_a_random_split_with_a_seed_can_be_reproduced():
    net = trainable(train_split=ValidSplit(0.4, stratified=True, random_state=3))
    influence = InfluenceEstimator(net).fit(X, NAMES[CODES])
    assert (influence.self_influence_ == 0).sum() == 12


def split_differently(dataset, y):
    rows = np.random.default_rng().permutation(N)
    return Subset(dataset, rows[:20]), Subset(dataset, rows[20:])


def split_copies(dataset, y):
    return Dataset(dataset.X[:9], dataset.y[:9]), None


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (ValidSplit(0.2), r"ValidSplit\(cv=0.2\)\) draws other rows .* Set train_split=None"),
        (ValidSplit(KFold(3, shuffle=True)), "KFold.* draws other rows"),
        (ValidSplit(0.2, random_state=np.random.RandomState(0)), "draws other rows"),
        (split_differently, "split_differently.* draws other rows"),
        (split_copies, "split_copies.* gives no torch.utils.data.Subset"),
    ],
    ids=["float", "shuffled", "generator", "function", "copies"],
)
def test_rows_that_cannot_be_known_are_refused(split, message):
    with pytest.raises(UnsupportedOptionError, match=message):
        InfluenceEstimator(trainable(max_epochs=1, train_split=split)).fit(X, CODES)


# Nets that are trained here


def linear(n_inputs=D, n_outputs=3):
    return nn.Linear(n_inputs, n_outputs)


def trainable(kind=NeuralNetClassifier, *, module=linear, **params):
    """An unfitted net that comes to its optimum in a second."""
    options = {
        "optimizer__weight_decay": 0.2,
        "optimizer__momentum": 0.8,
        "lr": 0.5,
        "max_epochs": 120,
        "batch_size": -1,
        "verbose": 0,
        "callbacks": "disable",
        **params,
    }
    if kind is NeuralNetClassifier:
        options.setdefault("criterion", nn.CrossEntropyLoss)
    return kind(module, **options)


def double_linear(n_outputs=3):
    return nn.Linear(D, n_outputs, dtype=torch.float64)


@cache
def trained():
    """An `InfluenceEstimator` of a net that it trained on rows and labels as they come."""
    torch.manual_seed(0)
    return InfluenceEstimator(trainable()).fit(X, NAMES[CODES])


@pytest.mark.parametrize(
    ("kind", "y", "n_outputs"),
    [
        (NeuralNetClassifier, NAMES[CODES], 3),
        (NeuralNetBinaryClassifier, BINARY[0] == 1, 1),
        (NeuralNetRegressor, NUMBERS[:, 0], 1),
        (NeuralNetRegressor, NUMBERS, 2),
    ],
    ids=["classes", "binary", "numbers", "outputs"],
)
def test_exact_removals_are_those_of_a_refit(kind, y, n_outputs):
    options = {"module": double_linear, "module__n_outputs": n_outputs, "train_split": None}
    lr = 0.15 if kind is NeuralNetRegressor else 0.5
    net = trainable(kind, max_epochs=250, lr=lr, **options)
    influence = InfluenceEstimator(net, order="exact").fit(X, y)
    assert influence.stationarity_ < 1e-8
    kept = np.delete(np.arange(N), [4, 9])
    codes = influence._conversion.targets(y)
    refit = clone(net).fit(X[kept], codes[kept])
    change = refit.forward(X_QUERY) - influence.estimator_.forward(X_QUERY)
    change = change.numpy().reshape(M, -1)
    assert relative(influence.output_change([4, 9], X_QUERY), change) < 1e-6
    forgotten = influence.unlearn([4, 9])
    np.testing.assert_allclose(forgotten.forward(X_QUERY), refit.forward(X_QUERY), atol=1e-6)


def test_labels_and_rows_are_converted():
    influence = trained()
    np.testing.assert_array_equal(influence.classes_, NAMES)
    assert influence.estimator_.module_.weight.dtype == torch.float32
    predicted = influence.predict(X)
    codes = influence.estimator_.predict(X.astype(np.float32))
    np.testing.assert_array_equal(predicted, NAMES[codes])
    assert influence.score(X, NAMES[CODES]) == (predicted == NAMES[CODES]).mean()
    probabilities = influence.estimator_.predict_proba(X.astype(np.float32))
    np.testing.assert_array_equal(influence.predict_proba(X), probabilities)
    assert (influence.self_influence_ == 0).sum() == N // 5


def test_training_is_that_of_the_bare_net():
    net = trainable(max_epochs=3, train_split=None)
    torch.manual_seed(5)
    bare = clone(net).fit(X.astype(np.float32), CODES)
    torch.manual_seed(5)
    mine = fit_far(InfluenceEstimator(net), X, NAMES[CODES])
    assert torch.equal(mine.estimator_.module_.weight, bare.module_.weight)
    assert not net.initialized_


def fit_far(influence, X, y, **params):
    """Fit where the net is not at an optimum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InfluenceWarning)
        return influence.fit(X, y, **params)


LABELS = {
    "strings": NAMES[CODES],
    "objects": NAMES[CODES].astype(object),
    "counted": CODES + 1,
    "negative": CODES - 1,
    "floats": CODES / 2,
    "series": pd.Series(NAMES[CODES]),
    "tensor": torch.from_numpy(CODES),
    "list": CODES.tolist(),
}


@far
@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("pipeline", [False, True])
def test_any_labels(name, pipeline):
    y = LABELS[name]
    net = frozen(NeuralNetClassifier, body(3), criterion=nn.CrossEntropyLoss)
    case = case_of(body(3), "cross_entropy", *CLASSES)
    model = make_pipeline(FunctionTransformer(), net) if pipeline else net
    influence = InfluenceEstimator(model).fit(X, y)
    labels = np.unique(np.asarray(y))
    np.testing.assert_array_equal(influence.classes_, labels)
    matrix = influence.influence(X_QUERY, labels[CODES_QUERY])
    assert relative(matrix, expected_effects(case)) < 1e-8
    codes = net.predict(X_QUERY)
    np.testing.assert_array_equal(influence.predict(X_QUERY), labels[codes])
    assert influence.predict(X_QUERY).dtype == labels.dtype
    assert influence.score(X_QUERY, labels[codes]) == 1.0
    assert set(influence.loo_predict()) <= set(labels)
    relabelled = influence.relabel_effect([0], labels[1], X_QUERY, labels[CODES_QUERY])
    assert np.isfinite(relabelled).all()


@far
@pytest.mark.parametrize("labels", [[False, True], ["no", "yes"], [0, 1], [-1.0, 1.0]])
def test_two_labels_of_a_single_logit(labels):
    net, case = built("binary")
    labels = np.array(labels)
    influence = InfluenceEstimator(net).fit(X, labels[case.y])
    matrix = influence.influence(X_QUERY, labels[case.y_query])
    assert relative(matrix, expected_effects(case)) < 1e-8
    np.testing.assert_array_equal(influence.classes_, labels)
    np.testing.assert_array_equal(influence.predict(X_QUERY), labels[net.predict(X_QUERY)])


@far
def test_classes_of_the_net_name_its_outputs():
    options = {"criterion": nn.CrossEntropyLoss, "classes": ["oak", "ash", "elm"]}
    net = frozen(NeuralNetClassifier, body(3), **options)
    labels = np.array(options["classes"])
    case = case_of(body(3), "cross_entropy", *CLASSES)
    influence = InfluenceEstimator(net).fit(X, labels[CODES])
    matrix = influence.influence(X_QUERY, labels[CODES_QUERY])
    assert relative(matrix, expected_effects(case)) < 1e-8
    np.testing.assert_array_equal(influence.predict(X_QUERY), labels[net.predict(X_QUERY)])
    by_number = InfluenceEstimator(net).fit(X, CODES)  # as skorch takes them
    np.testing.assert_array_equal(by_number.influence(X_QUERY, CODES_QUERY), matrix)
    np.testing.assert_array_equal(by_number.predict(X_QUERY), net.predict(X_QUERY))


@far
def test_a_class_without_rows_keeps_its_number():
    net = frozen(NeuralNetClassifier, body(3), criterion=nn.CrossEntropyLoss)
    rows = np.flatnonzero(CODES != 1)
    influence = InfluenceEstimator(net).fit(X[rows], CODES[rows])
    np.testing.assert_array_equal(influence.classes_, [0, 1, 2])
    np.testing.assert_array_equal(influence.predict(X), net.predict(X))


def test_frames_come_as_arrays():
    torch.manual_seed(0)
    frame = pd.DataFrame(X, columns=list("abcd"), index=np.arange(N) + 100)
    influence = InfluenceEstimator(trainable()).fit(frame, pd.Series(NAMES[CODES]))
    np.testing.assert_array_equal(influence.influence_, trained().influence_)
    np.testing.assert_array_equal(influence.predict(frame), trained().predict(X))
    assert influence.explain(frame[:2], NAMES[CODES[:2]], k=1)["train_index"].min() >= 100


@far
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_a_regression_predicts_in_the_shape_of_its_targets(shape):
    net, case = built("regression")
    y = case.y.reshape(shape)
    for influence in (
        InfluenceEstimator(net).fit(X, y),
        fit_far(InfluenceEstimator(clone(net.estimator).set_params(max_epochs=1)), X, y),
    ):
        assert influence.predict(X).shape == influence.loo_predict().shape == shape
        assert influence.score(X, y) == influence.score(X, y.ravel())


def test_at_the_end_of_a_pipeline():
    steps = StandardScaler(), FunctionTransformer(np.float32)
    torch.manual_seed(0)
    influence = InfluenceEstimator(make_pipeline(*steps, trainable())).fit(3.0 * X, NAMES[CODES])
    scaled = StandardScaler().fit_transform(X)
    torch.manual_seed(0)
    alone = InfluenceEstimator(trainable()).fit(scaled, NAMES[CODES])
    assert relative(influence.self_influence_, alone.self_influence_) < 1e-4
    assert (influence.self_influence_ == 0).sum() == N // 5
    np.testing.assert_array_equal(influence.predict(3.0 * X), alone.predict(scaled))
    forgotten = influence.unlearn([0])
    np.testing.assert_array_equal(
        forgotten.predict(3.0 * X), alone.unlearn([0]).predict(scaled.astype(np.float32))
    )


def test_in_a_search():
    search = GridSearchCV(InfluenceEstimator(trainable()), {"ridge": [1.0, 3.0]}, cv=2)
    search.fit(X, NAMES[CODES])
    assert search.best_estimator_.ridge_ in (1.0, 3.0)


# The penalty of a ridge


@pytest.mark.parametrize("split", [None, ValidSplit(4)])
@pytest.mark.parametrize(
    ("kind", "y", "n_outputs", "params"),
    [
        (NeuralNetClassifier, NAMES[CODES], 3, {}),
        (NeuralNetClassifier, CODES, 3, {"criterion__weight": torch.tensor([0.5, 1.0, 3.0])}),
        (NeuralNetBinaryClassifier, CODES % 2, 1, {}),
        (NeuralNetRegressor, NUMBERS[:, 0], 1, {"lr": 0.1}),
        (NeuralNetRegressor, NUMBERS, 2, {"lr": 0.1}),
    ],
    ids=["classes", "weights", "binary", "numbers", "outputs"],
)
def test_a_ridge_is_that_of_the_sum_form(kind, y, n_outputs, params, split):
    net = trainable(kind, module__n_outputs=n_outputs, train_split=split, **params)
    influence = InfluenceEstimator(net, ridge=2.5).fit(X, y)
    assert influence.ridge_ == pytest.approx(2.5, rel=1e-6)
    assert influence.stationarity_ < 0.01
    assert net.optimizer__weight_decay == 0.2


def test_a_ridge_leaves_free_groups_free():
    net = trainable(optimizer__param_groups=[("bias", {"weight_decay": 0.0})])
    influence = InfluenceEstimator(net, ridge=2.5).fit(X, CODES)
    assert influence.ridge_ == pytest.approx(2.5)
    net = trainable(optimizer__param_groups=[("bias", {"weight_decay": 0.1})])
    with pytest.raises(UnsupportedOptionError, match=r"group 'bias' has weight_decay=0\.1"):
        InfluenceEstimator(net, ridge=2.5).fit(X, CODES)


def test_a_ridge_damps_what_has_no_decay():
    options = {"module": double_linear, "train_split": None, "verbose": 0, "batch_size": -1}
    net = NeuralNetClassifier(
        criterion=nn.CrossEntropyLoss, optimizer=torch.optim.LBFGS, max_epochs=3, **options
    )
    influence = fit_far(InfluenceEstimator(net, ridge=2.5), X, CODES)
    assert influence.ridge_ == 2.5


# What a caller keeps


def state_of(net):
    """All that a caller could see of a net and of the random generators."""
    module = net.module_
    momenta = [state["momentum_buffer"] for state in net.optimizer_.state.values()]
    return {
        "values": [value.numpy().copy() for value in module.state_dict().values()],
        "modes": [part.training for part in (*module.modules(), net.criterion_)],
        "gradients": [p.grad.numpy().copy() for p in module.parameters()],
        "momenta": [value.numpy().copy() for value in momenta],
        "groups": [{**group, "params": None} for group in net.optimizer_.param_groups],
        "history": copy.deepcopy(list(net.history)),
        "parameters": {k: v for k, v in net.get_params().items() if np.isscalar(v)},
        "attributes": sorted(vars(net)),
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.random.get_state()[1].copy(),
    }


def normed(n_inputs=D):
    return nn.Sequential(
        nn.Linear(n_inputs, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)
    )


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_the_net_is_left_alone(criterion):
    module = normed if criterion is nn.CrossEntropyLoss else softmaxed
    net = trainable(module=module, max_epochs=2, criterion=criterion, callbacks=None)
    net.fit(X.astype(np.float32), CODES)
    net.module_[0].eval()
    before = state_of(net)
    influence = fit_far(InfluenceEstimator(FrozenEstimator(net)), X, NAMES[CODES])
    influence.influence(X_QUERY, NAMES[CODES_QUERY])
    influence.loo_predict(), influence.loo_predict_proba(), influence.parameter_change([0])
    forgotten = influence.unlearn([1, 2])
    np.testing.assert_equal(state_of(net), before)
    forgotten.estimator.fit(X.astype(np.float32), CODES)
    np.testing.assert_equal(state_of(net)["values"], before["values"])
    assert influence.estimator_.estimator is net


def softmaxed(n_inputs=D):
    return nn.Sequential(nn.Linear(n_inputs, 3), nn.Softmax(1))


def test_warm_started_nets_are_like_others():
    net = trainable(warm_start=True, max_epochs=60, module=nn.Linear(D, 3), train_split=None)
    for _ in range(2):
        net.fit(X.astype(np.float32), CODES)
    mine = InfluenceEstimator(FrozenEstimator(net)).fit(X, CODES)
    module, decay = copy.deepcopy(net.module_), net.optimizer__weight_decay
    other = InfluenceEstimator(TorchModel(module, weight_decay=decay)).fit(X, CODES)
    assert relative(mine.influence_, other.influence_) < 1e-12


@pytest.mark.parametrize("copied", [clone, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies(copied):
    influence = trained()
    other = copied(influence)
    if copied is clone:
        assert not hasattr(other, "estimator_")
        torch.manual_seed(0)
        other.fit(X, NAMES[CODES])
    expected = influence.influence(X_QUERY, NAMES[CODES_QUERY])
    np.testing.assert_array_equal(other.influence(X_QUERY, NAMES[CODES_QUERY]), expected)
    np.testing.assert_array_equal(other.predict(X_QUERY), influence.predict(X_QUERY))
    np.testing.assert_array_equal(other.loo_predict_proba(), influence.loo_predict_proba())
    forgotten = other.unlearn([0]).predict_proba(X_QUERY.astype(np.float32))
    again = influence.unlearn([0]).predict_proba(X_QUERY.astype(np.float32))
    np.testing.assert_array_equal(forgotten, again)


@far
@pytest.mark.parametrize("name", KINDS)
def test_leave_one_out_predictions(name):
    net, case = built(name)
    influence = InfluenceEstimator(net).fit(X, case.y)
    row = 7
    forgotten = influence.unlearn([row])
    probabilities = forgotten.predict_proba(X[[row]]).reshape(1, -1)
    # The effects are those of the linearisation, so a net moved by one row is a little off.
    np.testing.assert_allclose(influence.loo_predict_proba()[[row]], probabilities, atol=0.02)
    dz = linearise(case).reference().newton([row])
    z = dense_outputs(case.module, X[[row]]) + dense_jacobian(case.module, X[[row]]) @ dz
    if name.startswith("binary"):
        p = 1.0 / (1.0 + np.exp(-z))
        z = np.c_[1.0 - p, p]
    elif not name.startswith("regression"):
        z = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(influence.loo_predict_proba()[[row]], z, atol=1e-9)
    predicted = z if name.startswith("regression") else z.argmax(1)
    np.testing.assert_allclose(influence.loo_predict()[row], predicted.squeeze(), atol=1e-9)


@far
def test_a_compiled_module():
    net, case = built("cross_entropy")
    plain = net.estimator.module_
    net.estimator.module_ = torch.compile(plain, backend="eager")
    influence = InfluenceEstimator(net).fit(X, case.y)
    assert relative(effects(influence, case), expected_effects(case)) < 1e-8
    assert influence.parameter_names_[0] == "0.weight[0, 0]"


# Late registration


LATE = """
import sys
import sklearn_dualif.models
assert "skorch" not in sys.modules and "sklearn_dualif.models._skorch" not in sys.modules
import numpy as np, torch
from sklearn.linear_model import Ridge
from sklearn_dualif import InfluenceEstimator
X = np.random.default_rng(0).normal(size=(9, 2))
InfluenceEstimator(Ridge()).fit(X, X[:, 0])
assert "skorch" not in sys.modules
from skorch import NeuralNetRegressor
net = NeuralNetRegressor(torch.nn.Linear(2, 1), verbose=0, optimizer__weight_decay=0.1)
print(type(sklearn_dualif.models.as_model_function(net.initialize())).__name__)
print(InfluenceEstimator(net, order="first").fit(X, X[:, 0]).n_parameters_)
"""


def test_skorch_is_imported_by_the_caller_only():
    command = [sys.executable, "-W", "ignore", "-c", LATE]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["SkorchNetwork", "3"]


# What is refused


class OwnLoss(NeuralNetClassifier):
    def get_loss(self, y_pred, y_true, *args, **kwargs):
        return super().get_loss(y_pred, y_true, *args, **kwargs) + 1.0


class OwnCriterion(nn.CrossEntropyLoss):
    pass


class TrainedCriterion(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))


class OwnDataset(Dataset):
    pass


@pytest.mark.parametrize(
    ("kind", "params", "error", "message"),
    [
        (OwnLoss, {}, UnsupportedModelError, "OwnLoss has a get_loss of its own.*register"),
        (NeuralNet, {"criterion": nn.MSELoss}, UnsupportedModelError, "use skorch's NeuralNetCla"),
        (
            NeuralNetClassifier,
            {"criterion": nn.MultiMarginLoss},
            UnsupportedOptionError,
            r"criterion=MultiMarginLoss\) cannot be wrapped: use torch.nn.CrossEntropyLoss or",
        ),
        (
            NeuralNetClassifier,
            {"criterion": OwnCriterion},
            UnsupportedOptionError,
            "criterion=OwnCriterion",
        ),
        (
            NeuralNetClassifier,
            {"criterion": TrainedCriterion},
            UnsupportedOptionError,
            "has parameters that are trained.*requires_grad=False",
        ),
        (
            NeuralNetClassifier,
            {"criterion__label_smoothing": 0.1},
            UnsupportedOptionError,
            r"label_smoothing=0.1\).*each row has one label.*criterion__label_smoothing=0.0",
        ),
        (
            NeuralNetClassifier,
            {"criterion__reduction": "sum"},
            UnsupportedOptionError,
            r"reduction='sum'\).*mean loss.*criterion__reduction='mean'",
        ),
        (
            NeuralNetClassifier,
            {"criterion__ignore_index": 2},
            UnsupportedOptionError,
            "rows of class 2, which the criterion ignores",
        ),
        (
            NeuralNetBinaryClassifier,
            {"criterion": nn.BCELoss},
            UnsupportedOptionError,
            "use torch.nn.BCEWithLogitsLoss",
        ),
        (
            NeuralNetBinaryClassifier,
            {"criterion__pos_weight": torch.ones(1)},
            UnsupportedOptionError,
            r"pos_weight=tensor.*criterion__pos_weight=None",
        ),
        (
            NeuralNetBinaryClassifier,
            {"criterion__weight": torch.ones(1)},
            UnsupportedOptionError,
            r"weight=tensor.*places in a batch",
        ),
        (
            NeuralNetRegressor,
            {"criterion": nn.L1Loss},
            UnsupportedOptionError,
            "use torch.nn.MSELoss",
        ),
        (
            NeuralNetRegressor,
            {"dataset": OwnDataset},
            UnsupportedOptionError,
            "dataset of its own may change rows",
        ),
    ],
)
def test_what_is_refused_before_training(kind, params, error, message):
    with pytest.raises(error, match=message):
        InfluenceEstimator(trainable(kind, max_epochs=10**6, **params)).fit(X, CODES)


def test_ignored_rows_are_refused():
    y = np.where(CODES == 2, -100, CODES)
    with pytest.raises(UnsupportedOptionError, match="rows of class -100, which"):
        InfluenceEstimator(trainable()).fit(X, y)


def test_nets_that_are_not_fitted_or_trimmed_are_refused():
    with pytest.raises(NotFittedError):
        InfluenceEstimator(FrozenEstimator(trainable())).fit(X, CODES)
    net = trainable(max_epochs=1, callbacks=[]).fit(X.astype(np.float32), CODES)
    net.trim_for_prediction()
    with pytest.raises(UnsupportedOptionError, match="as after trim_for_prediction"):
        InfluenceEstimator(FrozenEstimator(net)).fit(X, CODES)


@far
@pytest.mark.parametrize("y", [NAMES[CODES % 2], CODES * 5, CODES + np.arange(N) % 2])
def test_labels_that_do_not_fit_the_outputs_are_refused(y):
    net = trainable(max_epochs=1, module__n_outputs=5)
    with pytest.raises(ValueError, match=r"label\(s\) .* tells 5 classes apart.*classes="):
        InfluenceEstimator(net).fit(X, y + 3 if y.dtype.kind == "i" else y)
    pipeline = make_pipeline(FunctionTransformer(np.float32), net)
    with pytest.raises(ValueError, match=r"tells 5 classes apart"):
        InfluenceEstimator(pipeline).fit(X, y * 2 if y.dtype.kind == "i" else y)


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match=r"label .*'fir'.*, which the model was not"):
        trained().score(X[:1], ["fir"])


def test_outputs_that_are_no_probabilities_are_refused():
    net = frozen(NeuralNetClassifier, body(3, nn.Sigmoid()))
    with pytest.raises(ValueError, match=r"outputs that sum to .* criterion=torch.nn.CrossEntropy"):
        InfluenceEstimator(net).fit(X, CODES)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="can't process inputs of shape"):
        InfluenceEstimator(trainable()).fit(X[:, :2], CODES)
    with pytest.raises(ValueError, match=r"not numbers|not real numbers"):
        InfluenceEstimator(trainable()).fit(np.array([["a"] * D] * N), CODES)


def test_loo_ridges_are_refused():
    with pytest.raises(UnsupportedOptionError, match="ridge='loo' needs a squared loss"):
        InfluenceEstimator(trainable(max_epochs=1), ridge="loo").fit(X, CODES)
