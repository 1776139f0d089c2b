"""What estimators that wrap a model have of it: predictions, metadata routing, tags."""

from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted


def _wrapped_has(method):
    """Check that the wrapped estimator, fitted or not, has a method."""

    def check(self):
        getattr(getattr(self, "estimator_", self.estimator), method)
        return True

    return check


class WrappedModelMixin:
    """An estimator whose predictions are those of its ``estimator_``.

    ``estimator`` is the model that it was made with, and ``_conversion`` goes between the data of
    the caller and those that the model takes.
    """

    @available_if(_wrapped_has("predict"))
    def predict(self, X, **params):
        """Return the wrapped model's predictions."""
        return self._delegate("predict", X, **params)

    @available_if(_wrapped_has("predict_proba"))
    def predict_proba(self, X, **params):
        """Return the wrapped model's class probabilities."""
        return self._delegate("predict_proba", X, **params)

    @available_if(_wrapped_has("predict_log_proba"))
    def predict_log_proba(self, X, **params):
        """Return the wrapped model's log probabilities."""
        return self._delegate("predict_log_proba", X, **params)

    @available_if(_wrapped_has("decision_function"))
    def decision_function(self, X, **params):
        """Return the wrapped model's decision function."""
        return self._delegate("decision_function", X, **params)

    @available_if(_wrapped_has("score"))
    def score(self, X, y=None, **params):
        """Return the wrapped model's score."""
        return self._delegate("score", X, y, **params)

    def _delegate(self, method, X, *y, **params):
        check_is_fitted(self)
        if _routing_enabled():
            params = process_routing(self, method, **params).estimator[method]
        y = map(self._conversion.targets, y)
        values = getattr(self.estimator_, method)(self._conversion.rows(X), *y, **params)
        return self._conversion.predictions(values) if method == "predict" else values

    def get_metadata_routing(self):
        """Return the metadata routing: fit parameters go to the wrapped estimator.

        Returns
        -------
        MetadataRouter
        """
        mapping = MethodMapping()
        for method in ("fit", "predict", "predict_proba", "decision_function", "score"):
            mapping.add(caller=method, callee=method)
        # A frozen model ignores fit parameters, but its weights belong in every number.
        estimator = self.estimator
        while isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(estimator=estimator, method_mapping=mapping)
        )

    def __sklearn_tags__(self):
        return tags_like(super().__sklearn_tags__(), self.estimator)


def tags_like(tags, estimator):
    """Return tags with those that a wrapper has from the estimator that it wraps."""
    inner = get_tags(estimator)
    tags.estimator_type = inner.estimator_type
    tags.classifier_tags = inner.classifier_tags
    tags.regressor_tags = inner.regressor_tags
    tags.target_tags = inner.target_tags
    tags.input_tags = inner.input_tags
    tags.non_deterministic = inner.non_deterministic
    return tags
