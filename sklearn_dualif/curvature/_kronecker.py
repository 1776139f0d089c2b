"""A network's Gauss-Newton matrix, layer by layer taken as diagonal in Kronecker eigenbases."""

import torch

from ..linalg import column_gram
from ._base import DEGENERATE, LeaveOneOut, _apply, complement_inverse
from ._row_jacobians import RowJacobians

_BLOCK_DOUBLES = 2**23
_PUSHED_DOUBLES = 2**26
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
        design, f = self.features, self.n_free
        total = torch.zeros(self.map_rows, dtype=torch.float64)
        for rows in torch.arange(self.n_rows).split(self._rows_per_block()):
            mixed = design.heads(rows).mixed(self.expansion.root[0, rows])
            total += design.squares(mixed).double().sum(0).cpu()
        self.eigenvalues = total
        self._penalized = torch.ones(self.map_rows, dtype=torch.float64)
        self._penalized[:f] = 0.0
        # What is below counts as zero; with a ridge, penalised coordinates cannot vanish.
        tolerance = _NEGLIGIBLE[design.basis.network.dtype]
        self._floor = torch.zeros(self.map_rows, dtype=torch.float64)
        if float(self.ridge[0]) == 0:
            self._floor[f:] = tolerance * total[f:].amax()
        if f:
            self._floor[:f] = tolerance * total[:f].amax()
        self._ridges = self._relative_ridges()

    def _relative_ridges(self):
        """Return the ridge of each coordinate in units of `ridge`, (P,)."""
        return self._penalized

    def design(self, features):
        return self.features.design(features)

    def row_design(self, rows):
        return self.features.jacobian(self.features.heads(rows))

    def row_gradients(self, rows, output_gradients):
        return self._gradients(self.features.heads(rows), output_gradients).T[None]

    def _gradients(self, heads, output_gradients):
        """Return J_i^T u_i of each row, (b, P); u (1, b, C)."""
        combined = heads.mixed(output_gradients[0].unsqueeze(-1))
        return self.features.jacobian(combined)[:, 0].double().cpu()

    def sum_gradients(self, output_gradients):
        total = torch.zeros(1, self.map_rows, output_gradients.shape[3], dtype=torch.float64)
        for rows in torch.arange(self.n_rows).split(self._rows_per_block()):
            heads, weights = self.features.heads(rows), output_gradients[0, rows]
            total[0, self.n_free :] += heads.pull(weights).double().cpu()
            free = heads.free_jacobian.flatten(0, 1).double().cpu()
            total[0, : self.n_free] += free.T @ weights.flatten(0, 1)
        return total

    def dual_vector(self, gradient):
        return gradient

    # Solutions ---------------------------------------------------------------------------------

    def _values(self, shift=0.0):
        """Return the diagonal of ``H - shift R``, (P,), or (b, P) for shifts (b, 1)."""
        return self.eigenvalues + (self.ridge - shift) * self._ridges

    def solve(self, gradients, shift=None):
        shift = 0.0 if shift is None else shift.reshape(-1, 1)
        inverse = _inverse(self._values(shift), self._floor)
        return gradients * inverse.reshape(-1, self.map_rows).T

    def row_quadratics(self, rows, shift=None):
        values, shift = self.row_design(rows), 0.0 if shift is None else shift.reshape(-1, 1)
        inverse = _inverse(self._values(shift), self._floor).to(values)
        return ((values * inverse.unsqueeze(-2)) @ values.mT).double().cpu()[None]

    def _left_gradients(self, rows, heads):
        """Return the gradients (b, P) that the removal of each row leaves."""
        gradient = self._gradients(heads, self.expansion.gradient[:, rows])
        if self.shares is not None:
            pull = self._penalized * self.parameters[0, :, 0]
            gradient = gradient + self.shares[rows].unsqueeze(-1) * pull
        return gradient

    def _states(self, rows, heads):
        """Return Newton's states (1, P, b) of single removals, and which rows fix a direction."""
        gradient = self._left_gradients(rows, heads)
        shift = 0.0 if self.shares is None else self.shares[rows].unsqueeze(-1)
        mixed = heads.mixed(self.expansion.root[0, rows])
        before = self._values(shift).expand_as(gradient)
        kept = before - self.features.squares(mixed).double().cpu()
        states = gradient * _inverse(kept, self._floor + DEGENERATE * before)
        degenerate = torch.zeros(len(rows), dtype=torch.bool)
        values = self.features.dense_values(mixed)
        for part, own in zip(self.features.dense, values, strict=True):
            own = own.double().cpu()
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
            solved[row] = _pseudo_solve(matrix, gradient[row], self._floor[part])
        return solved, null

    def _changed(self, rows, gradient, removed, added=None, share=0.0):
        """Return the solution after rows lost curvature and won some, both as roots (e, C, q)."""
        before = self._values(share)
        diagonal = before.clone()
        matrices = [torch.diag(before[part]) for part in self.features.dense]
        for chunk in torch.arange(len(rows)).split(self._rows_per_block()):
            heads = self.features.heads(rows[chunk])
            for roots, sign in ((removed, -1.0), (added, 1.0)):
                if roots is None:
                    continue
                mixed = heads.mixed(roots[chunk])
                diagonal += sign * self.features.squares(mixed).double().sum(0).cpu()
                parts = self.features.dense_values(mixed)
                for matrix, own in zip(matrices, parts, strict=True):
                    matrix += sign * column_gram(own.flatten(0, 1))
        state = gradient * _inverse(diagonal, self._floor + DEGENERATE * before)[:, None]
        for part, matrix in zip(self.features.dense, matrices, strict=True):
            if float(self._floor[part].amax()) > 0:
                solved = _pseudo_solve(matrix, gradient[0, part], self._floor[part])
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

    def _rows_per_block(self):
        return max(1, min(self.n_rows, _BLOCK_DOUBLES // (self.map_rows * self.layout.n_outputs)))

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
        heads = self.features.heads(rows)
        inverse = _inverse(self._values(), self._floor)
        if first_order:
            states = (self._left_gradients(rows, heads) * inverse).T[None]
            degenerate = torch.zeros(len(rows), dtype=torch.bool)
        else:
            states, degenerate = self._states(rows, heads)
        own = self._own_outputs(heads, states)
        mixed = heads.mixed(self.expansion.root[0, rows])
        leverage = self.features.squares(mixed).double().cpu() @ inverse
        spread = self._gradients(heads, self.expansion.gradient[:, rows]) ** 2 @ inverse
        return own, leverage, degenerate, spread

    def _own_outputs(self, heads, states):
        """Return J_i state_i (b, C) of each row."""
        states = states[0].to(heads.network.device)
        own = heads.push_own(states[self.n_free :])
        free = states[: self.n_free].T.unsqueeze(2).to(own)
        return (own + (heads.free_jacobian @ free)[..., 0]).double().cpu()

    def own_outputs(self, rows, states):
        return self._own_outputs(self.features.heads(rows), states)[None]

    def removal_states(self, rows, leave_one_out, *, first_order=False):
        if not first_order:
            chunks = rows.split(self._rows_per_block())
            return torch.cat(
                [self._states(part, self.features.heads(part))[0] for part in chunks], 2
            )
        gradients = self._left_gradients(rows, self.features.heads(rows))
        return (gradients * _inverse(self._values(), self._floor)).T[None]

    def _gradient_products(self, states):
        f = self.n_free
        for rows in torch.arange(self.n_rows).split(self._rows_per_push(states.shape[2])):
            slopes = self.expansion.gradient[0, rows].unsqueeze(-1)
            heads = self.features.heads(rows).mixed(slopes)
            products = heads.push(states[0, f:].to(heads.network.device))
            products = products + heads.free_jacobian @ states[0, :f].to(products)
            yield rows, products[:, 0].T.double().cpu()

    def _rows_per_push(self, m):
        """Return how many rows m directions are pushed through at once: each batch copies them."""
        per_row = self.features.basis.network.doubles_per_row * m // self.layout.n_outputs
        return max(self.columns_per_block(), min(self.n_rows, _PUSHED_DOUBLES // max(1, per_row)))

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
        return self._changed(rows, gradient, self.expansion.root[0, rows], share=share)

    def edit(self, rows, gradient_change, curvature_change):
        gradient = self._total_gradient(rows, gradient_change)
        if curvature_change is None:
            return -self.solve(gradient)
        values, vectors = torch.linalg.eigh(curvature_change[0])
        removed = vectors * (-values).clamp(min=0.0).sqrt().unsqueeze(1)
        added = vectors * values.clamp(min=0.0).sqrt().unsqueeze(1)
        return -self._changed(rows, gradient, removed, added)


def _pseudo_solve(matrix, columns, floor):
    """Return ``matrix^+ columns`` of a symmetric matrix whose small eigenvalues are rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * _inverse(values, floor)) @ (vectors.T @ columns)


def _inverse(values, floor):
    """Return 1 / values, and 0 for values that are not above a floor."""
    return (1.0 / values).masked_fill_(values <= floor, 0.0)
