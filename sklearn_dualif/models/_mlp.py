"""Scikit-learn's multilayer perceptrons."""

import warnings
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.validation import _num_samples, validate_data
from torch import nn

from ..losses import BinaryLogLoss, HalfSquaredError, HalfTweedieDeviance, SoftmaxLogLoss
from ._base import Penalty, _shallow_copy
from ._network import Decay, NetworkModel
from ._registry import (
    as_model_function,
    check_options,
    refuse_option,
    ridge_parameters,
    trained_at_random,
)
from ._targets import ClassTargets, MultilabelTargets, RegressionTargets

_ACTIVATIONS = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


@dataclass(frozen=True, kw_only=True)
class PerceptronModel(NetworkModel):
    """MLPClassifier and MLPRegressor: weights are penalised, intercepts are free."""

    def prepared(self, X, **options):
        alpha = float(self.estimator.alpha) * _n_batches(self.estimator, _num_samples(X))
        names = [name for name, _ in self.module.named_parameters()]
        decay = Decay({name: alpha if name.endswith("weight") else 0.0 for name in names})
        return NetworkModel.prepared(replace(self, decay=decay), X, **options)

    def inputs(self, X):
        X = validate_data(self.estimator, self.transform(X), reset=False, accept_sparse="csr")
        X = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
        return torch.tensor(X, dtype=torch.float64)

    def with_dropout(self, rate):
        estimator = self.estimator
        layers = estimator.coefs_, estimator.intercepts_
        return _Perceptron(*layers, estimator.activation, dropout=rate)

    def write_tensors(self, estimator, tensors):
        estimator.coefs_, estimator.intercepts_ = (
            list(estimator.coefs_),
            list(estimator.intercepts_),
        )
        for name, value in tensors.items():
            layer, kind = name.split(".")
            layer = int(layer)
            values = estimator.coefs_ if kind == "weight" else estimator.intercepts_
            values[layer] = np.array(value.T, dtype=values[layer].dtype, order="C")

    def initial_tensors(self):
        estimator = self.estimator
        known = isinstance(estimator.random_state, Integral) and not estimator.warm_start
        return _tensors(_at_initialisation(estimator)) if known else None

    @staticmethod
    def label(name, index):
        layer, kind = name.split(".")
        if kind == "weight":
            return f"coefs_[{layer}][{index[1]}, {index[0]}]"
        return f"intercepts_[{layer}][{index[0]}]"

    def _with_identity(self, n_outputs):
        estimator = _shallow_copy(self.estimator)
        estimator.coefs_ = [np.eye(n_outputs)]
        estimator.intercepts_ = [np.zeros(n_outputs)]
        estimator.n_layers_ = 2
        estimator.n_features_in_ = n_outputs
        return estimator


def _tensors(estimator):
    """Return the parameters of a fitted perceptron by their names in `_Perceptron`."""
    named = {}
    for index, parts in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        for kind, values in zip(("weight", "bias"), parts, strict=True):
            named[f"{index}.{kind}"] = torch.tensor(values.T, dtype=torch.float64)
    return named


def _at_initialisation(estimator):
    """Return the perceptron that training started from: an epoch of steps that move nothing."""
    start = clone(estimator).set_params(
        solver="sgd",
        learning_rate="constant",
        learning_rate_init=1e-300,
        momentum=0.0,
        alpha=0.0,
        batch_size="auto",
        max_iter=1,
        early_stopping=False,
        verbose=False,
    )
    if not hasattr(estimator, "classes_"):
        y = np.ones((2, estimator.n_outputs_))
        y = y[:, 0] if estimator.n_outputs_ == 1 else y
    elif estimator._label_binarizer.y_type_ == "multilabel-indicator":
        y = np.repeat([[0], [1]], estimator.n_outputs_, axis=1)
    else:
        y = estimator.classes_
    X = np.zeros((len(y), estimator.n_features_in_), dtype=estimator.coefs_[0].dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return start.fit(X, y)


class _Perceptron(nn.Module):
    """The network of fitted coefficients, without the output activation.

    ``dropout`` is a rate for the hidden units, which has no effect in itself in eval mode.
    """

    def __init__(self, coefs, intercepts, activation, *, dropout=0.0):
        super().__init__()
        self.activation = _ACTIVATIONS[activation]()
        for index, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
            layer = nn.Linear(*coef.shape, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(coef.T))
                layer.bias.copy_(torch.tensor(intercept))
            self.add_module(str(index), layer)
        self.depth = len(coefs)
        self.dropout = nn.ModuleList(nn.Dropout(dropout) for _ in range(self.depth - 1))

    def forward(self, x):
        for index in range(self.depth - 1):
            x = self.dropout[index](self.activation(getattr(self, str(index))(x)))
        return getattr(self, str(self.depth - 1))(x)


@check_options.register(MLPClassifier)
@check_options.register(MLPRegressor)
def _(estimator):
    if estimator.solver != "lbfgs" and estimator.early_stopping:
        refuse_option(
            estimator,
            "early_stopping",
            "which rows were held out of training is not known; set early_stopping=False",
        )


def _perceptron(estimator, *, loss, targets, n_outputs):
    check_options(estimator)
    return PerceptronModel(
        estimator=estimator,
        loss=loss,
        penalty=Penalty(np.array([estimator.alpha])),
        targets=targets,
        n_outputs=n_outputs,
        n_latent=n_outputs,
        module=_Perceptron(estimator.coefs_, estimator.intercepts_, estimator.activation),
    )


@as_model_function.register(MLPClassifier)
def _(estimator):
    if estimator._label_binarizer.y_type_ == "multilabel-indicator":
        n = estimator.n_outputs_
        targets = MultilabelTargets(n, "binary")
        return _perceptron(estimator, loss=BinaryLogLoss(), targets=targets, n_outputs=n)
    classes = estimator.classes_
    if estimator.out_activation_ == "softmax":
        return _perceptron(
            estimator,
            loss=SoftmaxLogLoss(),
            targets=ClassTargets(classes, "index", None),
            n_outputs=len(classes),
        )
    return _perceptron(
        estimator, loss=BinaryLogLoss(), targets=ClassTargets(classes, "binary", None), n_outputs=1
    )


@as_model_function.register(MLPRegressor)
def _(estimator):
    n = estimator.n_outputs_
    if estimator.loss == "poisson":
        loss, targets = HalfTweedieDeviance(1), RegressionTargets(n, "nonnegative")
    else:
        loss, targets = HalfSquaredError(n), RegressionTargets(n)
    return _perceptron(estimator, loss=loss, targets=targets, n_outputs=n)


@trained_at_random.register(MLPClassifier)
@trained_at_random.register(MLPRegressor)
def _(estimator):
    return True


@ridge_parameters.register(MLPClassifier)
@ridge_parameters.register(MLPRegressor)
def _(estimator, ridge, n_rows, total_weight):
    return {"alpha": ridge / _n_batches(estimator, n_rows)}


def _n_batches(estimator, n_rows):
    """Return how often an epoch adds the penalty: once for every batch."""
    if estimator.solver == "lbfgs":
        return 1
    size = 200 if estimator.batch_size == "auto" else estimator.batch_size
    return -(-n_rows // min(size, n_rows))
