"""What the tests of networks share: modules, their state, and each case's oracle and fits."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pytest
import torch
from network_cases import NETWORK_NAMES, NetworkCase, network_case
from network_references import (
    LOSSES,
    LinearisedNetwork,
    RowLoss,
    dense_jacobian,
    dense_outputs,
    linearise,
    loss_effects,
    loss_pieces,
    output_changes,
)
from references import rows_mask
from scipy.special import expit, softmax, xlogy
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import NotStationaryWarning
from sklearn_dualif.sketching import (
    GaussianSketch,
    HadamardSketch,
    RademacherSketch,
    SparseSketch,
)

# The full deviance at z = log of the mean, twice the loss that is minimised.
LOSSES["poisson"] = RowLoss(
    value=lambda z, T: 2.0 * np.sum(xlogy(T, T) - T * z - T + np.exp(z), axis=-1),
    gradient=lambda z, T: 2.0 * (np.exp(z) - T),
    hessian=lambda z, T: 2.0 * np.exp(z)[..., None] * np.eye(z.shape[-1]),
)


SKETCHES = {
    "gaussian": GaussianSketch,
    "rademacher": RademacherSketch,
    "sparse": SparseSketch,
    "hadamard": HadamardSketch,
}
each_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES)
each_solver = pytest.mark.parametrize("solver", ["primal", "dual"])
each_order = pytest.mark.parametrize("order", ["first", "newton", "exact"])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# Modules


class Composed(nn.Module):
    """A module whose forward is a function of itself and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def seeded(build):
    """Return a module in eval mode and double precision, from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double().eval()


def state_of(module):
    """Return all that a caller could see of a module, and the generators' states."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        "values": {name: tensor.detach().numpy().copy() for name, tensor in tensors},
        "writes": {name: (id(tensor), tensor._version) for name, tensor in tensors},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors},
        "grads": {n: None if p.grad is None else p.grad.numpy().copy() for n, p in tensors},
        "modes": [part.training for part in module.modules()],
        "hooks": [
            {key: list(value) for key, value in vars(part).items() if key.endswith("_hooks")}
            for part in module.modules()
        ],
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.random.get_state()[1].copy(),
    }


def assert_untouched(module, before):
    """Check that a module is as it was when `state_of` looked at it."""
    np.testing.assert_equal(state_of(module), before)


# Oracles


def matrix_of(projection):
    """Return the matrix P (m, d) of a projection."""
    eye = torch.eye(projection.n_components, dtype=torch.float64)
    return projection.transposed(eye).numpy().T


@dataclass(frozen=True, eq=False)
class Oracle:
    """Dense answers about a linearised network and query rows."""

    network: LinearisedNetwork
    J_query: np.ndarray
    z_query: np.ndarray
    y_query: np.ndarray

    @cached_property
    def reference(self):
        """Return the `NetworkReference` at the fitted parameters."""
        return self.network.reference()

    @cached_property
    def optimum(self):
        """Return the parameters at the linearisation's optimum."""
        return self.network.optimum()

    def step(self, rows, order):
        """Return the change of the parameters (d,) without rows."""
        if order == "exact":
            kept = np.where(rows_mask(rows, len(self.network.J)), 0.0, self.network.weights)
            return self.network.reweighted(kept).optimum() - self.optimum
        return self.reference.first_order(rows) if order == "first" else self.reference.newton(rows)

    def effects(self, steps, order, training=False):
        """Return what steps (..., d) change on the loss of query or training rows (..., m)."""
        net = self.network
        J, z, y = (net.J, net.z, net.y) if training else (self.J_query, self.z_query, self.y_query)
        dz = output_changes(J, steps)
        if order == "first":
            _, slope, _ = loss_pieces(net.loss, z, y, np.ones(len(z)))
            return np.einsum("mc,...mc->...m", slope, dz)
        return loss_effects(net.loss, z, y, dz)


@cache
def case_of(name):
    """Return a case of the zoo, one for all tests: its module must stay as it is."""
    return network_case(name)


@cache
def oracle(name):
    """Return the `Oracle` of a case of the zoo."""
    return oracle_of(case_of(name))


@cache
def single_steps(dense, order):
    """Return the changes of the parameters (n, d) without each row."""
    return np.stack([dense.step([row], order) for row in range(len(dense.network.J))])


def oracle_of(case, **changes):
    """Return the `Oracle` of a case at its module's parameters."""
    return Oracle(
        linearise(case, **changes),
        dense_jacobian(case.module, case.X_query),
        dense_outputs(case.module, case.X_query),
        case.y_query,
    )


# Cases


def each_network(*left_out):
    """Return a mark that runs a test on each network of the zoo, but for some."""
    names = [name for name in NETWORK_NAMES if name not in left_out]
    return pytest.mark.parametrize("name", names)


def torch_model(case: NetworkCase, module=None):
    """Return the `TorchModel` of a case.

    The mean of torch's binary cross-entropy is over outputs too, the case's over rows alone.
    """
    share = case.n_outputs if case.loss == "binary_cross_entropy" else 1
    decay = case.weight_decay
    decay = {k: v / share for k, v in decay.items()} if isinstance(decay, dict) else decay / share
    classes = range(case.n_outputs) if case.loss == "cross_entropy" else None
    return TorchModel(
        case.module if module is None else module,
        loss=case.loss,
        weight_decay=decay,
        classes=classes if classes is None else list(classes),
    )


@contextmanager
def not_at_the_optimum():
    """Allow networks that are not trained to their optimum."""
    with warnings.catch_warnings():
        for category in (ConvergenceWarning, NotStationaryWarning):
            warnings.simplefilter("ignore", category)
        yield


def fit_quietly(influence, X, y, **fit_params):
    """Fit an `InfluenceEstimator` on a network that is not at its optimum."""
    with not_at_the_optimum():
        return influence.fit(X, y, **fit_params)


def fit_case(case, *, module=None, X_val=None, y_val=None, **params):
    """Fit an `InfluenceEstimator` on a case, or on another module with its rows."""
    weights = {} if case.sample_weight is None else {"sample_weight": case.sample_weight}
    influence = InfluenceEstimator(torch_model(case, module), **params)
    return fit_quietly(influence, case.X, case.y, X_val=X_val, y_val=y_val, **weights)


@cache
def fitted(name, solver, order="newton"):
    """Return an `InfluenceEstimator` fitted on a case of the zoo."""
    return fit_case(case_of(name), solver=solver, order=order)


def moved(module, step):
    """Return a copy of a module with its trainable parameters moved by a step (d,)."""
    module = copy.deepcopy(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    parts = torch.as_tensor(step).split([p.numel() for p in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.add_(part.reshape(parameter.shape))
    return module


# What estimators show


def probabilities(loss, z):
    """Return the probabilities of outputs (n, C) as `predict_proba` shows them."""
    if loss == "cross_entropy":
        return softmax(z, axis=1)
    return np.hstack([expit(-z), expit(z)]) if z.shape[1] == 1 else expit(z)


def predictions(loss, z):
    """Return what `predict` says at outputs (n, C), for labels 0, 1, ..."""
    if loss == "mse":
        return z[:, 0] if z.shape[1] == 1 else z
    if loss == "cross_entropy":
        return z.argmax(1)
    return (z[:, 0] > 0).astype(int) if z.shape[1] == 1 else (z > 0).astype(int)


# Perceptrons

PERCEPTRONS = {
    "binary": MLPClassifier(activation="tanh"),
    "multiclass": MLPClassifier(activation="relu"),
    "multilabel": MLPClassifier(activation="logistic"),
    "adam": MLPClassifier(activation="tanh", batch_size=16, learning_rate_init=0.02),
    "regression": MLPRegressor(activation="tanh"),
    "multi-output": MLPRegressor(activation="relu"),
    "poisson": MLPRegressor(activation="tanh", loss="poisson"),
}


def perceptron_problem(kind):
    """Return an unfitted perceptron, rows, targets, query rows and their targets."""
    solver = "adam" if kind == "adam" else "lbfgs"
    model = clone(PERCEPTRONS[kind]).set_params(
        hidden_layer_sizes=(3, 2) if kind == "multi-output" else (3,),
        alpha=0.5,
        solver=solver,
        max_iter=30,  # not at the optimum, where hidden units become alike
        random_state=0,
    )
    rng = np.random.default_rng(0)
    X = rng.standard_normal((48, 4))
    z = X @ rng.standard_normal((4, 3)) + rng.standard_normal((48, 3))
    y = {
        "binary": np.array(["no", "yes"])[(z[:, 0] > 0).astype(int)],
        "multilabel": (z > 0).astype(int),
        "regression": z[:, 0],
        "multi-output": z[:, :2],
        "poisson": rng.poisson(np.exp(0.5 * X[:, 0])).astype(float),
    }.get(kind, z.argmax(1))
    return model, X[:40], y[:40], X[40:], y[40:]


def digits_network():
    """Return a TorchModel trained to its optimum on 90 digits, the digits, and 20 queries."""
    X, y = load_digits(return_X_y=True)
    X = X / 16.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10)
        ).double()
    inputs, labels = torch.from_numpy(X[:90]), torch.from_numpy(y[:90])
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=3000, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(inputs), labels)
        loss = loss + 0.5e-2 * sum((p**2).sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return TorchModel(module, weight_decay=1e-2), X[:90], y[:90], X[90:110], y[90:110]
