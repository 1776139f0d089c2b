"""Nets of skorch; imported once the caller has imported skorch.

The loss is read from the net's criterion, its penalty from the ``weight_decay`` of the optimizer's
parameter groups, and the rows that it was trained on from its ``train_split``.
"""

import copy
import warnings
from dataclasses import dataclass
from functools import partial
from inspect import signature
from numbers import Integral, Number

import numpy as np
import torch
from sklearn.utils.validation import _num_samples
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from skorch.dataset import Dataset, ValidSplit
from torch import nn
from torch.utils.data import Subset

from ..exceptions import InfluenceWarning, UnsupportedModelError, UnsupportedOptionError
from ..losses import BinaryLogLoss, HalfSquaredError, SoftmaxLogLoss
from ._base import Penalty, _shallow_copy
from ._modules import precision
from ._network import Decay
from ._registry import (
    as_model_function,
    check_options,
    mean_loss_weight,
    ridge_parameters,
    trained_at_random,
)
from ._targets import ClassTargets, RegressionTargets
from ._torch import TorchNetwork

_CRITERIA = {
    NeuralNetClassifier: (nn.CrossEntropyLoss, nn.NLLLoss),
    NeuralNetBinaryClassifier: (nn.BCEWithLogitsLoss,),
    NeuralNetRegressor: (nn.MSELoss,),
}
# With these, ``weight_decay`` adds to the gradient.
_COUPLED = (
    torch.optim.SGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)
_TRAINING = ("get_loss", "infer", "train_step", "train_step_single")
_PROBABILITY_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SkorchNetwork(TorchNetwork):
    """A net whose penalty scales with the mean loss that it was trained on."""

    def times_trained(self, X, y):
        return _times_trained(self.estimator, self.transform(X), y)

    def outputs(self, features):
        z = super().outputs(features)
        if isinstance(criterion_of(self.estimator), nn.NLLLoss):
            _check_probabilities(z.exp().sum(1), type(self.module).__name__)
        return z

    def from_outputs(self, method, outputs):
        with torch.random.fork_rng([]):  # a data loader draws a seed
            return super().from_outputs(method, outputs)

    def _trained_on(self, n_outputs):
        criterion = criterion_of(self.estimator)
        if isinstance(criterion, nn.MSELoss):
            return HalfSquaredError(n_outputs), RegressionTargets(n_outputs), 0.5 * n_outputs
        if isinstance(criterion, nn.BCEWithLogitsLoss):
            return BinaryLogLoss(), ClassTargets(np.arange(2), "binary", None), 1.0
        weight = criterion.weight
        if weight is not None:
            weight = weight.detach().cpu().double().numpy()
        return SoftmaxLogLoss(), ClassTargets(np.arange(n_outputs), "index", weight), 1.0

    @staticmethod
    def _module_of(estimator):
        return plain(estimator.module_)

    def _with_identity(self, n_outputs):
        net = _shallow_copy(self.estimator)
        criterion = copy.copy(criterion_of(net))  # a prediction changes its mode
        identity = nn.Softmax(1) if isinstance(criterion, nn.NLLLoss) else nn.Identity()
        net.__dict__.update(module_=identity, criterion_=criterion)
        return net


# What may be wrapped ---------------------------------------------------------------------------


@check_options.register(NeuralNetClassifier)
@check_options.register(NeuralNetBinaryClassifier)
@check_options.register(NeuralNetRegressor)
def _check_net(net):
    name = type(net).__name__
    kind = next(kind for kind in _CRITERIA if isinstance(net, kind))
    for method in _TRAINING:
        if getattr(type(net), method) is not getattr(kind, method):
            raise UnsupportedModelError(
                f"{name} has a {method} of its own, so the objective that it minimises is not "
                "known. Use skorch's, or register a model function for the class with "
                "sklearn_dualif.models.as_model_function.register."
            )
    if net.dataset is not Dataset:
        raise UnsupportedOptionError(
            f"{name}(dataset={net.dataset!r}) cannot be wrapped: a dataset of its own may change "
            "rows and targets. Prepare them before, and leave dataset=skorch.dataset.Dataset."
        )
    if isinstance(net.train_split, ValidSplit) and _is_random(net.train_split):
        _refuse_split(net, "draws other rows each time")
    _check_criterion(name, criterion_of(net), _CRITERIA[kind])


def _check_criterion(name, criterion, known):
    if criterion is None:
        raise UnsupportedOptionError(
            f"The criterion of {name} is None, as after trim_for_prediction, so the loss that it "
            "was trained on is not known. Pass the net as it was before."
        )
    given = type(criterion).__name__
    parameters = getattr(criterion, "parameters", tuple)()
    if any(parameter.requires_grad for parameter in parameters):
        raise UnsupportedOptionError(
            f"The criterion {given} of {name} has parameters that are trained with the module. "
            "Set requires_grad=False on them."
        )
    if type(criterion) not in known:
        allowed = " or ".join(f"torch.nn.{kind.__name__}" for kind in known)
        raise UnsupportedOptionError(
            f"{name}(criterion={given}) cannot be wrapped: use {allowed}, or a TorchModel with "
            "a loss of its own around the trained module."
        )
    for option, value, rule in (
        ("reduction", "mean", "a penalty is measured against the mean loss"),
        ("label_smoothing", 0.0, "each row has one label"),
        ("pos_weight", None, "it weighs a row by its label but not in the mean"),
    ):
        found = getattr(criterion, option, value)
        if found is not value and found != value:
            raise UnsupportedOptionError(
                f"{given}({option}={found!r}) of {name} cannot be wrapped: {rule}. Set "
                f"criterion__{option}={value!r}."
            )
    if isinstance(criterion, nn.BCEWithLogitsLoss) and criterion.weight is not None:
        raise UnsupportedOptionError(
            f"{given}(weight={criterion.weight!r}) of {name} cannot be wrapped: it weighs places "
            "in a batch. Set criterion__weight=None."
        )


def _is_random(split):
    """Tell whether a `ValidSplit` holds out other rows when it is asked again."""
    cv = split.check_cv(None) if isinstance(split.cv, Number) else split.cv
    state = getattr(cv, "random_state", 0)
    return bool(getattr(cv, "shuffle", True)) and not isinstance(state, Integral)


def _refuse_split(net, reason):
    split = net.train_split
    shown = f"ValidSplit(cv={split.cv!r})" if isinstance(split, ValidSplit) else repr(split)
    raise UnsupportedOptionError(
        f"{type(net).__name__}(train_split={shown}) {reason}, so which rows it is trained on is "
        "not known. Set train_split=None, an integer cv or an integer random_state."
    )


def _check_probabilities(totals, name):
    wrong = (totals - 1.0).abs()
    if float(wrong.max()) > _PROBABILITY_TOLERANCE:
        raise ValueError(
            f"{name} gives outputs that sum to {float(totals[wrong.argmax()]):.3g}, but NLLLoss in "
            "skorch takes probabilities, which sum to 1. End the module in a softmax, or use "
            "criterion=torch.nn.CrossEntropyLoss for logits."
        )


# What was trained on ---------------------------------------------------------------------------


def plain(module):
    """Return the module that `torch.compile` was given, where it was."""
    return getattr(module, "_orig_mod", module)


def criterion_of(net):
    """Return the criterion of a net, fitted or not."""
    if net.initialized_:
        return plain(net.criterion_)
    return net.initialized_instance(net.criterion, net.get_params_for("criterion"))


def _times_trained(net, X, y):
    """Return how often an epoch uses each row, or None where it uses each once."""
    n = _num_samples(X)
    if net.train_split is None:
        return None
    rows = _split_rows(net, X, y, n)
    if rows is None:
        return None
    if not isinstance(net.train_split, ValidSplit):
        again = _split_rows(net, X, y, n)
        if not np.array_equal(rows, again):
            _refuse_split(net, "draws other rows each time")
    return np.bincount(rows, minlength=n).astype(np.float64)


def _split_rows(net, X, y, n):
    """Return the positions of the rows that a net's split leaves to train on; None: all rows."""
    part, _ = net.get_split_datasets(X, y)
    rows = None
    while isinstance(part, Subset):
        positions = np.asarray(part.indices)
        rows = positions if rows is None else positions[rows]
        part = part.dataset
    if len(part) != n:
        _refuse_split(net, "gives no torch.utils.data.Subset of the rows")
    return rows


def _weight_decays(net):
    """Return the weight decay of each of the module's parameters that the optimizer moves."""
    optimizer = net.optimizer_
    decays = {
        id(parameter): float(group.get("weight_decay", 0.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    decoupled = not isinstance(optimizer, _COUPLED) or any(
        group.get("decoupled_weight_decay", False) for group in optimizer.param_groups
    )
    if decoupled and any(decays.values()):
        name = type(optimizer).__name__
        warnings.warn(
            f"The weight decay of {name} is no L2 penalty: it shrinks the parameters beside the "
            "gradient. An L2 penalty of the same strength is assumed, and the net is not at the "
            "optimum of that objective. Train with torch.optim.SGD or Adam for one that is.",
            InfluenceWarning,
            stacklevel=2,
        )
    named = plain(net.module_).named_parameters()
    return {name: decays[id(value)] for name, value in named if id(value) in decays}


def _log_probabilities(outputs, epsilon):
    """Return what skorch gives to NLLLoss."""
    return torch.log(outputs + epsilon)


def as_columns(outputs):
    """Return outputs (n, C), where a single one may come as (n,)."""
    return outputs[:, None] if torch.is_tensor(outputs) and outputs.ndim == 1 else outputs


@as_model_function.register(NeuralNetClassifier)
@as_model_function.register(NeuralNetBinaryClassifier)
@as_model_function.register(NeuralNetRegressor)
def _(net):
    _check_net(net)
    module, readout = plain(net.module_), as_columns
    if isinstance(criterion_of(net), nn.NLLLoss):
        dtype = precision(module)[0] or torch.get_default_dtype()
        readout = partial(_log_probabilities, epsilon=torch.finfo(dtype).eps)
    return SkorchNetwork(
        estimator=net,
        loss=None,
        penalty=Penalty(np.zeros(1)),
        targets=None,
        n_outputs=None,
        n_latent=None,
        module=module,
        decay=Decay(_weight_decays(net), "weight"),
        readout=readout,
    )


@trained_at_random.register(NeuralNetClassifier)
@trained_at_random.register(NeuralNetBinaryClassifier)
@trained_at_random.register(NeuralNetRegressor)
def _(net):
    return True


# The penalty of a ridge ------------------------------------------------------------------------


@ridge_parameters.register(NeuralNetClassifier)
@ridge_parameters.register(NeuralNetBinaryClassifier)
@ridge_parameters.register(NeuralNetRegressor)
def _(net, ridge, n_rows, total_weight):
    if "weight_decay" not in signature(net.optimizer).parameters:
        return None
    for pattern, group in getattr(net, "optimizer__param_groups", ()):
        if group.get("weight_decay"):
            raise UnsupportedOptionError(
                f"ridge={ridge!r} cannot be set on {type(net).__name__}, whose parameter group "
                f"{pattern!r} has weight_decay={group['weight_decay']!r}. Leave it out of "
                "optimizer__param_groups (0 frees the group), or keep ridge='model'."
            )
    return {"optimizer__weight_decay": ridge / total_weight}


@mean_loss_weight.register(NeuralNetClassifier)
@mean_loss_weight.register(NeuralNetBinaryClassifier)
@mean_loss_weight.register(NeuralNetRegressor)
def _(net, X, y, total_weight):
    times = _times_trained(net, X, y)
    times = np.full(len(y), total_weight / len(y)) if times is None else times
    criterion = criterion_of(net)
    if isinstance(criterion, nn.MSELoss):
        return 0.5 * float(times.sum()) * (y.shape[1] if np.ndim(y) == 2 else 1)
    if getattr(criterion, "weight", None) is not None:
        times = times * criterion.weight.detach().cpu().double().numpy()[y]
    return float(times.sum())
