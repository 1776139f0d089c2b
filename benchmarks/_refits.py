"""Leave-one-out refits run to the optimum, in plain NumPy: what the effects are checked against."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, log_softmax, softmax


def softmax_losses(X, y, theta):
    """Cross-entropy of each row, in nats; `theta` is (n_classes, n_features)."""
    return -log_softmax(X @ theta.T, axis=1)[np.arange(len(y)), y]


def _softmax_gradient(X, Y, theta, ridge):
    residual = softmax(X @ theta.T, axis=1) - Y
    return residual.T @ X + ridge * theta


def _softmax_hessian(X, theta, ridge):
    """Hessian of the ridge-penalised sum of cross-entropies, class-major."""
    p = softmax(X @ theta.T, axis=1)
    n_classes, d = theta.shape
    hessian = np.empty((n_classes, d, n_classes, d))
    for a in range(n_classes):
        for b in range(a + 1):
            weight = p[:, a] * ((a == b) - p[:, b])
            hessian[a, :, b] = hessian[b, :, a] = (X * weight[:, None]).T @ X
    hessian = hessian.reshape(n_classes * d, n_classes * d)
    hessian[np.diag_indices_from(hessian)] += ridge
    return hessian


def softmax_optimum(X, y, ridge, start, tol=1e-12, max_iter=50):
    """Minimise Σᵢ ℓᵢ + ½·ridge·‖θ‖² by Newton's method from `start`, close to the optimum.

    The iteration ends where the gradient is below `tol` times the sum of the rows' gradient norms,
    or below a hundred times that and no longer halved by a step: as far as float64 goes.
    """
    theta = start.copy()
    Y = np.eye(len(theta))[y]
    row_norms = np.linalg.norm(X, axis=1) * np.linalg.norm(softmax(X @ theta.T, axis=1) - Y, axis=1)
    scale = row_norms.sum()
    previous = np.inf
    for _ in range(max_iter):
        gradient = _softmax_gradient(X, Y, theta, ridge)
        size = np.linalg.norm(gradient) / scale
        if size <= tol or (size <= 100 * tol and size >= previous / 2):
            return theta
        previous = size
        factor = cho_factor(_softmax_hessian(X, theta, ridge), overwrite_a=True)
        theta -= cho_solve(factor, gradient.ravel()).reshape(theta.shape)
    raise RuntimeError(f"Newton's method stopped at relative gradient {size:.1e} > {tol:.0e}.")


def leave_one_out_softmax(X, y, ridge, theta, rows, X_test, y_test):
    """Rise of each test row's loss when a training row is left out, (n_test, len(rows))."""
    before = softmax_losses(X_test, y_test, theta)
    effects = np.empty((len(y_test), len(rows)))
    for column, row in enumerate(rows):
        kept = np.arange(len(y)) != row
        without = softmax_optimum(X[kept], y[kept], ridge, theta)
        effects[:, column] = softmax_losses(X_test, y_test, without) - before
    return effects


def leave_one_out_logistic(X, y, ridge, theta, rows, tol=1e-12, max_iter=50):
    """Probability of class 1 that a model fitted without a row gives to that row, (len(rows),).

    The last column of `X` is one and its parameter is not penalised; `y` is 0 or 1.
    """
    penalty = np.full(X.shape[1], float(ridge))
    penalty[-1] = 0.0
    scale = (np.linalg.norm(X, axis=1) * np.abs(expit(X @ theta) - y)).sum()
    probabilities = np.empty(len(rows))
    for position, row in enumerate(rows):
        weight = np.ones(len(y))
        weight[row] = 0.0
        beta = theta.copy()
        for _ in range(max_iter):
            p = expit(X @ beta)
            gradient = X.T @ (weight * (p - y)) + penalty * beta
            if np.linalg.norm(gradient) <= tol * scale:
                break
            curvature = (X * (weight * p * (1 - p))[:, None]).T @ X + np.diag(penalty)
            beta -= np.linalg.solve(curvature, gradient)
        else:
            raise RuntimeError(f"Newton's method did not reach {tol:.0e} without row {row}.")
        probabilities[position] = expit(X[row] @ beta)
    return probabilities
