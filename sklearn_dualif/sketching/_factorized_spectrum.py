r"""What the spectrum of a factorised sketch says of the matrix that it stands for.

The rows of ``P_E \otimes P_A`` are not independent, and a ridge that is a multiple of the identity
cannot undo what they do to an inverse. With ``P_E = I`` the deterministic equivalent of independent
rows holds for matrices in the place of numbers: with ``M`` the sketched matrix,

.. math:: (M + \Gamma \otimes I)^{-1} \text{ stands for } (F + K \otimes I)^{-1}, \qquad
   K^{-1} = \frac{1}{m_A} \mathrm{tr}_A (M + \Gamma \otimes I)^{-1}

with the partial trace over the inputs. For both sides the ridge is taken as
:math:`R = \Gamma \otimes I + I \otimes \Theta` with both partial traces of
:math:`(M + R)^{-1}` equal to :math:`I / \lambda`: it is where the concave function
:math:`\log\det(M + R) - \mathrm{tr}\, R / \lambda` is largest. Here ``Gamma`` and ``Theta`` are
diagonal in the eigenbases of the sketched covariances of sensitivities and of inputs. To first
order in ``F`` this is unbiased up to terms in ``1 / m_E + 1 / m_A``; beyond that it is a conjecture
that was checked numerically. Its effective dimension :math:`d_1 = \mathrm{tr}\, M (M + R)^{-1}`
decides the one number that effects are computed with: the ridge at which the sketched matrix has
that dimension.
"""

import math

import numpy as np
from scipy.linalg import LinAlgError, cholesky
from scipy.optimize import brentq

from ._ascent import maximised
from ._spectrum import ENOUGH, SketchedSpectrum


class FactorizedSpectrum(SketchedSpectrum):
    """A sketched matrix of a `FactorizedProjection`.

    Parameters
    ----------
    matrix : (m, m) array
        ``P F P^T``.
    projection : FactorizedProjection
        Has the layers, and the shapes of their projections.
    """

    def __init__(self, matrix, projection):
        super().__init__(np.linalg.eigvalsh(matrix), projection.n_components)
        self._sides, self._scatters, design = [], [], []
        matrix = np.array(matrix, dtype=np.float64)
        for layer, shape, place in zip(
            projection.layers, projection.shapes, projection.places, strict=True
        ):
            rotation = np.kron(*_eigenbases(matrix[place, place], shape))
            matrix[place] = rotation.T @ matrix[place]
            matrix[:, place] = matrix[:, place] @ rotation
            short = shape[0] == layer.outputs, shape[1] == layer.inputs
            design.append((place, _membership(shape, short)))
            self._scatters.append(_scatter_of(shape, short))
        self._matrix = matrix
        self._design = np.zeros((len(matrix), sum(part.shape[1] for _, part in design)))
        column = 0
        for place, part in design:
            self._design[place, column : column + part.shape[1]] = part
            column += part.shape[1]
        self._known = {}

    def sketched_ridge(self, ridge):
        if ridge == 0.0:
            return super().sketched_ridge(ridge)
        first, _ = self._dimensions_at(ridge)
        if max(self._scatters) > 0.0 and ENOUGH * first > self.n_components:
            return None
        sketched = self.ridge_of(first, ridge)
        if sketched is not None:
            self._known[sketched] = ridge
        return sketched

    def ridge(self, sketched_ridge):
        if sketched_ridge not in self._known:
            target = self.dimension(sketched_ridge)

            def above(log):
                return self._dimensions_at(math.exp(log))[0] - target

            low = high = math.log(sketched_ridge)
            while above(low) < 0.0:
                low -= 1.0
            while above(high) > 0.0:
                high += 1.0
            # Each value takes a solve of its own; nothing asks for more digits.
            found = low if low == high else brentq(above, low, high, xtol=1e-2)
            self._known[sketched_ridge] = math.exp(found)
        return self._known[sketched_ridge]

    def dimensions(self, sketched_ridge):
        if sketched_ridge == 0.0:
            return super().dimensions(sketched_ridge)
        return self._dimensions_at(self.ridge(sketched_ridge))

    def deviation(self, sketched_ridge):
        """Return NaN: how far the dimension scatters is not known of these sketches."""
        return math.nan

    def _scatter(self, n_components, second):
        if n_components <= second:
            return math.inf
        # Sides grow with the square root of the size.
        growth = math.sqrt(self.n_components / n_components)
        return growth * max(self._scatters) / (1.0 - second / n_components)

    def _dimensions_at(self, ridge):
        """Return ``d_1`` and ``d_2`` at a ridge of the matrix itself."""
        key = "at", ridge
        if key not in self._known:
            self._known[key] = self._solved(ridge)
        return self._known[key]

    def _solved(self, ridge):
        """Find the ridge ``R`` by Newton steps, and the dimensions that it gives."""
        matrix, design = self._matrix, self._design
        moving, counts = design.any(1), design.sum(0)
        fixed = np.where(moving, 0.0, ridge)

        def inverse_at(x):
            return np.linalg.inv(matrix + np.diag(design @ x + fixed))

        def derivatives(x):
            inverse = inverse_at(x)
            gradient = design.T @ (inverse.diagonal() - 1.0 / ridge)
            return gradient, design.T @ inverse**2 @ design

        x = maximised(
            lambda x: self._objective(x, fixed, ridge),
            derivatives,
            np.linalg.lstsq(design, np.where(moving, ridge, 0.0))[0],
            ridge / counts,
        )
        own, squares = design @ x + fixed, inverse_at(x) ** 2
        curvature = design.T @ squares @ design
        right = counts / ridge - design.T @ (squares @ fixed)
        slope = design @ np.linalg.lstsq(curvature, right, rcond=1e-12)[0] + fixed
        # Below -ridge no term of the expansion goes; what is there is noise of short sides.
        low = own < -ridge
        own, slope = np.where(low, -ridge, own), np.where(low, -ridge, slope)
        inverse = np.linalg.inv(matrix + np.diag(own))
        shares = inverse @ matrix
        first = float(shares.trace())
        second = first - float(((shares @ inverse).diagonal() * slope).sum())
        return first, min(first, max(0.0, second))

    def _objective(self, x, fixed, ridge):
        own = self._design @ x + fixed
        try:
            lower = cholesky(self._matrix + np.diag(own), lower=True, check_finite=False)
        except LinAlgError:
            return -math.inf
        return 2.0 * float(np.log(lower.diagonal()).sum()) - float(own.sum()) / ridge


def _eigenbases(block, shape):
    """Return the eigenvectors of the covariances of the two sides of a layer's matrix."""
    block = block.reshape(*shape, *shape)
    sides = np.einsum("apbp->ab", block), np.einsum("apaq->pq", block)
    return [np.linalg.eigh(side)[1] for side in sides]


def _membership(shape, short):
    """Return which entries of ``Gamma`` and ``Theta`` add to each diagonal entry of ``R``."""
    parts = []
    if not short[1]:
        parts.append(np.kron(np.eye(shape[0]), np.ones((shape[1], 1))))
    if not short[0]:
        parts.append(np.kron(np.ones((shape[0], 1)), np.eye(shape[1])))
    return np.concatenate(parts, 1) if parts else np.zeros((shape[0] * shape[1], 0))


def _scatter_of(shape, short):
    """Return the variance of a product of the two sides, whose identities have none."""
    first, second = (0.0 if exact else 1.0 / size for size, exact in zip(shape, short, strict=True))
    return first + second + first * second
