"""Modules that call their layers in unusual ways, checked against plain automatic derivatives."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from network_helpers import Composed, normal
from network_references import dense_jacobian
from sklearn.neural_network import MLPRegressor
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import InfluenceWarning, NotStationaryWarning, UnsupportedModelError
from sklearn_dualif.kernels import Network, TangentFeatures

X, Y = normal(20, 5, 4), np.arange(20) % 2
TOKENS = np.random.default_rng(0).integers(0, 5, (20, 5))


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()


def module(function, **layers):
    """Return a seeded module around layers, each given by a function that builds it."""
    return seeded(lambda: Composed(function, **{name: make() for name, make in layers.items()}))


def jacobian(net, inputs):
    """Return the derivatives by all parameters, in the order of their names."""
    penalties = {name: 1.0 for name, _ in net.named_parameters()}
    network = Network(net, penalties, torch.as_tensor(inputs), dtype=torch.float64)
    return TangentFeatures(network, torch.as_tensor(inputs)).heads().jacobian().numpy()


UNUSUAL = {
    "positions": lambda: module(
        lambda m, x: m.head((m.a(x) + m.at(torch.arange(x.shape[1]))).mean(1)),
        a=lambda: nn.Linear(4, 3),
        at=lambda: nn.Embedding(5, 3),
        head=lambda: nn.Linear(3, 2),
    ),
    "folded steps": lambda: module(
        lambda m, x: m.head(m.a(x.reshape(-1, 4)).tanh().view(len(x), 5, 3).mean(1)),
        a=lambda: nn.Linear(4, 3),
        head=lambda: nn.Linear(3, 2),
    ),
    "time first": lambda: module(
        lambda m, x: m.head(m.a(x.transpose(0, 1)).tanh().mean(0)),
        a=lambda: nn.Linear(4, 3),
        head=lambda: nn.Linear(3, 2),
    ),
    "constant input": lambda: module(
        lambda m, x: m.a(x.mean(1)) + m.b(torch.ones(1, 4, dtype=x.dtype)),
        a=lambda: nn.Linear(4, 2),
        b=lambda: nn.Linear(4, 2),
    ),
    "keyword": lambda: module(lambda m, x: m.a(input=x.mean(1)), a=lambda: nn.Linear(4, 2)),
    "scalar parameter": lambda: module(
        lambda m, x: m.scale * m.a(x.mean(1)),
        a=lambda: nn.Linear(4, 2),
        scale=lambda: nn.Parameter(torch.tensor(1.5)),
    ),
    "in place": lambda: module(
        lambda m, x: m.head(m.a(x.mean(1)).relu_()),
        a=lambda: nn.Linear(4, 3),
        head=lambda: nn.Linear(3, 2),
    ),
}


@pytest.mark.parametrize("build", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_calls_are_differentiated_all_the_same(build):
    net = build()
    np.testing.assert_allclose(jacobian(net, X), dense_jacobian(net, X), atol=1e-12)


def test_sparse_gradients_of_an_embedding():
    net = module(
        lambda m, x: m.a(m.table(x).mean(1)),
        a=lambda: nn.Linear(4, 2),
        table=lambda: nn.Embedding(5, 4, sparse=True),
    )
    found = jacobian(net, TOKENS)
    net.table.sparse = False
    np.testing.assert_allclose(found, dense_jacobian(net, TOKENS), atol=1e-12)


def test_a_changed_layer_is_seen_though_the_first_rows_do_not_show_it():
    rows = X[:, 0].copy()
    rows[:3] = 0.0
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 2, bias=False), nn.Tanh(), nn.Linear(2, 2)))
    net[0].register_forward_hook(lambda layer, args, output: 2.0 * output)
    np.testing.assert_allclose(jacobian(net, rows), dense_jacobian(net, rows), atol=1e-12)


def test_queries_may_be_longer_than_training_rows():
    net = module(
        lambda m, x: m.head(m.a(x).tanh().mean(1)),
        a=lambda: nn.Linear(20, 8),
        head=lambda: nn.Linear(8, 2),
    )
    model = TorchModel(net, weight_decay=0.1, classes=[0, 1])
    queries = normal(3, 12, 20, seed=1)
    answers = []
    for solver in ("primal", "dual"):
        with pytest.warns(InfluenceWarning, match="not at an optimum"):
            influence = InfluenceEstimator(model, solver=solver).fit(normal(20, 2, 20), Y)
        answers.append(influence.influence(queries, Y[:3]))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-9)


def test_random_numbers_drawn_by_a_forward_leave_no_trace():
    net = module(lambda m, x: m.a(x.mean(1)) + 0.0 * torch.rand(1), a=lambda: nn.Linear(4, 2))
    before = torch.get_rng_state()
    np.testing.assert_allclose(jacobian(net, X), dense_jacobian(net, X), atol=1e-12)
    network = Network(net, {"a.weight": 1.0}, torch.as_tensor(X), dtype=torch.float64)
    state = torch.get_rng_state()
    TangentFeatures(network, torch.as_tensor(X)).heads()
    assert torch.equal(state, torch.get_rng_state())
    torch.set_rng_state(before)


def refused(model, kind, pattern, rows=X, **params):
    with pytest.raises(kind, match=pattern):
        InfluenceEstimator(model, **params).fit(rows, Y)


def test_clear_refusals():
    alone = seeded(
        lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    )
    refused(TorchModel(alone), UnsupportedModelError, "the rows beside it", X[:, 0])
    plain = seeded(lambda: nn.Linear(4, 2))
    refused(
        TorchModel(plain), ValueError, r"parameters=\[\] matches no.*weight", X[:, 0], parameters=[]
    )
    refused(
        MLPRegressor(hidden_layer_sizes=(3,), max_iter=5000, solver="lbfgs"),
        ValueError,
        "ridge='loo' needs a squared loss",
        X[:, 0],
        ridge="loo",
    )


def test_a_module_that_cannot_be_copied():
    net = seeded(lambda: nn.Linear(4, 2))
    net.lock = threading.Lock()
    penalties = {"weight": 1.0, "bias": 1.0}
    with pytest.raises(UnsupportedModelError, match=r"cannot be copied.*no locks"):
        Network(net, penalties, torch.as_tensor(X[:, 0]), dtype=torch.float64)


def test_a_row_without_weight_is_not_the_last_of_its_class():
    net = seeded(lambda: nn.Linear(4, 2))
    model = TorchModel(net, weight_decay=0.1, classes=[0, 1])
    with pytest.warns(InfluenceWarning, match="not at an optimum"):
        influence = InfluenceEstimator(model).fit(X[:, 0], Y, sample_weight=(Y == 1) * 1.0)
    assert (influence.parameter_change([0]) == 0.0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_module_that_insists_on_single_precision_runs_in_it(dtype):
    def forward(net, x):
        state = torch.zeros(len(x), 3, dtype=torch.float32)
        return net.head((x.float() @ net.a.weight.T + state).tanh())

    net = module(forward, a=lambda: nn.Linear(4, 3, bias=False), head=lambda: nn.Linear(3, 2))
    net = net.float()
    rows = X[:, 0].astype(np.float32)
    plain = module(
        lambda m, x: m.head(m.a(x).tanh()),
        a=lambda: nn.Linear(4, 3, bias=False),
        head=lambda: nn.Linear(3, 2),
    )
    effects = []
    for each, values in ((net, rows), (plain, rows.astype(float))):
        model = TorchModel(each, weight_decay=0.1)
        influence = InfluenceEstimator(model, dtype=dtype, order="first")
        with pytest.warns(NotStationaryWarning):
            influence.fit(values, Y)
        effects.append(influence.influence(values, Y))
    gap = np.linalg.norm(effects[0] - effects[1])
    assert gap < 1e-4 * np.linalg.norm(effects[1])
