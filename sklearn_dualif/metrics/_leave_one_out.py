"""Effects of removing single rows: as predicted, and by a refit for each."""

from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state

from .._refitting import Refits
from .._validation import check_positions
from ._agreement import agreement
from ._removals import Question, RemovableRows, check_fitted


@dataclass(frozen=True, eq=False, kw_only=True)
class LeaveOneOutEffects:
    r"""Predicted and refitted effects of removing rows one by one, and their agreement.

    Attributes
    ----------
    rows : (n_rows,) array of int
        Positions of the removed rows.
    predicted, refitted : (n_rows, n_queries) array
        Effects on the objective of each query, in its units; (n_rows, 1) of an aggregate.
    r2, slope, pearson : float
        See `RemovalFidelity`. NaN where the refitted effects are all equal.
    r2_interval, slope_interval, pearson_interval : (low, high) of float
        95 % percentile intervals of a bootstrap over the rows. NaN of fewer than 3 rows.
    """

    r2: float
    r2_interval: tuple[float, float]
    slope: float
    slope_interval: tuple[float, float]
    pearson: float
    pearson_interval: tuple[float, float]
    rows: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    refitted: np.ndarray = field(repr=False)

    def frame(self):
        """Return the effects as a table, one line for each row and query.

        Returns
        -------
        DataFrame
            With the columns row and query (positions), predicted and refitted.
        """
        import pandas as pd

        n_rows, n_queries = self.refitted.shape
        return pd.DataFrame(
            {
                "row": np.repeat(self.rows, n_queries),
                "query": np.tile(np.arange(n_queries), n_rows),
                "predicted": self.predicted.ravel(),
                "refitted": self.refitted.ravel(),
            }
        )


def leave_one_out_effects(
    influence_estimator,
    X,
    y=None,
    *,
    rows=None,
    objective=None,
    order=None,
    n_jobs=None,
    random_state=None,
    verbose=0,
):
    r"""Refit without each of some training rows, and set the effects beside the predicted ones.

    Parameters
    ----------
    influence_estimator : InfluenceEstimator
        Fitted, around an estimator that can be fitted again.
    X : array-like, (n_queries, n_features)
        Query rows.
    y : array-like, (n_queries,) or (n_queries, n_outputs), optional
        Their targets, for the objectives "loss" and "margin".
    rows : int, array-like of int, boolean mask (n_train,) or None, default=None
        Rows to remove, each alone: a number of them drawn at random, or positions. None: every
        row. Drawn, or of None, are rows that have weight and are not the last of their class.
    objective : {"loss", "prediction", "margin"}, Objective or callable, optional
        Instead of the estimator's own.
    order : {"newton", "first", "exact"}, optional
        Instead of the estimator's own.
    n_jobs : int or None, default=None
        Refits at a time, through joblib. Nets of skorch need processes, its default.
    random_state : int, RandomState instance or None, default=None
        Draws the rows, if ``rows`` is a number, and the resamples of the intervals. Refits have the
        ``random_state`` that the wrapped estimator has.
    verbose : int, default=0
        Above 0, joblib says how many refits are done.

    Returns
    -------
    LeaveOneOutEffects

    Raises
    ------
    NotFittedError
        If ``influence_estimator`` was not fitted.
    TypeError
        If it is no `InfluenceEstimator`.
    ValueError
        If ``rows`` are none, too many, out of range or the last one of a class, if the wrapped
        model cannot be fitted again (see `removal_fidelity`), or if effects overflow.

    See Also
    --------
    removal_fidelity : The same for groups of rows, with a choice of ridges.
    validate : Both, and a verdict.

    Notes
    -----
    A refitted effect is the objective of a refit without the row minus the objective of a model
    with all rows, and what a single row changes is little:

    - Models that are linear in their parameters, kernel models among them, are fitted again with
      ``tol`` at most 1e-10 and a ``max_iter`` of 10,000 or more, once with all rows and once
      without each: at scikit-learn's own tolerances the difference of two fits is mostly what the
      solvers left undone. Where one cannot get there, convergence is not warned of.
    - Networks are trained as they were, from where their training started, never from the trained
      parameters: what they would reach from there is no refit. They are compared with the model
      as fitted. Give the wrapped estimator an integer ``random_state`` if it has one; nets of
      skorch start where the fit started.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.metrics import leave_one_out_effects
    >>> X, y = load_wine(return_X_y=True)
    >>> X = scale(X)
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X[::2], y[::2])
    >>> effects = leave_one_out_effects(influence, X[1::2], y[1::2], rows=20, random_state=0)
    >>> effects.refitted.shape
    (20, 89)
    >>> round(effects.slope, 2)
    0.99
    """
    check_fitted(influence_estimator, "leave_one_out_effects")
    refits = Refits.of(influence_estimator)
    generator = check_random_state(random_state)
    rows = _checked_rows(influence_estimator, rows, generator)
    question = Question.of(influence_estimator, X, y, objective, order)
    predicted = question.single(rows).T
    before = question.outputs()
    options = {"n_jobs": n_jobs, "verbose": verbose}
    if question.at_the_optimum:
        refits = refits.to_the_optimum()
        before = question.refitted(refits, [[]])[0]
    refitted = question.changes(before, question.refitted(refits, rows[:, None], **options))
    return compared(rows, predicted, refitted, generator)


def compared(rows, predicted, refitted, generator):
    """Return the `LeaveOneOutEffects` of effects (n_rows, n_queries)."""
    return LeaveOneOutEffects(
        rows=rows,
        predicted=predicted,
        refitted=refitted,
        **agreement(predicted, refitted, generator),
    )


def _checked_rows(influence, rows, generator):
    """Return the positions of rows that a caller gave or asked a number of."""
    removable = RemovableRows.of(influence)
    if rows is None:
        return removable.single
    if isinstance(rows, Integral) and not isinstance(rows, bool):
        if not 1 <= rows <= len(removable.single):
            raise ValueError(
                f"rows={rows!r} must be from 1 to {len(removable.single)}, the training rows that "
                "have weight and are not the last of their class. For one row give its position, "
                "as [7]."
            )
        return np.sort(generator.choice(removable.single, rows, replace=False))
    positions = check_positions(rows, len(influence._sample_weight), keep_some=False)
    if not len(positions):
        raise ValueError("rows names no rows. Give some positions, a number, or None for all.")
    last = np.intersect1d(positions, np.setdiff1d(removable.rows, removable.single))
    if len(last):
        raise ValueError(
            f"Row {last[0]} is the last one of its class, and no refit keeps a class without rows. "
            "Leave it out of rows."
        )
    return positions
