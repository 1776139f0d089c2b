r"""What the spectrum of a sketched matrix says of the matrix itself.

With ``F`` (d, d), a projection ``P`` (m, d) and the eigenvalues ``mu`` of ``P F P^T``, the sketched
inverse ``P^T (P F P^T + l)^{-1} P`` stands for ``(F + k)^{-1}`` at a larger ridge ``k``,

.. math:: k = m \Big/ \sum_{j=1}^m \frac{1}{\mu_j + l},

for independent rows. Solving for ``l`` gives the ridge at which the sketch is unbiased. The same
spectrum gives :math:`d_1 = \mathrm{tr}\, F (F + k)^{-1} = \sum_j \mu_j / (\mu_j + l)` and, as a
derivative, :math:`d_2 = \mathrm{tr}\, F^2 (F + k)^{-2} = d_1 + \mathrm{d} d_1 / \mathrm{d} \log k`.
They give the size of the error that is left, whose entry for vectors ``g`` and ``g'`` has the
variance

.. math::

    \frac{k^2 \|R g\|^2 \|R g'\|^2 + k^2 (g^\top R^2 g')^2}{m - d_2}, \qquad R = (F + k)^{-1},

and in units of :math:`\sqrt{g^\top F^+ g \; g'^\top F^+ g'}` none is larger than about
:math:`\sqrt{(d_1 - d_2) / (m - d_2)}`.

Of rows drawn without replacement from ``D`` orthogonal ones, ``k`` is smaller by the factor
:math:`1 - \sum_j \mu_j / (\mu_j + l) / D`.
"""

import math

import numpy as np
from scipy.optimize import brentq

ENOUGH = 1.5
"""Times the effective dimension: with fewer components it comes out too small."""
_ROUNDING = 1e-13
# Of a normal tail that is passed with probability .05.
_TAIL = math.sqrt(0.5 * math.log(1.0 / 0.05))


class SketchedSpectrum:
    """Eigenvalues of a sketched matrix.

    Parameters
    ----------
    eigenvalues : array
        The largest ones; all others are taken as zero.
    n_components : int
        ``m``.
    ambient : int or None
        ``D`` where rows are orthogonal.
    """

    def __init__(self, eigenvalues, n_components, ambient=None):
        values = np.clip(np.asarray(eigenvalues, dtype=np.float64), 0.0, None)
        self.eigenvalues = np.zeros(n_components)
        kept = np.sort(values)[::-1][:n_components]
        kept = kept[kept > _ROUNDING * kept[0]] if len(kept) else kept
        self.eigenvalues[: len(kept)] = kept
        self.n_components = n_components
        self._per_ambient = 0.0 if ambient is None else 1.0 / ambient

    def dimension(self, sketched_ridge):
        """Return ``d_1`` at the ridge that a ridge of the sketched matrix stands for."""
        return float(self._shares(sketched_ridge).sum())

    def ridge_of(self, dimension, near):
        """Return the ridge of the sketched matrix at which it has a dimension; None if none.

        The search starts at ``near``.
        """
        if dimension >= np.count_nonzero(self.eigenvalues):
            return None
        low = high = near
        while self.dimension(low) < dimension:
            low *= 0.5
        while self.dimension(high) > dimension:
            high *= 2.0
        if low == high:
            return near

        def above(log):
            return self.dimension(math.exp(log)) - dimension

        return math.exp(brentq(above, math.log(low), math.log(high), xtol=1e-13))

    def _shares(self, sketched_ridge):
        positive = self.eigenvalues[self.eigenvalues > 0]
        return positive / (positive + sketched_ridge)

    def ridge(self, sketched_ridge):
        """Return the ridge ``k`` that a ridge of the sketched matrix stands for."""
        least = self.eigenvalues[-1] + sketched_ridge
        if least == 0.0:
            return 0.0
        mean = float((1.0 / (self.eigenvalues + sketched_ridge)).mean())
        return (1.0 - self.dimension(sketched_ridge) * self._per_ambient) / mean

    @property
    def least_ridge(self):
        """The ridge below which the sketch has too few components to be unbiased."""
        if self.eigenvalues[-1] == 0.0:
            return 0.0
        orthogonal = 1.0 - self.n_components * self._per_ambient
        return orthogonal / float((1.0 / self.eigenvalues).mean())

    def sketched_ridge(self, ridge):
        """Return the ridge of the sketched matrix that stands for ``ridge``; None if none does."""
        least = self.least_ridge
        if ridge == least == 0.0:
            return 0.0
        if ridge <= least * (1.0 + 1e-9):
            return None
        low = ridge
        while self.ridge(low) > ridge:
            low *= 0.5
        if low == ridge:
            return ridge

        def above(log):
            return math.log(self.ridge(math.exp(log)) / ridge)

        return math.exp(brentq(above, math.log(low), math.log(ridge), xtol=1e-13))

    def dimensions(self, sketched_ridge):
        """Return ``d_1`` and ``d_2`` where a ridge of the sketched matrix is ``sketched_ridge``."""
        m, shares = self.n_components, self._shares(sketched_ridge)
        first, fall = float(shares.sum()), float((shares * (1.0 - shares)).sum())
        if first >= m:
            return first, first
        rise = 1.0 - fall / m / (1.0 - first / m)
        rise += fall * self._per_ambient / (1.0 - first * self._per_ambient)
        return first, min(first, max(0.0, first - fall / rise))

    def deviation(self, sketched_ridge):
        """Return the standard deviation of ``d_1`` at the ridge that a ridge here stands for.

        That of a linear statistic of the spectrum of Gaussian sketches [1]_, by the derivatives of
        ``1 / k``.

        References
        ----------
        .. [1] Z. D. Bai and J. W. Silverstein, "CLT for linear spectral statistics of
           large-dimensional sample covariance matrices", Annals of Probability 32, 2004.
        """
        shifted = self.eigenvalues + sketched_ridge
        if shifted[-1] == 0.0:
            return 0.0
        first, second, third = (
            factor * float((shifted**-power).mean()) for factor, power in ((1, 2), (2, 3), (6, 4))
        )
        schwarzian = max(0.0, third / first - 1.5 * (second / first) ** 2)
        return math.sqrt(schwarzian / 3.0) / (self.ridge(sketched_ridge) * first)

    def scatter(self, sketched_ridge):
        """Return the ``1 / (m - d_2)`` of the error's variance; infinite for too few components."""
        _, second = self.dimensions(sketched_ridge)
        return self._scatter(self.n_components, second)

    @staticmethod
    def _scatter(n_components, second):
        return 1.0 / (n_components - second) if n_components > second else math.inf

    def error(self, sketched_ridge):
        """Return what the largest error stays below with probability .95, in the module's units."""
        first, second = self.dimensions(sketched_ridge)
        return (math.sqrt(first - second) + _TAIL) * math.sqrt(self.scatter(sketched_ridge))

    def components_for(self, error, sketched_ridge):
        """Return how many components have an `error` that is no larger than a given one."""
        first, second = self.dimensions(sketched_ridge)
        wanted = (error / (math.sqrt(first - second) + _TAIL)) ** 2
        low, high = 1, 2
        while self._scatter(high, second) > wanted:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            enough = self._scatter(middle, second) <= wanted
            low, high = (low, middle) if enough else (middle, high)
        return high
