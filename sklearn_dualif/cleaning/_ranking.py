"""Which row to look at first."""

from typing import NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import _num_samples, check_consistent_length

from .._estimator import InfluenceEstimator
from ._evidence import evidence_of
from ._held_out import CrossValidatedLoss, ValidationLoss


class Ranking(NamedTuple):
    """Training rows by how probably they are wrong.

    Attributes
    ----------
    influence : InfluenceEstimator
        Fitted on the rows.
    evidence : ClassEvidence or ResidualEvidence
    held_out : ValidationLoss, CrossValidatedLoss or None
        None where it was not asked for, and for networks without validation rows.
    removals : (n,) array or None
        Effects of single removals on it.
    score : (n,) array
        The larger, the worse.
    order : (n,) array of int
        Rows, the worst first.
    """

    influence: object
    evidence: object
    held_out: object
    removals: np.ndarray | None
    score: np.ndarray
    order: np.ndarray


def rank_rows(estimator, X, y, X_val=None, y_val=None, fit_params=None, *, effects=False):
    """Return the `Ranking` of training rows.

    The score is the strength of the evidence. Validation rows move it by up to 1 either way:
    ``tanh(-effect / root mean square of all effects)``. Leave-one-out losses don't, as they are of
    the same targets that the evidence is about.

    Parameters
    ----------
    estimator : estimator
        A model, or an InfluenceEstimator, fitted on these rows or not.
    X, y : array-like
        Training rows and targets.
    X_val, y_val : array-like or None
        Validation rows and targets.
    fit_params : dict or None
        For ``fit``, where it is called.
    effects : bool
        Whether held-out losses are wanted without validation rows, too.
    """
    if (X_val is None) != (y_val is None):
        given, missing = ("y_val", "X_val") if X_val is None else ("X_val", "y_val")
        raise ValueError(f"{given} was given without {missing}. Give both, or neither.")
    influence = _fitted(estimator, X, y, fit_params or {})
    evidence = evidence_of(influence, y)
    score, held_out, removals = evidence.strength, None, None
    if X_val is not None:
        held_out = ValidationLoss(influence, X_val, y_val)
        removals = held_out.removals()
        size = np.sqrt(np.mean(removals**2))
        score = score + np.tanh(-removals / (size or 1.0))
    elif effects and influence._engine.moves_to_optimum:
        held_out = CrossValidatedLoss(influence, evidence.suspects, evidence.labels)
    order = np.argsort(-score, kind="stable")
    return Ranking(influence, evidence, held_out, removals, score, order)


def _fitted(estimator, X, y, fit_params):
    """Return an InfluenceEstimator fitted on the rows."""
    if not isinstance(estimator, InfluenceEstimator):
        return InfluenceEstimator(estimator).fit(X, y, **fit_params)
    if not hasattr(estimator, "estimator_"):
        return clone(estimator).fit(X, y, **fit_params)
    if fit_params:
        raise ValueError(
            f"{sorted(fit_params)} are for fitting, and the InfluenceEstimator is fitted already. "
            "Pass them to its fit, or pass sklearn.base.clone of it."
        )
    check_consistent_length(X, y)
    n_train = len(estimator._sample_weight)
    if _num_samples(X) != n_train:
        raise ValueError(
            f"X has {_num_samples(X)} rows, and the InfluenceEstimator was fitted on {n_train}. "
            "Pass the rows that it was fitted on, or sklearn.base.clone of it to fit it on these."
        )
    model = estimator._engine.model
    if not bool((model.targets.encode(y) == estimator._engine.problem.y).all()):
        raise ValueError(
            "y differs from the targets that the InfluenceEstimator was fitted with. Pass those, "
            "or sklearn.base.clone of the estimator to fit it with these."
        )
    return estimator
