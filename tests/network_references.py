"""Naive, dense, slow oracles for networks, in float64.

Nothing here is shared with the package under test. The training objective is in the sum form

    sum_i s_i l(z_i, y_i) + 1/2 sum_j R_j theta_j^2,    z_i = f(x_i; theta),

over the trainable parameters in the order of ``named_parameters()``, tied ones once. The loss of a
row is its cross-entropy in nats, the sum over outputs of the log losses of labels 0 and 1, or the
mean over outputs of the squared errors; the metric of a query row is the same. A weight decay lam
on the mean loss is R = lam sum_i s_i, so that a removed row takes lam s_i along.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import torch
from references import (
    damped_newton,
    dense_first_order,
    dense_leverage,
    dense_newton_removal,
    rows_mask,
)
from scipy.special import expit, log_softmax, softmax

# ---------------------------------------------------------------------------------------------
# Modules: outputs and derivatives
# ---------------------------------------------------------------------------------------------


def trainable(module):
    """Return the trainable parameters by name, tied ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def parameter_vector(module):
    """Return the trainable parameters as one vector (d,)."""
    return np.concatenate([p.detach().numpy().ravel() for p in trainable(module).values()])


def write_parameters(module, vector):
    """Write a vector (d,) into the trainable parameters in place, which keeps every tie."""
    named = trainable(module)
    parts = torch.as_tensor(vector).split([p.numel() for p in named.values()])
    with torch.no_grad():
        for parameter, part in zip(named.values(), parts, strict=True):
            parameter.copy_(part.reshape(parameter.shape))


@contextmanager
def _evaluated(module):
    """Put a module in eval mode, and each of its parts back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _moved(module, parameters):
    """Put a module at other trainable parameters, and back afterwards."""
    own = parameter_vector(module)
    write_parameters(module, parameters)
    try:
        yield
    finally:
        write_parameters(module, own)


def dense_outputs(module, X, parameters=None):
    """Return the outputs (n, C) in eval mode, at other trainable parameters (d,) if given."""
    place = nullcontext() if parameters is None else _moved(module, parameters)
    with _evaluated(module), torch.no_grad(), place:
        return module(torch.as_tensor(X)).numpy()


def dense_jacobian(module, X):
    """Return d outputs / d parameters (n, C, d): plain autograd, one row and output at a time."""
    parameters = list(trainable(module).values())

    def gradient(output):
        parts = torch.autograd.grad(
            output, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.ravel() for part in parts])

    with _evaluated(module), torch.enable_grad():
        rows = (module(row[None])[0] for row in torch.as_tensor(X))
        return torch.stack([torch.stack([gradient(z) for z in row]) for row in rows]).numpy()


def finite_difference_jacobian(module, X, step=1e-6):
    """Return the same by central differences, a parameter at a time."""
    theta = parameter_vector(module)
    moves = step * np.eye(len(theta))
    return np.stack(
        [dense_outputs(module, X, theta + m) - dense_outputs(module, X, theta - m) for m in moves],
        axis=2,
    ) / (2.0 * step)


def decay_diagonal(module, weight_decay):
    """Return the weight decay of each parameter (d,): one number, or one for each glob of names.

    A parameter matches exactly one glob.
    """
    globs = weight_decay if isinstance(weight_decay, dict) else {"*": weight_decay}
    parts = []
    for name, parameter in trainable(module).items():
        (decay,) = (value for glob, value in globs.items() if fnmatchcase(name, glob))
        parts.append(np.full(parameter.numel(), decay))
    return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------
# Losses of one row, in its outputs z (..., C) and targets T (n, C)
# ---------------------------------------------------------------------------------------------

Pieces = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RowLoss:
    """A loss of a row: value (...), gradient (..., C) and Hessian (..., C, C) in z."""

    value: Pieces
    gradient: Pieces
    hessian: Pieces


def _diagonal(values):
    return values[..., None] * np.eye(values.shape[-1])


def _softmax_hessian(z, T):
    p = softmax(z, axis=-1)
    return _diagonal(p) - p[..., :, None] * p[..., None, :]


LOSSES = {
    "cross_entropy": RowLoss(
        value=lambda z, T: -np.sum(T * log_softmax(z, axis=-1), axis=-1),
        gradient=lambda z, T: softmax(z, axis=-1) - T,
        hessian=_softmax_hessian,
    ),
    "binary_cross_entropy": RowLoss(
        value=lambda z, T: np.sum(np.logaddexp(0.0, (1.0 - 2.0 * T) * z), axis=-1),
        gradient=lambda z, T: expit(z) - T,
        hessian=lambda z, T: _diagonal(expit(z) * expit(-z)),
    ),
    "mse": RowLoss(
        value=lambda z, T: np.mean((z - T) ** 2, axis=-1),
        gradient=lambda z, T: 2.0 * (z - T) / z.shape[-1],
        hessian=lambda z, T: _diagonal(np.full(z.shape, 2.0 / z.shape[-1])),
    ),
}


def target_matrix(loss, y, n_outputs):
    """Return targets (n, C): one column a class, or y itself with a column for each output."""
    if loss == "cross_entropy":
        return np.eye(n_outputs)[y]
    return np.reshape(y, (len(y), n_outputs)).astype(float)


def loss_values(loss, z, y):
    """Return each row's loss, which is its metric, at outputs (..., n, C)."""
    return LOSSES[loss].value(z, target_matrix(loss, y, z.shape[-1]))


def loss_pieces(loss, z, y, weights):
    """Return each row's weighted value (n,), gradient r (n, C) and Hessian Lam (n, C, C)."""
    T = target_matrix(loss, y, z.shape[1])
    row = LOSSES[loss]
    return (
        weights * row.value(z, T),
        weights[:, None] * row.gradient(z, T),
        weights[:, None, None] * row.hessian(z, T),
    )


# ---------------------------------------------------------------------------------------------
# Steps of the parameters, and what follows from them
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NetworkReference:
    """Dense removal steps from J (n, C, d), weighted r (n, C) and Lam (n, C, C), R and theta (d,).

    H = sum_i J_i' Lam_i J_i + diag(R), and its pseudo-inverse where free parameters are redundant.
    Steps assume that the objective's gradient is 0 at theta. ``penalty_scales``: removed rows take
    their share of the penalty R along, tau = their weight / the total weight.
    """

    J: np.ndarray
    r: np.ndarray
    Lam: np.ndarray
    R: np.ndarray
    theta: np.ndarray
    weights: np.ndarray
    penalty_scales: bool = True

    @property
    def hessian(self):
        """Return H (d, d)."""
        return np.einsum("ncp,nce,neq->pq", self.J, self.Lam, self.J) + np.diag(self.R)

    @property
    def gradient(self):
        """Return the objective's gradient (d,) at theta."""
        return np.einsum("ncd,nc->d", self.J, self.r) + self.R * self.theta

    def share(self, rows):
        """Return tau, the fraction of the penalty that leaves with these rows."""
        removed = self.weights[rows_mask(rows, len(self.J))]
        return removed.sum() / self.weights.sum() if self.penalty_scales else 0.0

    def first_order(self, rows):
        """Return dtheta = H^+ (sum_G J' r + tau R theta) without the rows G."""
        return dense_first_order(*self._pieces, rows, self.share(rows))

    def newton(self, rows):
        """Return dtheta = (H - sum_G J' Lam J - tau R)^+ (sum_G J' r + tau R theta)."""
        return dense_newton_removal(*self._pieces, rows, self.share(rows))

    def leave_one_out(self, step):
        """Return the steps (n, d) without each row; ``step`` is `first_order` or `newton`."""
        return np.stack([getattr(self, step)([row]) for row in range(len(self.J))])

    def leverages(self):
        """Return tr(Lam_i^1/2 J_i H^+ J_i' Lam_i^1/2) for each row."""
        return dense_leverage(self.J, self.Lam, self.R)

    def effective_dimension(self):
        """Return tr(H^+ (H - R)), the number of parameters that the rows determine."""
        H = self.hessian
        inverse = np.linalg.pinv(H, rcond=1e-13, hermitian=True)
        return np.trace(inverse @ (H - np.diag(self.R)))

    @property
    def _pieces(self):
        return self.J, self.Lam, self.r, self.R, self.theta


def output_changes(J, dtheta):
    """Return dz = J dtheta (..., m, C) of query rows with J (m, C, d), for steps (..., d)."""
    return np.einsum("mcd,...d->...mc", J, dtheta)


def loss_effects(loss, z, y, dz):
    """Return the metric at z + dz minus that at z (..., m), for changes (..., m, C)."""
    return loss_values(loss, z + dz, y) - loss_values(loss, z, y)


# ---------------------------------------------------------------------------------------------
# The network's linearisation, with the optimum of its objective
# ---------------------------------------------------------------------------------------------


def linearised_optimum(J, z, theta, loss, y, weights, R):
    """Minimise the objective of f(theta') = z + J (theta' - theta) over theta', from theta.

    The penalty is on theta' itself, not on its change. Directions that change neither the outputs
    nor the penalty stay where they are.
    """

    def objective(new):
        value, r, Lam = loss_pieces(loss, z + J @ (new - theta), y, weights)
        return (
            value.sum() + 0.5 * R @ new**2,
            np.einsum("ncd,nc->d", J, r) + R * new,
            np.einsum("ncp,nce,neq->pq", J, Lam, J, optimize=True) + np.diag(R),
        )

    return damped_newton(objective, theta)


@dataclass(frozen=True, eq=False)
class LinearisedNetwork:
    """A network's linearisation at theta with its objective on the training rows.

    ``R`` (d,) is the penalty of the sum form; with ``penalty_scales`` it is proportional to the
    total weight.
    """

    J: np.ndarray
    z: np.ndarray
    theta: np.ndarray
    loss: str
    y: np.ndarray
    weights: np.ndarray
    R: np.ndarray
    penalty_scales: bool = True

    def reference(self, parameters=None):
        """Return the `NetworkReference` at these parameters, or at theta."""
        parameters = self.theta if parameters is None else parameters
        z = self.z + self.J @ (parameters - self.theta)
        _, r, Lam = loss_pieces(self.loss, z, self.y, self.weights)
        return NetworkReference(
            self.J, r, Lam, self.R, parameters, self.weights, self.penalty_scales
        )

    def reweighted(self, weights):
        """Return the same network with other weights, and the penalty that goes with them."""
        scale = weights.sum() / self.weights.sum() if self.penalty_scales else 1.0
        return replace(self, weights=weights, R=scale * self.R)

    def optimum(self):
        """Return the parameters (d,) which minimise the objective."""
        return linearised_optimum(
            self.J, self.z, self.theta, self.loss, self.y, self.weights, self.R
        )

    def removal(self, rows):
        """Return the exact change of the optimum (d,) without these rows."""
        kept = np.where(rows_mask(rows, len(self.J)), 0.0, self.weights)
        return self.reweighted(kept).optimum() - self.optimum()


def linearise(case, penalty_scales=True):
    """Return the `LinearisedNetwork` of a `NetworkCase` at its module's parameters."""
    return LinearisedNetwork(
        dense_jacobian(case.module, case.X),
        dense_outputs(case.module, case.X),
        parameter_vector(case.module),
        case.loss,
        case.y,
        case.weights,
        case.weights.sum() * decay_diagonal(case.module, case.weight_decay),
        penalty_scales,
    )
