"""Which rows of a ranking to act on, and the training set afterwards."""

from numbers import Real

import numpy as np
from sklearn.base import clone
from sklearn.utils import _safe_indexing, get_tags, indexable
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_method_params,
    _check_sample_weight,
    _num_samples,
    has_fit_parameter,
)

from .._estimator import InfluenceEstimator
from ..exceptions import UnsupportedModelError, UnsupportedOptionError
from ..models import TorchModel, final_estimator, final_fit_name, final_fit_params, is_frozen
from ._ranking import rank_rows

CONTAMINATION = [StrOptions({"auto"}), Interval(Real, 0.0, 0.5, closed="both")]


def auto_rows(ranking):
    """Return the rows (m,) that are probably wrong, the worst first; see `find_issues`."""
    return _disputed(ranking)[: ranking.evidence.n_wrong]


def _disputed(ranking):
    return ranking.order[ranking.evidence.disputed[ranking.order]]


def _without_last_of_class(ranking, rows):
    """Return rows without the best ranked one of each class."""
    labels = ranking.evidence.labels
    if labels is None:
        return rows
    best_first = ranking.order[::-1]
    _, first = np.unique(labels[best_first], return_index=True)
    return rows[~np.isin(rows, best_first[first])]


class Selection:
    """Rows of a training set that are to be acted on.

    Parameters
    ----------
    estimator : estimator
        As `InfluenceFilter` and `InfluenceSampler` are given it.
    X, y : array-like
        Training rows and targets.
    X_val, y_val : array-like or None
        Validation rows and targets.
    fit_params : dict
        For the estimator's ``fit``.
    contamination : "auto" or float
        The rows that are probably wrong; or a share of all, of which those count whose label the
        model without them disputes.

    Attributes
    ----------
    ranking : Ranking
        Of all rows.
    rows : (m,) array of int
        Those to act on, the worst first. Each class keeps at least its best row.
    """

    def __init__(self, estimator, X, y, X_val, y_val, fit_params, contamination):
        self.estimator, self.fit_params = estimator, fit_params
        self.ranking = rank_rows(clone(estimator), X, y, X_val, y_val, fit_params)
        self.X, self.y = indexable(X, y)
        if contamination == "auto":
            rows = auto_rows(self.ranking)
        else:
            rows = _disputed(self.ranking)[: round(contamination * _num_samples(X))]
        self.rows = _without_last_of_class(self.ranking, rows)

    @property
    def model(self):
        """The model to be cleaned for."""
        inside = isinstance(self.estimator, InfluenceEstimator)
        return self.estimator.estimator if inside else self.estimator

    def kept(self):
        """Return the positions of the other rows."""
        return np.setdiff1d(np.arange(_num_samples(self.X)), self.rows)

    def relabelled(self):
        """Return the targets with the suggested labels."""
        evidence, rows, y = self.ranking.evidence, self.rows, self.y
        if evidence.kind == "target":
            raise UnsupportedOptionError(
                "strategy='relabel' is for classifiers: a row of a regression with its own "
                "leave-one-out prediction as its target says nothing of its own. Use 'remove'."
            )
        suggested = evidence.suggested[rows]
        if hasattr(y, "iloc"):
            y = y.copy()
            y.iloc[rows] = suggested.reshape(y.iloc[rows].shape)
            return y
        y = np.array(y)
        y[rows] = suggested.reshape(y[rows].shape)
        return y

    def describe(self, estimator):
        """Set on an estimator what it has seen: scores of the rows, features and classes."""
        estimator.scores_ = self.ranking.score
        for name in ("classes_", "n_features_in_", "feature_names_in_"):
            if hasattr(self.ranking.influence, name):
                setattr(estimator, name, getattr(self.ranking.influence, name))
            elif hasattr(estimator, name):
                delattr(estimator, name)

    def taken(self, rows):
        """Return X, y and the fit parameters of some rows."""
        if get_tags(self.model).input_tags.pairwise:
            raise UnsupportedOptionError(
                "strategy='remove' would take rows out of a precomputed kernel, and the model "
                "would expect other columns than X has. Name the kernel, or use strategy='weight'."
            )
        params = _check_method_params(self.X, self.fit_params, rows)
        return _safe_indexing(self.X, rows), _safe_indexing(self.y, rows), params

    def weighted(self):
        """Return the fit parameters with smaller weights for the rows."""
        final = final_estimator(self.model)
        if not has_fit_parameter(final, "sample_weight"):
            raise UnsupportedOptionError(
                f"strategy='weight' needs a model whose fit takes sample_weight, and "
                f"{type(final).__name__} does not. Use 'remove'."
            )
        given = final_fit_params(self.model, self.fit_params).get("sample_weight")
        n = _num_samples(self.X)
        weights = _check_sample_weight(given, np.empty((n, 1)), dtype=np.float64, copy=True)
        weights[self.rows] *= self.ranking.evidence.factors(self.rows)
        return {**self.fit_params, final_fit_name(self.model, "sample_weight"): weights}


def check_refittable(estimator):
    """Raise for models that cannot be fitted again."""
    if isinstance(estimator, InfluenceEstimator):
        estimator = estimator.estimator
    final = final_estimator(estimator)
    if isinstance(final, TorchModel) or is_frozen(estimator):
        raise UnsupportedModelError(
            f"{type(final).__name__} is given as fitted and cannot be fitted again on a clean "
            "training set. Pass a model that can, or look at its rows by find_issues."
        )
