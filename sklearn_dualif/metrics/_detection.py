"""How soon known bad rows are found when rows are inspected in the order of a score."""

from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from .._validation import check_positions


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionCurve:
    """Share of the bad rows found by the share of rows inspected.

    Attributes
    ----------
    area : float
        Under the curve, from 0 to 1: 0.5 for an order by chance, ``best_area`` if all bad rows
        come first.
    best_area : float
        1 minus half the share of bad rows.
    inspected : (n + 1,) array
        Shares of the rows, from 0 to 1.
    found : (n + 1,) array
        Shares of the bad rows among them; the expected ones over ties.
    n_bad : int
        Number of bad rows.
    """

    area: float
    best_area: float
    inspected: np.ndarray = field(repr=False)
    found: np.ndarray = field(repr=False)
    n_bad: int

    def precision_at(self, k):
        """Return the share of bad rows among the first ones.

        Parameters
        ----------
        k : int
            Number of rows inspected.

        Returns
        -------
        float
            Expected over ties.

        Raises
        ------
        ValueError
            If there are not as many rows.
        """
        n = len(self.found) - 1
        if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= n:
            raise ValueError(f"k={k!r} must be a whole number of rows from 1 to {n}.")
        return float(self.found[k] * self.n_bad / k)

    def frame(self):
        """Return the curve as a table.

        Returns
        -------
        DataFrame
            With the columns n_inspected, inspected, found and precision (NaN of no rows).
        """
        import pandas as pd

        counts = np.arange(len(self.found))
        precision = np.full(len(counts), np.nan)
        precision[1:] = self.found[1:] * self.n_bad / counts[1:]
        return pd.DataFrame(
            {
                "n_inspected": counts,
                "inspected": self.inspected,
                "found": self.found,
                "precision": precision,
            }
        )


def detection_curve(scores, known_bad):
    r"""Return the share of known bad rows found by the share of rows inspected.

    Parameters
    ----------
    scores : array-like, (n,)
        The larger, the sooner a row is inspected: ``self_influence_``, ``loo_loss_``, or
        ``-influence_`` for the rows that hurt most.
    known_bad : array-like of int, or boolean mask (n,)
        The rows that should be found: positions, or a mask.

    Returns
    -------
    DetectionCurve

    Raises
    ------
    ValueError
        If scores are not finite numbers in one dimension, or if no or all rows are bad.

    Notes
    -----
    Rows of the same score are inspected in random order, and the curve is the expected one: with
    :math:`b` bad ones among :math:`t` of a score, :math:`m` of these find :math:`m b / t`. The
    area is that of straight lines between the points; with :math:`p` the share of bad rows it is
    :math:`p / 2 + (1 - p)\,\mathrm{AUC}`, of the area under the ROC curve.

    Flipped labels are easy to find, by plain training loss too: compare with that, and with errors
    that were really made.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.metrics import detection_curve
    >>> X, y = load_iris(return_X_y=True)
    >>> wrong = [3, 40, 77, 110, 149]
    >>> y[wrong] = (y[wrong] + 1) % 3
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X, y)
    >>> curve = detection_curve(influence.loo_loss_, wrong)
    >>> curve.precision_at(5)
    0.8
    >>> round(curve.area, 3), round(curve.best_area, 3)
    (0.975, 0.983)
    """
    scores = _checked_scores(scores)
    n = len(scores)
    bad = np.zeros(n, dtype=bool)
    bad[check_positions(known_bad, n, keep_some=False)] = True
    n_bad = int(bad.sum())
    if n_bad in (0, n):
        raise ValueError(
            f"known_bad names {n_bad} of {n} rows, so that there is nothing to find: name some of "
            "them, by positions or by a boolean mask."
        )
    _, tie, size = np.unique(-scores, return_inverse=True, return_counts=True)
    share = np.bincount(tie, weights=bad) / size
    found = np.concatenate([[0.0], np.cumsum(np.repeat(share, size))]) / n_bad
    return DetectionCurve(
        area=float((found[1:] + found[:-1]).sum() / (2 * n)),
        best_area=1.0 - n_bad / (2 * n),
        inspected=np.arange(n + 1) / n,
        found=found,
        n_bad=n_bad,
    )


def _checked_scores(scores):
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(
            f"scores has shape {scores.shape}; give one number for each row, in one dimension. Of "
            "a matrix of queries by rows take the mean over the queries."
        )
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise ValueError(
            f"The score of row {wrong[0]} is {scores[wrong[0]]}, which has no place in an order. "
            "Give finite numbers."
        )
    return scores
