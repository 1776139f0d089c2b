"""Estimators around an estimator: pipelines, frozen models, searches."""

from sklearn import get_config
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import process_routing

from ..exceptions import UnsupportedOptionError
from ._registry import (
    as_model_function,
    check_options,
    chooses_options,
    conversion,
    inner_estimator,
    refuse_option,
    ridge_parameters,
)


@inner_estimator.register(Pipeline)
def _(estimator):
    return estimator.steps[-1][1]


@inner_estimator.register(FrozenEstimator)
def _(estimator):
    return estimator.estimator


@inner_estimator.register(BaseSearchCV)
def _(estimator):
    return getattr(estimator, "best_estimator_", estimator.estimator)


@as_model_function.register(Pipeline)
def _(estimator):
    model = as_model_function(estimator.steps[-1][1])
    return model.after(estimator[:-1]) if len(estimator.steps) > 1 else model


@as_model_function.register(FrozenEstimator)
def _(estimator):
    return as_model_function(estimator.estimator)


@check_options.register(BaseSearchCV)
def _(estimator):
    if not estimator.refit:
        refuse_option(estimator, "refit", "without it there is no best model; set refit=True")


@as_model_function.register(BaseSearchCV)
def _(estimator):
    check_options(estimator)
    return as_model_function(estimator.best_estimator_)


@chooses_options.register(BaseSearchCV)
def _(estimator):
    return not hasattr(estimator, "best_estimator_")


@ridge_parameters.register(BaseSearchCV)
def _(estimator, ridge, n_rows, total_weight):
    raise UnsupportedOptionError(
        f"ridge={ridge!r} cannot be set on {type(estimator).__name__}, which chooses its own "
        "hyperparameters. Wrap the plain estimator, or keep ridge='model'."
    )


def final_estimator(estimator):
    """Return the estimator at the end of all wrappers."""
    inner = inner_estimator(estimator)
    while inner is not None:
        estimator, inner = inner, inner_estimator(inner)
    return estimator


def is_frozen(estimator):
    """Tell whether the final estimator is inside a FrozenEstimator and so never refitted."""
    while estimator is not None:
        if isinstance(estimator, FrozenEstimator):
            return True
        estimator = inner_estimator(estimator)
    return False


def conversion_of(estimator, X, y):
    """Return the `Conversion` between a caller's data and those of an estimator in wrappers."""
    final, taker = final_estimator(estimator), estimator
    while isinstance(taker, FrozenEstimator):
        taker = taker.estimator
    return conversion(final, X if taker is final else None, y, is_frozen(estimator))


def tunable_estimator(estimator):
    """Return the object whose penalty a ridge sets: the final estimator, or a search around it."""
    while isinstance(estimator, Pipeline):
        estimator = inner_estimator(estimator)
    return estimator


def final_fit_params(estimator, fit_params):
    """Return those fit parameters that reach the ``fit`` of the final estimator."""
    inner = inner_estimator(estimator)
    if inner is None:
        return fit_params
    if isinstance(estimator, Pipeline):
        name = estimator.steps[-1][0]
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(estimator, "fit", **fit_params) if fit_params else {}
            fit_params = routed[name].fit if name in routed else {}
        else:
            prefix = f"{name}__"
            for key in fit_params:
                if "__" not in key:
                    raise ValueError(
                        f"A Pipeline does not know for which step {key!r} is meant. Pass it as "
                        f"'{prefix}{key}'."
                    )
            fit_params = {
                key.removeprefix(prefix): value
                for key, value in fit_params.items()
                if key.startswith(prefix)
            }
    elif isinstance(estimator, BaseSearchCV) and get_config()["enable_metadata_routing"]:
        fit_params = process_routing(estimator, "fit", **fit_params).estimator.fit
    return final_fit_params(inner, fit_params)


def final_fit_name(estimator, name):
    """Return the name under which a fit parameter reaches the ``fit`` of the final estimator."""
    inner = inner_estimator(estimator)
    if inner is None:
        return name
    if isinstance(estimator, Pipeline) and not get_config()["enable_metadata_routing"]:
        return f"{estimator.steps[-1][0]}__{final_fit_name(inner, name)}"
    return final_fit_name(inner, name)
