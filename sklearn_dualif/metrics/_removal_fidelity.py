"""How well predicted effects of removing groups of rows agree with refits without them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state

from .._estimator import InfluenceEstimator
from .._fitting import fit_influence
from .._refitting import Refits
from ..exceptions import InfluenceWarning
from ..models import is_frozen
from ._agreement import agreement
from ._removals import Question, RemovableRows, check_fitted

_ROUNDING = 1e-13
_UNMOVED = 1e-8


@dataclass(frozen=True, eq=False, kw_only=True)
class RemovalFidelity:
    r"""Agreement of predicted with refitted effects of removing groups of rows together.

    As a number, in ``float()`` or as what a scorer returns, it is `r2`.

    Attributes
    ----------
    r2 : float
        Share of the variation of the refitted effects that the predicted ones account for,
        :math:`1 - \sum (r - p)^2 / \sum (r - \bar r)^2`: 1 where they are equal. Below 0 where
        the mean refitted effect would have been the better prediction.
    slope : float
        Of the least-squares line of refitted on predicted effects, with an intercept: 1 where the
        sizes are right, below 1 where the predictions are too large; 0 where they are all equal.
    pearson : float
        Correlation of the two; 0 where the predicted effects are all equal.
    r2_interval, slope_interval, pearson_interval : (low, high) of float
        95 % percentile intervals of a bootstrap over the groups. The queries are taken as given.
        Rough below some 20 groups.
    ridge : float or (n_outputs,) array
        Of the curvature that the predictions used, in sum form.
    predicted, refitted : (n_groups, n_queries) array
        Effects on the objective of each query, in its units.
    groups : (n_groups, group_size) array of int
        Positions of the removed rows, sorted.
    by_ridge : mapping of float to RemovalFidelity
        With ``ridges``: the agreement of each, in their order; this object is the one of the
        highest `r2`. Else empty.
    """

    r2: float
    r2_interval: tuple[float, float]
    slope: float
    slope_interval: tuple[float, float]
    pearson: float
    pearson_interval: tuple[float, float]
    ridge: float | np.ndarray
    predicted: np.ndarray = field(repr=False)
    refitted: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    by_ridge: Mapping = field(default_factory=dict, repr=False)

    def item(self):
        """Return `r2`, as scikit-learn asks of what a scorer returns."""
        return self.r2

    def __float__(self):
        return self.r2


def removal_fidelity(
    influence_estimator,
    X,
    y=None,
    *,
    n_groups=10,
    fraction=0.1,
    ridges=None,
    objective=None,
    order=None,
    random_state=None,
    n_jobs=None,
    verbose=0,
):
    r"""Compare predicted with refitted effects of removing random groups of training rows.

    For each group the wrapped estimator is cloned and fitted on the other rows, and the effect of
    that on each query's objective is set beside the one that `InfluenceEstimator.removal_effect`
    predicts. Effects are pooled over groups and queries.

    Parameters
    ----------
    influence_estimator : InfluenceEstimator
        Fitted, around an estimator that can be fitted again.
    X : array-like, (n_queries, n_features)
        Query rows.
    y : array-like, (n_queries,) or (n_queries, n_outputs), optional
        Their targets, for the objectives "loss" and "margin".
    n_groups : int, default=10
        Number of groups, each drawn from all rows; 3 or more. As many refits are made, and for
        models linear in their parameters one more with all rows.
    fraction : float, default=0.1
        Share of the training rows in each group, between 0 and 1. Rows of weight 0 are not
        counted. The last row of a class is never drawn.
    ridges : sequence of float, optional
        Ridges to compare, in units of the objective
        :math:`\sum_i w_i \ell_i + \tfrac12 \mathrm{ridge}\,\|\theta\|^2`. Each damps the curvature
        at the parameters as fitted; the refits are made once and serve all of them. None: the
        estimator's own.
    objective : {"loss", "prediction", "margin"}, Objective or callable, optional
        Instead of the estimator's own.
    order : {"newton", "first", "exact"}, optional
        Instead of the estimator's own. "exact" ends at the optimum of the model's own objective,
        whatever the ridge of the curvature, so that it cannot choose between ``ridges``; for
        squared loss and networks without weight decay the ridge counts.
    random_state : int, RandomState instance or None, default=None
        Draws the groups and the resamples of the intervals. Refits have the ``random_state`` that
        the wrapped estimator has.
    n_jobs : int or None, default=None
        Refits at a time, through joblib. Nets of skorch need processes, its default: threads
        share torch's random generator.
    verbose : int, default=0
        Above 0, joblib says how many refits are done.

    Returns
    -------
    RemovalFidelity
        With ``ridges`` that of the ridge with the highest R², the others in its ``by_ridge``.

    Raises
    ------
    NotFittedError
        If ``influence_estimator`` was not fitted.
    TypeError
        If it is no `InfluenceEstimator`.
    ValueError
        If ``n_groups``, ``fraction`` or ``ridges`` are out of range, if the wrapped model cannot be
        fitted again (a `TorchModel`) or would hold out other rows (a net with a ``train_split``),
        if X and y are no queries of it, if effects overflow, or if the refitted effects or the
        predictions of all ridges are the same.

    See Also
    --------
    validate : A verdict, from refits without groups and single rows.
    InfluenceEstimator.removal_effect : The prediction for one group.

    Notes
    -----
    With :math:`p_{gt}` and :math:`r_{gt}` the predicted and the refitted effects of group
    :math:`g` on query :math:`t`, and :math:`\bar r` the mean of all :math:`r_{gt}`,

    .. math:: R^2 = 1 - \sum_{gt} (r_{gt} - p_{gt})^2 \Big/ \sum_{gt} (r_{gt} - \bar r)^2 .

    A refitted effect is the objective under the refit minus the objective under a model with all
    rows. Models that are linear in their parameters, kernel models among them, are fitted again to
    ``tol`` at most 1e-10, once with all rows (frozen ones are taken as they are) and once without
    each group. Networks are trained as they were and compared with the model as fitted: give them
    an integer ``random_state`` if they have one; nets of skorch start where the fit started.
    Whatever makes the two differ besides the rows lowers the agreement:

    - Networks that stop early.
    - What effects hold fixed and a refit does not: fitted transformers of a `Pipeline`, balanced
      class weights, hyperparameters that the estimator or a search chooses. To hold the choice of a
      search fixed, wrap its ``best_estimator_``.
    - A frozen model that was trained on other rows, or from another start. It is the estimator
      inside that is cloned.

    The training rows, their targets and the fit parameters are the objects that were passed to
    `fit`; the influence estimator keeps references to them, and its pickles contain them.

    As ``scoring=`` of a search or of `sklearn.model_selection.cross_validate` the function gives
    its R² on the held-out rows; bind options with `functools.partial`. Each ridge of a search fits
    another model: to choose a damping for one model, use ``ridges``.

    References
    ----------
    .. [1] P. W. Koh, K.-S. Ang, H. Teo and P. Liang, "On the Accuracy of Influence Functions for
       Measuring Group Effects", NeurIPS 2019.
    .. [2] S. Basu, P. Pope and S. Feizi, "Influence Functions in Deep Learning Are Fragile",
       ICLR 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.metrics import removal_fidelity
    >>> X, y = load_wine(return_X_y=True)
    >>> X = scale(X)
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X[::2], y[::2])
    >>> fidelity = removal_fidelity(influence, X[1::2], y[1::2], random_state=0)
    >>> fidelity.predicted.shape
    (10, 89)
    >>> fidelity.r2 > 0.95
    True
    >>> ridges = [0.01, 0.1, 1.0, 10.0, 100.0]
    >>> removal_fidelity(influence, X[1::2], y[1::2], ridges=ridges, random_state=0).ridge
    1.0
    """
    check_fitted(influence_estimator, "removal_fidelity")
    _check_sizes(n_groups, fraction)
    ridges = None if ridges is None else _checked_ridges(ridges)
    refits = Refits.of(influence_estimator)
    generator = check_random_state(random_state)
    removable = RemovableRows.of(influence_estimator)
    size = max(1, round(fraction * len(removable.rows)))
    removable.check_size(size, f"fraction={fraction!r}")
    groups = np.array([removable.draw(size, generator) for _ in range(n_groups)])
    seed = generator.randint(np.iinfo(np.int32).max)
    question = Question.of(influence_estimator, X, y, objective, order)
    if ridges is None:
        predictions = [(influence_estimator.ridge_, question.predicted(groups))]
    else:
        predictions = []
        for ridge in ridges:
            damped = _damped(influence_estimator, ridge)
            effects = Question.of(damped, X, y, objective, order).predicted(groups)
            predictions.append((ridge, effects))
        _check_ridges_matter(predictions)
    before = question.outputs()
    if question.at_the_optimum:
        refits = refits.to_the_optimum()
        if not is_frozen(influence_estimator.estimator):
            before = question.refitted(refits, [[]])[0]
    refitted = question.refitted(refits, groups, n_jobs=n_jobs, verbose=verbose)
    refitted = question.changes(before, refitted)
    _check_variation(refitted, groups)
    results = [
        RemovalFidelity(
            ridge=ridge,
            predicted=predicted,
            refitted=refitted,
            groups=groups,
            **agreement(predicted, refitted, np.random.RandomState(seed)),
        )
        for ridge, predicted in predictions
    ]
    by_ridge = {} if ridges is None else {result.ridge: result for result in results}
    return replace(max(results, key=float), by_ridge=by_ridge)


def _check_sizes(n_groups, fraction):
    if isinstance(n_groups, bool) or not isinstance(n_groups, Integral) or n_groups < 3:
        raise ValueError(
            f"n_groups={n_groups!r} must be a whole number of at least 3: the intervals are over "
            "groups."
        )
    if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise ValueError(
            f"fraction={fraction!r} must be a number between 0 and 1: the share of the training "
            "rows in each group."
        )


def _checked_ridges(ridges):
    if isinstance(ridges, str) or np.ndim(ridges) != 1 or len(ridges) == 0:
        raise ValueError(
            f"ridges={ridges!r} must be a sequence of at least one finite number >= 0; for the "
            "estimator's own ridge leave ridges=None."
        )
    for ridge in ridges:
        number = isinstance(ridge, Real) and not isinstance(ridge, bool)
        if not (number and np.isfinite(ridge) and ridge >= 0):
            raise ValueError(
                f"ridges has {ridge!r}; each must be a finite number >= 0, the strength of a "
                "penalty in sum form."
            )
    return [float(ridge) for ridge in ridges]


def _check_ridges_matter(predictions):
    ridges = {ridge for ridge, _ in predictions}
    effects = np.stack([predicted for _, predicted in predictions])
    if len(ridges) > 1 and np.ptp(effects, 0).max() <= _UNMOVED * np.abs(effects).max():
        raise ValueError(
            f"The ridges {sorted(ridges)} all predict the same effects, so that none is better "
            "than another. order='exact' ends at the optimum of the model's own objective, "
            "whatever the ridge of the curvature: choose by order='newton'. Or compare ridges that "
            "are further apart."
        )


def _check_variation(refitted, groups):
    if np.ptp(refitted) <= _ROUNDING * np.abs(refitted).max():
        raise ValueError(
            f"Removing {groups.shape[1]} rows has the same effect of {refitted.flat[0]:.3g} on all "
            f"queries in all {len(groups)} refits, so there is no variation to predict. Raise "
            "fraction, or pass other queries."
        )


def _damped(influence, ridge):
    """Return the influence estimator of the same fitted model with another curvature ridge."""
    options = influence.get_params(deep=False)
    options |= {"estimator": FrozenEstimator(influence.estimator_), "ridge": ridge}
    if influence.order == "exact":
        options["order"] = "newton"  # what `fit` computes of single rows is not asked for here
    damped = InfluenceEstimator(**options)
    rows, targets = influence._X_train, influence._y_train
    with warnings.catch_warnings():
        # Of the model, its own fit has warned; whether a ridge is any good is the question here.
        warnings.simplefilter("ignore", InfluenceWarning)
        fit_influence(damped, rows, targets, None, None, influence._fit_params)
    return damped
