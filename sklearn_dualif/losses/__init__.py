"""Per-row losses of a model's outputs: value, change, gradient and the root of the curvature."""

from ._base import (
    ElementwiseLoss,
    Expansion,
    Loss,
    OutputLayout,
    couple,
    coupled_layout,
    empirical_fisher,
    weigh,
)
from ._deviance import HalfTweedieDeviance
from ._logistic import BinaryLogLoss
from ._robust_regression import Huber, ScaledHuber, SquaredEpsilonInsensitive
from ._softmax import SoftmaxLogLoss
from ._squared import HalfSquaredError
from ._squared_hinge import ModifiedHuber, SquaredHinge

__all__ = [
    "BinaryLogLoss",
    "ElementwiseLoss",
    "Expansion",
    "HalfSquaredError",
    "HalfTweedieDeviance",
    "Huber",
    "Loss",
    "ModifiedHuber",
    "OutputLayout",
    "ScaledHuber",
    "SoftmaxLogLoss",
    "SquaredEpsilonInsensitive",
    "SquaredHinge",
    "couple",
    "coupled_layout",
    "empirical_fisher",
    "weigh",
]
