"""Kernel models of scikit-learn: outputs linear in one coefficient a training row."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge

from ..exceptions import UnsupportedOptionError
from ..losses import HalfSquaredError
from ._base import KernelModel, Penalty, _shallow_copy
from ._registry import as_model_function, check_options, refuse_option, ridge_parameters
from ._targets import NoisyTargets, RegressionTargets


class _IdentityKernel:
    """Stands in for the kernel where outputs are put through an estimator as they are."""

    requires_vector_input = True

    def __call__(self, X, Y=None):
        return np.asarray(X)


@dataclass(frozen=True, kw_only=True)
class KernelRidgeModel(KernelModel):
    """KernelRidge, with any kernel or a precomputed one."""

    def _validate(self, X):
        X = super()._validate(X)
        if self.estimator.kernel == "precomputed" and X.shape[1] != len(self.dual_coef):
            raise ValueError(
                f"A precomputed kernel needs one column for each of the {len(self.dual_coef)} "
                f"training rows; got shape {X.shape}."
            )
        return X

    def write(self, estimator, parameters, removed, training, weights):
        estimator.dual_coef_ = np.array(parameters).reshape(
            (-1,) if np.ndim(estimator.dual_coef_) == 1 else (-1, self.n_outputs)
        )
        estimator.X_fit_ = training.rows

    def _with_identity(self, n_outputs):
        estimator = _shallow_copy(self.estimator)
        estimator.kernel = "precomputed"
        estimator.n_features_in_ = n_outputs
        estimator.X_fit_ = np.eye(n_outputs)
        estimator.dual_coef_ = (
            np.ones(1) if np.ndim(self.estimator.dual_coef_) == 1 else np.eye(n_outputs)
        )
        return estimator


@dataclass(frozen=True, kw_only=True)
class GaussianProcessModel(KernelModel):
    """GaussianProcessRegressor with its hyperparameters and target statistics held fixed.

    Attributes
    ----------
    unit : (n_outputs,) array
        Standard deviation by which the targets were divided.
    noise : (n,) array
        Noise variance of each training row: ``alpha`` plus the kernel's own white noise.
    """

    unit: np.ndarray
    noise: np.ndarray

    def _validate(self, X):
        if not self.estimator.kernel_.requires_vector_input:
            return np.asarray(X)
        return super()._validate(X)

    def write(self, estimator, parameters, removed, training, weights):
        kept = ~removed
        rows = training.rows[kept]
        coefficients = np.asarray(parameters).reshape(-1, self.n_outputs)[kept] / self.unit
        estimator.X_train_ = rows
        estimator.alpha_ = coefficients.reshape((-1, *np.shape(estimator.alpha_)[1:]))
        covariance = self.kernel(rows, rows)
        covariance[np.diag_indices_from(covariance)] += self.noise[kept]
        estimator.L_ = cholesky(covariance, lower=True)
        estimator.y_train_ = (covariance @ coefficients).reshape(estimator.alpha_.shape)

    def _with_identity(self, n_outputs):
        estimator = _shallow_copy(self.estimator)
        estimator.kernel = estimator.kernel_ = _IdentityKernel()
        estimator.n_features_in_ = n_outputs
        estimator.X_train_ = np.eye(n_outputs)
        flat = np.ndim(self.estimator.alpha_) == 1
        estimator.alpha_ = np.ones(1) if flat else np.eye(n_outputs)
        estimator._y_train_mean = np.zeros(n_outputs if not flat else 1)
        estimator._y_train_std = np.ones(n_outputs if not flat else 1)
        return estimator


@as_model_function.register(KernelRidge)
def _(estimator):
    dual_coef = np.asarray(estimator.dual_coef_, dtype=np.float64)
    dual_coef = dual_coef.reshape(len(dual_coef), -1)
    n_outputs = dual_coef.shape[1]
    alpha = np.atleast_1d(np.asarray(estimator.alpha, dtype=np.float64))
    shared = bool((alpha == alpha[0]).all())
    return KernelRidgeModel(
        estimator=estimator,
        loss=HalfSquaredError(n_outputs, shared=shared),
        penalty=Penalty(alpha[:1] if shared else alpha),
        targets=RegressionTargets(n_outputs),
        n_outputs=n_outputs,
        n_latent=n_outputs,
        kernel=RidgeKernel(estimator),
        fitted_rows=estimator.X_fit_,
        dual_coef=dual_coef,
        offset=np.zeros(n_outputs),
    )


class RidgeKernel:
    """The kernel of a KernelRidge as a function of two sets of rows."""

    def __init__(self, estimator):
        self.estimator = estimator

    def __call__(self, rows, others):
        if self.estimator.kernel == "precomputed":
            return rows
        return self.estimator._get_kernel(rows, others)


@ridge_parameters.register(KernelRidge)
def _(estimator, ridge, n_rows, total_weight):
    if ridge == 0:
        raise UnsupportedOptionError(
            "ridge=0 leaves a KernelRidge without a unique solution. Give a positive ridge."
        )
    return {"alpha": ridge}


@check_options.register(KernelRidge)
def _(estimator):
    if np.any(np.asarray(estimator.alpha) <= 0):
        refuse_option(estimator, "alpha", "the dual form needs a positive ridge")


@ridge_parameters.register(GaussianProcessRegressor)
def _(estimator, ridge, n_rows, total_weight):
    raise UnsupportedOptionError(
        f"ridge={ridge!r} cannot be set on GaussianProcessRegressor, whose noise belongs to its "
        "hyperparameters. Wrap KernelRidge instead, or keep ridge='model'."
    )


@as_model_function.register(GaussianProcessRegressor)
def _(estimator):
    alpha = np.asarray(estimator.alpha_, dtype=np.float64)
    alpha = alpha.reshape(len(alpha), -1)
    n_outputs = alpha.shape[1]
    unit = np.broadcast_to(np.ravel(estimator._y_train_std), (n_outputs,))
    rows = estimator.X_train_
    kernel = estimator.kernel_
    white = kernel.diag(rows) - np.diag(kernel(rows, rows))
    # Differences of equal terms are rounding, not noise.
    white = np.where(white > 1e-12 * kernel.diag(rows), white, 0.0)
    noise = white + np.asarray(estimator.alpha, dtype=np.float64)
    return GaussianProcessModel(
        estimator=estimator,
        loss=HalfSquaredError(n_outputs),
        penalty=Penalty(np.array([noise.mean()])),
        targets=NoisyTargets(n_outputs, noise),
        n_outputs=n_outputs,
        n_latent=n_outputs,
        kernel=kernel,
        fitted_rows=rows,
        dual_coef=alpha * unit,
        offset=np.broadcast_to(np.ravel(estimator._y_train_mean), (n_outputs,)).copy(),
        unit=unit.copy(),
        noise=noise,
    )
