"""InfluenceEnsemble: against members fitted and averaged by hand."""

from __future__ import annotations

import copy
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from cases import binary, regression, three_classes
from network_helpers import not_at_the_optimum
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from sklearn_dualif import (
    CheckpointRecorder,
    InfluenceEnsemble,
    InfluenceEstimator,
    TorchModel,
    _fitting,
)
from sklearn_dualif._members import balanced_draws
from sklearn_dualif.exceptions import NotStationaryWarning, UnsupportedOptionError
from sklearn_dualif.models import as_model_function
from sklearn_dualif.objectives import AverageLoss, DemographicParity
from sklearn_dualif.sketching import GaussianSketch


def close(actual, expected, tolerance=1e-10):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def iris(n=60):
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = (X - X.mean(0)) / X.std(0), y
    rows, rest = order[:n], order[n:]
    return X[rows], y[rows], X[rest], y[rest]


def perceptron(**params):
    params = {"hidden_layer_sizes": (6,), "activation": "tanh", "max_iter": 15} | params
    return MLPClassifier(**params)


def fit(ensemble, *data, **params):
    with not_at_the_optimum():
        return ensemble.fit(*data, **params)


def scores(model, X, y, X_val, y_val, **params):
    """Return the Hessian-free scores of one model, (n,) each: mean and self-influence."""
    with not_at_the_optimum():
        one = InfluenceEstimator(model, curvature="identity", **params)
        one.fit(X, y, X_val=X_val, y_val=y_val)
    return one.influence_, one.self_influence_


def on_one_scale(members):
    """Return means and spreads of (scores, self-influences) of members, brought to one scale."""
    sizes = np.array([own.mean() for _, own in members])
    result = []
    for values in zip(*members, strict=True):
        scaled = [sizes.mean() / q * v for q, v in zip(sizes, values, strict=True)]
        result += [np.mean(scaled, axis=0), np.std(scaled, axis=0)]
    return result


def check_averages(ensemble, members):
    mean, spread, own, own_spread = on_one_scale(members)
    close(ensemble.influence_, mean)
    close(ensemble.influence_std_, spread)
    close(ensemble.self_influence_, own)
    close(ensemble.self_influence_std_, own_spread)


# Seeds


def test_seeds_of_a_perceptron():
    X, y, X_val, y_val = iris()
    influence = InfluenceEstimator(perceptron(), curvature="identity")
    ensemble = InfluenceEnsemble(influence, 3, random_state=0)
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    seeds = [each.random_state for each in ensemble.estimators_]
    assert len(set(seeds)) == 3
    models = [perceptron(random_state=seed) for seed in seeds]
    check_averages(ensemble, [scores(model, X, y, X_val, y_val) for model in models])
    close(ensemble.influence(X_val, y_val).mean(0), ensemble.influence_)
    fitted = [fit(model, X, y) for model in models]
    close(ensemble.predict_proba(X_val), np.mean([m.predict_proba(X_val) for m in fitted], axis=0))
    sizes = [scores(model, X, y, X_val, y_val)[1].mean() for model in models]
    np.testing.assert_allclose(ensemble.scales_, np.mean(sizes) / sizes)


def test_effects_need_no_scale():
    X, y, X_val, y_val = iris(40)
    model = perceptron(alpha=1.0, solver="lbfgs", max_iter=3000, tol=1e-9)
    options = {"parameters": ["*.weight", "1.bias"]}
    ensemble = InfluenceEnsemble(InfluenceEstimator(model, **options), 2, random_state=1)
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    assert ensemble.scales_.tolist() == [1.0, 1.0]
    members = []
    for each in ensemble.estimators_:
        one = clone(model).set_params(random_state=each.random_state)
        members.append(fit(InfluenceEstimator(one, **options), X, y, X_val=X_val, y_val=y_val))
    close(ensemble.influence_, np.mean([one.influence_ for one in members], axis=0))
    close(ensemble.self_influence_std_, np.std([one.self_influence_ for one in members], axis=0))
    for order in ("first", "exact"):
        expected = [one.influence(X_val[:3], y_val[:3], order=order) for one in members]
        close(ensemble.influence(X_val[:3], y_val[:3], order=order), np.mean(expected, axis=0))
    expected = [one.removal_effect([0, 5], X_val, y_val) for one in members]
    close(ensemble.removal_effect([0, 5], X_val, y_val), np.mean(expected, axis=0))
    expected = [one.removal_effect([0, 5]) for one in members]
    close(ensemble.removal_effect([0, 5]), np.mean(expected, axis=0))
    close(ensemble.transform(X_val[:3]), np.mean([m.transform(X_val[:3]) for m in members], axis=0))


class Layers(nn.Module):
    def __init__(self, n_outputs=3, rate=0.0):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.dropout = nn.Dropout(rate)
        self.out = nn.Linear(8, n_outputs)

    def forward(self, x):
        return self.out(self.dropout(torch.tanh(self.hidden(x))))


def net(*callbacks, kind=NeuralNetClassifier, module=Layers, **params):
    if kind is NeuralNetClassifier:
        params = {"criterion": nn.CrossEntropyLoss} | params
    return kind(
        module,
        optimizer=torch.optim.SGD,
        train_split=None,
        callbacks=list(callbacks),
        **({"lr": 0.1, "max_epochs": 4, "batch_size": 20, "callbacks__print_log": None} | params),
    )


def drawn_seeds(random_state, n):
    return np.random.RandomState(random_state).randint(np.iinfo(np.int32).max, size=n)


def test_seeds_of_a_net():
    X, y, X_val, y_val = iris()
    labels = np.array(["a", "b", "c"])
    y, y_val = labels[y], labels[y_val]
    ensemble = InfluenceEnsemble(
        InfluenceEstimator(net(module__rate=0.3), curvature="identity"), 2, random_state=3
    )
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    members = []
    for seed in drawn_seeds(3, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(int(seed))
            members.append(scores(net(module__rate=0.3), X, y, X_val, y_val))
    check_averages(ensemble, members)
    assert set(ensemble.predict(X_val)) <= set(labels)
    assert ensemble.score(X_val, y_val) == np.mean(ensemble.predict(X_val) == y_val)


def test_the_generators_of_the_caller_are_left_alone():
    X, y, *_ = iris(30)
    torch.manual_seed(5)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    for kind in ("seed", "bootstrap"):
        influence = InfluenceEstimator(net(), curvature="identity")
        fit(InfluenceEnsemble(influence, 2, kind, random_state=0), X, y).influence(X[:2], y[:2])
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)


# Bootstrap


def test_a_balanced_bootstrap():
    strata = [np.arange(0, 10), np.arange(10, 13), np.array([13])]
    draws = balanced_draws(strata, 4, np.random.RandomState(0))
    assert (np.bincount(np.concatenate(draws)) == 4).all()
    for rows in draws:
        assert (np.diff(rows) >= 0).all()
        assert [np.isin(rows, stratum).sum() for stratum in strata] == [10, 3, 1]
    assert len(np.unique(draws[0])) < 14
    assert not np.array_equal(draws[0], draws[1])


def by_hand(ensemble, one_member, n):
    """Return the mean and spread of columns of members over those that have the row.

    ``one_member(rows)`` gives scores (..., len(rows)).
    """
    columns = [[] for _ in range(n)]
    for rows, scale in zip(ensemble.estimators_samples_, ensemble.scales_, strict=True):
        values = scale * one_member(rows)
        for row in range(n):
            copies = np.flatnonzero(rows == row)
            if len(copies):
                columns[row].append(values[..., copies].mean(-1))
    assert all(columns)
    return (
        np.stack([np.mean(column, axis=0) for column in columns], -1),
        np.stack([np.std(column, axis=0) for column in columns], -1),
    )


@pytest.mark.parametrize(
    ("model", "curvature"),
    [
        (Ridge(), "gauss_newton"),
        (Ridge(), "identity"),
        (make_pipeline(StandardScaler(), Ridge()), "gauss_newton"),
    ],
    ids=["ridge", "hessian-free", "pipeline"],
)
def test_bootstrap(model, curvature):
    data = regression(0)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 40)
    name = "sample_weight" if isinstance(model, Ridge) else "ridge__sample_weight"
    ensemble = InfluenceEnsemble(
        InfluenceEstimator(model, curvature=curvature), 4, "bootstrap", random_state=0
    )
    validation = {"X_val": data.X_query, "y_val": data.y_query}
    ensemble.fit(data.X, data.y, **validation, **{name: weights})

    def member(rows):
        one = InfluenceEstimator(model, curvature=curvature)
        return one.fit(data.X[rows], data.y[rows], **validation, **{name: weights[rows]})

    mean, spread = by_hand(ensemble, lambda rows: member(rows).influence_, 40)
    close(ensemble.influence_, mean)
    close(ensemble.influence_std_, spread)
    own, _ = by_hand(ensemble, lambda rows: member(rows).self_influence_, 40)
    close(ensemble.self_influence_, own)
    queries = data.X_query[:3], data.y_query[:3]
    effects, _ = by_hand(ensemble, lambda rows: member(rows).influence(*queries), 40)
    close(ensemble.influence(*queries), effects)
    predicted = [member(rows).predict(data.X_query) for rows in ensemble.estimators_samples_]
    close(ensemble.predict(data.X_query), np.mean(predicted, axis=0))
    sizes = [member(rows).self_influence_.mean() for rows in ensemble.estimators_samples_]
    scales = np.mean(sizes) / sizes if curvature == "identity" else np.ones(4)
    np.testing.assert_allclose(ensemble.scales_, scales)


def test_a_score_is_that_of_one_copy():
    data = regression(1)
    ensemble = InfluenceEnsemble(InfluenceEstimator(Ridge()), 3, "bootstrap", random_state=0)
    ensemble.fit(data.X, data.y)
    effects = ensemble.influence(data.X_query, data.y_query)
    for row in (0, 7):
        changes = []
        for rows in ensemble.estimators_samples_:
            if row not in rows:
                continue
            kept = np.delete(rows, np.flatnonzero(rows == row)[0])
            losses = [
                (Ridge().fit(data.X[part], data.y[part]).predict(data.X_query) - data.y_query) ** 2
                for part in (kept, rows)
            ]
            changes.append(losses[0] - losses[1])
        close(effects[:, row], np.mean(changes, axis=0), 1e-8)


def test_bootstrap_of_classes():
    data = three_classes(7)
    influence = InfluenceEstimator(LogisticRegression())
    ensemble = InfluenceEnsemble(influence, 5, "bootstrap", random_state=0).fit(data.X, data.y)
    expected = np.unique(data.y, return_counts=True)[1]
    for rows in ensemble.estimators_samples_:
        np.testing.assert_array_equal(np.unique(data.y[rows], return_counts=True)[1], expected)
    probabilities = ensemble.predict_proba(data.X_query)
    np.testing.assert_array_equal(
        ensemble.predict(data.X_query), ensemble.classes_[probabilities.argmax(1)]
    )
    assert not hasattr(ensemble, "decision_function")


def test_without_probabilities_decisions_are_averaged():
    for data in (three_classes(7), binary(3)):
        ensemble = InfluenceEnsemble(InfluenceEstimator(LinearSVC()), 3, "bootstrap")
        assert not hasattr(ensemble, "predict_proba")
        ensemble.fit(data.X, data.y)
        values = [each.decision_function(data.X_query) for each in ensemble.estimators_]
        close(ensemble.decision_function(data.X_query), np.mean(values, axis=0))
        assert ensemble.score(data.X_query, data.y_query) > 0.5


def test_bootstrap_of_a_precomputed_kernel():
    data = regression(2)
    K, queries = rbf_kernel(data.X), rbf_kernel(data.X_query, data.X)
    fits = []
    for model, X, X_query in (
        (KernelRidge(kernel="precomputed"), K, queries),
        (KernelRidge(kernel="rbf", gamma=1.0 / data.X.shape[1]), data.X, data.X_query),
    ):
        ensemble = InfluenceEnsemble(InfluenceEstimator(model), 3, "bootstrap", random_state=0)
        ensemble.fit(X, data.y, X_val=X_query, y_val=data.y_query)
        fits.append(
            (
                ensemble.influence_,
                ensemble.influence(X_query, data.y_query),
                ensemble.predict(X_query),
            )
        )
    for given, computed in zip(*fits, strict=True):
        close(given, computed, 1e-8)


def test_bootstrap_of_nets():
    X, y, X_val, y_val = iris()
    ensemble = InfluenceEnsemble(
        InfluenceEstimator(net(), curvature="identity"), 3, "bootstrap", random_state=2
    )
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    seeds = dict(zip(map(id, ensemble.estimators_samples_), drawn_seeds(2, 3), strict=True))

    def member(rows):
        with torch.random.fork_rng([]):
            torch.manual_seed(int(seeds[id(rows)]))
            return scores(net(), X[rows], y[rows], X_val, y_val)[0]

    close(ensemble.influence_, by_hand(ensemble, member, 60)[0])
    assert (ensemble.influence_ != 0).all()


def test_several_labels_and_outputs():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 4))
    Y = X @ rng.standard_normal((4, 2))
    labels = (Y > 0).astype(int)
    model = perceptron(alpha=1.0, solver="lbfgs", max_iter=200)
    for kind in ("seed", "bootstrap", "dropout"):
        influence = InfluenceEstimator(model, curvature="identity")
        ensemble = fit(InfluenceEnsemble(influence, 2, kind, random_state=0), X, labels)
        assert ensemble.predict(X).shape == (40, 2)
        assert set(np.unique(ensemble.predict(X))) == {0, 1}
    ensemble = InfluenceEnsemble(InfluenceEstimator(Ridge()), 2, "bootstrap").fit(X, Y)
    assert ensemble.predict(X).shape == (40, 2)
    assert ensemble.score(X, Y) > 0.9


# Dropout


def masks_of(module):
    return [
        hook.mask
        for part in module.modules()
        for hook in part._forward_hooks.values()
        if hasattr(hook, "mask")
    ]


def gradients(function, parameters, X, y):
    """Return the gradient of each row's log loss, (n, d), by autograd."""
    rows = []
    for x, label in zip(torch.from_numpy(X).double(), torch.from_numpy(y), strict=True):
        loss = nn.functional.cross_entropy(function(x[None]), label[None])
        parts = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([part.flatten() for part in parts]).numpy())
    return np.stack(rows)


def test_masks_of_a_perceptron():
    X, y, X_val, y_val = iris()
    model = fit(perceptron(hidden_layer_sizes=(6, 5), random_state=0), X, y)
    influence = InfluenceEstimator(FrozenEstimator(model), curvature="identity")
    ensemble = InfluenceEnsemble(influence, 3, "dropout", dropout_rate=0.4, random_state=0)
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    members, predicted = [], []
    for variant in ensemble.estimators_:
        masks = masks_of(variant.module)
        assert [mask.shape for mask in masks] == [(6,), (5,)]
        assert all(set(np.round(mask.unique().tolist(), 6)) <= {0, 1.666667} for mask in masks)
        W = [torch.tensor(w, requires_grad=True) for w in model.coefs_]
        b = [torch.tensor(v, requires_grad=True) for v in model.intercepts_]

        def outputs(x, W=W, b=b, masks=masks):
            for w, v, mask in zip(W[:-1], b[:-1], masks, strict=True):
                x = torch.tanh(x @ w + v) * mask
            return x @ W[-1] + b[-1]

        own = gradients(outputs, [*W, *b], X, y)
        target = gradients(outputs, [*W, *b], X_val, y_val).mean(0)
        members.append((own @ target, (own**2).sum(1)))
        with torch.no_grad():
            predicted.append(outputs(torch.from_numpy(X_val)).softmax(1).numpy())
        close(variant.predict_proba(X_val), predicted[-1])
    check_averages(ensemble, members)
    close(ensemble.predict_proba(X_val), np.mean(predicted, axis=0))
    assert ensemble.estimators_[0].score(X_val, y_val) == np.mean(predicted[0].argmax(1) == y_val)


@pytest.mark.parametrize("as_net", [False, True])
def test_masks_of_a_module(as_net):
    X, y, X_val, y_val = iris()
    if as_net:
        model = fit(net(module__rate=0.5), X.astype(np.float32), y)
        module = model.module_
    else:
        module = Layers(rate=0.5).double()
        model = TorchModel(module, classes=[0, 1, 2])
    before = copy.deepcopy(module)
    influence = InfluenceEstimator(FrozenEstimator(model), curvature="identity")
    ensemble = InfluenceEnsemble(influence, 2, "dropout", random_state=0)
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    members = []
    for variant in ensemble.estimators_:
        (mask,) = masks_of(variant.module)
        twin = copy.deepcopy(before).double()

        def outputs(x, mask=mask, twin=twin):
            return twin.out(torch.tanh(twin.hidden(x)) * mask)

        own = gradients(outputs, list(twin.parameters()), X, y)
        target = gradients(outputs, list(twin.parameters()), X_val, y_val).mean(0)
        members.append((own @ target, (own**2).sum(1)))
    check_averages(ensemble, members)
    assert not masks_of(module)
    assert module.training == before.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3)
        self.channels = nn.Dropout2d(0.5)
        self.units = nn.Dropout(0.25)
        self.out = nn.Linear(6 * 4, 3)

    def forward(self, x):
        x = self.channels(torch.relu(self.first(x.reshape(-1, 1, 4, 4))))
        return self.out(self.units(x.flatten(1)))


def test_whole_channels_are_dropped():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 16)), np.arange(30) % 3
    model = TorchModel(Convolution().double(), classes=[0, 1, 2])
    influence = InfluenceEstimator(model, curvature="identity")
    ensemble = fit(InfluenceEnsemble(influence, 2, "dropout", random_state=0), X, y)
    channels, units = masks_of(ensemble.estimators_[0].module)
    assert channels.shape == (6, 1, 1)
    assert units.shape == (24,)
    assert 0 < (channels == 0).sum() < 6
    assert set(units.tolist()) == {0.0, 1.0 / 0.75}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


def test_masks_hold_where_torch_has_a_shortcut():
    X = np.random.default_rng(0).standard_normal((20, 5, 4))
    y = np.arange(20) % 3
    model = TorchModel(Encoder().double(), classes=[0, 1, 2])
    influence = InfluenceEstimator(model, curvature="identity")
    ensemble = fit(InfluenceEnsemble(influence, 2, "dropout", random_state=0), X, y)
    module = ensemble.estimators_[0].module.eval()
    with torch.no_grad():
        without = module(torch.from_numpy(X))
    assert torch.allclose(module(torch.from_numpy(X)), without)
    assert not torch.allclose(model.module.eval()(torch.from_numpy(X)), without)
    close(ensemble.estimators_[0].decision_function(X), without.numpy())
    with pytest.raises(ValueError, match=r"units of shape \(3, 4\).*drawn for \(5, 4\)"):
        ensemble.influence(X[:2, :3], y[:2])


def test_masks_and_targets_of_other_kinds():
    X, y, X_val, _ = iris()
    halves = (y > 0).astype(int)
    cases = [
        (perceptron(), np.array(["n", "y"])[halves]),
        (MLPRegressor(hidden_layer_sizes=(5,), max_iter=10), X[:, 0]),
        (net(kind=NeuralNetBinaryClassifier, module__n_outputs=1, module__rate=0.2), halves),
        (net(kind=NeuralNetRegressor, module__n_outputs=1, module__rate=0.2), X[:, 0]),
        (
            make_pipeline(StandardScaler(), FunctionTransformer(np.float32), net(module__rate=0.2)),
            y,
        ),
    ]
    for model, targets in cases:
        influence = InfluenceEstimator(model, curvature="identity")
        ensemble = InfluenceEnsemble(influence, 2, "dropout", dropout_rate=0.5, random_state=0)
        fit(ensemble, X, targets)
        assert ensemble.predict(X_val).shape == (len(X_val),)
        assert ensemble.predict(X_val).dtype.kind == np.asarray(targets).dtype.kind
        assert ensemble.influence(X[:2], targets[:2]).shape == (2, 60)
        assert (ensemble.influence_std_ > 0).any()


def test_effects_under_masks():
    X, y, X_val, y_val = iris(40)
    model = perceptron(alpha=1.0, random_state=0)
    influence = InfluenceEstimator(model, ridge=2.0, parameters=["*.weight"])
    ensemble = InfluenceEnsemble(influence, 2, "dropout", random_state=0)
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    # The ridge is that of the fitted perceptron, whose rows are one batch.
    assert ensemble.estimators_[0].estimator.alpha == 2.0
    members = []
    for variant in ensemble.estimators_:
        one = InfluenceEstimator(variant, parameters=["*.weight"])
        members.append(fit(one, X, y, X_val=X_val, y_val=y_val))
    assert members[0].ridge_ == 2.0
    close(ensemble.influence_, np.mean([one.influence_ for one in members], axis=0))
    close(
        ensemble.influence(X_val, y_val),
        np.mean([one.influence(X_val, y_val) for one in members], axis=0),
    )


# Checkpoints


def test_checkpoints_of_a_net():
    X, y, X_val, y_val = iris()
    X, X_val = X.astype(np.float32), X_val.astype(np.float32)
    influence = InfluenceEstimator(net(CheckpointRecorder()), curvature="identity")
    torch.manual_seed(0)
    ensemble = fit(InfluenceEnsemble(influence, 3, "checkpoint"), X, y, X_val=X_val, y_val=y_val)
    torch.manual_seed(0)
    trained = net(CheckpointRecorder()).fit(X, y)
    kept = dict(trained.callbacks_)["CheckpointRecorder"].checkpoints_
    assert len(kept) == 4
    members, predicted = [], []
    for point in kept[-3:]:
        module = Layers()
        module.load_state_dict(point.state)
        model = TorchModel(module, classes=[0, 1, 2])
        members.append(scores(model, X, y, X_val, y_val))
        predicted.append(model.predict_proba(X_val))
    check_averages(ensemble, members)
    close(ensemble.predict_proba(X_val), np.mean(predicted, axis=0), 1e-6)


def test_checkpoints_of_a_torch_model_and_a_perceptron():
    X, y, X_val, y_val = iris()
    recorder = CheckpointRecorder()
    model = perceptron(solver="sgd", random_state=0)
    moments = []
    for _ in range(3):
        recorder.record(model.partial_fit(X, y, classes=[0, 1, 2]))
        moments.append(FrozenEstimator(copy.deepcopy(model)))
    members = [scores(moment, X, y, X_val, y_val) for moment in moments]
    influence = InfluenceEstimator(
        FrozenEstimator(model), curvature="identity", checkpoints=recorder
    )
    ensemble = InfluenceEnsemble(influence, 5, "checkpoint")
    check_averages(fit(ensemble, X, y, X_val=X_val, y_val=y_val), members)
    close(ensemble.estimators_[0].predict_proba(X), moments[0].predict_proba(X))

    module = as_model_function(model).module
    model = TorchModel(module, classes=[0, 1, 2], checkpoints=recorder)
    ensemble = InfluenceEnsemble(InfluenceEstimator(model, curvature="identity"), 2, "checkpoint")
    check_averages(fit(ensemble, X, y, X_val=X_val, y_val=y_val), members[-2:])
    effects = InfluenceEnsemble(InfluenceEstimator(model, ridge=1.0), 2, "checkpoint")
    fit(effects, X, y)
    states = [{k: v for k, v in point.state.items()} for point in recorder.checkpoints_[-2:]]
    expected = []
    for state in states:
        copied = copy.deepcopy(module)
        copied.load_state_dict(state)
        one = InfluenceEstimator(TorchModel(copied, classes=[0, 1, 2]), ridge=1.0)
        expected.append(fit(one, X, y).influence(X_val, y_val))
    close(effects.influence(X_val, y_val), np.mean(expected, axis=0))


# All kinds


def each_kind():
    X, y, *_ = iris(40)
    network = net(CheckpointRecorder(), module__rate=0.3)
    for kind in ("seed", "bootstrap", "dropout", "checkpoint"):
        influence = InfluenceEstimator(network, curvature="identity")
        yield InfluenceEnsemble(influence, 3, kind, random_state=0), X.astype(np.float32), y


def numbers(ensemble, X, y):
    return (
        ensemble.influence_,
        ensemble.influence_std_,
        ensemble.self_influence_,
        ensemble.influence(X[:3], y[:3]),
        ensemble.transform(X[:3]),
        ensemble.predict_proba(X),
    )


@pytest.mark.slow
def test_processes_change_nothing():
    for ensemble, X, y in each_kind():
        found = []
        for n_jobs in (1, 2):
            torch.manual_seed(0)  # of the one network that two of the kinds train
            found.append(numbers(fit(ensemble.set_params(n_jobs=n_jobs), X, y), X, y))
        for one, two in zip(*found, strict=True):
            np.testing.assert_array_equal(one, two)


def test_pickles_and_clones():
    for ensemble, X, y in each_kind():
        fit(ensemble, X, y)
        twin = pickle.loads(pickle.dumps(ensemble))
        for one, two in zip(numbers(ensemble, X, y), numbers(twin, X, y), strict=True):
            np.testing.assert_array_equal(one, two)
        fresh = clone(ensemble)
        assert not hasattr(fresh, "influence_")
        with pytest.raises(NotFittedError):
            fresh.influence(X, y)
        with pytest.raises(NotFittedError):
            fresh.predict(X)


@pytest.mark.parametrize("curvature", ["gauss_newton", "identity", "kfac"])
def test_one_factorization_at_a_time(curvature, monkeypatch):
    engines, alive = weakref.WeakSet(), []

    def noting(build):
        def noted(*args, **kwargs):
            engine = build(*args, **kwargs)
            engines.add(engine)
            return engine

        return noted

    def counting(method):
        def counted(self, *args, **kwargs):
            alive.append(len(engines))
            return method(self, *args, **kwargs)

        return counted

    for name in ("build_engine", "build_scores"):
        monkeypatch.setattr(_fitting, name, noting(getattr(_fitting, name)))
    for name in ("fit", "influence"):
        monkeypatch.setattr(InfluenceEstimator, name, counting(getattr(InfluenceEstimator, name)))
    X, y, *_ = iris(30)
    model = perceptron(alpha=1.0, max_iter=3)
    influence = InfluenceEstimator(model, curvature=curvature, parameters=["*.weight"])
    ensemble = fit(InfluenceEnsemble(influence, 3, "bootstrap", random_state=0), X, y)
    ensemble.influence(X[:2], y[:2])
    assert alive == [0, 0, 0] + [0, 1] * 3  # fits, then a fit and a question for each member
    assert not engines


def test_the_callers_objects_are_left_alone():
    X, y, *_ = iris(30)
    model = perceptron(random_state=7)
    influence = InfluenceEstimator(model, curvature="identity", random_state=3)
    before = X.copy(), y.copy(), copy.deepcopy(influence.get_params())
    for kind in ("seed", "bootstrap", "dropout"):
        fit(InfluenceEnsemble(influence, 2, kind, random_state=0), X, y).influence(X[:2], y[:2])
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])
    assert influence.estimator is model
    assert {k: v for k, v in influence.get_params().items() if k != "estimator"} == {
        k: v for k, v in before[2].items() if k != "estimator"
    }
    assert not [name for name in [*vars(model), *vars(influence)] if name.endswith("_")]


def test_parameters_of_the_members():
    influence = InfluenceEstimator(perceptron(), curvature="identity")
    ensemble = InfluenceEnsemble(influence, 2)
    ensemble.set_params(estimator__estimator__max_iter=3, kind="bootstrap")
    assert ensemble.estimator.estimator.max_iter == 3
    assert ensemble.get_params()["estimator__curvature"] == "identity"
    X, y, *_ = iris(30)
    assert fit(ensemble, X, y).estimators_[1].max_iter == 3


def test_the_same_seed_gives_the_same_numbers():
    X, y, *_ = iris(40)
    sketched = InfluenceEstimator(
        perceptron(alpha=1.0), sketch=GaussianSketch(n_components=20), parameters=["*.weight"]
    )
    for influence in (sketched, InfluenceEstimator(perceptron(), curvature="identity")):
        for kind in ("seed", "bootstrap"):
            one, two, other = (
                fit(InfluenceEnsemble(influence, 2, kind, random_state=seed), X, y)
                for seed in (0, 0, 1)
            )
            np.testing.assert_array_equal(one.influence_, two.influence_)
            np.testing.assert_allclose(
                one.influence(X[:2], y[:2]), two.influence(X[:2], y[:2]), rtol=1e-12
            )
            assert not np.allclose(one.influence_, other.influence_)


@pytest.mark.parametrize("ridge", ["loo", 3.0, 0.5])
def test_ridges_are_set_once(ridge):
    data = regression(3)
    ensemble = InfluenceEnsemble(
        InfluenceEstimator(Ridge(), ridge=ridge), 2, "bootstrap", random_state=0
    )
    ensemble.fit(data.X, data.y, X_val=data.X_query, y_val=data.y_query)
    close(ensemble.influence(data.X_query, data.y_query).mean(0), ensemble.influence_, 1e-9)


def test_in_a_pipeline_and_with_names():
    data = binary(3)
    influence = InfluenceEstimator(LogisticRegression())
    ensemble = InfluenceEnsemble(influence, 2, "bootstrap", random_state=0)
    pipeline = make_pipeline(StandardScaler(), ensemble).fit(data.X, data.y)
    alone = clone(ensemble).fit(StandardScaler().fit_transform(data.X), data.y)
    close(
        pipeline.transform(data.X_query),
        pipeline[-1].transform(pipeline[0].transform(data.X_query)),
    )
    np.testing.assert_array_equal(pipeline[-1].influence_, alone.influence_)
    assert pipeline.get_feature_names_out()[1] == "influenceensemble1"
    frame = alone.set_output(transform="pandas").transform(data.X_query)
    assert list(frame.columns) == list(alone.get_feature_names_out())


def test_routed_weights():
    data = regression(0)
    weights = np.random.default_rng(2).uniform(0.2, 3.0, 40)
    ensemble = InfluenceEnsemble(InfluenceEstimator(Ridge()), 2, "bootstrap", random_state=0)
    expected = clone(ensemble).fit(data.X, data.y, sample_weight=weights)
    effects = expected.influence(data.X_query, data.y_query)
    assert not np.allclose(clone(ensemble).fit(data.X, data.y).influence_, expected.influence_)
    with config_context(enable_metadata_routing=True):
        ensemble.set_params(estimator__estimator=Ridge().set_fit_request(sample_weight=True))
        ensemble.fit(data.X, data.y, sample_weight=weights)
        close(ensemble.influence_, expected.influence_)
        close(ensemble.influence(data.X_query, data.y_query), effects)


def test_aggregates_go_through():
    data = regression(0)
    influence = InfluenceEstimator(Ridge(), curvature="identity")
    ensemble = InfluenceEnsemble(influence, 3, "bootstrap", random_state=0).fit(data.X, data.y)
    whole = ensemble.influence(data.X_query, objective=lambda outputs, y: outputs.mean())
    assert whole.shape == (1, 40)
    close(whole[0], ensemble.transform(data.X_query).mean(0))


def test_labels_of_the_training_rows_stay_with_them():
    data = binary(1)
    groups = np.random.default_rng(0).integers(2, size=len(data.y))
    gap = DemographicParity(sensitive_features=groups)
    influence = InfluenceEstimator(LogisticRegression(), objective=gap, order="first")
    ensemble = InfluenceEnsemble(influence, 3, "bootstrap", random_state=0).fit(data.X, data.y)

    def member(rows):
        one = InfluenceEstimator(LogisticRegression(), order="first")
        one.fit(data.X[rows], data.y[rows])
        return one.influence(data.X, data.y, objective=gap)[0]

    close(ensemble.influence_, by_hand(ensemble, member, len(data.y))[0])
    half = len(data.X_query)
    few = DemographicParity(sensitive_features=np.arange(half) % 2)
    close(
        ensemble.influence(data.X_query, data.y_query, objective=few)[0],
        by_hand(
            ensemble,
            lambda rows: (
                InfluenceEstimator(LogisticRegression(), order="first")
                .fit(data.X[rows], data.y[rows])
                .influence(data.X_query, data.y_query, objective=few)[0]
            ),
            len(data.y),
        )[0],
    )


def test_labels_of_other_rows():
    X, y, X_val, y_val = iris()
    gap = AverageLoss(groups=np.arange(len(y_val)) % 2)
    influence = InfluenceEstimator(perceptron(), curvature="identity", objective=gap)
    ensemble = fit(InfluenceEnsemble(influence, 2, random_state=0), X, y)
    assert not hasattr(ensemble, "influence_")
    assert ensemble.influence(X_val, y_val).shape == (1, 60)
    fit(ensemble, X, y, X_val=X_val, y_val=y_val)
    close(ensemble.influence_, ensemble.influence(X_val, y_val)[0])


class Heard:
    """A callback that keeps what it is told."""

    def __init__(self):
        self.said = []

    def setup(self, estimator, context):
        self.said.append("setup")

    def teardown(self, estimator, context):
        self.said.append("teardown")

    def on_fit_task_begin(self, estimator, context, **kwargs):
        self.said.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context, **kwargs):
        self.said.append(("end", context.task_name))


def test_callbacks_hear_of_each_member():
    data, heard = regression(0), Heard()
    ensemble = InfluenceEnsemble(InfluenceEstimator(Ridge()), 3, "bootstrap")
    ensemble.set_callbacks(heard).fit(data.X, data.y)
    assert heard.said.count(("end", "fit a member")) == 3
    assert (heard.said[0], heard.said[-1]) == ("setup", "teardown")


def test_questions_do_not_warn_again():
    X, y, *_ = iris(40)
    influence = InfluenceEstimator(perceptron(alpha=1.0), parameters=["*.weight"])
    ensemble = InfluenceEnsemble(influence, 2, "bootstrap", random_state=0)
    with pytest.warns(NotStationaryWarning):
        warnings.simplefilter("ignore", ConvergenceWarning)
        ensemble.fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ensemble.influence(X[:2], y[:2])


# Mistakes


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"estimator": LogisticRegression()}, TypeError, "got LogisticRegression. Wrap the model"),
        ({"n_estimators": 0}, ValueError, "n_estimators=0 must be a whole number of at least 1"),
        ({"n_estimators": 2.0}, ValueError, "n_estimators=2.0 must be a whole number"),
        ({"n_estimators": True}, ValueError, "n_estimators=True must be a whole number"),
        ({"kind": "bagging"}, ValueError, "kind='bagging' is not known. Choose 'seed'"),
        ({"kind": None}, ValueError, "kind=None is not known"),
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate"),
        ({"kind": "seed"}, UnsupportedOptionError, "LogisticRegression has one optimum.*bootstrap"),
        ({"kind": "dropout"}, UnsupportedOptionError, "kind='dropout' is for networks.*bootstrap"),
        ({"kind": "checkpoint"}, UnsupportedOptionError, "kind='checkpoint' is for networks"),
        ({"estimator__ridge": -1.0}, ValueError, "ridge=-1.0 is not allowed"),
    ],
)
def test_wrong_parameters(params, error, words):
    data = binary(1)
    ensemble = InfluenceEnsemble(InfluenceEstimator(LogisticRegression()), 2, "bootstrap")
    with pytest.raises(error, match=words):
        ensemble.set_params(**params).fit(data.X, data.y)


@pytest.mark.parametrize("kind", ["seed", "bootstrap"])
def test_what_cannot_be_trained_again(kind):
    X, y, *_ = iris(30)
    ensemble = InfluenceEnsemble(InfluenceEstimator(TorchModel(Layers())), kind=kind)
    with pytest.raises(UnsupportedOptionError, match=r"TorchModel is trained by its owner.*skorch"):
        ensemble.fit(X, y)
    frozen = FrozenEstimator(fit(perceptron(), X, y))
    ensemble = InfluenceEnsemble(InfluenceEstimator(frozen), kind=kind)
    with pytest.raises(UnsupportedOptionError, match=r"MLPClassifier is frozen.*kind='dropout'"):
        ensemble.fit(X, y)


def test_what_has_no_dropout():
    X, y, *_ = iris(30)
    for model in (TorchModel(Layers(rate=0.0)), TorchModel(nn.Linear(4, 3))):
        influence = InfluenceEstimator(model, curvature="identity")
        with pytest.raises(UnsupportedOptionError, match="has no dropout to draw masks from"):
            InfluenceEnsemble(influence, kind="dropout").fit(X, y)


def test_what_has_no_checkpoints():
    X, y, *_ = iris(30)
    for checkpoints in (True, False):
        influence = InfluenceEstimator(
            TorchModel(Layers()), curvature="identity", checkpoints=checkpoints
        )
        with pytest.raises(UnsupportedOptionError, match="TorchModel comes with none"):
            InfluenceEnsemble(influence, kind="checkpoint").fit(X, y)


def test_seeds_that_change_nothing():
    X, y, *_ = iris(30)
    torch.manual_seed(0)
    network = net(module=Layers(), iterator_train__shuffle=False)
    ensemble = InfluenceEnsemble(InfluenceEstimator(network, curvature="identity"), 2)
    with pytest.raises(ValueError, match="members of kind='seed' came out the same"):
        fit(ensemble, X, y)


def test_bootstrap_members_remove_no_groups():
    data = regression(0)
    ensemble = InfluenceEnsemble(InfluenceEstimator(Ridge()), 2, "bootstrap").fit(data.X, data.y)
    with pytest.raises(UnsupportedOptionError, match="removal_effect removes rows together"):
        ensemble.removal_effect([0, 1])


def test_half_a_validation_set():
    data = regression(0)
    ensemble = InfluenceEnsemble(InfluenceEstimator(Ridge()), 2, "bootstrap")
    with pytest.raises(ValueError, match="X_val was given without y_val"):
        ensemble.fit(data.X, data.y, X_val=data.X_query)


def test_errors_of_members_come_through():
    data = regression(0)
    for n_jobs in (1, 2):
        ensemble = InfluenceEnsemble(InfluenceEstimator(Ridge()), 3, "bootstrap", n_jobs=n_jobs)
        with pytest.raises(ValueError, match="contains NaN"):
            ensemble.fit(data.X * np.nan, data.y)


# What it is for


@pytest.mark.slow
def test_five_seeds_find_more_flipped_labels_than_one():
    X, y = load_digits(return_X_y=True)
    gains = []
    for split in range(4):
        rng = np.random.default_rng(split)
        X_train, X_val, y_train, y_val = train_test_split(
            X / 16.0, y, train_size=1000, test_size=700, stratify=y, random_state=split
        )
        flipped = rng.random(len(y_train)) < 0.2
        noisy = np.where(flipped, (y_train + rng.integers(1, 10, len(y_train))) % 10, y_train)
        model = MLPClassifier((48,), solver="lbfgs", alpha=1.0)
        influence = InfluenceEstimator(model, curvature="identity")
        ensemble = InfluenceEnsemble(influence, random_state=split)
        fit(ensemble, X_train, noisy, X_val=X_val, y_val=y_val)
        singles = [
            roc_auc_score(flipped, -scores(model, X_train, noisy, X_val, y_val)[0])
            for model in ensemble.estimators_
        ]
        gains.append(roc_auc_score(flipped, -ensemble.influence_) - np.mean(singles))
    assert min(gains) > 0.0
    assert np.mean(gains) > 0.02
