"""Fits of a wrapped model without some of its rows."""

import warnings
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, get_tags, indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params, _num_samples

from .exceptions import UnsupportedOptionError
from .models import TorchModel, as_model_function, final_estimator, is_frozen

_TIGHT = 1e-10
_LONG = 10_000


@dataclass(frozen=True)
class Refits:
    """Fits of the wrapped estimator without some of its rows.

    Attributes
    ----------
    estimator : estimator
        Not fitted.
    conversion : Conversion
        From the caller's data to those of the estimator.
    X, y, fit_params
        As they were passed to `InfluenceEstimator.fit`.
    torch_state : tensor
        State of torch's random generator at the fit.
    options : dict
        How networks are evaluated.
    tight : bool
        Whether the tolerance was lowered, see `to_the_optimum`.
    """

    estimator: object
    conversion: object
    X: object
    y: object
    fit_params: dict
    torch_state: torch.Tensor
    options: dict
    tight: bool = False

    @classmethod
    def of(cls, influence):
        """Return the refits of an influence estimator; raise if its model has none."""
        X, y = indexable(influence._X_train, influence._y_train)
        _check_refittable(influence)
        return cls(
            unfrozen(influence.estimator_),
            influence._conversion,
            X,
            y,
            influence._fit_params,
            influence._torch_state,
            {"dtype": influence.dtype, "device": influence.device},
        )

    def to_the_optimum(self):
        """Return refits that end at the optimum, as far as a tolerance of 1e-10 takes them.

        Solvers may be unable to get there, which is no reason to warn.
        """
        estimator = clone(self.estimator)
        final = final_estimator(estimator)
        given = final.get_params(deep=False)
        tol, max_iter = given.get("tol"), given.get("max_iter")
        if isinstance(tol, Real) and tol > _TIGHT:
            final.set_params(tol=_TIGHT)
        if isinstance(max_iter, Integral) and 0 < max_iter < _LONG:
            final.set_params(max_iter=_LONG)
        return replace(self, estimator=estimator, tight=True)

    def fitted(self, removed):
        """Return the wrapped estimator fitted without some rows."""
        kept = self._kept(removed)
        rows, targets = _safe_split(self.estimator, self.X, self.y, kept)
        fit_params = _check_method_params(self.X, self.fit_params, kept)
        estimator = clone(self.estimator)
        with torch.random.fork_rng([]), warnings.catch_warnings():
            if self.tight:
                warnings.simplefilter("ignore", ConvergenceWarning)
            torch.set_rng_state(self.torch_state)
            return estimator.fit(
                self.conversion.rows(rows), self.conversion.targets(targets), **fit_params
            )

    def outputs(self, removed, X):
        """Return the outputs (n_queries, n_latent) of the refit without some rows."""
        estimator = self.fitted(removed)
        rows, _ = _safe_split(self.estimator, self.X, self.y, self._kept(removed))
        model = as_model_function(estimator).prepared(rows, **self.options)
        return model.outputs(model.features(self.queries(removed, X))).numpy()

    def queries(self, removed, X):
        """Return query rows as the refit without some rows takes them."""
        if get_tags(self.estimator).input_tags.pairwise:
            return _safe_indexing(X, self._kept(removed), axis=1)
        return X

    def _kept(self, removed):
        return np.setdiff1d(np.arange(_num_samples(self.X)), removed)


def _check_refittable(influence):
    estimator = influence.estimator_
    name = type(final_estimator(estimator)).__name__
    if isinstance(final_estimator(estimator), TorchModel):
        raise UnsupportedOptionError(
            "A TorchModel is trained by its owner and cannot be fitted again without some rows. "
            "Wrap a net of skorch, or compare InfluenceEstimator.removal_effect with modules "
            "that you train without the rows."
        )
    if is_frozen(unfrozen(estimator)):
        raise UnsupportedOptionError(
            f"The {name} inside {type(estimator).__name__} is frozen where it cannot be taken out "
            "and fitted again. Wrap it outside of the search."
        )
    conversion = influence._conversion
    rows, targets = conversion.rows(influence._X_train), conversion.targets(influence._y_train)
    if influence._engine.model.times_trained(rows, targets) is not None:
        raise UnsupportedOptionError(
            f"{name} holds out rows by its train_split, and would hold out others when some are "
            "removed. Set train_split=None, or skorch.helper.predefined_split(dataset)."
        )


def unfrozen(estimator):
    """Return a clone whose final estimator is not frozen."""
    if isinstance(estimator, FrozenEstimator):
        return unfrozen(estimator.estimator)
    unfitted = clone(estimator)
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        unfitted.set_params(**{name: unfrozen(last)})
    return unfitted
