"""What scores become when the rows that a ranking puts first are removed."""

from copy import copy
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
from sklearn.metrics import check_scoring
from sklearn.utils import check_random_state
from sklearn.utils.parallel import Parallel, delayed

from .._estimator import InfluenceEstimator
from .._refitting import Refits
from .._validation import check_positions
from ..objectives import TrainingLoss
from ._removals import RemovableRows, check_fitted, finite


@dataclass(frozen=True, eq=False, kw_only=True)
class RemovalCurve:
    """Scores of refits without the first rows of a ranking, beside two baselines.

    Attributes
    ----------
    fractions : (n_fractions,) array
        Shares of the training rows that were removed.
    n_removed : (n_fractions,) array of int
        Their numbers.
    score : (n_fractions,) array
        Of refits without the first rows of the ranking.
    training_loss : (n_fractions,) array
        The same for the rows of the largest loss under the model as fitted.
    random : (n_repeats, n_fractions) array
        The same for random rows. In each repeat, larger fractions contain the smaller ones.
    ranking : (n_ranked,) array of int
        Positions of the training rows, the first to remove first.
    """

    fractions: np.ndarray
    n_removed: np.ndarray
    score: np.ndarray
    training_loss: np.ndarray
    random: np.ndarray = field(repr=False)
    ranking: np.ndarray = field(repr=False)

    @property
    def random_mean(self):
        """Mean score (n_fractions,) without random rows."""
        return self.random.mean(0)

    @property
    def random_std(self):
        """Standard deviation (n_fractions,) over the repeats; NaN of a single one."""
        n_repeats = len(self.random)
        return (
            self.random.std(0, ddof=1) if n_repeats > 1 else np.full(self.random.shape[1], np.nan)
        )

    def frame(self):
        """Return the curves as a table, one line for each fraction.

        Returns
        -------
        DataFrame
            With the columns fraction, n_removed, score, training_loss, random_mean and random_std.
        """
        import pandas as pd

        names = ("n_removed", "score", "training_loss", "random_mean", "random_std")
        columns = {name: getattr(self, name) for name in names}
        return pd.DataFrame({"fraction": self.fractions} | columns)


def removal_curve(
    influence_estimator,
    X,
    y,
    *,
    ranking=None,
    fractions=(0.0, 0.05, 0.1, 0.2, 0.3),
    scoring=None,
    n_repeats=5,
    n_jobs=None,
    random_state=None,
    verbose=0,
):
    """Remove the first rows of a ranking, refit and score, beside random rows and training loss.

    Parameters
    ----------
    influence_estimator : InfluenceEstimator
        Fitted, around an estimator that can be fitted again.
    X : array-like, (n_queries, n_features)
        Rows that refits are scored on.
    y : array-like, (n_queries,) or (n_queries, n_outputs)
        Their targets.
    ranking : array-like of int, default=None
        Positions of training rows, the first to remove first; at least as many as the largest
        fraction takes. None: the most harmful first, by their influence on the mean loss over X
        and y.
    fractions : sequence of float, default=(0.0, 0.05, 0.1, 0.2, 0.3)
        Shares of the training rows to remove, from 0 to below 1. Rows of weight 0 are not counted
        and never removed, nor is the row of each class that a ranking puts last.
    scoring : str, callable or None, default=None
        As in `sklearn.model_selection.cross_validate`. None: the wrapped estimator's ``score``.
    n_repeats : int, default=5
        Random orders to remove rows in.
    n_jobs : int or None, default=None
        Refits at a time, through joblib. Nets of skorch need processes, its default.
    random_state : int, RandomState instance or None, default=None
        Draws the random orders. Refits have the ``random_state`` that the wrapped estimator has.
    verbose : int, default=0
        Above 0, joblib says how many refits are done.

    Returns
    -------
    RemovalCurve

    Raises
    ------
    NotFittedError
        If ``influence_estimator`` was not fitted.
    TypeError
        If it is no `InfluenceEstimator`.
    ValueError
        If ``ranking`` names rows that there are not, a row twice, or too few; if ``fractions`` or
        ``n_repeats`` are out of range; or if the wrapped model cannot be fitted again (see
        `removal_fidelity`).

    See Also
    --------
    InfluenceEstimator.trim_for : Chooses rows again after each step.
    detection_curve : For rows that are known to be bad; makes no refits.

    Notes
    -----
    Rows that hurt on X and y were chosen to: score the curve on other rows before a ranking is
    called good, by passing the ``ranking`` of one half of the rows with the other half.

    Refits are made as the estimator is, at its own tolerance; no refit starts from another.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.metrics import removal_curve
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X, noisy = scale(X), y[:200].copy()
    >>> noisy[::5] = 1 - noisy[::5]
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X[:200], noisy)
    >>> harm = influence.influence(X[200:300], y[200:300]).mean(axis=0)
    >>> curve = removal_curve(
    ...     influence,
    ...     X[300:],
    ...     y[300:],
    ...     ranking=np.argsort(harm),
    ...     fractions=[0, 0.2],
    ...     scoring="neg_log_loss",
    ...     random_state=0,
    ... )
    >>> curve.score.round(2)
    array([-0.41, -0.13])
    >>> curve.random_mean.round(2)
    array([-0.41, -0.41])
    """
    check_fitted(influence_estimator, "removal_curve")
    fractions = _checked_fractions(fractions)
    _check_repeats(n_repeats)
    refits = Refits.of(influence_estimator)
    scorer = check_scoring(influence_estimator, scoring)
    removable = RemovableRows.of(influence_estimator)
    sizes = np.array([round(fraction * len(removable.rows)) for fraction in fractions])
    removable.check_size(sizes.max(), f"fraction={fractions[sizes.argmax()]:g}")
    if ranking is None:
        ranking = np.argsort(_harm(influence_estimator, X, y), kind="stable")
    ranking = check_positions(ranking, len(influence_estimator._sample_weight), keep_some=False)
    groups = [removable.leading(ranking, size) for size in sizes]
    _check_long_enough(ranking, groups, fractions)
    generator = check_random_state(random_state)
    orders = [np.argsort(-_training_losses(influence_estimator), kind="stable")]
    orders += [generator.permutation(removable.rows) for _ in range(n_repeats)]
    groups += [removable.leading(order, size) for order in orders for size in sizes]
    distinct = {tuple(group): group for group in groups}
    shown = _shown(influence_estimator)
    scores = Parallel(n_jobs=n_jobs, verbose=verbose)(
        delayed(_score)(refits, shown, group, X, y, scorer) for group in distinct.values()
    )
    by_group = dict(zip(distinct, scores, strict=True))
    scores = np.array([by_group[tuple(group)] for group in groups]).reshape(-1, len(sizes))
    return RemovalCurve(
        fractions=fractions,
        n_removed=sizes,
        score=scores[0],
        training_loss=scores[1],
        random=scores[2:],
        ranking=ranking,
    )


def _checked_fractions(fractions):
    fractions = np.asarray(fractions)
    numbers = fractions.ndim == 1 and len(fractions) and np.issubdtype(fractions.dtype, np.number)
    if not numbers or not ((fractions >= 0) & (fractions < 1)).all():
        raise ValueError(
            f"fractions={fractions.tolist()!r} must be a sequence of numbers from 0 to below 1: "
            "the shares of the training rows to remove."
        )
    return fractions.astype(np.float64)


def _check_repeats(n_repeats):
    if isinstance(n_repeats, bool) or not isinstance(n_repeats, Integral) or n_repeats < 1:
        raise ValueError(
            f"n_repeats={n_repeats!r} must be a whole number of at least 1: how many random orders "
            "are tried."
        )


def _check_long_enough(ranking, groups, fractions):
    for fraction, group in zip(fractions, groups, strict=True):
        missing = np.setdiff1d(group, ranking)
        if len(missing):
            raise ValueError(
                f"fraction={fraction:g} removes {len(group)} rows, and the ranking of "
                f"{len(ranking)} has only {len(group) - len(missing)} that can be: they have "
                "weight, and of each class one stays. Rank more rows, or lower the fraction."
            )


def _harm(influence, X, y):
    """Return the effect (n_train,) of removing each row on the mean loss of queries."""
    objective, order = influence._choices("loss", None)
    features, targets = influence._queries(X, y, objective)
    effects = influence._engine.mean_influence(features, targets, objective, order)
    return finite(effects.numpy(), "predicted")


def _training_losses(influence):
    """Return the loss (n_train,) of each training row under the model as fitted."""
    model, problem = influence._engine.model, influence._engine.problem
    return TrainingLoss(model).value(model.outputs(problem.features), problem.y).numpy()


def _shown(influence):
    """Return an InfluenceEstimator that predicts with whatever its ``estimator_`` becomes."""
    shown = InfluenceEstimator(influence.estimator)
    shown._conversion = influence._conversion
    if hasattr(influence, "classes_"):
        shown.classes_ = influence.classes_
    return shown


def _score(refits, shown, removed, X, y, scorer):
    """Return the score of the refit without some rows."""
    shown = copy(shown)
    shown.estimator_ = refits.fitted(removed)
    score = scorer(shown, refits.queries(removed, X), y)
    if not isinstance(score, Real):
        raise ValueError(
            f"scoring gave {score!r}, which is no number. Pass one metric: a name, or a callable "
            "that returns a number."
        )
    return float(score)
