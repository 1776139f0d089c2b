r"""What sketched layers with Kronecker eigenbases say of the matrix that they stand for.

Each layer's sketched matrix is diagonal in the eigenbases of its two sides, with eigenvalues
:math:`\lambda_{ab}` (m_E, m_A). The ridge :math:`\Gamma \otimes I + I \otimes \Theta` of
`FactorizedSpectrum` is diagonal there as well, so that no matrix of the size of the sketch is
formed. With a number :math:`\gamma_a` for each row where inputs are projected, and
:math:`\theta_b` for each column where outputs are, it stands for a ridge :math:`\rho` where

.. math::

    \frac{1}{m_A} \sum_b \frac{1}{\lambda_{ab} + \gamma_a + \theta_b} = \frac{1}{\rho}, \qquad
    \frac{1}{m_E} \sum_a \frac{1}{\lambda_{ab} + \gamma_a + \theta_b} = \frac{1}{\rho} ,

which is where a concave function of these numbers is largest. The effective dimension
:math:`d_1 = \sum \lambda_{ab} / (\lambda_{ab} + \gamma_a + \theta_b)` of all projected layers
decides the one ridge :math:`\lambda_s` that they are solved with:
:math:`\sum \lambda_{ab} / (\lambda_{ab} + \lambda_s) = d_1`. Other layers keep their own.
"""

import math
from typing import NamedTuple

import numpy as np

from ._ascent import maximised
from ._spectrum import ENOUGH, SketchedSpectrum

# Of the dimension: where more of it is beyond the correction, it comes out too small.
_BEYOND = 1.0 / 3.0
# How many times as long sides are to be then.
_LONGER = 2


class KroneckerSpectrum:
    """Eigenvalues of layers that a `FactorizedProjection` projects.

    Parameters
    ----------
    eigenvalues : (m,) array
        Of all layers, where the projection has its components.
    projection : FactorizedProjection
    """

    def __init__(self, eigenvalues, projection):
        self._projected, self._exact = [], []
        for layer, shape, place in zip(
            projection.layers, projection.shapes, projection.places, strict=True
        ):
            grid = np.reshape(eigenvalues[place], shape)
            sides = shape[0] < layer.outputs, shape[1] < layer.inputs
            (self._projected if any(sides) else self._exact).append((grid, sides))
        seen = [grid.ravel() for grid, _ in self._projected]
        seen = np.concatenate([*seen, np.zeros(0)])
        self._seen = SketchedSpectrum(seen, len(seen))
        self._known = {}

    def dimension(self, ridge):
        """Return the effective dimension of all layers at a ridge."""
        exact = sum(_dimension(*layer, ridge).all for layer in self._exact)
        return exact + sum(own.all for own in self._own(ridge))

    def _own(self, ridge):
        """Return the effective dimension of each projected layer."""
        if ridge not in self._known:
            self._known[ridge] = [_dimension(*layer, ridge) for layer in self._projected]
        return self._known[ridge]

    def missing(self, ridge):
        """Return how many components more a ridge asks for; 0: there are enough.

        Too few are fewer than are enough for a layer's dimension, or sides so short that there is
        no ridge for much of it.
        """
        own = self._own(ridge)
        sizes = [grid.size for grid, _ in self._projected]
        lack = max((ENOUGH * d.all - m for d, m in zip(own, sizes, strict=True)), default=0)
        # Layers have equal shares.
        missing = max(0, math.ceil(lack)) * len(sizes)
        if sum(d.beyond for d in own) > _BEYOND * sum(d.all for d in own):
            missing = max(missing, (_LONGER**2 - 1) * sum(sizes))
        return missing

    def sketched_ridge(self, ridge):
        """Return the ridge of projected layers that stands for ``ridge``; None if none does."""
        first = sum(own.all for own in self._own(ridge))
        if ENOUGH * first > self._seen.n_components:
            return None
        return ridge if first == 0.0 or ridge == 0.0 else self._seen.ridge_of(first, ridge)


class _Dimension(NamedTuple):
    """An effective dimension, and what of it has a ridge below minus the one that was asked for.

    No term of the expansion goes there: what is there is noise of sides that are too short.
    """

    all: float
    beyond: float = 0.0


def _dimension(grid, sides, ridge):
    """Return the `_Dimension` of a layer whose ``sides`` are projected or not."""
    if ridge == 0.0:
        return _Dimension(float((grid > 0.0).sum()))
    own = _separable_ridge(grid, sides, ridge) if any(sides) else np.full((1, 1), ridge)
    shares = grid / (grid + np.maximum(own, -ridge))
    return _Dimension(float(shares.sum()), float((shares * (own < -ridge)).sum()))


def _separable_ridge(grid, sides, ridge):
    """Return ``gamma_a + theta_b`` (m_E, m_A), without the terms of sides that are exact."""
    outputs, inputs = sides
    rows = grid.shape[0] if inputs else 0
    kept = np.r_[np.full(grid.shape[0], inputs), np.full(grid.shape[1], outputs)]
    counts = np.r_[np.full(grid.shape[0], grid.shape[1]), np.full(grid.shape[1], grid.shape[0])]
    counts = counts[kept]

    def ridges(x):
        gamma, theta = x[:rows, None], x[rows:]
        return (gamma if inputs else 0.0) + (theta if outputs else 0.0)

    def value(x):
        shifted = grid + ridges(x)
        if shifted.min() <= 0.0:
            return -np.inf
        return float(np.log(shifted).sum() - counts @ x / ridge)

    def derivatives(x):
        inverse = 1.0 / (grid + ridges(x))
        gradient = np.r_[inverse.sum(1), inverse.sum(0)][kept] - counts / ridge
        squares = inverse**2
        curvature = np.block(
            [[np.diag(squares.sum(1)), squares], [squares.T, np.diag(squares.sum(0))]]
        )
        return gradient, curvature[np.ix_(kept, kept)]

    start = np.full(len(counts), ridge / (outputs + inputs))
    return ridges(maximised(value, derivatives, start, ridge / counts))
