"""A network's Gauss-Newton matrix, layer by layer taken as diagonal in Kronecker eigenbases."""

import torch

from ..linalg import symmetric_pseudo_inverse
from ._base import DEGENERATE, LeaveOneOut, _apply, _sandwich, _trace, complement_inverse
from ._row_jacobians import RowJacobians

_NEGLIGIBLE = {torch.float64: 1e-12, torch.float32: 1e-6}


class KroneckerCurvature(RowJacobians):
    r"""Eigenvalue-corrected Kronecker-factored curvature (EK-FAC).

    With ``J_i`` (C, P) the Jacobian of row i in the coordinates of a `KroneckerBasis` and
    ``S_i S_i^T`` the curvature of its loss,

    .. math::

        H \approx \operatorname{diag}(\lambda) + \rho R, \qquad
        \lambda_j = \sum_i \sum_k (S_i^\top J_i)_{kj}^2,

    which is the diagonal of the Gauss-Newton matrix in these coordinates: of all diagonal matrices
    the closest to it [1]_. In a layer with a weight matrix, coordinate ``j`` is an entry of
    ``Q_E^T W Q_A``. Parameters without one are exact where their own matrix was diagonalised:
    small tensors each by itself, and the free parameters all together, which have no ridge. What
    couples different layers is left out.

    Newton's removal of rows takes out of this form what the rows put into it,

    .. math::

        H_{-G} \approx \operatorname{diag}\Big(\lambda - \sum_{i \in G} \sum_k
        (S_i^\top J_i)_{k\cdot}^2\Big) + (\rho - \tau_G) R,

    the matrix of the rows that stay in the same coordinates (and the dense one of coordinates that
    were diagonalised), which is positive semidefinite. Taking the rows' own ``J^T S S^T J`` off H
    instead would not be: H spreads what a row contributes over all coordinates, so that leverages
    ``tr(S_i^T J_i H^{-1} J_i^T S_i)`` can be larger than the number of outputs.

    Parameters
    ----------
    features : KroneckerDesign
        Gives the Jacobians of training and query rows, which are never all held at once.
    layout, free, expansion, ridge, shiftable
        See `Curvature`; ``free`` only says how many free parameters there are. With the expansion
        of the empirical Fisher matrix the form is that of Grosse et al. for true labels.

    Attributes
    ----------
    eigenvalues : (P,) tensor
        ``lambda``, free parameters first.

    References
    ----------
    .. [1] T. George, C. Laurent, X. Bouthillier, N. Ballas and P. Vincent, "Fast Approximate
       Natural Gradient Descent in a Kronecker-factored Eigenbasis", NeurIPS 2018.
    .. [2] R. Grosse et al., "Studying Large Language Model Generalization with Influence
       Functions", arXiv:2308.03296, 2023.
    .. [3] J. Martens and R. Grosse, "Optimizing Neural Networks with Kronecker-factored
       Approximate Curvature", ICML 2015.
    """

    def _factorize(self):
        total = torch.zeros(self.map_rows, dtype=torch.float64)
        for rows in torch.arange(self.n_rows).split(self._rows_per_block()):
            total += self._squares(self.features.rows(rows, self.expansion.root[0, rows])).sum(0)
        self.eigenvalues = total
        self._penalized = torch.ones(self.map_rows, dtype=torch.float64)
        self._penalized[: self.n_free] = 0.0
        tolerance = _NEGLIGIBLE[self.features.basis.network.dtype]
        # What is below counts as zero; with a ridge, penalised coordinates cannot vanish.
        self._floor = tolerance * total.amax() * self._penalized
        if float(self.ridge[0]) > 0:
            self._floor.zero_()
        if self.n_free:
            self._floor[: self.n_free] = tolerance * total[: self.n_free].amax()
        dense = [
            slice(self.n_free + target.start, self.n_free + target.stop)
            for target in self.features.basis.dense
        ]
        self._dense = [slice(0, self.n_free), *dense] if self.n_free else dense

    @staticmethod
    def _squares(values):
        """Return the sums over heads of squares (b, P) of values (b, q, P)."""
        return (values.double() ** 2).sum(1).cpu()

    def design(self, features):
        return self.features.design(features)

    def row_design(self, rows):
        return self.features.rows(rows)

    def row_gradients(self, rows, output_gradients):
        heads = output_gradients[0].unsqueeze(-1)
        return self.features.rows(rows, heads)[:, 0].T.double().cpu()[None]

    def sum_gradients(self, output_gradients):
        total = 0.0
        for rows in torch.arange(self.n_rows).split(self._rows_per_block()):
            total = total + self.features.rows(rows, output_gradients[0, rows]).double().sum(0).T
        return total.cpu()[None]

    def dual_vector(self, gradient):
        return gradient

    # Solutions ---------------------------------------------------------------------------------

    def _values(self, shift=0.0):
        """Return the diagonal of ``H - shift R``, (P,), or (b, P) for shifts (b, 1)."""
        return self.eigenvalues + (self.ridge - shift) * self._penalized

    def solve(self, gradients, shift=None):
        shift = 0.0 if shift is None else shift.reshape(-1, 1)
        inverse = _inverse(self._values(shift), self._floor)
        return gradients * inverse.reshape(-1, self.map_rows).T

    def row_quadratics(self, rows, shift=None):
        return self._quadratics(self.row_design(rows), shift)

    def _quadratics(self, values, shift=None):
        shift = 0.0 if shift is None else shift.reshape(-1, 1)
        inverse = _inverse(self._values(shift), self._floor).to(values)
        return ((values * inverse.unsqueeze(-2)) @ values.mT).double().cpu()[None]

    def _states(self, rows, values):
        """Return Newton's states (1, P, b) of single removals, and which rows fix a direction.

        ``values`` are the Jacobians (b, C, P) of the rows.
        """
        gradient = self.expansion.gradient[0, rows].to(values)
        gradient = torch.einsum("bcp,bc->bp", values, gradient).double().cpu()
        shift = 0.0
        if self.shares is not None:
            shift = self.shares[rows].unsqueeze(-1)
            gradient = gradient + shift * (self._penalized * self.parameters[0, :, 0])
        mixed = self.expansion.root[0, rows].mT.to(values) @ values
        before = self._values(shift).expand_as(gradient)
        kept = before - self._squares(mixed)
        states = gradient * _inverse(kept, self._floor + DEGENERATE * before)
        degenerate = torch.zeros(len(rows), dtype=torch.bool)
        for part in self._dense:
            own = mixed[..., part].double().cpu()
            states[:, part], null = self._left_out(part, before[:, part], own, gradient[:, part])
            degenerate |= null
        return states.T[None], degenerate

    def _left_out(self, part, before, own, gradient):
        """Return ``(diag(before) - own^T own)^+ gradient`` (b, p) of each row, and where singular.

        ``own`` (b, q, p) are the root-weighted Jacobians of a part of the coordinates.
        """
        scaled = own * _inverse(before, self._floor[part]).unsqueeze(1)
        eye = torch.eye(own.shape[1], dtype=own.dtype)
        may_vanish = bool((self._floor[part] > 0).any())
        inverse, null = complement_inverse(eye - scaled @ own.mT, may_vanish=may_vanish)
        solved = gradient * _inverse(before, self._floor[part])
        seen = _apply(inverse, _apply(own, solved))
        solved = solved + _apply(scaled.mT, seen)
        for row in torch.nonzero(null)[:, 0].tolist():
            matrix = torch.diag(before[row]) - own[row].T @ own[row]
            solved[row] = symmetric_pseudo_inverse(matrix) @ gradient[row]
        return solved, null

    def _changed(self, rows, gradient, changes, share):
        """Return the solution after rows changed their curvatures by ``changes`` (e, C, C)."""
        values = self._values(share)
        diagonal = values.clone()
        matrices = [torch.diag(values[part]) for part in self._dense]
        for chunk, change in zip(
            rows.split(self._rows_per_block()),
            changes.split(self._rows_per_block()),
            strict=True,
        ):
            own = self.row_design(chunk)
            moved = change.to(own) @ own
            diagonal += (own.double() * moved.double()).sum((0, 1)).cpu()
            for part, matrix in zip(self._dense, matrices, strict=True):
                left, right = own[..., part].flatten(0, 1), moved[..., part].flatten(0, 1)
                matrix += (left.T.double() @ right.double()).cpu()
        state = gradient * _inverse(diagonal, self._floor + DEGENERATE * values)[:, None]
        for part, matrix in zip(self._dense, matrices, strict=True):
            if float(self._floor[part].amax()) > 0:
                solved = symmetric_pseudo_inverse(matrix) @ gradient[0, part]
            else:
                solved = torch.linalg.solve(matrix, gradient[0, part])
            state[0, part] = solved
        return state

    def _total_gradient(self, rows, output_gradients):
        """Return the sum of the gradients of rows, (1, P, 1)."""
        total = torch.zeros(1, self.map_rows, 1, dtype=torch.float64)
        for chunk, part in zip(
            rows.split(self.columns_per_block()),
            output_gradients.split(self.columns_per_block(), 1),
            strict=True,
        ):
            total += self.row_gradients(chunk, part).sum(-1, keepdim=True)
        return total

    # Removals ----------------------------------------------------------------------------------

    def leave_one_out(self, *, first_order=False, measured=True):
        if not measured:
            return self.first_order_removals()
        parts = [
            self._measured(rows, first_order)
            for rows in torch.arange(self.n_rows).split(self._rows_per_block())
        ]
        own, leverage, degenerate, spread = map(torch.cat, zip(*parts, strict=True))
        return LeaveOneOut(self.expansion.gradient, own[None], leverage, degenerate, spread)

    def _measured(self, rows, first_order):
        """Return own output changes (b, C), leverages, singular rows and spreads, (b,) each."""
        values = self.row_design(rows)
        if first_order:
            states = self.removal_states(rows, None, first_order=True)
            degenerate = torch.zeros(len(rows), dtype=torch.bool)
        else:
            states, degenerate = self._states(rows, values)
        own = torch.einsum("bcp,pb->bc", values, states[0].to(values)).double().cpu()
        quadratics = self._quadratics(values)
        gradient = self.expansion.gradient[:, rows]
        leverage = _trace(_sandwich(self.expansion.root[:, rows], quadratics))[0]
        spread = (_apply(quadratics, gradient) * gradient).sum((0, 2))
        return own, leverage, degenerate, spread

    def removal_states(self, rows, leave_one_out, *, first_order=False):
        if not first_order:
            chunks = rows.split(self._rows_per_block())
            return torch.cat([self._states(rows, self.row_design(rows))[0] for rows in chunks], 2)
        gradients = self.row_gradients(rows, self.expansion.gradient[:, rows])
        if self.shares is not None:
            gradients = gradients + self._pull(self.shares[rows])
        return self.solve(gradients)

    def scores(self, target, leave_one_out, *, first_order=False):
        if first_order:
            changes = [part[0] for _, part in self.first_order_changes(target.mT)]
            return torch.cat(changes)
        scores = torch.empty(self.n_rows, dtype=torch.float64)
        for rows in torch.arange(self.n_rows).split(self.columns_per_block()):
            states = self.removal_states(rows, leave_one_out)
            scores[rows] = (target * states).sum((0, 1))
        return scores

    def remove(self, rows, *, first_order=False):
        share = self.group_share(rows)
        gradient = self._total_gradient(rows, self.expansion.gradient[:, rows])
        if share:
            gradient = gradient + self._pull(torch.full((1,), share, dtype=torch.float64))
        if first_order:
            return self.solve(gradient)
        root = self.expansion.root[0, rows]
        return self._changed(rows, gradient, -root @ root.mT, share)

    def edit(self, rows, gradient_change, curvature_change):
        gradient = self._total_gradient(rows, gradient_change)
        if curvature_change is None:
            return -self.solve(gradient)
        return -self._changed(rows, gradient, curvature_change[0], 0.0)


def _inverse(values, floor):
    """Return 1 / values, and 0 for values that are not above a floor."""
    kept = values > floor
    return torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)
