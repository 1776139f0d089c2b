"""One call that removes rows by real refits and says whether predicted effects can be believed."""

from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
from scipy.stats import rankdata
from sklearn.utils import check_random_state

from .._refitting import Refits
from ..exceptions import UnsupportedOptionError
from ..models import final_estimator, is_frozen
from ..objectives import TrainingLoss
from ._agreement import agreement
from ._leave_one_out import LeaveOneOutEffects, compared
from ._removal_fidelity import RemovalFidelity
from ._removals import Question, RemovableRows, check_fitted

_TRUST, _RANKING, _DISTRUST = "trust the sizes", "ranking only", "don't trust"

_LEAST_REFITS = 7
_LARGE = 0.25
_SLOPE = (0.8, 1.2)
_SLOPE_INTERVAL = (0.5, 1.5)
_CORRELATION = 0.8
_RANKS = 0.5
_STATIONARY = 0.1
_FAR = 1.0
_ELSEWHERE = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class Validation:
    """Whether predicted effects can be believed, and why; ``str()`` says it in a sentence.

    Attributes
    ----------
    verdict : {"trust the sizes", "ranking only", "don't trust"}
        See `validate` for the rules.
    reasons : tuple of str
        What it rests on, the weightiest first, and what to try.
    slope : float
        Of refitted on predicted effects, single rows and groups counting alike: 1 where sizes are
        right. NaN without refits, like all numbers about them.
    slope_interval : (low, high) of float
        95 % percentile interval of a bootstrap over what was removed.
    correlation : float
        Pearson's, of the same effects.
    correlation_interval : (low, high) of float
        As for the slope.
    rank_correlation : float
        Spearman's, of the same effects.
    stationarity : float
        ``stationarity_`` of the estimator.
    training_loss : float
        Mean loss over the training rows with weight, under the model as fitted.
    returned : float
        How far a refit with all rows ends from the model as fitted: root mean square of what it
        changes, over that of what is predicted for removing a group. 0 if it comes back.
    n_refits : int
        Number of refits made.
    rows : LeaveOneOutEffects or None
        Effects of removing single rows.
    groups : RemovalFidelity or None
        Effects of removing groups.
    """

    verdict: str
    reasons: tuple[str, ...]
    slope: float = np.nan
    slope_interval: tuple[float, float] = (np.nan, np.nan)
    correlation: float = np.nan
    correlation_interval: tuple[float, float] = (np.nan, np.nan)
    rank_correlation: float = np.nan
    stationarity: float
    training_loss: float
    returned: float = np.nan
    n_refits: int = 0
    rows: LeaveOneOutEffects | None = field(default=None, repr=False)
    groups: RemovalFidelity | None = field(default=None, repr=False)

    def __str__(self):
        said = "; ".join(self.reasons)
        return f"{said}; {self.verdict}" if self.verdict == _TRUST else f"{self.verdict}: {said}"


def validate(
    influence_estimator,
    X,
    y=None,
    *,
    n_refits=21,
    fraction=0.05,
    objective=None,
    order=None,
    n_jobs=None,
    random_state=None,
    verbose=0,
):
    r"""Say whether predicted effects can be believed, from a few real refits.

    Parameters
    ----------
    influence_estimator : InfluenceEstimator
        Fitted. Where its estimator can be fitted again, it is.
    X : array-like, (n_queries, n_features)
        Query rows, other than the training rows.
    y : array-like, (n_queries,) or (n_queries, n_outputs), optional
        Their targets, for the objectives "loss" and "margin".
    n_refits : int, default=21
        Budget, 7 or more: one refit with all rows; of the others half without a group each, half
        without a single row each.
    fraction : float, default=0.05
        Share of the training rows in each group, between 0 and 1.
    objective : {"loss", "prediction", "margin"}, Objective or callable, optional
        Instead of the estimator's own.
    order : {"newton", "first", "exact"}, optional
        Instead of the estimator's own.
    n_jobs : int or None, default=None
        Refits at a time, through joblib. Nets of skorch need processes, its default.
    random_state : int, RandomState instance or None, default=None
        Draws rows, groups and the resamples of the intervals. Refits have the ``random_state``
        that the wrapped estimator has.
    verbose : int, default=0
        Above 0, joblib says how many refits are done.

    Returns
    -------
    Validation

    Raises
    ------
    NotFittedError
        If ``influence_estimator`` was not fitted.
    TypeError
        If it is no `InfluenceEstimator`.
    ValueError
        If ``n_refits`` or ``fraction`` are out of range, for ``curvature="identity"``, if effects
        overflow, or if removing rows changes nothing on the queries.

    See Also
    --------
    removal_fidelity : Groups alone, with a choice of ridges.
    leave_one_out_effects : Single rows alone.
    linear_datamodeling_score : For scores that only rank, with ``curvature="identity"``.

    Notes
    -----
    Groups are drawn from all rows; single rows from the quarter of the largest self-influence,
    since what the others change is often less than training leaves undone. Refits are those of
    `leave_one_out_effects`. The effects of both kinds, each divided by the root mean square of the
    refitted ones, are taken together. Then

    - "trust the sizes": slope from 0.8 to 1.2, its interval within 0.5 to 1.5, correlation 0.8 or
      more.
    - "don't trust": else, if a network has a stationarity above 1: more gradient is left over than
      the row makes that is removed; or if the rank correlation is below 0.5; or if a frozen model
      is not one of these rows, in that a refit with all of them ends further away than half of
      what removing a group changes.
    - "ranking only": else.

    A model that cannot be fitted again (a `TorchModel`, a net that holds out rows) has its
    stationarity to speak for it, and its loss on the rows: above 0.1 "don't trust", else "ranking
    only", since nobody has seen the sizes. So has a frozen network that ends elsewhere when it is
    refitted, from another start.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.metrics import validate
    >>> X, y = load_wine(return_X_y=True)
    >>> X = scale(X)
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X[::2], y[::2])
    >>> print(validate(influence, X[1::2], y[1::2], random_state=0))
    predicted effects match refits: slope 0.98 [0.95, 0.99]; trust the sizes
    """
    check_fitted(influence_estimator, "validate")
    engine = influence_estimator._engine
    if not engine.gives_effects:
        engine.no_effects()
    _check_sizes(n_refits, fraction)
    question = Question.of(influence_estimator, X, y, objective, order)
    known = {
        "stationarity": influence_estimator.stationarity_,
        "training_loss": _training_loss(influence_estimator),
        "n_refits": 0,
    }
    try:
        refits = Refits.of(influence_estimator)
    except UnsupportedOptionError as error:
        reason, _, _ = str(error).partition(". ")
        return _unseen(influence_estimator, known, f"no refits: {reason}")
    generator = check_random_state(random_state)
    rows, groups = _draw(influence_estimator, n_refits - 1, fraction, generator)
    predicted = question.predicted(groups)
    if question.at_the_optimum:
        refits = refits.to_the_optimum()
    before, again = question.outputs(), question.refitted(refits, [[]])
    scale = _size(predicted)
    back = _size(question.changes(before, again)) / scale if scale else 0.0
    known |= {"returned": back, "n_refits": 1}
    frozen = is_frozen(influence_estimator.estimator)
    if frozen and back > _ELSEWHERE:
        return _elsewhere(influence_estimator, question, known)
    if question.at_the_optimum:
        before = again[0]
    removed = [*groups, *rows[:, None]]
    refitted = question.refitted(refits, removed, n_jobs=n_jobs, verbose=verbose)
    refitted = question.changes(before, refitted)
    if not np.ptp(refitted):
        raise ValueError(
            f"Removing rows changes nothing on these queries in {len(removed)} refits, so that "
            "there is nothing to compare. Pass other queries."
        )
    split = len(groups)
    alone = question.single(rows).T
    seen = _seen((predicted, refitted[:split]), (alone, refitted[split:]), generator)
    known |= seen | {
        "n_refits": 1 + len(removed),
        "rows": compared(rows, alone, refitted[split:], generator),
        "groups": RemovalFidelity(
            ridge=influence_estimator.ridge_,
            predicted=predicted,
            refitted=refitted[:split],
            groups=groups,
            **agreement(predicted, refitted[:split], generator),
        ),
    }
    return _judged(influence_estimator, question, known)


def _check_sizes(n_refits, fraction):
    whole = isinstance(n_refits, Integral) and not isinstance(n_refits, bool)
    if not whole or n_refits < _LEAST_REFITS:
        raise ValueError(
            f"n_refits={n_refits!r} must be a whole number of at least {_LEAST_REFITS}: one refit "
            "with all rows, three without a group and three without a row."
        )
    if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise ValueError(
            f"fraction={fraction!r} must be a number between 0 and 1: the share of the training "
            "rows in each group."
        )


def _draw(influence, n_removals, fraction, generator):
    """Return single rows (n,) of large self-influence, and groups (m, group_size)."""
    removable = RemovableRows.of(influence)
    size = max(1, round(fraction * len(removable.rows)))
    removable.check_size(size, f"fraction={fraction!r}")
    n_groups = n_removals // 2
    groups = np.array([removable.draw(size, generator) for _ in range(n_groups)])
    single = removable.single
    single = single[np.argsort(-np.abs(influence.self_influence_[single]), kind="stable")]
    n_rows = min(n_removals - n_groups, len(single))
    large = single[: max(n_rows, round(_LARGE * len(single)))]
    return np.sort(generator.choice(large, n_rows, replace=False)), groups


def _training_loss(influence):
    model, problem = influence._engine.model, influence._engine.problem
    losses = TrainingLoss(model).value(model.outputs(problem.features), problem.y).numpy()
    return float(losses[influence._sample_weight > 0].mean())


def _size(effects):
    return float(np.sqrt(np.mean(effects**2)))


def _seen(groups, rows, generator):
    """Return the numbers of `Validation` about (predicted, refitted) effects of two kinds."""
    scales = [_size(refitted) or 1.0 for _, refitted in (groups, rows)]
    predicted, refitted = (
        np.concatenate([effects / scale for effects, scale in zip(both, scales, strict=True)])
        for both in zip(groups, rows, strict=True)
    )
    found = agreement(predicted, refitted, generator)
    ranks = np.corrcoef(rankdata(predicted), rankdata(refitted))[0, 1] if np.ptp(predicted) else 0.0
    return {
        "slope": found["slope"],
        "slope_interval": found["slope_interval"],
        "correlation": found["pearson"],
        "correlation_interval": found["pearson_interval"],
        "rank_correlation": float(ranks),
    }


# Verdicts --------------------------------------------------------------------------------------


def _judged(influence, question, known):
    """Return the `Validation` of a model whose refits were made."""
    low, high = known["slope_interval"]
    sized = f"slope {known['slope']:.2f} [{low:.2f}, {high:.2f}]"
    inside = _SLOPE[0] <= known["slope"] <= _SLOPE[1]
    sure = _SLOPE_INTERVAL[0] <= low and high <= _SLOPE_INTERVAL[1]
    if inside and sure and known["correlation"] >= _CORRELATION:
        reasons = (f"predicted effects match refits: {sized}",)
        return Validation(verdict=_TRUST, reasons=reasons, **known)
    numbers = f"{sized}, rank correlation {known['rank_correlation']:.2f}"
    if not question.at_the_optimum and known["stationarity"] > _FAR:
        verdict = _DISTRUST
        reasons = [_not_at_an_optimum(influence, known), f"refits disagree ({numbers})"]
    elif known["rank_correlation"] >= _RANKS:
        verdict = _RANKING
        reasons = [f"refits confirm the order of effects, not the sizes ({numbers})"]
    else:
        verdict, reasons = _DISTRUST, [f"refits disagree ({numbers})"]
    if known["returned"] > _ELSEWHERE:
        reasons.append(
            "a refit with all rows does not come back to the model; try an integer random_state, "
            "or a smaller tol, so that training repeats"
        )
    elif question.at_the_optimum:
        reasons.append("try order='exact'; fitted transformers and chosen penalties are held fixed")
    elif len(reasons) == 1:
        reasons.append(
            "try a larger weight decay, longer training, or a damping chosen by removal_fidelity "
            "with ridges"
        )
    return Validation(verdict=verdict, reasons=tuple(reasons), **known)


def _elsewhere(influence, question, known):
    """Return the `Validation` of a frozen model to which refits do not come back."""
    ends = (
        f"a refit of {_name(influence)} with these rows ends elsewhere, {known['returned']:.2g} "
        "times as far as removing a group takes it"
    )
    if not question.at_the_optimum:
        return _unseen(influence, known, f"{ends}, so that refits say nothing of it")
    remedy = "pass the rows, targets and weights that it was trained on"
    reasons = (f"{ends}: the frozen model is not one of these rows; {remedy}",)
    return Validation(verdict=_DISTRUST, reasons=reasons, **known)


def _unseen(influence, known, reason):
    """Return the `Validation` of a model that refits say nothing of."""
    if known["stationarity"] > _STATIONARY:
        reasons = (_not_at_an_optimum(influence, known), reason)
        return Validation(verdict=_DISTRUST, reasons=reasons, **known)
    reasons = (
        f"the model is at an optimum (stationarity {known['stationarity']:.2g}), but the sizes "
        "were not checked",
        reason,
    )
    return Validation(verdict=_RANKING, reasons=reasons, **known)


def _not_at_an_optimum(influence, known):
    if is_frozen(influence.estimator) or not known["n_refits"]:
        remedy = "passing the rows, targets and weight decay that it was trained with, or training"
    else:
        remedy = "training"
    return (
        "the model is not at an optimum of the stated objective (stationarity "
        f"{known['stationarity']:.2g}, mean loss {known['training_loss']:.2g} on its rows); try "
        f"{remedy} longer with a falling step size or a larger weight decay"
    )


def _name(influence):
    return type(final_estimator(influence.estimator_)).__name__
