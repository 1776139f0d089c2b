"""Classes of a model: which one a label names, and how probable its outputs make it."""

from functools import partial

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
    loss = model.loss
    if isinstance(loss, SoftmaxLogLoss):
        return partial(_of_softmax, index)
    if isinstance(loss, BinaryLogLoss | ModifiedHuber):
        share = torch.sigmoid if isinstance(loss, BinaryLogLoss) else _clipped
        return partial(_of_two if model.n_outputs == 1 else _against_rest, share, index)
    raise UnsupportedOptionError(
        f"{type(model.estimator).__name__} gives no class probabilities, whose rates this "
        "objective compares. Wrap a model with predict_proba such as LogisticRegression, or write "
        "the objective as a function of the outputs."
    )


def _of_softmax(index, z):
    return torch.softmax(z, -1)[..., index]


def _of_two(share, index, z):
    return share(z[..., 0] if index == 1 else -z[..., 0])


def _against_rest(share, index, z):
    shares = share(z)
    total = shares.sum(-1)
    none = total == 0
    return torch.where(none, 1.0 / z.shape[-1], shares[..., index] / torch.where(none, 1.0, total))


def _clipped(z):
    return 0.5 * (z.clamp(-1.0, 1.0) + 1.0)
