"""Fitted networks at other parameters than the fitted ones, or without some of their units."""

from dataclasses import replace

from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.metaestimators import available_if

from ._registry import as_model_function


def _inner_has(method):
    """Check that the fitted estimator has a method."""

    def check(self):
        getattr(self.estimator, method)
        return True

    return check


class NetworkVariant(FrozenEstimator):
    """A fitted estimator that ends in a network, and computes with another module in its place.

    Parameters
    ----------
    estimator : estimator
        Fitted. All but the network's module is taken from it.
    module : torch.nn.Module
        With the parameters of the network's own, by name and shape.
    """

    def __init__(self, estimator, module):
        self.estimator = estimator
        self.module = module

    def get_params(self, deep=True):
        """Return both parameters, but none of the estimator's own."""
        return {"estimator": self.estimator, "module": self.module}

    @available_if(_inner_has("predict"))
    def predict(self, X):
        """Return what the estimator predicts with the module."""
        return self._answer("predict", X)

    @available_if(_inner_has("predict_proba"))
    def predict_proba(self, X):
        """Return class probabilities."""
        return self._answer("predict_proba", X)

    @available_if(_inner_has("predict_log_proba"))
    def predict_log_proba(self, X):
        """Return log probabilities."""
        return self._answer("predict_log_proba", X)

    @available_if(_inner_has("decision_function"))
    def decision_function(self, X):
        """Return the decision function."""
        return self._answer("decision_function", X)

    def score(self, X, y, sample_weight=None):
        """Return the accuracy of a classifier, or the R² of a regressor."""
        metric = accuracy_score if is_classifier(self.estimator) else r2_score
        return metric(y, self.predict(X), sample_weight=sample_weight)

    def _answer(self, method, X):
        model = as_model_function(self).prepared(X)
        return model.from_outputs(method, model.outputs(model.features(X)).numpy())


@as_model_function.register(NetworkVariant)
def _(estimator):
    return replace(as_model_function(estimator.estimator), module=estimator.module)
