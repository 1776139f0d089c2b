"""Naive, dense, slow oracles: optima of the stated objectives, refits, metrics, textbook formulas.

Nothing here is shared with the package under test: only NumPy, SciPy, scikit-learn and mpmath.
Every objective is in the sum form

    sum_i s_i l(z_i, y_i) + 1/2 rho ||W||^2   (+ 1/2 rho (b / intercept_scaling)^2 if penalised),

with the outputs ``z = X W + b`` before the inverse link. Outputs are always ``(n, K)``, with one
column for binary classifiers and single-target regressors.

What the package holds fixed is held fixed here as well (`freeze`): fitted transformers, balanced
class weights, the hyperparameters chosen by a search or by the marginal likelihood, the targets'
normalisation, and the set of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch

import mpmath
import numpy as np
import scipy.sparse as sp
from scipy.special import expit, log_softmax, logsumexp, softmax, xlogy
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
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
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted

# ---------------------------------------------------------------------------------------------
# Losses of one output column, elementwise in (z, t)
# ---------------------------------------------------------------------------------------------

Elementwise = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ScalarLoss:
    """A loss of one output: value, first and second derivative in z, and scikit-learn's metric."""

    value: Elementwise
    slope: Elementwise
    curvature: Elementwise
    metric: Elementwise
    reduce: Callable = np.sum  # over the output columns of a query row


SQUARED = ScalarLoss(
    value=lambda z, t: 0.5 * (z - t) ** 2,
    slope=lambda z, t: z - t,
    curvature=lambda z, t: np.ones_like(z),
    metric=lambda z, t: (z - t) ** 2,
    reduce=np.mean,
)


def _logistic_value(z, t):
    """Return log(1 + exp(-t z)), targets -1 and 1."""
    return np.logaddexp(0.0, -t * z)


LOGISTIC = ScalarLoss(
    value=_logistic_value,
    slope=lambda z, t: -t * expit(-t * z),
    curvature=lambda z, t: expit(z) * expit(-z),
    metric=_logistic_value,
)


def _squared_hinge_value(z, t):
    """Return max(0, 1 - t z)^2, targets -1 and 1."""
    return np.maximum(0.0, 1.0 - t * z) ** 2


SQUARED_HINGE = ScalarLoss(
    value=_squared_hinge_value,
    slope=lambda z, t: -2.0 * t * np.maximum(0.0, 1.0 - t * z),
    curvature=lambda z, t: 2.0 * (t * z < 1.0),
    metric=_squared_hinge_value,
)


def _modified_huber_value(z, t):
    """Return (1 - t z)_+^2 down to t z = -1, and -4 t z below."""
    m = t * z
    return np.where(m >= -1.0, np.maximum(0.0, 1.0 - m) ** 2, -4.0 * m)


MODIFIED_HUBER = ScalarLoss(
    value=_modified_huber_value,
    slope=lambda z, t: -t * np.where(t * z >= -1.0, 2.0 * np.maximum(0.0, 1.0 - t * z), 4.0),
    curvature=lambda z, t: 2.0 * ((t * z < 1.0) & (t * z >= -1.0)),
    metric=_modified_huber_value,
)


def squared_epsilon(epsilon):
    """Return the loss max(0, |z - t| - epsilon)^2."""

    def excess(z, t):
        return np.maximum(0.0, np.abs(z - t) - epsilon)

    return ScalarLoss(
        value=lambda z, t: excess(z, t) ** 2,
        slope=lambda z, t: 2.0 * excess(z, t) * np.sign(z - t),
        curvature=lambda z, t: 2.0 * (excess(z, t) > 0.0),
        metric=lambda z, t: excess(z, t) ** 2,
    )


def sgd_huber(epsilon):
    """Return SGD's Huber loss: 1/2 r^2 within epsilon, epsilon |r| - 1/2 epsilon^2 beyond."""

    def value(z, t):
        r = np.abs(z - t)
        return np.where(r <= epsilon, 0.5 * r**2, epsilon * r - 0.5 * epsilon**2)

    return ScalarLoss(
        value=value,
        slope=lambda z, t: np.clip(z - t, -epsilon, epsilon),
        curvature=lambda z, t: 1.0 * (np.abs(z - t) <= epsilon),
        metric=value,
    )


def _deviance(mu, t, p):
    """Return the Tweedie unit deviance of power p (1 <= p <= 2)."""
    if p == 1:
        return 2.0 * (xlogy(t, t / mu) - t + mu)
    if p == 2:
        return 2.0 * (np.log(mu / t) + t / mu - 1.0)
    saturated = t ** (2 - p) / ((1 - p) * (2 - p))
    return 2.0 * (saturated - t * mu ** (1 - p) / (1 - p) + mu ** (2 - p) / (2 - p))


def half_tweedie(p):
    """Return half the Tweedie deviance of power p with a log link; its metric is all of it.

    With mu = exp(z): d/dz = mu^(2-p) - t mu^(1-p), d2/dz2 = (2-p) mu^(2-p) - (1-p) t mu^(1-p).
    """
    return ScalarLoss(
        value=lambda z, t: 0.5 * _deviance(np.exp(z), t, p),
        slope=lambda z, t: np.exp((2 - p) * z) - t * np.exp((1 - p) * z),
        curvature=lambda z, t: (2 - p) * np.exp((2 - p) * z) - (1 - p) * t * np.exp((1 - p) * z),
        metric=lambda z, t: _deviance(np.exp(z), t, p),
    )


# ---------------------------------------------------------------------------------------------
# The stated objective of each wrapped model
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """Which loss, targets, penalty and intercept an estimator's total objective has.

    ``kind`` is "columns" (a `ScalarLoss`, column by column), "softmax" or "huber" (with its
    scale). The penalty is ``rho``, times the sum of the kept weights ("weight") or the number of
    kept rows ("rows") for the objectives which are means. ``intercept_scaling`` None: the
    intercept is free.
    """

    kind: str
    loss: ScalarLoss | None
    rho: float | np.ndarray
    per: str = "sum"
    intercept_scaling: float | None = None
    one_vs_rest: bool = False
    log_link: bool = False
    epsilon: float = np.nan

    def penalty(self, weights):
        """Return rho of the sum form, for rows of these sample weights."""
        return self.rho * {"sum": 1.0, "weight": np.sum(weights), "rows": len(weights)}[self.per]


@singledispatch
def stated_objective(estimator):
    """Return the `Objective` which a plain estimator minimises."""
    raise TypeError(f"no reference objective for {type(estimator).__name__}")


@stated_objective.register
def _(estimator: LinearRegression):
    return Objective("columns", SQUARED, 0.0)


@stated_objective.register(Ridge)
@stated_objective.register(RidgeClassifier)
@stated_objective.register(KernelRidge)
def _(estimator):
    return Objective("columns", SQUARED, np.asarray(estimator.alpha, dtype=np.float64))


@stated_objective.register
def _(estimator: GaussianProcessRegressor):
    return Objective("columns", SQUARED, 1.0)  # the ridge is per row, in the kernel's own solve


@stated_objective.register
def _(estimator: LogisticRegression):
    rho = 1.0 / estimator.C
    if estimator.solver == "liblinear":
        return Objective("columns", LOGISTIC, rho, intercept_scaling=estimator.intercept_scaling)
    return Objective("softmax", LOGISTIC, rho)


@stated_objective.register
def _(estimator: LinearSVC):
    scaling = estimator.intercept_scaling
    return Objective(
        "columns", SQUARED_HINGE, 1.0 / estimator.C, intercept_scaling=scaling, one_vs_rest=True
    )


@stated_objective.register
def _(estimator: LinearSVR):
    loss = squared_epsilon(estimator.epsilon)
    scaling = estimator.intercept_scaling
    return Objective("columns", loss, 1.0 / estimator.C, intercept_scaling=scaling)


def _glm(power, alpha):
    return Objective("columns", half_tweedie(power), alpha, per="weight", log_link=True)


@stated_objective.register
def _(estimator: PoissonRegressor):
    return _glm(1, estimator.alpha)


@stated_objective.register
def _(estimator: GammaRegressor):
    return _glm(2, estimator.alpha)


@stated_objective.register
def _(estimator: TweedieRegressor):
    identity = estimator.link == "identity" or (estimator.link == "auto" and estimator.power <= 0)
    if estimator.power == 0 and identity:
        return Objective("columns", SQUARED, estimator.alpha, per="weight")
    if identity or not 1 <= estimator.power <= 2:
        raise TypeError(f"no convex Tweedie objective with power={estimator.power}")
    return _glm(estimator.power, estimator.alpha)


@stated_objective.register
def _(estimator: HuberRegressor):
    return Objective("huber", None, 2.0 * estimator.alpha, epsilon=estimator.epsilon)


@stated_objective.register(SGDClassifier)
@stated_objective.register(SGDRegressor)
def _(estimator):
    losses = {
        "log_loss": LOGISTIC,
        "modified_huber": MODIFIED_HUBER,
        "squared_hinge": SQUARED_HINGE,
        "squared_error": SQUARED,
        "huber": sgd_huber(estimator.epsilon),
        "squared_epsilon_insensitive": squared_epsilon(estimator.epsilon),
    }
    rho = 0.0 if estimator.penalty is None else estimator.alpha
    one_vs_rest = is_classifier(estimator)
    return Objective("columns", losses[estimator.loss], rho, per="rows", one_vs_rest=one_vs_rest)


# ---------------------------------------------------------------------------------------------
# Freezing: everything that is not refitted when rows go
# ---------------------------------------------------------------------------------------------


def weight_params(estimator, sample_weight):
    """Return the fit parameters which take sample_weight to the last step of any pipeline."""
    if sample_weight is None:
        return {}
    prefix = ""
    while not isinstance(estimator, FrozenEstimator):
        if isinstance(estimator, GridSearchCV):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            name, estimator = estimator.steps[-1]
            prefix += name + "__"
        else:
            break
    return {prefix + "sample_weight": sample_weight}


def _is_fitted(estimator):
    if isinstance(estimator, GaussianProcessRegressor):  # check_is_fitted lets it pass unfitted
        return hasattr(estimator, "X_train_")
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def _unwrap(fitted):
    """Return the fitted final model and the fitted transformers before it."""
    if isinstance(fitted, FrozenEstimator):
        return _unwrap(fitted.estimator)
    if isinstance(fitted, GridSearchCV):
        return _unwrap(fitted.best_estimator_)
    if isinstance(fitted, Pipeline):
        model, steps = _unwrap(fitted.steps[-1][1])
        before = [s for _, s in fitted.steps[:-1] if s not in (None, "passthrough")]
        return model, before + steps
    return fitted, []


@singledispatch
def _plain(fitted):
    """Return the estimator whose objective is meant once its selected parameters are fixed."""
    return fitted


@_plain.register
def _(fitted: RidgeCV):
    return Ridge(alpha=fitted.alpha_, fit_intercept=fitted.fit_intercept)


@_plain.register
def _(fitted: RidgeClassifierCV):
    return RidgeClassifier(
        alpha=fitted.alpha_, fit_intercept=fitted.fit_intercept, class_weight=fitted.class_weight
    )


@_plain.register
def _(fitted: BayesianRidge):
    return Ridge(alpha=fitted.lambda_ / fitted.alpha_, fit_intercept=fitted.fit_intercept)


@_plain.register
def _(fitted: LogisticRegressionCV):
    return LogisticRegression(
        C=float(np.ravel(fitted.C_)[0]),
        fit_intercept=fitted.fit_intercept,
        solver=fitted.solver,
        intercept_scaling=fitted.intercept_scaling,
        class_weight=fitted.class_weight,
    )


def _frozen_class_weights(plain, classes, y, sample_weight):
    """Return the weight of each class; "balanced" counts all rows, as the model itself counts.

    The logistic models and LinearSVC count sample weights; ridge and SGD count rows.
    """
    weighted = isinstance(plain, LogisticRegression | LinearSVC)
    return compute_class_weight(
        plain.class_weight,
        classes=classes,
        y=np.asarray(y),
        sample_weight=sample_weight if weighted else None,
    )


def dense(X):
    """Return X as a dense float64 array."""
    return np.asarray(X.toarray() if sp.issparse(X) else X, dtype=np.float64)


@dataclass
class FrozenModel:
    """A model, its training rows and everything that stays fixed when rows go."""

    plain: object  # the final estimator, its hyperparameters fixed
    steps: list  # fitted transformers
    classes: np.ndarray | None
    class_weights: np.ndarray | None
    X: np.ndarray  # (n, d) rows as the final estimator sees them
    y: np.ndarray
    sample_weight: np.ndarray
    objective: Objective = field(init=False)

    def __post_init__(self):
        self.objective = stated_objective(self.plain)

    def design(self, X):
        """Return rows as the final estimator sees them, dense."""
        for step in self.steps:
            X = step.transform(X)
        return dense(X)

    def targets(self, y):
        """Return (n, K) targets: numbers, -1 and 1 for classifiers, one-hot for a softmax."""
        y = np.asarray(y)
        if self.classes is None:
            return y.reshape(len(y), -1).astype(np.float64)
        if len(self.classes) == 2:
            return np.where(y == self.classes[1], 1.0, -1.0)[:, None]
        one_hot = (y[:, None] == self.classes[None, :]).astype(np.float64)
        return one_hot if self.objective.kind == "softmax" else 2.0 * one_hot - 1.0

    def weights(self, y, sample_weight):
        """Return (n, K) loss weights: sample weight times class weight.

        One-vs-rest models with three classes or more weigh only the positive rows of each
        problem; the others weigh every row by its own class.
        """
        T = self.targets(y)
        if self.class_weights is None:
            factor = np.ones(T.shape)
        elif self.objective.one_vs_rest and len(self.classes) > 2:
            factor = np.where(T > 0, self.class_weights[None, :], 1.0)
        else:
            index = np.searchsorted(self.classes, np.asarray(y))
            factor = np.tile(self.class_weights[index][:, None], T.shape[1])
        return sample_weight[:, None] * factor

    def refit(self, kept=None, y=None):
        """Return the reference optimum on the kept rows (a mask), optionally with other targets."""
        kept = np.ones(len(self.X), dtype=bool) if kept is None else kept
        y = self.y if y is None else np.asarray(y)
        if isinstance(self.plain, KernelRidge | GaussianProcessRegressor):
            return _refit_kernel(self, kept, y)
        return _refit_linear(self, kept, y)

    def without(self, rows):
        """Return the reference optimum without these rows (positions or a mask)."""
        return self.refit(~rows_mask(rows, len(self.X)))


def freeze(estimator, X, y, sample_weight=None):
    """Return the `FrozenModel` of an estimator, fitted here on these rows unless it is already."""
    fitted = estimator
    if not _is_fitted(estimator):
        fitted = clone(estimator).fit(X, y, **weight_params(estimator, sample_weight))
    model, steps = _unwrap(fitted)
    plain = _plain(model)
    n = X.shape[0] if hasattr(X, "shape") else len(X)
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    classes = getattr(model, "classes_", None)
    class_weights = None
    if classes is not None and plain.class_weight is not None:
        class_weights = _frozen_class_weights(plain, classes, y, sample_weight)
    frozen = FrozenModel(plain, steps, classes, class_weights, np.empty(0), np.asarray(y), weight)
    frozen.X = frozen.design(X)
    return frozen


def rows_mask(rows, n):
    """Return rows (positions or a boolean mask) as a boolean mask."""
    rows = np.asarray(rows)
    if rows.dtype == bool:
        return rows
    mask = np.zeros(n, dtype=bool)
    mask[rows.astype(int)] = True
    return mask


# ---------------------------------------------------------------------------------------------
# Optima
# ---------------------------------------------------------------------------------------------


def damped_newton(fun, theta, max_iter=300):
    """Minimise a convex function by Newton steps, halved until they descend.

    ``fun`` returns value, gradient and Hessian. Singular Hessians take the least-norm step. Ends
    once the gradient is at rounding error: the best iterate after four steps without progress.
    """
    value, grad, hess = fun(theta)
    best, best_norm, stalled = theta, np.linalg.norm(grad), 0
    for _ in range(max_iter):
        step = -np.linalg.pinv(hess, rcond=1e-13, hermitian=True) @ grad
        size = 1.0
        while size > 1e-12:
            new = fun(theta + size * step)
            enough = new[0] <= value + 1e-4 * size * (grad @ step)
            if np.isfinite(new[0]) and (enough or np.linalg.norm(new[1]) < 0.5 * best_norm):
                break
            size *= 0.5
        else:
            new = fun(theta)
            size = 0.0
        theta = theta + size * step
        value, grad, hess = new
        norm = np.linalg.norm(grad)
        stalled = 0 if norm < 0.5 * best_norm else stalled + 1
        if norm < best_norm:
            best, best_norm = theta, norm
        if stalled >= 4 and best_norm < 1e-7 * (1.0 + np.abs(value)):
            return best
    raise RuntimeError(f"the reference optimum was not reached: gradient {best_norm:.1e}")


def ridge_solution(X, t, w, rho, free_intercept):
    """Minimise sum w (t - X beta - b)^2 + rho ||beta||^2 by least squares on centred rows.

    With rho = 0 and rank-deficient rows: the beta of least norm.
    """
    centre, t_centre = np.zeros(X.shape[1]), 0.0
    if free_intercept:
        centre, t_centre = w @ X / w.sum(), w @ t / w.sum()
    root = np.sqrt(w)
    rows, rhs = root[:, None] * (X - centre), root * (t - t_centre)
    if rho > 0:
        rows = np.vstack([rows, np.sqrt(rho) * np.eye(X.shape[1])])
        rhs = np.concatenate([rhs, np.zeros(X.shape[1])])
    beta = np.linalg.lstsq(rows, rhs, rcond=1e-12)[0]
    return beta, t_centre - centre @ beta


def column_objective(A, t, w, loss, R):
    """Return theta -> value, gradient, Hessian of sum w loss(A theta, t) + 1/2 theta R theta."""

    def fun(theta):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            z = A @ theta
            value = w @ loss.value(z, t) + 0.5 * R @ theta**2
            grad = A.T @ (w * loss.slope(z, t)) + R * theta
            hess = A.T @ ((w * loss.curvature(z, t))[:, None] * A) + np.diag(R)
        return value, grad, hess

    return fun


def softmax_objective(A, T, w, R):
    """Return the same for the cross-entropy of softmax outputs; theta is (K, d) flattened.

    Hessian blocks (k, l): sum_i w_i p_ik (1[k = l] - p_il) a_i a_i'.
    """
    K = T.shape[1]

    def fun(theta):
        W = theta.reshape(K, -1)
        log_p = log_softmax(A @ W.T, axis=1)
        p = np.exp(log_p)
        value = -w @ np.sum(T * log_p, axis=1) + 0.5 * np.sum(R * W**2)
        grad = (w[:, None] * (p - T)).T @ A + R * W
        hess = np.diag(np.tile(R, K))
        d = A.shape[1]
        for k in range(K):
            for m in range(K):
                curvature = w * p[:, k] * ((k == m) - p[:, m])
                hess[k * d : (k + 1) * d, m * d : (m + 1) * d] += A.T @ (curvature[:, None] * A)
        return value, grad.ravel(), hess

    return fun


def huber_pieces(z, scale, t, epsilon):
    """Return value, gradient (n, 2) and Hessian (n, 2, 2) in (z, scale) of s + H(r / s) s.

    H(u) = u^2 up to epsilon and 2 epsilon |u| - epsilon^2 beyond, r = t - z.
    """
    r = t - z
    inlier = np.abs(r) <= epsilon * scale
    value = scale + np.where(inlier, r**2 / scale, 2.0 * epsilon * np.abs(r) - epsilon**2 * scale)
    grad = np.stack(
        [
            np.where(inlier, -2.0 * r / scale, -2.0 * epsilon * np.sign(r)),
            1.0 - np.where(inlier, r**2 / scale**2, epsilon**2),
        ],
        axis=1,
    )
    u = r / scale
    hess = np.stack([np.ones_like(u), u, u, u**2], axis=1).reshape(-1, 2, 2) * (2.0 / scale)
    return value, grad, hess * inlier[:, None, None]


def huber_objective(A, t, w, epsilon, R):
    """Return value, gradient, Hessian of HuberRegressor's objective in (beta, scale)."""
    rows = np.zeros((len(A), 2, A.shape[1] + 1))
    rows[:, 0, :-1], rows[:, 1, -1] = A, 1.0
    R = np.append(R, 0.0)

    def fun(theta):
        if theta[-1] <= 0.0:
            return np.inf, np.full_like(theta, np.inf), np.diag(np.ones_like(theta))
        value, grad, hess = huber_pieces(A @ theta[:-1], theta[-1], t, epsilon)
        return (
            w @ value + 0.5 * R @ theta**2,
            np.einsum("nc,ncd->d", w[:, None] * grad, rows) + R * theta,
            np.einsum("ncd,nce,nef->df", rows, w[:, None, None] * hess, rows) + np.diag(R),
        )

    return fun


@dataclass
class ReferenceModel:
    """A reference optimum: ``coef (d, K)``, ``intercept (K,)`` and, for Huber, ``scale``.

    Kernel models: ``coef (n, K)`` are the dual coefficients, 0 for removed rows.
    """

    frozen: FrozenModel
    kept: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    scale: float | None = None

    def outputs(self, X):
        """Return (m, K): decision function, linear predictor or regression output."""
        return _outputs(self, self.frozen.design(X))

    def fitted_outputs(self):
        """Return the outputs of all the training rows, the removed ones included."""
        return _outputs(self, self.frozen.X)


def _outputs(model, rows):
    plain = model.frozen.plain
    if isinstance(plain, KernelRidge):
        return kernel_block(plain, rows, model.frozen.X) @ model.coef
    if isinstance(plain, GaussianProcessRegressor):
        normalised = plain.kernel_(rows, model.frozen.X) @ model.coef
        return plain._y_train_mean + plain._y_train_std * normalised
    return rows @ model.coef + model.intercept


def _augmented(frozen, kept):
    """Return rows with a last column of ones for the intercept, and the penalty's multipliers."""
    X = frozen.X[kept]
    if not frozen.plain.fit_intercept:
        return X, np.ones(X.shape[1])
    scaling = frozen.objective.intercept_scaling
    last = 0.0 if scaling is None else 1.0 / scaling**2
    return np.column_stack([X, np.ones(len(X))]), np.append(np.ones(X.shape[1]), last)


def _split(frozen, thetas):
    """Return coef (d, K) and intercept (K,) of parameters (K, d or d + 1)."""
    if frozen.plain.fit_intercept:
        return thetas[:, :-1].T, thetas[:, -1]
    return thetas.T, np.zeros(len(thetas))


def _refit_linear(frozen, kept, y):
    objective = frozen.objective
    T = frozen.targets(y)[kept]
    W = frozen.weights(y, frozen.sample_weight)[kept]
    rho = np.broadcast_to(objective.penalty(frozen.sample_weight[kept]), T.shape[1])
    A, multiplier = _augmented(frozen, kept)
    if objective.kind == "huber":
        start = np.append(np.zeros(A.shape[1]), np.std(T) + 1e-3)
        fun = huber_objective(A, T[:, 0], W[:, 0], objective.epsilon, rho[0] * multiplier)
        theta = damped_newton(fun, start)
        return ReferenceModel(frozen, kept, *_split(frozen, theta[None, :-1]), float(theta[-1]))
    if objective.kind == "softmax" and T.shape[1] > 1:
        fun = softmax_objective(A, T, W[:, 0], rho[0] * multiplier)
        thetas = damped_newton(fun, np.zeros(T.shape[1] * A.shape[1])).reshape(T.shape[1], -1)
    elif objective.loss is SQUARED:
        thetas = np.stack(
            [_ridge_column(frozen, kept, *column) for column in zip(T.T, W.T, rho, strict=True)]
        )
    else:
        thetas = np.stack(
            [
                damped_newton(
                    column_objective(A, t, w, objective.loss, r * multiplier), np.zeros(A.shape[1])
                )
                for t, w, r in zip(T.T, W.T, rho, strict=True)
            ]
        )
    return ReferenceModel(frozen, kept, *_split(frozen, thetas))


def _ridge_column(frozen, kept, t, w, rho):
    free = frozen.plain.fit_intercept
    beta, intercept = ridge_solution(frozen.X[kept], t, w, rho, free)
    return np.append(beta, intercept) if free else beta


def kernel_block(estimator, X, Y):
    """Return KernelRidge's kernel between rows; X itself when it is precomputed."""
    if estimator.kernel == "precomputed":
        return X
    params = estimator.kernel_params or {}
    if not callable(estimator.kernel):
        params = {name: getattr(estimator, name) for name in ("gamma", "degree", "coef0")}
    return pairwise_kernels(X, Y, metric=estimator.kernel, filter_params=True, **params)


def _refit_kernel(frozen, kept, y):
    """Solve (K + ridge_i / s_i) c = y on the kept rows of positive weight."""
    plain, T = frozen.plain, frozen.targets(y)
    used = kept & (frozen.sample_weight > 0)
    if isinstance(plain, KernelRidge):
        K = kernel_block(plain, frozen.X, frozen.X)
        ridge = np.broadcast_to(plain.alpha, T.shape[1])[None, :] + np.zeros((len(T), 1))
    else:
        K = plain.kernel_(frozen.X, frozen.X)
        noise = np.diag(plain.kernel_(frozen.X)) - np.diag(K)
        ridge = (noise + plain.alpha)[:, None] + np.zeros((1, T.shape[1]))
        T = (T - plain._y_train_mean) / plain._y_train_std
    coef = np.zeros(T.shape)
    for k in range(T.shape[1]):
        diagonal = ridge[used, k] / frozen.sample_weight[used]
        coef[used, k] = np.linalg.solve(K[np.ix_(used, used)] + np.diag(diagonal), T[used, k])
    return ReferenceModel(frozen, kept, coef, np.zeros(T.shape[1]))


def minimise_objective(estimator, X, y, sample_weight=None):
    """Return the optimum of the estimator's stated objective on all the rows."""
    return freeze(estimator, X, y, sample_weight).refit()


def refit_without(estimator, X, y, rows, sample_weight=None):
    """Return the optimum without these rows; what is frozen was computed on all of them."""
    return freeze(estimator, X, y, sample_weight).without(rows)


def refit_relabelled(estimator, X, y, rows, y_new, sample_weight=None):
    """Return the optimum with other targets for these rows; a new class brings its own weight."""
    frozen = freeze(estimator, X, y, sample_weight)
    targets = frozen.y.astype(np.result_type(frozen.y, np.asarray(y_new)))
    targets[rows_mask(rows, len(targets))] = y_new
    return frozen.refit(y=targets)


def removal_effects(frozen, groups, X_query, y_query):
    """Return loss effects (m, n_groups) and output changes (n_groups, m, K) of removed groups."""
    full = frozen.refit()
    z = full.outputs(X_query)
    before = metric_loss(full, z, y_query)
    losses, changes = [], []
    for rows in groups:
        model = frozen.without(rows)
        z_without = model.outputs(X_query)
        losses.append(metric_loss(model, z_without, y_query) - before)
        changes.append(z_without - z)
    return np.stack(losses, axis=1), np.stack(changes)


# ---------------------------------------------------------------------------------------------
# scikit-learn's own solvers, run to their optimum
# ---------------------------------------------------------------------------------------------

_TIGHT = {
    LinearRegression: {"tol": 1e-14},
    Ridge: {"solver": "auto", "tol": 1e-14, "max_iter": None},
    RidgeClassifier: {"solver": "auto", "tol": 1e-14, "max_iter": None},
    LogisticRegression: {"tol": 1e-12, "max_iter": 10_000},
    LogisticRegressionCV: {"tol": 1e-12, "max_iter": 10_000},
    LinearSVC: {"dual": False, "tol": 1e-12, "max_iter": 1_000_000},
    LinearSVR: {"dual": False, "tol": 1e-12, "max_iter": 1_000_000},
    PoissonRegressor: {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 10_000},
    GammaRegressor: {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 10_000},
    TweedieRegressor: {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 10_000},
    HuberRegressor: {"tol": 1e-10, "max_iter": 1_000_000},
}


def tighten(estimator):
    """Return an unfitted clone whose solver runs to the optimum of the same objective.

    Closed forms (kernel models, RidgeCV, BayesianRidge) come back as they are. SGD has no tight
    solver: see `minimise_objective`.
    """
    if isinstance(estimator, FrozenEstimator):
        return tighten(estimator.estimator)
    if isinstance(estimator, GridSearchCV):
        return clone(estimator).set_params(estimator=tighten(estimator.estimator))
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        return clone(estimator).set_params(**{name: tighten(last)})
    if isinstance(estimator, SGDClassifier | SGDRegressor):
        raise TypeError("SGD has no tight solver: use minimise_objective")
    tight = clone(estimator).set_params(**_TIGHT.get(type(estimator), {}))
    smooth = isinstance(estimator, LogisticRegression) and estimator.solver != "liblinear"
    return tight.set_params(solver="newton-cholesky") if smooth else tight


# ---------------------------------------------------------------------------------------------
# Objectives in scikit-learn's units
# ---------------------------------------------------------------------------------------------


def _described(model):
    """Return (plain estimator, classes, scale) of a ReferenceModel or a fitted estimator."""
    if isinstance(model, ReferenceModel):
        return model.frozen.plain, model.frozen.classes, model.scale
    fitted, _ = _unwrap(model)
    return _plain(fitted), getattr(fitted, "classes_", None), getattr(fitted, "scale_", None)


def metric_loss(model, outputs, y):
    """Return the unweighted loss of each query row in the units of scikit-learn's metric.

    Parameters
    ----------
    model : ReferenceModel or fitted estimator
        Which loss, which classes, which scale (Huber).
    outputs : (m, K)
        Outputs before the inverse link.
    y : (m,) or (m, K)

    Notes
    -----
    log loss in nats; (y - z)^2, the mean over outputs (classifiers: targets -1 and 1); the full
    deviance; squared hinge, modified Huber and one-vs-rest log loss summed over the problems;
    Huber s + H(r / s) s.
    """
    plain, classes, scale = _described(model)
    objective = stated_objective(plain)
    template = FrozenModel(plain, [], classes, None, None, None, None)
    T = template.targets(y)
    z = np.reshape(outputs, T.shape)
    if objective.kind == "huber":
        return huber_pieces(z[:, 0], scale, T[:, 0], objective.epsilon)[0]
    if objective.kind == "softmax" and T.shape[1] > 1:
        return np.logaddexp(0.0, -_score_of_class(plain, z, T.argmax(axis=1)))
    return objective.loss.reduce(objective.loss.metric(z, T), axis=1)


def _score_of_class(plain, z, index):
    """Return a class's logit minus the log-sum-exp (softmax) or the best of the others."""
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, index] = -np.inf
    softmax_outputs = stated_objective(plain).kind == "softmax"
    rival = logsumexp(others, axis=1) if softmax_outputs else others.max(axis=1)
    return z[rows, index] - rival


def prediction(model, outputs, held_class=None, *, response=True):
    """Return the label-free objective "prediction" of each query row.

    Regressors: the output, mean over outputs; with ``response`` through the inverse link, as
    ``predict`` gives it. Binary classifiers: the decision function. Multiclass: the score of the
    predicted class, or of ``held_class`` (indices), against the others'.
    """
    plain, classes, _ = _described(model)
    z = np.reshape(outputs, (len(outputs), -1))
    if classes is None:
        return (np.exp(z) if response and stated_objective(plain).log_link else z).mean(axis=1)
    if z.shape[1] == 1:
        return z[:, 0]
    return _score_of_class(plain, z, z.argmax(axis=1) if held_class is None else held_class)


def margin(model, outputs, y):
    """Return the same for the given class: positive where the model prefers it."""
    plain, classes, _ = _described(model)
    if classes is None:
        raise ValueError("a margin is a classifier's")
    z = np.reshape(outputs, (len(outputs), -1))
    index = np.searchsorted(classes, np.asarray(y))
    if z.shape[1] == 1:
        return np.where(index == 1, z[:, 0], -z[:, 0])
    return _score_of_class(plain, z, index)


# ---------------------------------------------------------------------------------------------
# Textbook formulas on explicit Jacobians
# ---------------------------------------------------------------------------------------------


@dataclass
class DensePieces:
    """Explicit J (n, C, p), Lam (n, C, C), r (n, C), R (p,), theta (p,) at an optimum.

    Linear models: parameters ordered output by output, ``[w_k, b_k]``. Huber: C = 2 with the
    scale as second output and last parameter.
    """

    J: np.ndarray
    Lam: np.ndarray
    r: np.ndarray
    R: np.ndarray
    theta: np.ndarray


def _loss_pieces(model, z, W, T):
    """Return the weighted curvature (n, C, C) and gradient (n, C) of the training losses."""
    objective = model.frozen.objective
    if objective.kind == "huber":
        _, r, Lam = huber_pieces(z[:, 0], model.scale, T[:, 0], objective.epsilon)
        return W[:, :1, None] * Lam, W[:, :1] * r
    if objective.kind == "softmax" and T.shape[1] > 1:
        p = softmax(z, axis=1)
        Lam = p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]
        return W[:, :1, None] * Lam, W * (p - T)
    curvature = W * objective.loss.curvature(z, T)
    return curvature[:, :, None] * np.eye(T.shape[1]), W * objective.loss.slope(z, T)


def dense_jacobian(model, rows):
    """Return (m, C, p): d outputs / d parameters of a linear model at rows of its design."""
    A = rows
    if model.frozen.plain.fit_intercept:
        A = np.column_stack([rows, np.ones(len(rows))])
    if model.scale is not None:
        J = np.zeros((len(A), 2, A.shape[1] + 1))
        J[:, 0, :-1], J[:, 1, -1] = A, 1.0
        return J
    K = model.coef.shape[1]
    return np.stack([np.kron(np.eye(K), a[None, :]) for a in A])


def dense_pieces(model):
    """Return the `DensePieces` of a linear reference model on all of its training rows."""
    frozen = model.frozen
    T = frozen.targets(frozen.y)
    W = frozen.weights(frozen.y, frozen.sample_weight)
    Lam, r = _loss_pieces(model, model.fitted_outputs(), W, T)
    _, multiplier = _augmented(frozen, model.kept)
    rho = np.broadcast_to(frozen.objective.penalty(frozen.sample_weight), T.shape[1])
    parts = [model.coef.T]
    if frozen.plain.fit_intercept:
        parts.append(model.intercept[:, None])
    theta = np.hstack(parts).ravel()
    R = np.kron(rho, multiplier)
    if model.scale is not None:
        theta, R = np.append(theta, model.scale), np.append(R, 0.0)
    return DensePieces(dense_jacobian(model, frozen.X), Lam, r, R, theta)


def penalty_share(frozen, rows):
    """Return the fraction of the penalty which leaves with these rows (0 for sum forms)."""
    mask = rows_mask(rows, len(frozen.X))
    per = frozen.objective.per
    if per == "sum":
        return 0.0
    weight = frozen.sample_weight if per == "weight" else np.ones(len(mask))
    return weight[mask].sum() / weight.sum()


def _hessian(J, Lam, R):
    return np.einsum("ncp,nce,neq->pq", J, Lam, J) + np.diag(R)


def _removed_gradient(J, r, R, theta, mask, share):
    """Return minus the gradient left at theta once the rows and their share of R are gone."""
    return np.einsum("ncp,nc->p", J[mask], r[mask]) + share * R * theta


def _pinv_solve(H, g):
    return np.linalg.pinv(H, rcond=1e-13, hermitian=True) @ g


def dense_first_order(J, Lam, r, R, theta, rows, share=0.0):
    """Return dtheta = H^+ (sum_G J' r + share R theta), H on all the rows."""
    mask = rows_mask(rows, len(J))
    return _pinv_solve(_hessian(J, Lam, R), _removed_gradient(J, r, R, theta, mask, share))


def dense_newton_removal(J, Lam, r, R, theta, rows, share=0.0):
    """Return the same with H on the kept rows, under the penalty (1 - share) R they keep."""
    mask = rows_mask(rows, len(J))
    H = _hessian(J[~mask], Lam[~mask], (1.0 - share) * R)
    return _pinv_solve(H, _removed_gradient(J, r, R, theta, mask, share))


def dense_leverage(J, Lam, R):
    """Return tr(J_i H^+ J_i' Lam_i) for every row i."""
    Q = np.linalg.pinv(_hessian(J, Lam, R), rcond=1e-13, hermitian=True)
    return np.einsum("ncp,pq,neq,nec->n", J, Q, J, Lam)


# ---------------------------------------------------------------------------------------------
# 60 digits
# ---------------------------------------------------------------------------------------------


def _mp_rows(X, fit_intercept):
    rows = [[mpmath.mpf(float(v)) for v in row] for row in np.asarray(X)]
    return [[*row, mpmath.mpf(1)] for row in rows] if fit_intercept else rows


def _mp_log_probabilities(row, thetas):
    """Return the log-probabilities of one row; a single output is the second of two classes."""
    z = [mpmath.fdot(row, theta) for theta in thetas]
    z = [mpmath.mpf(0), *z] if len(z) == 1 else z
    # the top class through log1p of the others: exp(-160) is below 60 digits of 1
    first = max(range(len(z)), key=lambda k: z[k])
    rest = mpmath.fsum(mpmath.exp(v - z[first]) for k, v in enumerate(z) if k != first)
    return [v - z[first] - mpmath.log1p(rest) for v in z]


def _mp_row(row, thetas, y, weight):
    """Return one row's weighted gradient and Hessian over the flattened parameters."""
    p = [mpmath.exp(v) for v in _mp_log_probabilities(row, thetas)]
    q = [mpmath.mpf(k == y) for k in range(len(p))]
    outputs = [1] if len(thetas) == 1 else list(range(len(p)))
    d = len(row)
    grad = mpmath.zeros(d * len(outputs), 1)
    hess = mpmath.zeros(d * len(outputs))
    for a, k in enumerate(outputs):
        # p_y - 1 as minus the other classes' sum: nothing cancels on a confident row
        others = mpmath.fsum(v for j, v in enumerate(p) if j != k)
        residual = -others if q[k] else p[k]
        for i in range(d):
            grad[a * d + i] = weight * residual * row[i]
        for b, m in enumerate(outputs):
            curvature = weight * (p[k] * others if k == m else -p[k] * p[m])
            for i in range(d):
                for j in range(d):
                    hess[a * d + i, b * d + j] = curvature * row[i] * row[j]
    return grad, hess


def _mp_penalty(d, K, rho, fit_intercept):
    """Return the penalty's Hessian, with the softmax intercepts' common shift pinned down.

    No gradient has a part along the shift, so that pinning it changes no solution.
    """
    R = mpmath.zeros(d * K)
    for k in range(K):
        for i in range(d):
            free = fit_intercept and i == d - 1
            R[k * d + i, k * d + i] = mpmath.mpf(0) if free else mpmath.mpf(float(rho))
        for m in range(K if fit_intercept and K > 1 else 0):
            R[k * d + d - 1, m * d + d - 1] += 1
    return R


def mp_logistic_loo(X, y, coef, intercept, rho, X_query, y_query, sample_weight=None, digits=60):
    """Return Newton's leave-one-out changes of logistic models in high precision.

    The given parameters are taken for the optimum of sum s l + 1/2 rho ||W||^2 (free intercept):
    dtheta_i = (H - H_i)^-1 g_i. Runs at twice ``digits``: H - H_i cancels, and curvatures of
    confident rows are tiny beside the ridge.

    Parameters
    ----------
    X : (n, d)
    y : (n,) class indices
    coef : (K, d), with K = 1 for two classes
    intercept : (K,) or None
    rho : float
    X_query, y_query : (m, d) and (m,)

    Returns
    -------
    output_change : (n, m, K), removed row first
    loss_change : (m, n), in nats
    """
    fit_intercept = intercept is not None
    table = np.column_stack([coef, intercept]) if fit_intercept else np.asarray(coef)
    weights = np.ones(len(X)) if sample_weight is None else sample_weight
    with mpmath.workdps(2 * digits):
        thetas, rows = _mp_rows(table, False), _mp_rows(X, fit_intercept)
        pairs = [
            _mp_row(row, thetas, int(label), mpmath.mpf(float(weight)))
            for row, label, weight in zip(rows, y, weights, strict=True)
        ]
        H = _mp_penalty(len(rows[0]), len(thetas), rho, fit_intercept)
        for _, hess in pairs:
            H = H + hess
        moves = [mpmath.lu_solve(H - hess, grad) for grad, hess in pairs]
        return _mp_changes(thetas, moves, _mp_rows(X_query, fit_intercept), y_query)


def _mp_objective(rows, thetas, y, weights, R):
    """Return sum w l + 1/2 theta' R theta of one-hot rows, in high precision."""
    theta = mpmath.matrix([v for one in thetas for v in one])
    loss = mpmath.fsum(
        -w * _mp_log_probabilities(row, thetas)[int(label)]
        for row, label, w in zip(rows, y, weights, strict=True)
    )
    return loss + (theta.T * R * theta)[0] / 2


def _mp_newton_step(rows, thetas, y, weights, R):
    """Return the Newton step at theta, as a column."""
    theta = mpmath.matrix([v for one in thetas for v in one])
    grad, hess = R * theta, R.copy()
    for row, label, weight in zip(rows, y, weights, strict=True):
        one_grad, one_hess = _mp_row(row, thetas, int(label), weight)
        grad, hess = grad + one_grad, hess + one_hess
    return -mpmath.lu_solve(hess, grad)


def _mp_descend(rows, thetas, y, weights, R, tol):
    """Return the optimum by damped Newton steps, until a step is shorter than tol."""
    d = len(thetas[0])
    for _ in range(100):
        step = _mp_newton_step(rows, thetas, y, weights, R)
        before, size = _mp_objective(rows, thetas, y, weights, R), mpmath.mpf(1)
        if mpmath.norm(step) <= tol:
            return thetas
        while size > mpmath.mpf(10) ** -20:
            new = [
                [v + size * step[k * d + j] for j, v in enumerate(one)]
                for k, one in enumerate(thetas)
            ]
            if _mp_objective(rows, new, y, weights, R) < before:
                break
            size /= 2
        thetas = new
    raise RuntimeError("the high-precision optimum was not reached")


def mp_logistic_optimum(X, y, rho, *, fit_intercept, sample_weight=None, digits=60):
    """Return coef (K, d) and intercept (K,), rounded to float64, of a logistic optimum.

    For separable rows with a ridge so small that float64 solvers stop early: the ridge is
    brought down from 1 by tenths, each optimum the start of the next. K = 1 for two classes.
    """
    K = max(y) + 1 if max(y) > 1 else 1
    weights = np.ones(len(X)) if sample_weight is None else sample_weight
    with mpmath.workdps(2 * digits):
        rows = _mp_rows(X, fit_intercept)
        weights = [mpmath.mpf(float(weight)) for weight in weights]
        thetas = [[mpmath.mpf(0)] * len(rows[0]) for _ in range(K)]
        ridge = max(1.0, rho)
        while True:
            R = _mp_penalty(len(rows[0]), K, ridge, fit_intercept)
            tol = mpmath.mpf(10) ** (-30 if ridge <= rho else -2)
            thetas = _mp_descend(rows, thetas, y, weights, R, tol)
            if ridge <= rho:
                break
            ridge = max(ridge / 10.0, rho)
        table = np.array([[float(v) for v in theta] for theta in thetas])
    if fit_intercept:
        return table[:, :-1], table[:, -1]
    return table, np.zeros(K)


def _mp_changes(thetas, moves, queries, y_query):
    """Return the float64 output and loss changes of queries under parameter moves."""
    d, K = len(thetas[0]), len(thetas)
    dz = np.zeros((len(moves), len(queries), K))
    dl = np.zeros((len(queries), len(moves)))
    for i, move in enumerate(moves):
        moved = [[thetas[k][j] + move[k * d + j] for j in range(d)] for k in range(K)]
        for t, row in enumerate(queries):
            for k in range(K):
                delta = mpmath.fdot(row, [move[k * d + j] for j in range(d)])
                dz[i, t, k] = float(delta)
            label = int(y_query[t])
            before = _mp_log_probabilities(row, thetas)[label]
            dl[t, i] = float(before - _mp_log_probabilities(row, moved)[label])
    return dz, dl
