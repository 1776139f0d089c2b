r"""The ridge with the least leave-one-out loss, from one decomposition.

For squared loss the residual of row i without row i is ``e_i / (1 - h_i)``. With the data part of
the Hessian (or of the kernel matrix) diagonalised once, residuals and leverages at any ridge are a
rescaling away (Golub, Heath and Wahba 1979).
"""

import torch

from ..curvature import DualCurvature

GRID = torch.logspace(-8, 4, 49, dtype=torch.float64)
"""Ridges tried, in units of the mean non-zero eigenvalue of the weighted kernel matrix."""


def leave_one_out_ridge(problem):
    """Return the ridge of `GRID` with the least weighted leave-one-out squared error.

    Parameters
    ----------
    problem : TrainingProblem
        With squared loss, a ridge of one positive value and ``shares`` unused.

    Returns
    -------
    float
    """
    unit = _mean_eigenvalue(problem)
    ridges = GRID * unit
    base = ridges[len(ridges) // 2].reshape(1)
    z = problem.model.outputs(problem.features)
    curvature = problem.form(
        problem.features,
        problem.layout,
        problem.model.free_jacobian,
        problem.model.loss.expand(problem.y, z, problem.weights),
        base,
        shiftable=True,
    )
    # 1 / (1 - (base - ridge) / mu), one column a ridge.
    scales = 1.0 / (1.0 - curvature.inverse_spectrum[0][:, None] * (base - ridges))
    targets = problem.y - problem.offset
    if isinstance(curvature, DualCurvature):
        errors = _dual_errors(curvature, targets, problem.weights, scales)
    else:
        errors = _primal_errors(curvature, targets, problem.weights, scales)
    best = torch.flip(errors, [0]).argmin()
    return float(ridges[len(ridges) - 1 - int(best)])


def _mean_eigenvalue(problem):
    weights = problem.weights
    if hasattr(problem.features, "diagonal"):
        total = (weights * problem.features.diagonal()).sum()
    else:
        total = (weights * problem.features.gram(problem.features).diagonal()).sum()
    return total / min(problem.features.shape)


def _primal_errors(curvature, targets, weights, scales):
    """Return the summed weighted squared leave-one-out residuals at each ridge."""
    weighted = (weights[:, None] * targets).T[..., None, None]
    gradient = curvature.sum_gradients(weighted)
    whitened = (curvature.map.mT @ gradient)[..., 0]  # (G, r)
    errors = torch.zeros(scales.shape[1], dtype=torch.float64)
    for rows in torch.arange(curvature.n_rows).split(4096):
        features = curvature.whitened_rows(rows)[0, :, 0]
        leverage = weights[rows, None] * (features**2 @ scales)
        fitted = torch.einsum("nr,gr,rl->gnl", features, whitened, scales)
        residual = (targets[rows].T[..., None] - fitted) / (1.0 - leverage)
        errors += (weights[rows, None] * residual**2).sum((0, 1))
    return errors


def _dual_errors(curvature, targets, weights, scales):
    """The same from ``P``: the residual without row i is ``[P u]_i / P_ii``, u the targets."""
    root = torch.sqrt(weights)[:, None]
    basis = curvature.map[0]
    diagonal = basis**2 @ scales
    whitened = basis.T @ (root * targets)
    projected = torch.einsum("nr,rg,rl->gnl", basis, whitened, scales)
    kept = (weights > 0)[:, None]
    residual = torch.where(kept, projected / torch.where(kept, diagonal, 1.0), 0.0)
    return (residual**2).sum((0, 1))
