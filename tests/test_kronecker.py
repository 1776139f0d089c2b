"""Curvature taken layer by layer: against dense matrices built from their definitions."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from helpers import relative
from network_cases import NetworkCase, network_case
from network_helpers import (
    PERCEPTRONS,
    Composed,
    case_of,
    digits_network,
    each_network,
    fit_case,
    fit_quietly,
    normal,
    oracle,
    oracle_of,
    perceptron_problem,
    seeded,
)
from network_references import trainable
from scipy.stats import spearmanr
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.curvature import KroneckerCurvature, _kronecker
from sklearn_dualif.exceptions import InfluenceWarning, MemoryLimitError, UnsupportedOptionError
from sklearn_dualif.kernels import _kronecker as kernels_kronecker
from sklearn_dualif.losses import empirical_fisher
from sklearn_dualif.sketching import GaussianSketch

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
approximate_orders = pytest.mark.parametrize("order", ["first", "newton"])


# The dense matrix, by its definition


@dataclass
class Layer:
    """A weight matrix: its columns (o, i) of the parameters, inputs (n, P, i) and sensitivities."""

    columns: np.ndarray
    inputs: np.ndarray
    sensitivities: np.ndarray  # (n, C, P, o)


def patches(layer, x):
    """Return the inputs (n, groups, P, i) that a layer multiplies by its weight matrices."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), 1, -1, layer.in_features)
    width, shape = layer.in_channels // layer.groups, layer.kernel_size
    size = width * int(np.prod(shape))
    # A convolution of the same kind whose output channels are the entries of the patch.
    probe = type(layer)(
        width,
        size,
        shape,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        bias=False,
    ).double()
    with torch.no_grad():
        probe.weight.copy_(torch.eye(size, dtype=torch.float64).reshape(size, width, *shape))
        groups = [probe(part).flatten(2).mT for part in x.split(width, 1)]
    return torch.stack(groups, 1)


def positions_of(layer, values):
    """Return values shaped as a layer's output as (n, groups, P, o / groups)."""
    if isinstance(layer, nn.Linear):
        return values.reshape(len(values), 1, -1, layer.out_features)
    return values.reshape(len(values), layer.groups, layer.out_channels // layer.groups, -1).mT


def layers_of(module, X, R):
    """Return the `Layer` s with a penalised weight matrix that are called once."""
    named = dict(module.named_parameters(remove_duplicate=False))
    owners = [id(p) for p in named.values()]
    starts = np.cumsum([0, *(p.numel() for p in trainable(module).values())])
    places = dict(zip(map(id, trainable(module).values()), starts, strict=False))
    calls = {layer: [] for layer in module.modules() if type(layer) in LAYERS}
    handles = [
        layer.register_forward_hook(lambda own, args, out: calls[own].append((args[0], out)))
        for layer in calls
    ]
    z = module(torch.as_tensor(X))
    for handle in handles:
        handle.remove()
    layers = []
    for layer, made in calls.items():
        shared = any(owners.count(id(p)) > 1 for p in layer.parameters())
        if len(made) != 1 or shared or id(layer.weight) not in places:
            continue
        start, n_out = places[id(layer.weight)], len(layer.weight)
        columns = start + np.arange(layer.weight.numel()).reshape(n_out, -1)
        if R[start] == 0.0:
            continue
        (x, out) = made[0]
        e = [
            torch.autograd.grad(z[:, c].sum(), out, retain_graph=True)[0] for c in range(z.shape[1])
        ]
        e = torch.stack([positions_of(layer, part) for part in e], 1).numpy()
        a = patches(layer, x.detach()).numpy()
        bias = places.get(id(layer.bias)) if layer.bias is not None else None
        if bias is not None and R[bias] > 0.0:
            columns = np.c_[columns, bias + np.arange(n_out)]
            a = np.concatenate([a, np.ones((*a.shape[:-1], 1))], -1)
        groups = a.shape[1]
        for g, own in enumerate(np.split(columns, groups)):
            layers.append(Layer(own, a[:, g], e[:, :, g]))
    return layers


class Naive:
    """The matrix of a linearised network by its definition, and steps of the parameters.

    All in units in which every penalised parameter has the same ridge.
    """

    def __init__(self, module, X, network, largest_dense=np.inf):
        self.net = network
        R = network.R
        self.free = np.flatnonzero(R == 0.0)
        self.scale = np.sqrt(R.max() / np.where(R > 0.0, R, R.max()))
        self.J = network.J * self.scale
        self.reference = network.reference()
        self.r, self.Lam = self.reference.r, self.reference.Lam
        self.ridge = np.where(R > 0.0, R.max(), 0.0)
        self.bases = []
        left = set(np.flatnonzero(R > 0.0))
        for layer in layers_of(module, X, R):
            a = layer.inputs * self.scale[layer.columns[0]]
            A = np.einsum("n,npi,npj->ij", network.weights, a, a)
            E = np.einsum("ncpo,nce,nepq->oq", layer.sensitivities, self.Lam, layer.sensitivities)
            Q = np.kron(np.linalg.eigh(E)[1], np.linalg.eigh(A)[1])
            self.bases.append((layer.columns.ravel(), Q))
            left -= set(layer.columns.ravel())
        start, self.dense = 0, [self.free] if len(self.free) else []
        for parameter in trainable(module).values():
            columns = np.arange(start, start + parameter.numel())
            start = columns[-1] + 1
            if columns[0] not in left:
                continue
            if len(columns) > largest_dense:
                self.bases.append((columns, np.eye(len(columns))))
            else:
                self.dense.append(columns)

    def matrix(self, kept):
        """Return the approximation of sum_i J' Lam J over some rows."""
        J, Lam = self.J[kept], self.Lam[kept]
        H = np.zeros((J.shape[2], J.shape[2]))
        for columns in self.dense:
            own = J[:, :, columns]
            H[np.ix_(columns, columns)] = np.einsum("ncp,nce,neq->pq", own, Lam, own)
        for columns, Q in self.bases:
            values = np.zeros(len(columns))
            for own, curvature in zip(J[:, :, columns] @ Q, Lam, strict=True):
                values += np.einsum("cp,ce,ep->p", own, curvature, own)
            H[np.ix_(columns, columns)] = (Q * values) @ Q.T
        return H

    def step(self, rows, order):
        """Return the change of the parameters (d,) without rows."""
        rows = np.asarray(rows)
        share = self.reference.share(rows)
        theta = self.net.theta / self.scale
        gradient = np.einsum("ncd,nc->d", self.J[rows], self.r[rows])
        gradient += share * self.ridge * theta
        kept = np.arange(len(self.J))
        ridge = self.ridge
        if order == "newton":
            kept, ridge = np.setdiff1d(kept, rows), (1.0 - share) * ridge
        H = self.matrix(kept) + np.diag(ridge)
        return self.scale * (np.linalg.pinv(H, rcond=1e-12, hermitian=True) @ gradient)

    def single_steps(self, order):
        return np.stack([self.step([row], order) for row in range(len(self.J))])

    def leverages(self):
        """Return tr(Lam_i J_i H^+ J_i') for each row."""
        H = self.matrix(np.arange(len(self.J))) + np.diag(self.ridge)
        inverse = np.linalg.pinv(H, rcond=1e-12, hermitian=True)
        return np.einsum("nce,ncp,pq,neq->n", self.Lam, self.J, inverse, self.J, optimize=True)


@cache
def naive(name):
    case = case_of(name)
    return Naive(case.module, case.X, oracle(name).network)


def assert_as_dense(found, case, dense, expected, order):
    """Check what an `InfluenceEstimator` says of a case against the steps of `Naive`."""
    steps = expected.single_steps(order)
    effects = found.influence(case.X_query, case.y_query)
    assert relative(effects, dense.effects(steps, order).T) < 1e-8
    own = dense.effects(steps, order, training=True).diagonal()
    assert relative(found.self_influence_, own) < 1e-8
    assert relative(found.leverage_, expected.leverages()) < 1e-8
    mean = [
        found.influence_,
        dense.effects(steps, "first", training=True).mean(-1),
    ]
    assert relative(*mean) < 1e-8
    group = [0, 2, 4, 9]
    step = expected.step(group, order)
    removal = found.removal_effect(group, case.X_query, case.y_query)
    assert relative(removal, dense.effects(step, order)) < 1e-8
    assert relative(found.parameter_change(group), step) < 1e-8


# On an image that wraps around, factors of inputs have eigenvalues of multiplicity two, whose
# eigenvectors are nobody's in particular.
@approximate_orders
@each_network("linear-mse", "conv2d-circular")
def test_effects_are_those_of_the_dense_matrix(name, order):
    case = case_of(name)
    found = fit_case(case, curvature="kfac", order=order)
    assert found.solver_ == "kfac"
    assert_as_dense(found, case, oracle(name), naive(name), order)


@approximate_orders
@pytest.mark.parametrize("name", ["lstm", "embedding-padding", "raw-parameter", "tied-weight"])
def test_large_tensors_without_factors_keep_their_diagonal(name, order, monkeypatch):
    monkeypatch.setattr(kernels_kronecker, "LARGEST_DENSE", 4)
    case, dense = case_of(name), oracle(name)
    found = fit_case(case, curvature="kfac", order=order)
    assert found.solver_info_["diagonal"] > 0
    expected = Naive(case.module, case.X, dense.network, largest_dense=4)
    assert_as_dense(found, case, dense, expected, order)


def one_row_alone():
    """Return a case in which a free parameter matters to the first row alone."""
    module = seeded(
        lambda: Composed(
            lambda own, x: own.body(x[:, :4]) + own.free(x[:, 4:]),
            body=nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)),
            free=nn.Linear(1, 3, bias=False),
        )
    )
    base = network_case("mlp-tanh")
    X = np.c_[base.X, np.arange(len(base.X)) == 0].astype(float)
    X_query = np.c_[base.X_query, np.ones(len(base.X_query))]
    decay = {"body.*": 0.02, "free.*": 0.0}
    return NetworkCase(
        "one row", module, X, base.y, base.loss, 3, decay, None, X_query, base.y_query
    )


@approximate_orders
def test_free_parameters_that_nothing_determines_stay(order):
    case = one_row_alone()
    dense = oracle_of(case)
    found = fit_case(case, curvature="kfac", order=order)
    assert_as_dense(found, case, dense, Naive(case.module, case.X, dense.network), order)


def test_removals_are_edits_that_take_all():
    model, X, y, _, _ = perceptron_problem("multiclass")
    found = fit_quietly(InfluenceEstimator(model, curvature="kfac"), X, y)
    curvature = found._engine.curvature
    rows = torch.tensor([1, 4])
    root = curvature.expansion.root[0, rows]
    edited = curvature.edit(rows, -curvature.expansion.gradient[:, rows], (-root @ root.mT)[None])
    assert curvature.shares is None
    torch.testing.assert_close(edited, curvature.remove(rows))


@approximate_orders
@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_perceptrons(kind, order):
    model, X, y, X_query, y_query = perceptron_problem(kind)
    found = fit_quietly(InfluenceEstimator(model, curvature="kfac", order=order), X, y)
    effects = found.influence(X_query, y_query)
    assert np.isfinite(effects).all()
    for row in (0, 7):
        assert relative(found.removal_effect([row], X_query, y_query), effects[:, row]) < 1e-8
    assert len(found.parameter_change([3, 5])) == found.n_parameters_
    assert found.effective_dimension_ == pytest.approx(found.leverage_.sum())
    moved = found.unlearn([3]).coefs_[0] - found.estimator_.coefs_[0]
    change = found.parameter_change([3])[: moved.size]
    assert relative(change, moved.T.ravel()) < 1e-8


def test_relabelling_is_a_step_with_the_matrix(digits):
    model, X, y, X_query, y_query = digits
    found = InfluenceEstimator(model, curvature="kfac", order="first").fit(X, y)
    other = (y[3] + 1) % 10
    effect = found.relabel_effect([3], other, X_query, y_query)
    curvature = found._engine.curvature
    change = torch.zeros(1, 1, 10, dtype=torch.float64)
    change[0, 0, y[3]], change[0, 0, other] = 1.0, -1.0
    gradient = curvature.row_gradients(torch.tensor([3]), change)
    state = -gradient / (curvature.eigenvalues + curvature.ridge)[:, None]
    objective = found._choices(None, None)[0]
    features, targets = found._queries(X_query, y_query, objective)
    expected = found._engine.state_effect(state, features, targets, objective, "first")
    assert relative(effect, expected.numpy()) < 1e-10


@pytest.fixture(scope="module")
def digits():
    return digits_network()


@approximate_orders
def test_scores_agree_with_those_of_the_exact_matrix(digits, order):
    model, X, y, X_query, y_query = digits
    exact, found = (
        InfluenceEstimator(model, curvature=curvature, order=order).fit(X, y)
        for curvature in ("gauss_newton", "kfac")
    )
    pairs = [each.influence(X_query, y_query) for each in (found, exact)]
    assert np.corrcoef(*(pair.ravel() for pair in pairs))[0, 1] > 0.75
    ranks = [spearmanr(*each)[0] for each in zip(*pairs, strict=True)]
    assert np.mean(ranks) > 0.5
    assert np.corrcoef(found.self_influence_, exact.self_influence_)[0, 1] > 0.95


@pytest.mark.parametrize("weighted", [False, True])
def test_one_layer_of_one_output_and_squared_loss_is_exact(weighted):
    X, y = normal(40, 5), normal(40, seed=1)
    weights = {"sample_weight": np.linspace(0.1, 2.0, 40)} if weighted else {}
    model = TorchModel(seeded(lambda: nn.Linear(5, 1)), loss="mse", weight_decay=0.1)
    answers = []
    for curvature in ("gauss_newton", "kfac"):
        influence = InfluenceEstimator(model, curvature=curvature, order="first")
        fit_quietly(influence, X, y, **weights)
        answers.append([influence.influence(X[:7], y[:7]), influence.leverage_])
    for exact, found in zip(*answers, strict=True):
        assert relative(found, exact) < 1e-10


@pytest.mark.parametrize("name", ["mlp-tanh", "conv2d", "layer-norm", "mlp-free-biases"])
def test_the_trace_is_that_of_the_exact_matrix(name):
    expected = naive(name)
    found = fit_case(case_of(name), curvature="kfac")._engine.curvature
    trace = np.einsum("nce,ncp,nep->", expected.Lam, expected.J, expected.J)
    assert float(found.eigenvalues.sum()) == pytest.approx(trace)


def test_the_empirical_fisher_matrix_in_its_own_eigenbasis():
    found = fit_case(case_of("mlp-weights"), curvature="kfac")._engine
    problem = found.problem
    expansion = empirical_fisher(problem.expansion, problem.weights)
    curvature = KroneckerCurvature(
        problem.tangent,
        problem.layout,
        problem.model.free_jacobian,
        expansion,
        problem.ridge,
        shiftable=False,
    )
    rows = torch.arange(curvature.n_rows)
    gradients = curvature.row_gradients(rows, curvature.expansion.gradient)[0]
    weights = torch.where(problem.weights > 0, problem.weights, 1.0)
    expected = (gradients**2 / weights).sum(1)
    torch.testing.assert_close(curvature.eigenvalues, expected)


@approximate_orders
def test_numbers_do_not_depend_on_blocks(digits, order, monkeypatch):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, curvature="kfac", order=order)
    expected = influence.fit(X, y).influence(X_query, y_query), influence.self_influence_
    group = influence.removal_effect([1, 2, 5], X_query, y_query)
    monkeypatch.setattr(_kronecker, "_BLOCK_DOUBLES", 1)
    influence.set_params(batch_size=3).fit(X, y)
    assert relative(influence.influence(X_query, y_query), expected[0]) < 1e-12
    assert relative(influence.self_influence_, expected[1]) < 1e-12
    assert relative(influence.removal_effect([1, 2, 5], X_query, y_query), group) < 1e-12


def test_single_precision(digits):
    model, X, y, X_query, y_query = digits
    effects = [
        InfluenceEstimator(model, curvature="kfac", dtype=dtype)
        .fit(X, y)
        .influence(X_query, y_query)
        for dtype in ("float32", "float64")
    ]
    assert relative(*effects) < 1e-3


@approximate_orders
def test_damping_of_a_frozen_network(digits, order):
    model, X, y, X_query, y_query = digits
    exact, found = (
        InfluenceEstimator(model, ridge=1e4, curvature=curvature, order=order).fit(X, y)
        for curvature in ("gauss_newton", "kfac")
    )
    assert found.ridge_ == exact.ridge_ == 1e4
    # A ridge above all curvature leaves nothing to approximate.
    pairs = [each.influence(X_query, y_query) for each in (found, exact)]
    assert relative(*pairs) < 0.05


def test_without_any_ridge(digits):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, ridge=0.0, curvature="kfac")
    with pytest.warns(InfluenceWarning, match="The ridge 0 of TorchModel"):
        found = influence.fit(X, y)
    assert np.isfinite(found.influence(X_query, y_query)).all()


def test_what_is_reported(digits):
    model, X, y, X_query, y_query = digits
    found = InfluenceEstimator(model, curvature="kfac", solver="primal").fit(X, y)
    assert found.solver_ == "kfac"
    assert found.solver_info_ == {"size": 1810, "layers": 2, "dense": 0, "diagonal": 0}
    assert found.stationarity_ == pytest.approx(
        InfluenceEstimator(model).fit(X, y).stationarity_, rel=1e-6
    )
    copied = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(
        copied.influence(X_query, y_query), found.influence(X_query, y_query)
    )
    case = fit_case(case_of("layer-norm"), curvature="kfac")
    assert case.solver_info_ == {"size": 53, "layers": 2, "dense": 10, "diagonal": 0}


# What does not go with it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "dual"}, r"solver='dual' works on.*Use solver='auto'"),
        ({"solver": "iterative"}, r"solver='iterative' works on.*Use solver='auto'"),
        ({"sketch": GaussianSketch(50)}, r"sketch=GaussianSketch.*Use sketch=None"),
        ({"order": "exact"}, r"order='exact'.*curvature='kfac' choose order='newton'"),
        ({"memory_limit": 1000}, r"curvature='kfac' of TorchModel needs.*memory_limit allows"),
    ],
)
def test_options_that_do_not_go_with_it(digits, options, message):
    model, X, y, _, _ = digits
    with pytest.raises(ValueError, match=message) as error:
        InfluenceEstimator(model, curvature="kfac", **options).fit(X, y)
    assert isinstance(error.value, MemoryLimitError) == ("memory_limit" in options)


@pytest.mark.parametrize("model", [LogisticRegression(), KernelRidge()])
def test_models_with_an_exact_form(model):
    X, y = normal(20, 3), np.arange(20) % 2
    with pytest.raises(UnsupportedOptionError, match=r"for networks.*'gauss_newton', which is"):
        InfluenceEstimator(model, curvature="kfac").fit(X, y)
