"""Classes of a model: which one a label names, and how probable its outputs make it."""

import torch

from ..exceptions import UnsupportedOptionError
from ..losses import BinaryLogLoss, ModifiedHuber, SoftmaxLogLoss


def class_index(classes, label, name, model):
    """Return the position of a label in ``classes``, as the parameter ``name`` gave it."""
    found = [index for index, known in enumerate(classes.tolist()) if known == label]
    if not found:
        raise ValueError(
            f"{name}={label!r} is not among the classes of {type(model.estimator).__name__}, "
            f"{classes.tolist()}. Give one of them."
        )
    return found[0]


def class_probability(model, index):
    """Return the function from outputs (..., C) to the probability (...,) of a class.

    As ``predict_proba`` has it: the logistic function of one output; the softmax of several; where
    each class stands against the rest, their logistic functions over the sum of them.

    Parameters
    ----------
    model : ModelFunction
        What the outputs are of.
    index : int
        Position of the class.

    Raises
    ------
    UnsupportedOptionError
        If the model gives no probabilities.
    """
    loss, seen = model.loss, model.n_outputs
    if isinstance(loss, SoftmaxLogLoss):
        return lambda z: torch.softmax(z, -1)[..., index]
    if isinstance(loss, BinaryLogLoss):
        share = torch.sigmoid
    elif isinstance(loss, ModifiedHuber):
        share = _clipped
    else:
        raise UnsupportedOptionError(
            f"{type(model.estimator).__name__} gives no class probabilities, whose rates this "
            "objective compares. Wrap a model with predict_proba such as LogisticRegression, or "
            "write the objective as a function of the outputs."
        )
    if seen == 1:
        return lambda z: share(z[..., 0] if index == 1 else -z[..., 0])

    def normalised(z):
        shares = share(z)
        total = shares.sum(-1)
        empty = total == 0
        return torch.where(empty, 1.0 / seen, shares[..., index] / torch.where(empty, 1.0, total))

    return normalised


def _clipped(z):
    return 0.5 * (z.clamp(-1.0, 1.0) + 1.0)
