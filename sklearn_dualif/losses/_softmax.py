"""Multinomial log loss: softmax cross-entropy of C coupled outputs."""

import torch

from ._base import Expansion, Loss, OutputLayout

# Change of an output whose exponential still fits a double, with room for a sum of them.
_LARGEST_STEP = 300.0


def contrasts(n_classes):
    """Return an orthonormal basis (C, C - 1) of the vectors that sum to zero."""
    columns = torch.zeros(n_classes, n_classes - 1, dtype=torch.float64)
    for k in range(n_classes - 1):
        columns[: k + 1, k] = 1.0
        columns[k + 1, k] = -(k + 1.0)
    return columns / torch.linalg.vector_norm(columns, dim=0)


def _householder_complement(root_p):
    """Return orthonormal bases (n, C, C - 1) of the complements of unit vectors (n, C).

    The reflection by ``u = sqrt(p) + e_C`` sends ``e_C`` to ``-sqrt(p)``; its other columns span
    the complement. The sum never cancels, ``sqrt(p) - e_C`` would near a confident row.
    """
    reflector = root_p.clone()
    reflector[:, -1] += 1.0
    scale = 1.0 / reflector[:, -1]
    eye = torch.eye(root_p.shape[1], dtype=root_p.dtype)
    outer = scale[:, None, None] * reflector[:, :, None] * reflector[:, None, :]
    return (eye - outer)[:, :, :-1]


class SoftmaxLogLoss(Loss):
    """``l = log(sum_k exp z_k) - z_y`` for class indices ``y`` (n,).

    The curvature ``diag(p) - p p^T`` has the root ``S = diag(sqrt p) - p sqrt(p)^T`` with
    ``S sqrt(p) = 0``, hence C - 1 columns ``S B``; the gradient is ``S c`` with
    ``c = sqrt(p) - e_y / sqrt(p_y)``. Outputs are handled in C - 1 contrasts, which removes the
    common shift that no data can determine.
    """

    coupling = "coupled"

    def layout(self, n_outputs):
        basis = contrasts(n_outputs)
        return OutputLayout(1, basis, torch.ones(n_outputs - 1, dtype=torch.bool))

    def terms(self, y, z):
        picked = torch.take_along_dim(z, y.unsqueeze(-1), -1)
        gaps = z - picked
        # The true class contributes exp(0): log1p of the others keeps confident rows exact.
        top = gaps.amax(-1, keepdim=True).clamp(min=0.0)
        others = torch.exp(gaps - top)
        others.scatter_(-1, y.unsqueeze(-1).expand(*z.shape[:-1], 1), 0.0)
        rest = others.sum(-1, keepdim=True)
        small = torch.log1p(rest)
        large = top + torch.log(rest + torch.exp(-top))
        return torch.where(top == 0.0, small, large)

    def change_terms(self, y, z, dz):
        index = y.unsqueeze(-1).expand(*dz.shape[:-1], 1)
        step = dz - torch.take_along_dim(dz, index, -1)
        calm = float(step.max()) <= _LARGEST_STEP
        near = torch.expm1(step if calm else step.clamp(max=_LARGEST_STEP))
        growth = torch.linalg.vecdot(near, torch.softmax(z, -1)).unsqueeze(-1)
        # log1p keeps the digits of small changes, the log-sum-exp those of large ones.
        if calm and float(growth.min()) >= -0.5:
            return torch.log1p(growth)
        far = (step.amax(-1, keepdim=True) > _LARGEST_STEP) | (growth < -0.5)
        exact = torch.logsumexp(torch.log_softmax(z, -1) + step, -1, keepdim=True)
        return torch.where(far, exact, torch.log1p(growth.clamp(min=-0.5)))

    def gradient(self, y, z):
        p = torch.softmax(z, -1)
        picked = y.unsqueeze(-1)
        rest = p.scatter(-1, picked, 0.0).sum(-1, keepdim=True)
        return p.scatter(-1, picked, -rest)

    def expand(self, y, z, weights):
        basis = contrasts(z.shape[1])
        log_p = torch.log_softmax(z, -1)
        root_p = torch.exp(0.5 * log_p)
        p = torch.exp(log_p)
        others = _sum_of_others(p)
        root = -p[:, :, None] * root_p[:, None, :]
        root.diagonal(dim1=1, dim2=2).copy_(root_p * others)
        complement = _householder_complement(root_p)
        weight_root = torch.sqrt(weights)[:, None]
        picked = y.unsqueeze(-1)
        coefficient = root_p.scatter_add(
            -1, picked, -torch.exp(-0.5 * torch.take_along_dim(log_p, picked, -1))
        )
        reduced_root = weight_root[..., None] * (basis.T @ (root @ complement))
        reduced = weight_root * (complement.transpose(1, 2) @ coefficient[..., None])[..., 0]
        gradient = weights[:, None] * (self.gradient(y, z) @ basis)
        return Expansion(gradient[None], reduced_root[None], reduced[None])


def _sum_of_others(p):
    """Return the sum of the other entries of each row, (n, C), without ``1 - p``."""
    zero = torch.zeros_like(p[:, :1])
    before = torch.cat([zero, torch.cumsum(p[:, :-1], -1)], -1)
    after = torch.cat([torch.cumsum(p[:, 1:].flip(-1), -1).flip(-1), zero], -1)
    return before + after
