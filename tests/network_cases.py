"""The zoo of networks: small float64 torch modules, one for each kind of layer and of sharing.

A case is built anew on each call, from seeds of its own, and leaves torch's global generator as it
was. Its parameters are those of a random start: what the tests compare holds at any parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import nn
from torch.nn import functional as F  # noqa: N812

N_ROWS = 16
N_QUERIES = 5


@dataclass(frozen=True, eq=False)
class NetworkCase:
    """A module in eval mode with its training rows, query rows and training objective.

    ``weight_decay`` is on the mean loss, 1/2 weight_decay ||theta||^2: one number, or one for each
    glob of parameter names, where each trainable parameter matches exactly one glob.
    """

    name: str
    module: nn.Module
    X: np.ndarray
    y: np.ndarray
    loss: str
    n_outputs: int
    weight_decay: float | dict[str, float]
    sample_weight: np.ndarray | None
    X_query: np.ndarray
    y_query: np.ndarray

    @property
    def n_rows(self):
        """Return the number of training rows."""
        return len(self.X)

    @property
    def weights(self):
        """Return the sample weights, ones when there are none."""
        return np.ones(self.n_rows) if self.sample_weight is None else self.sample_weight


# Data: training and query rows from one draw


def _halves(X, y):
    return Bunch(X=X[:N_ROWS], y=y[:N_ROWS], X_query=X[N_ROWS:], y_query=y[N_ROWS:])


def _classes(*shape, n_classes=3, seed=0):
    """Return rows of overlapping classes around one centre each."""
    rng = np.random.default_rng(seed)
    y = np.arange(N_ROWS + N_QUERIES) % n_classes
    centres = 0.6 * rng.standard_normal((n_classes, *shape))
    return _halves(rng.standard_normal((len(y), *shape)) + centres[y], y)


def _tokens(n_classes=3, seed=1):
    """Return rows of five tokens out of seven, the class's own first; 0 pads every fourth row."""
    rng = np.random.default_rng(seed)
    y = np.arange(N_ROWS + N_QUERIES) % n_classes
    X = rng.integers(0, 7, (len(y), 5))
    X[:, 0] = y + 1
    X[::4, -2:] = 0
    return _halves(X, y)


def _targets(n_targets=None, seed=2):
    """Return rows of a noisy regression, with one target as a vector or several."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N_ROWS + N_QUERIES, 4))
    y = np.sin(X @ rng.standard_normal((4, n_targets or 1))) + 1.0
    y += 0.3 * rng.standard_normal(y.shape)
    return _halves(X, y[:, 0] if n_targets is None else y)


def _labels(n_labels=None, seed=3):
    """Return rows with one label, 0 or 1, or with several as the columns of a matrix."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N_ROWS + N_QUERIES, 4))
    score = X @ rng.standard_normal((4, n_labels or 1))
    y = (score + rng.standard_normal(score.shape) > 0.0).astype(int)
    return _halves(X, y[:, 0] if n_labels is None else y)


def _weights(seed=4):
    """Return positive weights with a zero, a one and a two among them."""
    s = np.random.default_rng(seed).uniform(0.4, 1.8, N_ROWS)
    s[:3] = 0.0, 1.0, 2.0
    return s


# Modules that torch lacks


class _MeanOverSteps(nn.Module):
    """The mean over the axis of steps, the second."""

    def forward(self, x):
        return x.mean(1)


class _LastStep(nn.Module):
    """The output of a recurrent layer at the last step."""

    def forward(self, outputs_and_state):
        return outputs_and_state[0][:, -1]


class _Scale(nn.Module):
    """A factor for each feature: a raw parameter of no layer."""

    def __init__(self, n_features):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(n_features))

    def forward(self, x):
        return self.factor * x


class _SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class _Twice(nn.Module):
    """One inner layer, called twice."""

    def __init__(self, width, n_outputs):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class _TiedEmbedding(nn.Module):
    """An embedding whose weight is the output projection as well."""

    def __init__(self, n_tokens, width):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, width)
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        hidden = torch.tanh(self.inner(self.embedding(x).mean(1)))
        return F.linear(hidden, self.embedding.weight)


# Modules of the cases


def _mlp(activation, n_outputs=3, width=5):
    return nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, n_outputs))


def _after(layer, n_features, n_outputs=3):
    """Return a layer, tanh and a linear head on all of its outputs."""
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(n_features, n_outputs))


def _pooled(*layers, width, n_outputs=3):
    """Return layers on a sequence, the mean over its steps and a linear head."""
    return nn.Sequential(*layers, _MeanOverSteps(), nn.Linear(width, n_outputs))


def _recurrent(layer):
    return nn.Sequential(layer(2, 3, batch_first=True), _LastStep(), nn.Linear(3, 3))


def _encoder():
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=3, dropout=0.0, batch_first=True)
    return _pooled(layer, width=4, n_outputs=2)


def _batch_norm(*layers):
    """Return layers whose batch norms have seen other data than the rows."""
    module = nn.Sequential(*layers)
    for layer in module:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(0.0, 0.5)
            layer.running_var.uniform_(0.5, 2.0)
    return module


def _shared_layer():
    """Return a network with one layer at two places."""
    inner = nn.Linear(4, 4)
    return nn.Sequential(inner, nn.Tanh(), inner, nn.Tanh(), nn.Linear(4, 3))


def _tied_weight():
    """Return a network of two layers with one weight, and a bias each."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    module[2].weight = module[0].weight
    return module


def _frozen_layer():
    """Return a network whose first layer is not trained."""
    module = _mlp(nn.Tanh)
    module[0].requires_grad_(False)
    return module


# The cases, one function a family

_BIASES_FREE = {"*weight": 0.05, "*bias": 0.0}


@dataclass(frozen=True)
class _Recipe:
    """How to build a case: its module from torch's generator, its data from their own seed."""

    module: Callable[[], nn.Module]
    data: Callable[[], Bunch]
    loss: str = "cross_entropy"
    n_outputs: int = 3
    weight_decay: float | dict[str, float] = 0.02
    weighted: bool = False


def _dense_recipes():
    return {
        "linear-softmax": _Recipe(lambda: nn.Linear(4, 3), lambda: _classes(4)),
        "linear-free-bias": _Recipe(
            lambda: nn.Linear(4, 3), lambda: _classes(4), weight_decay=_BIASES_FREE
        ),
        "mlp-relu": _Recipe(lambda: _mlp(nn.ReLU), lambda: _classes(4)),
        "mlp-tanh": _Recipe(lambda: _mlp(nn.Tanh), lambda: _classes(4)),
        "mlp-gelu": _Recipe(lambda: _mlp(nn.GELU), lambda: _classes(4)),
        "mlp-weights": _Recipe(lambda: _mlp(nn.Tanh), lambda: _classes(4), weighted=True),
        "mlp-free-biases": _Recipe(
            lambda: _mlp(nn.GELU, width=2), lambda: _classes(4), weight_decay=_BIASES_FREE
        ),
        "sequence-linear": _Recipe(
            lambda: _pooled(nn.Linear(3, 4), nn.Tanh(), width=4), lambda: _classes(5, 3)
        ),
        "raw-parameter": _Recipe(
            lambda: nn.Sequential(nn.Linear(4, 5), _Scale(5), nn.Tanh(), nn.Linear(5, 3)),
            lambda: _classes(4),
        ),
        "frozen-layer": _Recipe(_frozen_layer, lambda: _classes(4)),
    }


def _loss_recipes():
    squared = {"loss": "mse"}
    binary = {"loss": "binary_cross_entropy"}
    return {
        "linear-mse": _Recipe(
            lambda: nn.Linear(4, 1), _targets, n_outputs=1, weight_decay=0.0, **squared
        ),
        "mlp-mse": _Recipe(lambda: _mlp(nn.Tanh, 1), _targets, n_outputs=1, **squared),
        "mlp-mse-multi": _Recipe(lambda: _mlp(nn.Tanh), lambda: _targets(3), **squared),
        "mlp-mse-free-biases": _Recipe(
            lambda: _mlp(nn.Tanh, width=3),
            lambda: _targets(3),
            weight_decay=_BIASES_FREE,
            **squared,
        ),
        "mlp-mse-weights": _Recipe(
            lambda: _mlp(nn.GELU, 2), lambda: _targets(2), n_outputs=2, weighted=True, **squared
        ),
        "mlp-binary": _Recipe(lambda: _mlp(nn.Tanh, 1), _labels, n_outputs=1, **binary),
        "mlp-multilabel": _Recipe(lambda: _mlp(nn.Tanh), lambda: _labels(3), **binary),
        "mlp-multilabel-weights": _Recipe(
            lambda: _mlp(nn.ReLU), lambda: _labels(3), weighted=True, **binary
        ),
    }


def _convolution_recipes():
    circular = {"padding": 1, "padding_mode": "circular"}
    return {
        "conv1d": _Recipe(
            lambda: _after(nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), 15),
            lambda: _classes(2, 9),
        ),
        "conv2d": _Recipe(lambda: _after(nn.Conv2d(2, 3, (2, 3)), 18), lambda: _classes(2, 4, 4)),
        "conv2d-stride": _Recipe(
            lambda: _after(nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 0), bias=False), 12),
            lambda: _classes(2, 4, 4),
        ),
        "conv2d-groups": _Recipe(
            lambda: _after(nn.Conv2d(4, 4, 2, groups=2), 16), lambda: _classes(4, 3, 3)
        ),
        "conv2d-same": _Recipe(
            lambda: _after(nn.Conv2d(1, 2, 3, padding="same", dilation=2), 32),
            lambda: _classes(1, 4, 4),
        ),
        "conv2d-circular": _Recipe(
            lambda: _after(nn.Conv2d(1, 2, 3, **circular), 24), lambda: _classes(1, 3, 4)
        ),
        "conv3d": _Recipe(
            lambda: _after(nn.Conv3d(1, 2, (2, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)), 24),
            lambda: _classes(1, 3, 3, 3),
        ),
        "conv-transpose": _Recipe(
            lambda: _after(nn.ConvTranspose1d(2, 2, 3, stride=2), 18), lambda: _classes(2, 4)
        ),
    }


def _norm_recipes():
    return {
        "layer-norm": _Recipe(
            lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
            lambda: _classes(4),
        ),
        "layer-norm-sequence": _Recipe(
            lambda: _pooled(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), width=4),
            lambda: _classes(5, 3),
        ),
        "group-norm": _Recipe(
            lambda: _after(nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4)), 16),
            lambda: _classes(2, 5),
        ),
        "batch-norm-1d": _Recipe(
            lambda: _batch_norm(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
            lambda: _classes(4),
        ),
        "batch-norm-2d": _Recipe(
            lambda: _batch_norm(
                nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
            ),
            lambda: _classes(2, 3, 3),
        ),
    }


def _sequence_recipes():
    return {
        "embedding": _Recipe(lambda: _pooled(nn.Embedding(7, 4), width=4), _tokens),
        "embedding-padding": _Recipe(
            lambda: _pooled(nn.Embedding(7, 4, padding_idx=0), width=4), _tokens
        ),
        "lstm": _Recipe(lambda: _recurrent(nn.LSTM), lambda: _classes(4, 2)),
        "gru": _Recipe(lambda: _recurrent(nn.GRU), lambda: _classes(4, 2)),
        "attention": _Recipe(
            lambda: _pooled(_SelfAttention(4, 2), nn.Tanh(), width=4), lambda: _classes(5, 4)
        ),
        "transformer": _Recipe(_encoder, lambda: _classes(3, 4, n_classes=2), n_outputs=2),
    }


def _sharing_recipes():
    return {
        "called-twice": _Recipe(lambda: _Twice(4, 3), lambda: _classes(4)),
        "shared-layer": _Recipe(_shared_layer, lambda: _classes(4)),
        "tied-weight": _Recipe(_tied_weight, lambda: _classes(4)),
        "tied-embedding": _Recipe(
            lambda: _TiedEmbedding(7, 4), lambda: _tokens(n_classes=6), n_outputs=7
        ),
    }


_RECIPES = {
    **_dense_recipes(),
    **_loss_recipes(),
    **_convolution_recipes(),
    **_norm_recipes(),
    **_sequence_recipes(),
    **_sharing_recipes(),
}
NETWORK_NAMES = tuple(_RECIPES)


# The zoo


def _build(build):
    """Return a module from a seed of its own, with noise on biases and factors that start flat."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = build().double().eval()
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def network_case(name):
    """Return one case by its name, with a module of its own."""
    recipe = _RECIPES[name]
    return NetworkCase(
        name=name,
        module=_build(recipe.module),
        loss=recipe.loss,
        n_outputs=recipe.n_outputs,
        weight_decay=recipe.weight_decay,
        sample_weight=_weights() if recipe.weighted else None,
        **recipe.data(),
    )


def network_cases():
    """Return every case of the zoo, each with a module of its own."""
    return [network_case(name) for name in NETWORK_NAMES]
