"""What a loss must offer: values, changes, gradients and curvature of each row's outputs.

Shapes: ``n`` rows, ``C`` outputs. ``y`` are encoded targets (see each loss), ``z`` (n, C) the
outputs before the inverse link. Losses are unweighted and in the units of the objective that the
model minimises; ``metric_scale`` converts them to the units of scikit-learn's metric (2 for a half
squared error). A loss is a sum of *terms*: one per output where the outputs do not interact
(``coupling`` "shared" or "separable"), a single one where they do ("coupled").
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch


class Expansion(NamedTuple):
    """Second-order expansion of the weighted losses in block layout (see `OutputLayout`).

    Attributes
    ----------
    gradient : (G, n, k) tensor
        ``w dl/dz``.
    root : (Gs, n, k, q) tensor
        ``S`` with ``S S^T = w d2l/dz2``; ``Gs`` is 1 where all blocks share it, else G.
    coefficient : (G, n, q) tensor or None
        ``c`` with ``S c = gradient``, computed without dividing one by the other; None where the
        gradient leaves the range of the curvature.
    """

    gradient: torch.Tensor
    root: torch.Tensor
    coefficient: torch.Tensor | None


class OutputLayout:
    """How the C outputs of a row split into G independent blocks of k coupled coordinates.

    Parameters
    ----------
    n_blocks : int
        G; the outputs of different blocks share no curvature.
    basis : (C_b, k) tensor
        Orthonormal columns; the ``C_b = C / G`` outputs of a block are ``basis @ coordinates``.
    penalized : (k,) bool tensor
        Coordinates that have feature weights, kept as positions (o,) and as the columns of a
        ``selector`` (k, o). A coordinate without is moved by free parameters alone (the scale of a
        Huber regression).
    """

    def __init__(self, n_blocks, basis, penalized):
        self.n_blocks = n_blocks
        self.basis = basis
        self.n_outputs = n_blocks * basis.shape[0]
        self.n_coordinates = basis.shape[1]
        self.penalized = torch.nonzero(penalized)[:, 0]
        self.selector = torch.eye(basis.shape[1], dtype=basis.dtype)[:, self.penalized]

    def to_blocks(self, values):
        """(n, C) outputs or output gradients to (G, n, k)."""
        if self.n_blocks > 1 or self.basis.shape == (1, 1):
            return values.T.unsqueeze(-1)
        return (values @ self.basis).unsqueeze(0)

    def to_outputs(self, blocks):
        """(G, n, k) block coordinates to (n, C) outputs."""
        if self.n_blocks > 1 or self.basis.shape == (1, 1):
            return blocks[..., 0].T
        return blocks[0] @ self.basis.T


def coupled_layout(n_outputs):
    """Return the layout of outputs that share parameters: one block, in outputs themselves."""
    eye = torch.eye(n_outputs, dtype=torch.float64)
    return OutputLayout(1, eye, torch.ones(n_outputs, dtype=torch.bool))


def couple(expansion, layout):
    """Return an expansion in a layout of its own in the `coupled_layout`."""
    gradient, root, coefficient = expansion
    if layout.n_blocks == 1:
        return Expansion(gradient @ layout.basis.T, layout.basis @ root, coefficient)
    gradient = gradient.permute(2, 1, 0)
    if coefficient is not None:
        coefficient = coefficient.permute(2, 1, 0)
    diagonal = root[..., 0, 0].T.expand(-1, layout.n_blocks)
    return Expansion(gradient, torch.diag_embed(diagonal)[None], coefficient)


def empirical_fisher(expansion, weights):
    """Return the expansion with each row's curvature replaced by ``r r^T / w``.

    ``r`` is the weighted gradient of the row in a block: outputs of different blocks are different
    losses. The root is ``r / sqrt(w)`` and the coefficient ``sqrt(w)``; weights are (n,) or (n, G).
    """
    gradient = expansion.gradient
    size = torch.sqrt(_per_output(weights)).T.expand(gradient.shape[:2]).unsqueeze(-1)
    root = torch.where(size > 0, gradient / torch.where(size > 0, size, 1.0), 0.0)
    return Expansion(gradient, root.unsqueeze(-1), size)


class Loss(ABC):
    """A per-row loss of the outputs, convex in them."""

    coupling = "separable"
    metric_scale = 1.0
    quadratic = False

    def layout(self, n_outputs):
        """Return the `OutputLayout` of ``n_outputs`` outputs."""
        one = torch.ones(1, 1, dtype=torch.float64)
        return OutputLayout(n_outputs, one, torch.ones(1, dtype=torch.bool))

    @abstractmethod
    def terms(self, y, z):
        """Return the loss of each row and term, (..., T)."""

    @abstractmethod
    def change_terms(self, y, z, dz):
        """Return ``terms(y, z + dz) - terms(y, z)`` without cancellation, (..., T)."""

    @abstractmethod
    def gradient(self, y, z):
        """Return dl/dz, (n, C)."""

    @abstractmethod
    def expand(self, y, z, weights):
        """Return the `Expansion` at ``z`` under row weights (n,), or (n, C) where separable."""

    def in_domain(self, z):
        """Tell whether the loss is finite at the outputs ``z``."""
        return bool(torch.isfinite(z).all())

    def largest_step(self, z, dz):
        """Return the largest share of a step dz from z that a line search may try first."""
        return 1.0

    def total(self, y, z, weights):
        """Return the weighted sum of all terms."""
        return float(weigh(weights, self.terms(y, z)).sum())

    def total_change(self, y, z, dz, weights):
        """Return ``total(y, z + dz, weights) - total(y, z, weights)`` without cancellation."""
        return float(weigh(weights, self.change_terms(y, z, dz)).sum())

    def weighted_gradient(self, y, z, weights):
        """Return the gradient times the weights, (n, C)."""
        return weigh(weights, self.gradient(y, z))

    def value(self, y, z):
        """Return the loss of each row in metric units, (n,)."""
        return self.metric_scale * self.terms(y, z).sum(-1)

    def change(self, y, z, dz):
        """Return the change of each row's loss in metric units: dz (..., C) to (...,)."""
        change = _sum_terms(self.change_terms(y, z, dz))
        return change if self.metric_scale == 1.0 else change.mul_(self.metric_scale)

    def slope(self, y, z):
        """Return the gradient of `value` with respect to the outputs, (n, C)."""
        return self.metric_scale * self.gradient(y, z)

    def response_change(self, z, dz):
        """Return the change of what the model predicts, after the inverse link."""
        return dz

    def response_slope(self, z):
        """Return the derivative of what the model predicts with respect to each output."""
        return torch.ones_like(z)


class ElementwiseLoss(Loss):
    """A loss that is a sum over outputs of a scalar function of each."""

    @abstractmethod
    def curvature(self, y, z):
        """Return d2l/dz2 of each output, (n, C)."""

    def coefficient(self, y, z):
        """Return gradient / sqrt(curvature), (n, C); None if a gradient outlives its curvature."""
        return None

    def expand(self, y, z, weights):
        root = torch.sqrt(weigh(weights, self.curvature(y, z)))
        if self.coupling == "shared":
            root = root[:, :1]
        coefficient = self.coefficient(y, z)
        if coefficient is not None:
            coefficient = weigh(torch.sqrt(weights), coefficient).T.unsqueeze(-1)
        gradient = self.weighted_gradient(y, z, weights).T.unsqueeze(-1)
        return Expansion(gradient, root.T[..., None, None], coefficient)


def _sum_terms(terms):
    """Return the sum over the last dimension, without a pass over the data for one term."""
    return terms.squeeze(-1) if terms.shape[-1] == 1 else terms.sum(-1)


def weigh(weights, values):
    """Return values (..., T) times weights, one a row or one a value; 0 where the weight is.

    A row of weight 0 takes no part, and its outputs can be so far off that a value overflows.
    """
    weights = _per_output(weights)
    return torch.where(weights == 0.0, 0.0, weights * values)


def _per_output(weights):
    return weights.unsqueeze(-1) if weights.ndim == 1 else weights
