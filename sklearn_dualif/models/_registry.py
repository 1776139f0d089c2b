"""Which estimators are understood, and what is said of the others."""

import sys
from functools import singledispatch

from ..exceptions import UnsupportedModelError, UnsupportedOptionError
from ._conversion import Conversion

_SUPPORTED = (
    "LinearRegression, Ridge, RidgeCV, RidgeClassifier, RidgeClassifierCV, LogisticRegression, "
    "LogisticRegressionCV, LinearSVC, LinearSVR, PoissonRegressor, GammaRegressor, "
    "TweedieRegressor, HuberRegressor, SGDClassifier, SGDRegressor, BayesianRidge, KernelRidge, "
    "GaussianProcessRegressor, MLPClassifier, MLPRegressor, TorchModel and skorch's "
    "NeuralNetClassifier, NeuralNetBinaryClassifier and NeuralNetRegressor, alone, at the end of a "
    "Pipeline, in a FrozenEstimator or as the estimator of a search"
)

# Why a well-known estimator is refused, and what to do instead.
_REMEDIES = {
    "SVC": "its hinge loss has no curvature; use LinearSVC(loss='squared_hinge') or, for a "
    "nonlinear kernel, a Nystroem step before LogisticRegression",
    "NuSVC": "its hinge loss has no curvature; use LinearSVC(loss='squared_hinge')",
    "SVR": "its loss has no curvature; use KernelRidge or "
    "LinearSVR(loss='squared_epsilon_insensitive')",
    "NuSVR": "its loss has no curvature; use KernelRidge",
    "Lasso": "an L1 penalty has no smooth optimum; use Ridge, on the features that Lasso selects",
    "LassoCV": "an L1 penalty has no smooth optimum; use Ridge, on the features that it selects",
    "ElasticNet": "an L1 penalty has no smooth optimum; use Ridge, on the features it selects",
    "ElasticNetCV": "an L1 penalty has no smooth optimum; use Ridge, on the features it selects",
    "Lars": "an L1 penalty has no smooth optimum; use Ridge, on the features that it selects",
    "OrthogonalMatchingPursuit": "its choice of features is not smooth; use Ridge on them",
    "CalibratedClassifierCV": "wrap the classifier that it calibrates",
    "OneVsRestClassifier": "wrap the inner binary model on one class against the rest",
    "OneVsOneClassifier": "wrap the inner binary model on a pair of classes",
    "MultiOutputRegressor": "wrap the inner model; Ridge and KernelRidge take many outputs",
    "MultiOutputClassifier": "wrap the inner model, one output at a time",
    "TransformedTargetRegressor": "wrap its regressor and pass the transformed target as y",
    "PLSRegression": "its components are not the minimum of one objective; use Ridge",
    "Perceptron": "its loss has no curvature; use LogisticRegression",
    "QuantileRegressor": "its loss has no curvature; use HuberRegressor",
    "NeuralNet": "its loss can be any; use skorch's NeuralNetClassifier, "
    "NeuralNetBinaryClassifier or NeuralNetRegressor",
}


@singledispatch
def as_model_function(estimator):
    """Return the `ModelFunction` of a fitted estimator.

    Parameters
    ----------
    estimator : object
        A fitted estimator of a supported class. Register your own with
        ``as_model_function.register(cls)(function)``, where ``function(estimator)`` returns a
        `ModelFunction`.

    Returns
    -------
    ModelFunction

    Raises
    ------
    UnsupportedModelError
        A `TypeError` that names what can be wrapped.
    """
    if _register_imported():
        return as_model_function(estimator)
    raise UnsupportedModelError(_refusal(estimator))


@singledispatch
def check_options(estimator):
    """Raise `UnsupportedOptionError` if the parameters of a supported class rule it out."""


@singledispatch
def ridge_parameters(estimator, ridge, n_rows, total_weight):
    """Return the constructor parameters that give the estimator this sum-form ridge.

    None where the estimator has no penalty of its own. Raises `UnsupportedOptionError` where it
    chooses the penalty itself.
    """
    return None


@singledispatch
def inner_estimator(estimator):
    """Return the estimator that a wrapper ends in, before fitting; None for others."""
    return None


@singledispatch
def chooses_options(estimator):
    """Tell whether a wrapper, when fitted, sets the parameters of the estimator inside."""
    return False


@singledispatch
def conversion(estimator, X, y, frozen):
    """Return the `Conversion` between a caller's data and those of an estimator.

    Parameters
    ----------
    estimator : object
        At the end of all wrappers.
    X : array-like or None
        Training rows; None where a wrapper passes on others.
    y : array-like
        Their targets.
    frozen : bool
        Whether the estimator is fitted and stays so.
    """
    return Conversion()


@singledispatch
def trained_at_random(estimator):
    """Tell whether where the fit of an estimator ends is up to a seed."""
    return False


@singledispatch
def mean_loss_weight(estimator, X, y, total_weight):
    """Return how many units of the total loss the mean loss stands for in the estimator's fit."""
    return total_weight


def check_supported(estimator):
    """Raise, before anything is fitted, if the estimator cannot be wrapped."""
    _register_imported()
    options_are_final = True
    inner = inner_estimator(estimator)
    while inner is not None:
        check_options(estimator)
        options_are_final &= not chooses_options(estimator)
        estimator, inner = inner, inner_estimator(inner)
    if as_model_function.dispatch(type(estimator)) is as_model_function.dispatch(object):
        raise UnsupportedModelError(_refusal(estimator))
    if options_are_final:
        check_options(estimator)


def refuse_option(estimator, option, remedy):
    """Raise the `UnsupportedOptionError` of one parameter of an estimator."""
    value = getattr(estimator, option)
    raise UnsupportedOptionError(
        f"{type(estimator).__name__}({option}={value!r}) cannot be wrapped: {remedy}."
    )


def _register_imported():
    """Register the models of skorch if the caller has imported it; tell whether they are new."""
    if "skorch" not in sys.modules or f"{__package__}._skorch" in sys.modules:
        return False
    from . import _skorch, _skorch_data  # noqa: F401 - registers the models

    return True


def _refusal(estimator):
    if isinstance(estimator, str) or estimator is None:
        return f"A Pipeline must end in a model; its last step is {estimator!r}. Add one."
    if isinstance(estimator, type):
        name = estimator.__name__
        return f"{name} is a class. Pass a model, as in InfluenceEstimator({name}())."
    kind = type(estimator)
    for base in kind.__mro__:
        if base.__name__ in _REMEDIES:
            reason = f"{kind.__name__} is not supported: {_REMEDIES[base.__name__]}."
            break
    else:
        reason = (
            f"{kind.__name__} is not supported: removing rows from it has no closed form here "
            "(compare refits instead)."
        )
    return (
        f"{reason} InfluenceEstimator wraps {_SUPPORTED}. To add a model of your own, register it "
        "with sklearn_dualif.models.as_model_function.register."
    )
