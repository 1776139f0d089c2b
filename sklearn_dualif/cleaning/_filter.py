"""A model that cleans its training set before it is fitted."""

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.validation import _num_samples

from .._delegation import WrappedModelMixin
from ..models import conversion_of
from ._selection import CONTAMINATION, Selection, check_refittable


class InfluenceFilter(MetaEstimatorMixin, WrappedModelMixin, BaseEstimator):
    """A classifier or regressor that finds wrong training rows, acts on them and is fitted again.

    Rows are ranked as by `find_issues`, from one fit, or of networks from three. A last fit is on
    what is then held to be right.

    Parameters
    ----------
    estimator : estimator
        A model that `InfluenceEstimator` can wrap, classifiers with ``predict_proba``; or an
        `InfluenceEstimator`, to choose its options. Cloned, never changed.
    contamination : "auto" or float in [0, 0.5], default="auto"
        Share of rows to act on, the worst ones. Rows whose own label is what the model without
        them predicts are never among them, nor is the best row of a class, so that there may be
        fewer. "auto" estimates the number: of a classifier, how many rows are confidently of
        another class by their leave-one-out probabilities [1]_; of a regressor, how many residuals
        are too large to be noise, at a false discovery rate of .05. On clean data this is often 0.
    strategy : {"remove", "relabel", "weight"}, default="remove"
        "remove" fits without the rows; "relabel", for classifiers, with the labels that the model
        without them gives them; "weight" with weights that are smaller by the odds of their label
        or, of a regression, as in Huber's loss.

    Attributes
    ----------
    estimator_ : estimator
        The model fitted on the clean training set.
    inlier_mask_ : (n_train,) bool array
        Rows that were not acted on.
    removed_indices_ : (n_removed,) array
        Positions of the rows that were removed, the worst first.
    relabeled_ : (n_relabeled,) array
        Positions of the rows with other labels, the worst first.
    transduction_ : (n_train,) or (n_train, n_outputs) array
        Targets after relabelling; with other strategies those of `fit`.
    row_weights_ : (n_train,) array
        By what the weights were multiplied: 0 for rows that were removed.
    scores_ : (n_train,) array
        How much speaks against each row: ``score`` of `find_issues`.
    classes_ : (n_classes,) array
        For classifiers.
    n_features_in_ : int
        Features seen by `fit`, where the model knows them.
    feature_names_in_ : array of str
        Their names, where X has them.

    See Also
    --------
    find_issues : A table of the rows, with reasons.
    InfluenceSampler : The same as a step of a pipeline of imbalanced-learn.

    Notes
    -----
    A row of weight 2 counts once in a share of rows, so that it is not two rows here.

    References
    ----------
    .. [1] C. Northcutt, L. Jiang and I. Chuang, "Confident Learning: Estimating Uncertainty in
       Dataset Labels", JAIR 70, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_dualif.cleaning import InfluenceFilter
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, y_train, X_test, y_test = X[::2], y[::2], X[1::2], y[1::2]
    >>> wrong = np.random.default_rng(0).choice(899, 89, replace=False)
    >>> noisy = y_train.copy()
    >>> noisy[wrong] = (noisy[wrong] + 1) % 10
    >>> model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    >>> round(model.fit(X_train, y_train).score(X_test, y_test), 3)
    0.951
    >>> round(model.fit(X_train, noisy).score(X_test, y_test), 3)
    0.847
    >>> cleaned = InfluenceFilter(model, contamination="auto").fit(X_train, noisy)
    >>> round(cleaned.score(X_test, y_test), 3)
    0.933
    >>> len(cleaned.removed_indices_), int(np.isin(cleaned.removed_indices_, wrong).sum())
    (103, 74)
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit"])],
        "contamination": CONTAMINATION,
        "strategy": [StrOptions({"remove", "relabel", "weight"})],
    }

    def __init__(self, estimator, *, contamination="auto", strategy="remove"):
        self.estimator = estimator
        self.contamination = contamination
        self.strategy = strategy

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, *, X_val=None, y_val=None, **fit_params):
        """Find wrong rows, act on them and fit the model.

        Parameters
        ----------
        X : array-like, sparse matrix or whatever the model takes, (n_train, n_features)
            Training rows.
        y : array-like, (n_train,) or (n_train, n_outputs)
            Their targets.
        X_val, y_val : array-like, optional
            Rows whose targets can be trusted: they make the ranking better.
        **fit_params : dict
            Passed to the model's ``fit``, cut to the rows that are kept.

        Returns
        -------
        self : InfluenceFilter

        Raises
        ------
        UnsupportedModelError
            A `TypeError`, for models that cannot be judged (see `find_issues`) or fitted again.
        UnsupportedOptionError
            A `ValueError`, for a strategy that the model does not allow.
        """
        check_refittable(self.estimator)
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        found = Selection(self.estimator, X, y, X_val, y_val, fit_params, self.contamination)
        rows = found.rows
        inlier = np.ones(_num_samples(X), dtype=bool)
        inlier[rows] = False
        factors, targets = np.ones(len(inlier)), np.asarray(y)
        parts = X, y, fit_params
        if self.strategy == "remove":
            factors[rows] = 0.0
            parts = found.taken(found.kept())
        elif self.strategy == "relabel":
            relabelled = found.relabelled()
            parts, targets = (X, relabelled, fit_params), np.asarray(relabelled)
        else:
            factors[rows] = found.ranking.evidence.factors(rows)
            parts = X, y, found.weighted()
        X_clean, y_clean, params = parts
        conversion = conversion_of(self.estimator, X, y)
        estimator = clone(self.estimator)
        estimator.fit(conversion.rows(X_clean), conversion.targets(y_clean), **params)
        self.estimator_, self._conversion = estimator, conversion
        self.inlier_mask_, self.row_weights_, self.transduction_ = inlier, factors, targets
        none = rows[:0]
        self.removed_indices_ = rows if self.strategy == "remove" else none
        self.relabeled_ = rows if self.strategy == "relabel" else none
        found.describe(self)
        return self
