"""Solves with a network's whole kernel matrix, its low-rank form as preconditioner."""

import torch

_STEPS = 100
# Steps without a new smallest one: rounding is what is left.
_PATIENCE = 5


class KernelSystem:
    """``(rho I + A) x = b`` with ``A = S^T J J^T S`` of the training rows, which is not formed.

    Columns have one entry for each head of the training rows, (n q, m). Products with ``A`` go
    through the network; free parameters are eliminated.

    Parameters
    ----------
    curvature : NystromCurvature
        The low-rank form, at the fitted parameters.
    """

    def __init__(self, curvature):
        self.curvature, self.design = curvature, curvature.features
        self.heads, self.ridge = self.design.heads, float(curvature.ridge[0])
        self.shape = self.heads.shape
        self.root = curvature.expansion.root[0]

    def column(self, target):
        """Return the kernel of the training heads with other heads."""
        return self.heads.gram(target).double().cpu()

    def start(self, column, design):
        """Return the low-rank form's solution for heads of queries, of Jacobians (m, 1, P)."""
        inside = self.design.products(self.design.inside(design)[:, 0])
        return self._solve(column - inside, design[:, 0].double().cpu().T[None])

    def solve(self, column):
        """Return the low-rank form's inverse times columns, free parameters eliminated."""
        return self._solve(column, 0.0)

    def _solve(self, column, gradient):
        """Return the solution for columns and, besides, gradients by the coordinates."""
        source = self.curvature.sum_gradients((self.root @ self._by_rows(column))[None])
        state = self.curvature.solve(gradient - source / self.ridge)
        return self._weighted(column) / self.ridge + self._outputs(state)

    def residual(self, column, x):
        """Return ``b - (rho I + A) x``."""
        product = self.heads.push(self.heads.pull(self._by_rows(x))).double().cpu()
        return column - self.ridge * x - product.flatten(0, 1)

    def refined(self, column, x, tol):
        """Return x after conjugate gradients, all columns at once, and their relative error."""
        residual = self.residual(column, x)
        step = direction = self.solve(residual)
        product = (residual * step).sum(0)
        smallest, waited = torch.inf, 0
        for _ in range(_STEPS):
            error = float((_lengths(step) / _lengths(x)).max())
            waited = 0 if error < smallest else waited + 1
            smallest = min(smallest, error)
            if error <= tol or waited > _PATIENCE:
                break
            image = -self.residual(torch.zeros_like(column), direction)
            size = product / (direction * image).sum(0)
            # A column that has converged has no direction left.
            size = torch.where(product > 0, size, 0.0)
            x, residual = x + size * direction, residual - size * image
            step, before = self.solve(residual), product
            product = (residual * step).sum(0)
            turn = torch.where(before > 0, product / before, 0.0)
            direction = step + turn * direction
        return x, error

    def _by_rows(self, column):
        return column.view(*self.shape, -1)

    def _outputs(self, state):
        """Return root-weighted outputs of the training rows under states, own part taken off."""
        moved = self.curvature.outputs(self.design.values, state)[0]
        return self._weighted((self.root.mT @ moved).flatten(0, 1))

    def _weighted(self, column):
        return self.curvature.weighted_heads(self._by_rows(column)).flatten(0, 1)


def _lengths(columns):
    # Queries without a kernel have solutions of length zero.
    return torch.linalg.vector_norm(columns, dim=0).clamp(min=torch.finfo(columns.dtype).tiny)
