"""A step of a pipeline that cleans the training set for the steps after it."""

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context
from sklearn.utils import get_tags
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.validation import _num_samples

from ._selection import CONTAMINATION, Selection


class InfluenceSampler(MetaEstimatorMixin, BaseEstimator):
    """A step of a pipeline of imbalanced-learn that removes or relabels wrong training rows.

    Rows are ranked as by `find_issues`. The estimator judges them and need not be the one at the
    end of the pipeline. Nothing is imported from imbalanced-learn.

    Parameters
    ----------
    estimator : estimator
        A model that `InfluenceEstimator` can wrap, classifiers with ``predict_proba``; or an
        `InfluenceEstimator`, to choose its options. Cloned, never changed.
    contamination : "auto" or float in [0, 0.5], default="auto"
        Share of rows to act on at most; see `InfluenceFilter`.
    strategy : {"remove", "relabel"}, default="remove"
        Whether to take the rows out or to give them the labels that the model without them gives
        them; the latter for classifiers.

    Attributes
    ----------
    sample_indices_ : (n_resampled,) array
        Positions of the rows that are left, in their order.
    relabeled_ : (n_relabeled,) array
        Positions of the rows with other labels, the worst first.
    scores_ : (n_train,) array
        How much speaks against each row: ``score`` of `find_issues`.
    n_features_in_ : int
        Features seen by `fit`, where the estimator knows them.
    feature_names_in_ : array of str
        Their names, where X has them.

    See Also
    --------
    InfluenceFilter : The same around the model that is to be fitted, for scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif.cleaning import InfluenceSampler
    >>> X, y = load_iris(return_X_y=True)
    >>> y[[7, 60]] = 2  # two mistakes
    >>> judge = LogisticRegression(max_iter=1000)
    >>> sampler = InfluenceSampler(judge, contamination="auto", strategy="relabel")
    >>> X_clean, y_clean = sampler.fit_resample(X, y)
    >>> y_clean[[7, 60]], sampler.relabeled_
    (array([0, 1]), array([ 7, 60]))
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit"])],
        "contamination": CONTAMINATION,
        "strategy": [StrOptions({"remove", "relabel"})],
    }

    def __init__(self, estimator, *, contamination="auto", strategy="remove"):
        self.estimator = estimator
        self.contamination = contamination
        self.strategy = strategy

    def fit(self, X, y, **fit_params):
        """Find wrong rows.

        Parameters
        ----------
        X, y, **fit_params
            As for `fit_resample`.

        Returns
        -------
        self : InfluenceSampler
        """
        self.fit_resample(X, y, **fit_params)
        return self

    @_fit_context(prefer_skip_nested_validation=False)
    def fit_resample(self, X, y, **fit_params):
        """Return the training set without wrong rows, or with other labels for them.

        Parameters
        ----------
        X : array-like, sparse matrix or whatever the estimator takes, (n_train, n_features)
            Training rows.
        y : array-like, (n_train,) or (n_train, n_outputs)
            Their targets.
        **fit_params : dict
            Passed to the estimator's ``fit``.

        Returns
        -------
        X_resampled, y_resampled
            In the containers of X and y; frames keep their index.

        Raises
        ------
        UnsupportedModelError
            A `TypeError`, for models that cannot be judged; see `find_issues`.
        UnsupportedOptionError
            A `ValueError`, for a strategy that the estimator does not allow.
        """
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        found = Selection(self.estimator, X, y, None, None, fit_params, self.contamination)
        if self.strategy == "remove":
            self.sample_indices_, self.relabeled_ = found.kept(), found.rows[:0]
            resampled = found.taken(self.sample_indices_)[:2]
        else:
            resampled = X, found.relabelled()
            self.sample_indices_, self.relabeled_ = np.arange(_num_samples(X)), found.rows
        found.describe(self)
        return resampled

    def get_metadata_routing(self):
        """Return the metadata routing: fit parameters go to the estimator.

        Returns
        -------
        MetadataRouter
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        return MetadataRouter(owner=self).add(estimator=self.estimator, method_mapping=mapping)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.target_tags = inner.target_tags
        tags.input_tags = inner.input_tags
        tags.non_deterministic = inner.non_deterministic
        return tags
