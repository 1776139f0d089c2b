r"""Which targets of a regression lie too far from what the model without them says.

A row's squared leave-one-out residual has the mean :math:`\sigma^2 / (1 - h)` where the model is
right, h its leverage. Times :math:`1 - h` and over :math:`\sigma^2`, which the median tells as long
as fewer than half of the rows are wrong, it is chi-squared. The rows taken are those of the
procedure of Benjamini and Hochberg [1]_: of them, an expected share of at most ``RATE`` is right,
and where nothing is wrong none is taken with probability ``1 - RATE``.

.. [1] Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", JRSS B 57, 1995.
"""

import numpy as np
from scipy.stats import chi2

RATE = 0.05


def spread_of(squares, n_outputs):
    """Return the standard deviation of residuals from mean squares over outputs, by the median.

    Of residuals that are zero for more than half of the rows, the root mean square instead.
    """
    squared = np.median(squares) * n_outputs / chi2.ppf(0.5, n_outputs)
    return float(np.sqrt(squared if squared > 0 else squares.mean()))


def discoveries(standardized, n_outputs):
    """Return a mask (n,) of the residuals that are too large to be noise.

    Parameters
    ----------
    standardized : (n,) array
        Root mean squares over outputs of residuals, in units of their spread.
    n_outputs : int
        How many residuals each is of.
    """
    p = chi2.sf(n_outputs * standardized**2, n_outputs)
    order = np.argsort(p, kind="stable")
    below = np.flatnonzero(p[order] <= RATE * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), dtype=bool)
    if len(below):
        found[order[: below[-1] + 1]] = True
    return found
