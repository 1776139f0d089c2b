"""Linear and generalized linear models of scikit-learn."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import (
    BayesianRidge,
    GammaRegressor,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
    TweedieRegressor,
)
from sklearn.svm import LinearSVC, LinearSVR

from ..exceptions import UnsupportedOptionError
from ..losses import (
    BinaryLogLoss,
    HalfSquaredError,
    HalfTweedieDeviance,
    Huber,
    ModifiedHuber,
    ScaledHuber,
    SoftmaxLogLoss,
    SquaredEpsilonInsensitive,
    SquaredHinge,
)
from ._base import LinearModel, Penalty
from ._registry import as_model_function, check_options, refuse_option, ridge_parameters
from ._targets import ClassTargets, MultilabelTargets, RegressionTargets


def _linear(estimator, *, loss, penalty, targets, **options):
    coef = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
    n_outputs = len(coef)
    intercept = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), (n_outputs,))
    scale = options.get("scale")
    return LinearModel(
        estimator=estimator,
        loss=loss,
        penalty=penalty,
        targets=targets,
        n_outputs=n_outputs,
        n_latent=n_outputs + (scale is not None),
        coef=coef,
        intercept=intercept,
        fit_intercept=bool(estimator.fit_intercept),
        **options,
    )


def _penalized_intercept(estimator):
    """Liblinear penalises the weight of a constant feature instead of leaving it free."""
    if not estimator.fit_intercept:
        return {}
    return {"intercept_constant": float(estimator.intercept_scaling)}


# Squared loss ----------------------------------------------------------------------------------


def _squared_model(estimator, ridge, targets=None):
    n_outputs = len(np.atleast_2d(estimator.coef_))
    ridge = np.atleast_1d(np.asarray(ridge, dtype=np.float64))
    shared = bool((ridge == ridge[0]).all())
    return _linear(
        estimator,
        loss=HalfSquaredError(n_outputs, shared=shared),
        penalty=Penalty(ridge[:1] if shared else ridge),
        targets=targets or RegressionTargets(n_outputs),
    )


@check_options.register(LinearRegression)
@check_options.register(Ridge)
@check_options.register(RidgeClassifier)
def _(estimator):
    if estimator.positive:
        refuse_option(
            estimator, "positive", "a bound on the coefficients has no smooth optimum; set False"
        )


@as_model_function.register(LinearRegression)
def _(estimator):
    check_options(estimator)
    return _squared_model(estimator, 0.0)


@as_model_function.register(Ridge)
def _(estimator):
    check_options(estimator)
    return _squared_model(estimator, estimator.alpha)


@as_model_function.register(RidgeCV)
def _(estimator):
    return _squared_model(estimator, estimator.alpha_)


@dataclass(frozen=True, kw_only=True)
class BayesianRidgeModel(LinearModel):
    """BayesianRidge with its precisions held fixed; its posterior covariance follows the rows."""

    def write(self, estimator, parameters, removed, training, weights):
        super().write(estimator, parameters, removed, training, weights)
        kept = np.where(removed, 0.0, weights)
        X = training.matrix.numpy()
        if self.fit_intercept:
            estimator.X_offset_ = np.average(X, axis=0, weights=kept)
            X = X - estimator.X_offset_
        precision = estimator.alpha_ * (X.T * kept) @ X
        precision[np.diag_indices_from(precision)] += estimator.lambda_
        estimator.sigma_ = np.linalg.inv(precision)


@as_model_function.register(BayesianRidge)
def _(estimator):
    model = _squared_model(estimator, estimator.lambda_ / estimator.alpha_)
    return BayesianRidgeModel(**vars(model))


@as_model_function.register(RidgeClassifier)
@as_model_function.register(RidgeClassifierCV)
def _(estimator):
    check_options(estimator)
    alpha = estimator.alpha if isinstance(estimator, RidgeClassifier) else estimator.alpha_
    if estimator._label_binarizer.y_type_.startswith("multilabel"):
        targets = MultilabelTargets(len(np.atleast_2d(estimator.coef_)))
    else:
        targets = ClassTargets(estimator.classes_, "signed", estimator.class_weight)
    return _squared_model(estimator, alpha, targets)


@ridge_parameters.register(Ridge)
@ridge_parameters.register(RidgeClassifier)
def _(estimator, ridge, n_rows, total_weight):
    return {"alpha": ridge}


@ridge_parameters.register(RidgeCV)
@ridge_parameters.register(RidgeClassifierCV)
@ridge_parameters.register(LogisticRegressionCV)
@ridge_parameters.register(BayesianRidge)
def _(estimator, ridge, n_rows, total_weight):
    plain = {
        RidgeCV: "Ridge",
        RidgeClassifierCV: "RidgeClassifier",
        LogisticRegressionCV: "LogisticRegression",
        BayesianRidge: "Ridge",
    }
    kind = next(name for cls, name in plain.items() if isinstance(estimator, cls))
    raise UnsupportedOptionError(
        f"ridge={ridge!r} cannot be set on {type(estimator).__name__}, which chooses its own "
        f"penalty. Wrap {kind} instead, or keep ridge='model'."
    )


# Logistic regression ---------------------------------------------------------------------------


@check_options.register(LogisticRegression)
def _(estimator):
    if isinstance(estimator, LogisticRegressionCV):
        return
    if estimator.penalty in ("l1", "elasticnet") or estimator.l1_ratio not in (None, 0, 0.0):
        option = "l1_ratio" if estimator.penalty == "deprecated" else "penalty"
        refuse_option(
            estimator, option, "an L1 penalty has no smooth optimum; set l1_ratio=0 and choose C"
        )


@check_options.register(LogisticRegressionCV)
def _(estimator):
    ratios = estimator.l1_ratios
    plain = ratios is None or (isinstance(ratios, str) and ratios == "warn")
    if estimator.penalty in ("l1", "elasticnet") or (not plain and np.any(np.asarray(ratios))):
        refuse_option(estimator, "l1_ratios", "an L1 penalty has no smooth optimum; set (0,)")
    if not estimator.refit:
        refuse_option(
            estimator, "refit", "averaged coefficients minimise no objective; set refit=True"
        )


@as_model_function.register(LogisticRegression)
def _(estimator):
    check_options(estimator)
    return _logistic(estimator, np.inf if estimator.penalty is None else estimator.C)


@as_model_function.register(LogisticRegressionCV)
def _(estimator):
    check_options(estimator)
    return _logistic(estimator, float(np.ravel(estimator.C_)[0]))


def _logistic(estimator, C):
    binary = len(estimator.classes_) == 2 and len(estimator.coef_) == 1
    targets = ClassTargets(
        estimator.classes_,
        "binary" if binary else "index",
        estimator.class_weight,
        weighted_balance=True,
    )
    liblinear = estimator.solver == "liblinear"
    return _linear(
        estimator,
        loss=BinaryLogLoss() if binary else SoftmaxLogLoss(),
        penalty=Penalty(np.array([1.0 / C])),
        targets=targets,
        **(_penalized_intercept(estimator) if liblinear else {}),
    )


@ridge_parameters.register(LogisticRegression)
def _(estimator, ridge, n_rows, total_weight):
    C = np.inf if ridge == 0 else 1.0 / ridge
    return {"C": C} if estimator.penalty is not None else {"C": C, "penalty": "deprecated"}


# Linear support vector machines ----------------------------------------------------------------


@check_options.register(LinearSVC)
def _(estimator):
    if estimator.loss != "squared_hinge":
        refuse_option(estimator, "loss", "the hinge has no curvature; set loss='squared_hinge'")
    if estimator.penalty != "l2":
        refuse_option(estimator, "penalty", "an L1 penalty has no smooth optimum; set 'l2'")
    if estimator.multi_class != "ovr":
        refuse_option(estimator, "multi_class", "its joint margin has no curvature; set 'ovr'")


@check_options.register(LinearSVR)
def _(estimator):
    if estimator.loss != "squared_epsilon_insensitive":
        refuse_option(
            estimator,
            "loss",
            "the epsilon-insensitive loss has no curvature; set 'squared_epsilon_insensitive'",
        )


@as_model_function.register(LinearSVC)
def _(estimator):
    check_options(estimator)
    targets = ClassTargets(
        estimator.classes_,
        "signed",
        estimator.class_weight,
        weigh_rest=False,
        weighted_balance=True,
    )
    return _linear(
        estimator,
        loss=SquaredHinge(),
        penalty=Penalty(np.array([1.0 / estimator.C])),
        targets=targets,
        **_penalized_intercept(estimator),
    )


@as_model_function.register(LinearSVR)
def _(estimator):
    check_options(estimator)
    return _linear(
        estimator,
        loss=SquaredEpsilonInsensitive(estimator.epsilon),
        penalty=Penalty(np.array([1.0 / estimator.C])),
        targets=RegressionTargets(1),
        **_penalized_intercept(estimator),
    )


@ridge_parameters.register(LinearSVC)
@ridge_parameters.register(LinearSVR)
def _(estimator, ridge, n_rows, total_weight):
    if ridge == 0:
        raise UnsupportedOptionError(
            f"ridge=0 is outside what {type(estimator).__name__} can fit (C = 1 / ridge). Give a "
            "positive ridge."
        )
    return {"C": 1.0 / ridge}


# Generalized linear models ---------------------------------------------------------------------


@check_options.register(TweedieRegressor)
def _(estimator):
    power, link = estimator.power, estimator.link
    if power == 0 and link in ("auto", "identity"):
        return
    if not (1 <= power <= 2) or link == "identity":
        refuse_option(
            estimator,
            "power" if link != "identity" else "link",
            "its deviance is not convex in the linear predictor; supported are 1 <= power <= 2 "
            "with the log link and power=0 with the identity link",
        )


def _deviance_model(estimator, power):
    normal = power == 0
    valid = "real" if normal else "positive" if power >= 2 else "nonnegative"
    return _linear(
        estimator,
        loss=HalfSquaredError() if normal else HalfTweedieDeviance(float(power)),
        penalty=Penalty(np.array([float(estimator.alpha)]), "weight"),
        targets=RegressionTargets(1, valid),
    )


@as_model_function.register(PoissonRegressor)
def _(estimator):
    return _deviance_model(estimator, 1)


@as_model_function.register(GammaRegressor)
def _(estimator):
    return _deviance_model(estimator, 2)


@as_model_function.register(TweedieRegressor)
def _(estimator):
    check_options(estimator)
    return _deviance_model(estimator, estimator.power)


@ridge_parameters.register(PoissonRegressor)
@ridge_parameters.register(GammaRegressor)
@ridge_parameters.register(TweedieRegressor)
def _(estimator, ridge, n_rows, total_weight):
    return {"alpha": ridge / total_weight}


# Robust regression -----------------------------------------------------------------------------


@as_model_function.register(HuberRegressor)
def _(estimator):
    return _linear(
        estimator,
        loss=ScaledHuber(float(estimator.epsilon)),
        penalty=Penalty(np.array([2.0 * estimator.alpha])),
        targets=RegressionTargets(1),
        scale=float(estimator.scale_),
    )


@ridge_parameters.register(HuberRegressor)
def _(estimator, ridge, n_rows, total_weight):
    return {"alpha": 0.5 * ridge}


# Stochastic gradient descent -------------------------------------------------------------------

_SGD_LOSSES = {
    "log_loss": lambda estimator, n: BinaryLogLoss(),
    "squared_hinge": lambda estimator, n: SquaredHinge(),
    "modified_huber": lambda estimator, n: ModifiedHuber(),
    "squared_error": lambda estimator, n: HalfSquaredError(n, shared=False),
    "huber": lambda estimator, n: Huber(estimator.epsilon),
    "squared_epsilon_insensitive": lambda estimator, n: SquaredEpsilonInsensitive(
        estimator.epsilon
    ),
}


@check_options.register(SGDClassifier)
@check_options.register(SGDRegressor)
def _(estimator):
    if estimator.loss not in _SGD_LOSSES:
        refuse_option(
            estimator, "loss", f"it has no curvature; smooth losses are {sorted(_SGD_LOSSES)}"
        )
    if estimator.penalty not in ("l2", None):
        refuse_option(estimator, "penalty", "an L1 penalty has no smooth optimum; set 'l2'")
    if estimator.early_stopping:
        refuse_option(
            estimator,
            "early_stopping",
            "it holds rows out and stops short of the optimum of the others; set False",
        )


@as_model_function.register(SGDClassifier)
@as_model_function.register(SGDRegressor)
def _(estimator):
    check_options(estimator)
    n_outputs = len(np.atleast_2d(estimator.coef_))
    if isinstance(estimator, SGDClassifier):
        coding = "binary" if estimator.loss == "log_loss" else "signed"
        targets = ClassTargets(estimator.classes_, coding, estimator.class_weight, weigh_rest=False)
    else:
        targets = RegressionTargets(1)
    strength = 0.0 if estimator.penalty is None else float(estimator.alpha)
    return _linear(
        estimator,
        loss=_SGD_LOSSES[estimator.loss](estimator, n_outputs),
        penalty=Penalty(np.array([strength]), "rows"),
        targets=targets,
    )


@ridge_parameters.register(SGDClassifier)
@ridge_parameters.register(SGDRegressor)
def _(estimator, ridge, n_rows, total_weight):
    return {"alpha": ridge / n_rows, "penalty": "l2"}
