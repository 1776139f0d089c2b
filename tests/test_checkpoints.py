"""Scores over checkpoints of a training, and the recorder of these."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from network_helpers import not_at_the_optimum
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_dualif import CheckpointRecorder, InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import UnsupportedOptionError
from sklearn_dualif.models._checkpoints import as_checkpoints


def data():
    X, y = load_iris(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    return X.astype(np.float32), y.astype(np.int64)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)))


def net(*callbacks, **params):
    torch.manual_seed(0)
    return NeuralNetClassifier(
        TwoLayers,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=0.1,
        max_epochs=4,
        batch_size=50,
        train_split=None,
        iterator_train__shuffle=False,
        callbacks=list(callbacks),
        callbacks__print_log=None,
        **params,
    )


def trained_states(n=3):
    """Return a module, its states after some steps of descent, and their learning rates."""
    X, y = map(torch.from_numpy, data())
    torch.manual_seed(1)
    module = TwoLayers()
    states, rates = [], [0.3, 0.2, 0.05][:n]
    for rate in rates:
        optimizer = torch.optim.SGD(module.parameters(), lr=rate)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X), y).backward()
            optimizer.step()
        states.append(copy.deepcopy(module.state_dict()))
    return module, states, rates


def naive_gradients(module, state, X, y, names=None):
    """Return the gradient of each row's loss by autograd, row by row, (n, d)."""
    module = copy.deepcopy(module).double()
    module.load_state_dict(state)
    rows = []
    for x, label in zip(torch.from_numpy(X).double(), torch.from_numpy(y), strict=True):
        module.zero_grad()
        nn.functional.cross_entropy(module(x[None]), label[None]).backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        rows.append(torch.cat([grads[name].flatten() for name in names or grads]).numpy().copy())
    return np.stack(rows)


def naive_scores(module, states, rates, X, y, queries, labels, names=None):
    total = 0.0
    for state, rate in zip(states, rates, strict=True):
        own = naive_gradients(module, state, X, y, names)
        total = total + rate * naive_gradients(module, state, queries, labels, names) @ own.T
    return total


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# Sums over checkpoints


@pytest.mark.parametrize("names", [None, ["out.weight", "out.bias"]])
def test_scores_are_sums_over_checkpoints(names):
    X, y = data()
    module, states, rates = trained_states()
    model = TorchModel(module, classes=[0, 1, 2], checkpoints=list(zip(states, rates, strict=True)))
    tracin = InfluenceEstimator(
        model, curvature="identity", parameters=None if names is None else ["out.*"]
    ).fit(X, y, X_val=X[:9], y_val=y[:9])
    expected = naive_scores(module, states, rates, X, y, X[:9], y[:9], names)
    close(tracin.influence(X[:9], y[:9]), expected)
    close(tracin.influence_, expected.mean(0))
    whole = naive_scores(module, states, rates, X, y, X, y, names)
    close(tracin.self_influence_, whole.diagonal())
    assert tracin.solver_info_ == {"checkpoints": 3}


def test_cosines_are_of_the_checkpoints_side_by_side():
    X, y = data()
    module, states, rates = trained_states()
    pairs = list(zip(states, rates, strict=True))
    own = np.hstack([rate**0.5 * naive_gradients(module, state, X, y) for state, rate in pairs])
    own /= np.linalg.norm(own, axis=1)[:, None]
    model = TorchModel(module, classes=[0, 1, 2])
    tracin = InfluenceEstimator(model, curvature="identity", normalize=True, checkpoints=pairs)
    close(tracin.fit(X, y).influence(X[:9], y[:9]), own[:9] @ own.T)


def test_without_checkpoints_the_fitted_parameters_count_alone():
    X, y = data()
    module, states, rates = trained_states()
    model = TorchModel(module, classes=[0, 1, 2], checkpoints=list(zip(states, rates, strict=True)))
    scores = InfluenceEstimator(model, curvature="identity", checkpoints=False).fit(X, y)
    expected = naive_scores(module, [module.state_dict()], [1.0], X, y, X[:5], y[:5])
    close(scores.influence(X[:5], y[:5]), expected)
    assert scores.solver_info_ == {"checkpoints": 0}


def test_each_parameter_has_its_own_rate():
    X, y = data()
    module, states, _ = trained_states(1)
    rates = {"out.weight": 0.5, "out.bias": 0.25}
    model = TorchModel(module, classes=[0, 1, 2], checkpoints=[(states[0], rates)])
    tracin = InfluenceEstimator(model, curvature="identity").fit(X, y)
    expected = sum(
        naive_scores(module, states, [rate], X, y, X[:5], y[:5], [name])
        for name, rate in rates.items()
    )
    close(tracin.influence(X[:5], y[:5]), expected)


def test_states_without_steps_count_nothing():
    X, y = data()
    module, states, rates = trained_states()
    pairs = [*zip(states, rates, strict=True), (states[0], 0.0)]
    model = TorchModel(module, classes=[0, 1, 2])
    tracin = InfluenceEstimator(model, curvature="identity", checkpoints=pairs).fit(X, y)
    assert tracin.solver_info_ == {"checkpoints": 3}


def test_the_predicted_class_is_that_of_the_trained_module():
    X, y = data()
    module, states, rates = trained_states()
    states[0] = {name: -value for name, value in states[0].items()}
    model = TorchModel(module, classes=[0, 1, 2], checkpoints=list(zip(states, rates, strict=True)))
    tracin = InfluenceEstimator(model, curvature="identity").fit(X, y)
    margins = tracin.influence(X[:9], tracin.predict(X[:9]), objective="margin")
    close(tracin.transform(X[:9]), margins, 1e-14)


# The recorder of a skorch net


@pytest.mark.parametrize("in_files", [False, True])
def test_a_recorder_among_the_callbacks(in_files, tmp_path):
    X, y = data()
    recorder = CheckpointRecorder(every=2, folder=tmp_path if in_files else None)
    with not_at_the_optimum():
        tracin = InfluenceEstimator(net(recorder), curvature="identity").fit(X, y)
    fitted = dict(tracin.estimator_.callbacks_)["CheckpointRecorder"]
    assert len(fitted.checkpoints_) == 2
    assert fitted.checkpoints_[-1].rates == 0.1
    module = tracin.estimator_.module_
    states = [point.module(module).state_dict() for point in fitted.checkpoints_]
    for name, value in module.state_dict().items():
        assert torch.equal(states[-1][name], value)
        assert not torch.equal(states[0][name], value)
    expected = naive_scores(module, states, [0.1, 0.1], X, y, X[:5], y[:5])
    close(tracin.influence(X[:5], y[:5]), expected)
    assert not hasattr(recorder, "checkpoints_")  # the caller's own is not touched


def test_epochs_that_are_kept():
    X, y = data()
    trained = net(CheckpointRecorder(epochs=[1, 3])).fit(X, y)
    recorder = dict(trained.callbacks_)["CheckpointRecorder"]
    assert len(recorder.checkpoints_) == 2
    whole = net(CheckpointRecorder()).fit(X, y)
    every = dict(whole.callbacks_)["CheckpointRecorder"].checkpoints_
    for kept, position in zip(recorder.checkpoints_, (0, 2), strict=True):
        for name, value in kept.state.items():
            assert torch.equal(value, every[position].state[name])


def test_a_scheduled_rate_is_recorded():
    from skorch.callbacks import LRScheduler

    X, y = data()
    recorder = CheckpointRecorder()
    scheduler = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    trained = net(recorder, scheduler).fit(X, y)
    kept = dict(trained.callbacks_)["CheckpointRecorder"].checkpoints_
    assert [point.rates for point in kept] == [0.1, 0.05, 0.025, 0.0125]


def test_parameter_groups_have_rates_of_their_own():
    X, y = data()
    groups = [("hidden.*", {"lr": 0.02})]
    trained = net(CheckpointRecorder(epochs=[4]), optimizer__param_groups=groups).fit(X, y)
    (point,) = dict(trained.callbacks_)["CheckpointRecorder"].checkpoints_
    assert point.rates == {
        "hidden.weight": 0.02,
        "hidden.bias": 0.02,
        "out.weight": 0.1,
        "out.bias": 0.1,
    }


# Other networks


def test_perceptrons_are_recorded_by_hand():
    X, y = data()
    model = MLPClassifier((5,), activation="tanh", solver="sgd", alpha=0.0, random_state=0)
    recorder = CheckpointRecorder()
    moments = []
    for rate in (0.1, 0.03):
        model.set_params(learning_rate_init=rate)
        recorder.record(model.partial_fit(X, y, classes=[0, 1, 2]))
        moments.append(copy.deepcopy(model))
    rates = [point.rates for point in recorder.checkpoints_]
    with not_at_the_optimum():
        tracin = InfluenceEstimator(
            FrozenEstimator(model), curvature="identity", checkpoints=recorder
        ).fit(X, y)
        expected = sum(
            rate
            * InfluenceEstimator(FrozenEstimator(moment), curvature="identity")
            .fit(X, y)
            .influence(X[:5], y[:5])
            for moment, rate in zip(moments, rates, strict=True)
        )
    close(tracin.influence(X[:5], y[:5]), expected)


def test_a_pipeline_with_a_recorder():
    X, y = data()
    from sklearn.preprocessing import FunctionTransformer

    def single(rows):
        return rows.astype(np.float32)

    steps = make_pipeline(StandardScaler(), FunctionTransformer(single), net(CheckpointRecorder()))
    with not_at_the_optimum():
        tracin = InfluenceEstimator(steps, curvature="identity").fit(X, y)
    assert tracin.solver_info_ == {"checkpoints": 4}


def test_a_folder_is_read_by_its_path(tmp_path):
    X, y = data()
    module, states, rates = trained_states()
    recorder = CheckpointRecorder(folder=tmp_path / "runs")
    for state, rate in zip(states, rates, strict=True):
        own = copy.deepcopy(module)
        own.load_state_dict(state)
        recorder.record(own, rate)
    model = TorchModel(module, classes=[0, 1, 2], checkpoints=recorder.folder_)
    tracin = InfluenceEstimator(model, curvature="identity").fit(X, y)
    close(
        tracin.influence(X[:5], y[:5]),
        naive_scores(module, states, rates, X, y, X[:5], y[:5]),
    )


def test_trainings_never_share_a_folder(tmp_path):
    X, y = data()
    folders = set()
    for _ in range(2):
        trained = net(CheckpointRecorder(folder=tmp_path)).fit(X, y)
        folders.add(dict(trained.callbacks_)["CheckpointRecorder"].folder_)
    assert len(folders) == 2
    assert all(len(list(folder.iterdir())) == 4 for folder in folders)


def test_clones_and_pickles():
    X, y = data()
    recorder = CheckpointRecorder(every=2)
    assert clone(recorder).get_params() == recorder.get_params()
    with not_at_the_optimum():
        tracin = InfluenceEstimator(net(recorder), curvature="identity").fit(X, y)
    again = pickle.loads(pickle.dumps(tracin))
    np.testing.assert_array_equal(again.influence(X[:3], y[:3]), tracin.influence(X[:3], y[:3]))


def test_a_recorder_as_a_parameter():
    X, y = data()
    module, states, rates = trained_states()
    recorder = CheckpointRecorder()
    for state, rate in zip(states, rates, strict=True):
        own = copy.deepcopy(module)
        own.load_state_dict(state)
        recorder.record(own, rate)
    expected = naive_scores(module, states, rates, X, y, X[:5], y[:5])
    model = TorchModel(module, classes=[0, 1, 2])
    for tracin in (
        InfluenceEstimator(clone(model).set_params(checkpoints=recorder), curvature="identity"),
        clone(InfluenceEstimator(model, curvature="identity", checkpoints=recorder)),
    ):
        close(tracin.fit(X, y).influence(X[:5], y[:5]), expected)
    clone(recorder).record(module, 0.1)
    assert len(recorder.checkpoints_) == 3


# Mistakes


def fit(checkpoints):
    X, y = data()
    module, _, _ = trained_states(1)
    model = TorchModel(module, classes=[0, 1, 2], checkpoints=checkpoints)
    InfluenceEstimator(model, curvature="identity").fit(X, y)


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ([], "no list of pairs"),
        ("nowhere", "has no checkpoints"),
        ([(1.0, 0.1)], "has a float for its parameters"),
        ([(nn.Linear(4, 2).state_dict(), 0.1)], "same architecture"),
        ([(TwoLayers().state_dict(), -0.1)], "finite number >= 0"),
        ([(TwoLayers().state_dict(), float("nan"))], "finite number >= 0"),
        (CheckpointRecorder(), "has kept no checkpoints"),
        ([(TwoLayers().state_dict(), 0.0)], "learning rate is 0"),
    ],
)
def test_wrong_checkpoints(checkpoints, words):
    with pytest.raises(ValueError, match=words):
        fit(checkpoints)


def test_a_foreign_file_has_no_rate(tmp_path):
    from safetensors.torch import save_file

    save_file(TwoLayers().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="has no learning rate"):
        as_checkpoints(tmp_path)


@pytest.mark.parametrize("params", [{"every": 0}, {"every": True}, {"epochs": [1, 0]}])
def test_wrong_epochs(params):
    with pytest.raises(ValueError, match="whole numbers of at least 1"):
        CheckpointRecorder(**params).initialize()


def test_a_rate_that_is_not_known():
    with pytest.raises(ValueError, match=r"learning rate of TwoLayers is not known"):
        CheckpointRecorder().record(TwoLayers())


def test_models_without_states():
    from sklearn.linear_model import Ridge

    X, y = data()
    with pytest.raises(UnsupportedOptionError, match="is no network"):
        CheckpointRecorder().record(Ridge().fit(X, y), 0.1)
