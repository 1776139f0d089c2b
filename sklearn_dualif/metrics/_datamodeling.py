"""Linear datamodeling scores: how well added-up scores rank the losses of random subsets."""

from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
from scipy.stats import rankdata
from sklearn.utils import check_random_state

from .._refitting import Refits
from ._agreement import interval
from ._removals import Question, RemovableRows, check_fitted

_RESAMPLES = 500


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearDatamodelingScore:
    """Rank agreement of added-up scores with the objectives of refits on random subsets.

    As a number, in ``float()`` or as what a scorer returns, it is `score`.

    Attributes
    ----------
    score : float
        Mean of ``by_query``, leaving out NaN.
    interval : (low, high) of float
        95 % percentile interval of a bootstrap over the subsets. The queries are taken as given.
        Rough below some 20 subsets.
    by_query : (n_queries,) array
        Spearman correlation over the subsets; 0 where the scores predict the same for all. NaN
        where the refits agree in all of them, so that there is nothing to rank.
    predicted, refitted : (n_subsets, n_queries) array
        Sums of the scores of the rows that are not in a subset, and what its refit changes of
        each query's objective.
    subsets : (n_subsets, subset_size) array of int
        Positions of the rows that the refits were made on, sorted.
    """

    score: float
    interval: tuple[float, float]
    by_query: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    refitted: np.ndarray = field(repr=False)
    subsets: np.ndarray = field(repr=False)
    _removed: np.ndarray = field(repr=False)
    _counts: np.ndarray = field(repr=False)

    def item(self):
        """Return `score`, as scikit-learn asks of what a scorer returns."""
        return self.score

    def __float__(self):
        return self.score

    def rescored(self, scores):
        """Judge other scores by the same refits.

        Parameters
        ----------
        scores : array-like, (n_queries, n_train)
            See `linear_datamodeling_score`.

        Returns
        -------
        LinearDatamodelingScore
        """
        n_queries = self.refitted.shape[1]
        scores = _checked_scores(scores, n_queries, self._removed.shape[1])
        return _judged(scores, self.refitted, self._removed, self._counts)

    def frame(self):
        """Return the score of each query as a table.

        Returns
        -------
        DataFrame
            With the columns query (position) and score.
        """
        import pandas as pd

        return pd.DataFrame({"query": np.arange(len(self.by_query)), "score": self.by_query})


def linear_datamodeling_score(
    influence_estimator,
    X,
    y=None,
    *,
    scores=None,
    n_subsets=50,
    fraction=0.5,
    objective=None,
    order=None,
    n_jobs=None,
    random_state=None,
    verbose=0,
):
    r"""Return how well scores, added up over rows, rank the losses of refits on random subsets.

    Parameters
    ----------
    influence_estimator : InfluenceEstimator
        Fitted, around an estimator that can be fitted again. It makes the refits and, unless
        ``scores`` are given, the scores; with ``curvature="identity"``, too.
    X : array-like, (n_queries, n_features)
        Query rows.
    y : array-like, (n_queries,) or (n_queries, n_outputs), optional
        Their targets, for the objectives "loss" and "margin".
    scores : array-like, (n_queries, n_train), default=None
        Scores to judge instead, by whatever method: (1, n_train) for an aggregate objective. In
        the sign of an influence, large where the removal of the row raises the objective of the
        query; of those with the other sign pass the negative. Their scale does not matter.
    n_subsets : int, default=50
        Number of subsets, and of refits; 3 or more.
    fraction : float, default=0.5
        Share of the training rows that each refit is made on, between 0 and 1. Rows of weight 0
        are not counted. A row of each class always stays.
    objective : {"loss", "prediction", "margin"}, Objective or callable, optional
        Instead of the estimator's own. Scores are linear in the outputs, with the coefficients of
        ``order``, since they are added up.
    order : {"newton", "first", "exact"}, optional
        Instead of the estimator's own.
    n_jobs : int or None, default=None
        Refits at a time, through joblib. Nets of skorch need processes, its default.
    random_state : int, RandomState instance or None, default=None
        Draws the subsets and the resamples of the interval. Refits have the ``random_state`` that
        the wrapped estimator has.
    verbose : int, default=0
        Above 0, joblib says how many refits are done.

    Returns
    -------
    LinearDatamodelingScore

    Raises
    ------
    NotFittedError
        If ``influence_estimator`` was not fitted.
    TypeError
        If it is no `InfluenceEstimator`.
    ValueError
        If ``n_subsets`` or ``fraction`` are out of range, if ``scores`` have another shape or are
        not finite, if the wrapped model cannot be fitted again (see `removal_fidelity`), if
        effects overflow, or if all refits give all queries the same objective.

    See Also
    --------
    removal_fidelity : Whether the sizes of effects of groups are right, too.

    Notes
    -----
    With :math:`\tau_{ti}` the score of training row :math:`i` for query :math:`t` and
    :math:`f_t(S)` the objective of the query under a refit on the rows :math:`S`, it is the mean
    over queries of the Spearman correlation, over random :math:`S`, between
    :math:`\sum_{i \notin S} \tau_{ti}` and :math:`f_t(S)` [1]_. It judges the order of scores
    only, and how well they add up: effects of rows that are right one by one need not.

    Refits of linear and kernel models are run to ``tol`` at most 1e-10, networks are trained as
    they were: see `leave_one_out_effects`.

    References
    ----------
    .. [1] S. M. Park, K. Georgiev, A. Ilyas, G. Leclerc and A. Madry, "TRAK: Attributing Model
       Behavior at Scale", ICML 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.metrics import linear_datamodeling_score
    >>> X, y = load_wine(return_X_y=True)
    >>> X = scale(X)
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X[::2], y[::2])
    >>> lds = linear_datamodeling_score(influence, X[1::2], y[1::2], random_state=0)
    >>> round(lds.score, 1)
    0.9
    >>> rival = InfluenceEstimator(LogisticRegression(), curvature="identity").fit(X[::2], y[::2])
    >>> round(lds.rescored(rival.influence(X[1::2], y[1::2])).score, 1)
    0.8
    """
    check_fitted(influence_estimator, "linear_datamodeling_score")
    _check_sizes(n_subsets, fraction)
    refits = Refits.of(influence_estimator)
    generator = check_random_state(random_state)
    removable = RemovableRows.of(influence_estimator)
    size = max(1, len(removable.rows) - max(1, round(fraction * len(removable.rows))))
    removable.check_size(size, f"All but fraction={fraction!r}")
    groups = [removable.draw(size, generator) for _ in range(n_subsets)]
    counts = generator.multinomial(n_subsets, np.full(n_subsets, 1 / n_subsets), size=_RESAMPLES)
    question = Question.of(influence_estimator, X, y, objective, order)
    n_train = len(influence_estimator._sample_weight)
    n_queries = 1 if question.objective.aggregate else question.features.shape[0]
    if scores is None:
        scores = question.linear().single()
    scores = _checked_scores(scores, n_queries, n_train)
    if question.at_the_optimum:
        refits = refits.to_the_optimum()
    moved = question.refitted(refits, groups, n_jobs=n_jobs, verbose=verbose)
    refitted = question.changes(question.outputs(), moved)
    removed = np.zeros((n_subsets, n_train), dtype=bool)
    np.put_along_axis(removed, np.array(groups), True, axis=1)
    if (np.ptp(refitted, axis=0) == 0).all():
        raise ValueError(
            f"All {n_subsets} refits give each query the same objective, so that there is nothing "
            "to rank. Lower fraction, or pass other queries."
        )
    return _judged(scores, refitted, removed, counts)


def _check_sizes(n_subsets, fraction):
    if isinstance(n_subsets, bool) or not isinstance(n_subsets, Integral) or n_subsets < 3:
        raise ValueError(
            f"n_subsets={n_subsets!r} must be a whole number of at least 3: correlations are over "
            "subsets."
        )
    if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise ValueError(
            f"fraction={fraction!r} must be a number between 0 and 1: the share of the training "
            "rows that each refit is made on."
        )


def _checked_scores(scores, n_queries, n_train):
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (n_queries, n_train):
        raise ValueError(
            f"scores has shape {scores.shape}; it must be {(n_queries, n_train)}, a row for each "
            "query (one for an aggregate) and a column for each training row."
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores has NaN or infinite entries. Give a finite number for each row.")
    return scores


def _judged(scores, refitted, removed, counts):
    """Return the `LinearDatamodelingScore` of scores (n_queries, n_train).

    Parameters
    ----------
    scores : (n_queries, n_train) array
        To judge.
    refitted : (n_subsets, n_queries) array
        What refits change.
    removed : (n_subsets, n_train) array of bool
        Rows that the refits were made without.
    counts : (m, n_subsets) array of int
        How often each resample holds each subset.
    """
    predicted = removed.astype(np.float64) @ scores.T
    by_query = _rank_correlations(predicted, refitted)
    means = []
    for resample in counts:
        chosen = np.repeat(np.arange(len(removed)), resample)
        values = _rank_correlations(predicted[chosen], refitted[chosen])
        if not np.isnan(values).all():
            means.append(np.nanmean(values))
    return LinearDatamodelingScore(
        score=float(np.nanmean(by_query)),
        interval=interval(means),
        by_query=by_query,
        predicted=predicted,
        refitted=refitted,
        subsets=np.nonzero(~removed)[1].reshape(len(removed), -1),
        _removed=removed,
        _counts=counts,
    )


def _rank_correlations(predicted, refitted):
    """Return the Spearman correlation of each column, (n_queries,)."""
    p, r = (rankdata(values, axis=0) for values in (predicted, refitted))
    p, r = p - p.mean(0), r - r.mean(0)
    pp, rr, pr = (p * p).sum(0), (r * r).sum(0), (p * r).sum(0)
    result = np.where(rr > 0, 0.0, np.nan)
    return np.divide(pr, np.sqrt(pp * rr), out=result, where=(pp > 0) & (rr > 0))
