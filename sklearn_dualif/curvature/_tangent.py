"""The inverse Gauss-Newton matrix of a network, in coordinates in which its Jacobian is explicit.

Every row has a Jacobian of its own: free parameters first, then the coordinates of the penalised
ones (see `kernels._basis`). With all parameters as coordinates this is the primal form; with the
span of the rows' gradients it is the dual one, whose size is that of the kernel matrix whatever the
number of parameters.
"""

import copy
from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ..linalg import append_rows, column_gram, whiten_ridge, whiten_triangle
from ._base import span
from ._primal import PrimalCurvature
from ._row_jacobians import RowJacobians


class TangentCurvature(RowJacobians, PrimalCurvature):
    """``H^+ = T T^T`` of rows with explicit Jacobians (n, C, P).

    Parameters
    ----------
    features : TangentDesign
        Gives the Jacobians of training and query rows.
    layout, free, expansion, ridge, shiftable
        See `Curvature`; ``free`` only says how many free parameters there are.
    """

    def _factorize(self):
        ridge = float(self.ridge[0])
        self._lowered = {}
        self._hessian = self._data_hessian(torch.arange(self.n_rows)) if ridge > 0 else None
        whitening = None
        if ridge > 0:
            whitening = self._whitened(self._hessian, ridge)
        if whitening is None:
            self._hessian, upper = None, None
            for rows in gen_batches(self.n_rows, self.map_rows):
                upper = append_rows(upper, self._root_rows(0, rows, None).double().cpu())
            whitening = whiten_triangle(upper, ridge, self.n_free, self.n_rows)
        self._take(whitening)

    def _data_hessian(self, rows):
        """Return the part of the Hessian that comes from some rows."""
        weighted = self.expansion.root[0, rows].flatten(1).any(1)
        hessian = torch.zeros(self.map_rows, self.map_rows, dtype=torch.float64)
        free = torch.zeros(self.n_free, self.map_rows, dtype=torch.float64)
        for chunk in rows[weighted].split(self._rows_per_block()):
            block = self._root_rows(0, chunk, None)
            hessian += column_gram(block)
            if self.n_free and block.dtype != torch.float64:
                free += (block[:, : self.n_free].double().T @ block.double()).cpu()
        if bool(free.any()):
            # Free parameters that no row determines are told by zeros, which rounding would hide.
            hessian[: self.n_free], hessian[:, : self.n_free] = free, free.T
        return hessian

    def _whitened(self, hessian, ridge, *, spectral=False):
        """Whiten on the device of the Jacobians; None where that fails."""
        hessian = hessian.to(self.features.values.device)
        whitening = whiten_ridge(hessian, ridge, self.n_free, spectral=spectral)
        return None if whitening is None else whitening.on_processor()

    def _take(self, whitening):
        self._factors, self._centered = [whitening], False
        self.map = whitening.map[None]
        spectrum = whitening.inverse_spectrum
        self.inverse_spectrum = None if spectrum is None else spectrum[None]

    def _diagonalize(self):
        """Bring the map into the form in which the ridge can be shifted; it costs more."""
        if self._hessian is not None:
            hessian, self._hessian, self._lowered = self._hessian, None, {}
            self._take(self._whitened(hessian, float(self.ridge[0]), spectral=True))

    def _at(self, shift):
        """Return this curvature with the ridge lowered; None where that takes a spectral map."""
        value = float(shift[0])
        if self._hessian is None or not bool((shift == value).all()):
            self._diagonalize()
            return None
        if value not in self._lowered:
            ridge = float(self.ridge[0]) - value
            whitening = self._whitened(self._hessian, ridge)
            if whitening is None:
                self._diagonalize()
                return None
            lowered = copy.copy(self)
            lowered.ridge = self.ridge - value
            lowered._take(whitening)
            self._lowered = {value: lowered}
        return self._lowered[value]

    def _root_rows(self, block, rows, shift):
        return self._mixed(rows, self.features.values[rows]).flatten(0, 1)

    def _mixed(self, rows, values):
        """Return ``S^T`` times values (b, C, m) of rows."""
        return self.expansion.root[0, rows].mT.to(values) @ values

    def design(self, features):
        return features.values if features is self.features else self.features.design(features)

    def row_design(self, rows):
        return self.features.values[rows]

    def row_gradients(self, rows, output_gradients):
        values = self.row_design(rows)
        pulled = torch.einsum("bcp,bc->pb", values, output_gradients[0].to(values))
        return pulled.double().cpu()[None]

    def sum_gradients(self, output_gradients):
        values = self.features.values.flatten(0, 1)
        # Few columns against many rows: as a wide product, several times as fast as a tall one.
        columns = output_gradients[0].flatten(0, 1).to(values).T.contiguous()
        return (columns @ values).T.double().cpu()[None]

    def solve(self, gradients, shift=None):
        lowered = None if shift is None else self._at(shift)
        if lowered is not None:
            return lowered.solve(gradients)
        return super().solve(gradients, shift)

    def whitened_rows(self, rows):
        values = self.row_design(rows)
        return (values @ self.map[0].to(values))[None]

    def row_quadratics(self, rows, shift=None):
        lowered = None if shift is None else self._at(shift)
        if lowered is not None:
            return lowered.row_quadratics(rows)
        return self._quadratics(rows, shift)

    def _quadratics(self, rows, shift):
        """Return `row_quadratics` from this map itself."""
        return super().row_quadratics(rows, shift).double().cpu()

    @property
    def may_vanish(self):
        # Biases that only some rows depend on, say.
        return self.n_free > 0

    def _drop(self, block, state, directions):
        """Leave free parameters as they were in the directions that nothing determines."""
        basis = span(directions[: self.n_free])
        state = state.clone()
        state[: self.n_free] -= basis @ (basis.T @ state[: self.n_free])
        return state

    def _to_least_norm(self, states, rows, flagged):
        states = states.clone()
        for column in torch.nonzero(flagged)[:, 0].tolist():
            states[..., column] = PrimalCurvature.remove(self, rows[column : column + 1])[..., 0]
        return states

    def _solve_kept(self, gradient, rows, share):
        if self._hessian is not None:
            kept = torch.ones(self.n_rows, dtype=torch.bool)
            kept[rows] = False
            if 2 * len(rows) > self.n_rows:
                hessian = self._data_hessian(torch.nonzero(kept)[:, 0])
            else:
                hessian = self._hessian - self._data_hessian(rows)
            ridge = float(self.ridge[0]) - share
            whitening = self._whitened(hessian, ridge)
            if whitening is not None:
                return whitening.map @ (whitening.map.mT @ gradient)
        if share:
            self._diagonalize()
        return super()._solve_kept(gradient, rows, share)

    def _kept_hessian(self, rows, share):
        kept = torch.eye(self.map.shape[2], dtype=torch.float64)
        for chunk in rows.split(self._rows_per_block()):
            group = self._root_rows(0, chunk, None)
            group = group @ self.map[0].to(group)
            kept -= column_gram(group)
        if share:
            kept -= share * torch.diag(self.inverse_spectrum[0])
        return kept[None]


class NystromCurvature(TangentCurvature):
    r"""`TangentCurvature` in coordinates that leave a small part of the kernel out.

    With ``Phi_i`` the Jacobian of row i in the coordinates and ``E_i`` what they leave of its
    kernel with itself, the kernel of the training rows is taken as ``Phi Phi^T`` plus the blocks
    ``E_i``: each row has coordinates of its own besides, which are eliminated. A row then looks to
    the others as if it had

    .. math::

        \Lambda_i' = D_i \Lambda_i, \qquad J_i' = D_i^\top \Phi_i, \qquad
        D_i = (I + \Lambda_i E_i / \rho)^{-1},

    and to itself ``J_i H^{-1} J_i^T = J_i' H'^{-1} J_i'^T + E_i D_i / rho``. For other rows, what
    is left of the kernel is multiplied by a *source*: states of groups and edits have one for each
    head of the training rows besides; `residual_changes` adds those of single removals.
    """

    def _factorize(self):
        root, left_out = self.expansion.root[0], self.features.left_out
        inside = root.mT @ left_out @ root / self.ridge
        lower = torch.linalg.cholesky(torch.eye(root.shape[2], dtype=torch.float64) + inside)
        half = torch.linalg.solve_triangular(lower, root.mT, upper=False)
        self._inner_root = half.mT
        self._damping = -self._inner_root @ half @ left_out / self.ridge
        self._damping.diagonal(dim1=1, dim2=2).add_(1.0)
        # From output gradients to sources, and what the heads' own part takes off them.
        self._weights = torch.cholesky_inverse(lower)
        super()._factorize()

    @cached_property
    def _heads(self):
        """Pseudo-inverses (n, q, C) of the roots."""
        return torch.linalg.pinv(self.expansion.root[0])

    def _mixed(self, rows, values):
        return self._inner_root[rows].mT.to(values) @ values

    def row_design(self, rows):
        values = self.features.values[rows]
        return self._damping[rows].mT.to(values) @ values

    def sum_gradients(self, output_gradients):
        return super().sum_gradients((self._damping @ output_gradients[0])[None])

    def _quadratics(self, rows, shift):
        ridge = self.ridge if shift is None else (self.ridge - shift)[:, None, None]
        return super()._quadratics(rows, shift) + self._own_part(rows) / ridge

    def _own_part(self, rows):
        """Return what rows' own coordinates add to ``ridge J_i H^{-1} J_i^T``."""
        return self.features.left_out[rows] @ self._damping[rows]

    def training_scores(self, slopes, leave_one_out, *, first_order=False):
        scores = super().training_scores(slopes, leave_one_out, first_order=first_order)
        moved = self._own_part(slice(None)) @ leave_one_out.coefficients[0].unsqueeze(-1)
        return scores + (slopes[0] * moved).sum((1, 2)) / self.ridge[0]

    def design(self, features):
        return self.row_design(slice(None))

    def residual(self, heads, design):
        """Return what the coordinates leave of the kernel of heads with the training rows."""
        kernel = self.features.residual(heads, design).unflatten(2, (self.n_rows, -1))
        values = self.features.values
        weighted = (self._weights @ self.expansion.root[0].mT).to(values) @ values
        folded = (kernel.flatten(2).flatten(0, 1) @ weighted.flatten(0, 1)).view(
            *design.shape[:2], -1
        )
        return kernel, folded

    def residual_changes(self, rest, rows, leave_one_out, states):
        """Return what `residual` adds to changes under Newton's single removals, (t, h, m)."""
        kernel, folded = rest
        change = self._own_residual(kernel, rows, leave_one_out.coefficients)
        moved = self.outputs(folded, states)[0]
        ridge = self.ridge[0].expand(len(rows))
        if self.shares is not None:
            ridge = ridge - self.shares[rows]
        return (change - moved) / ridge

    def first_order_changes(self, design, rest):
        """Yield (rows, changes (t, b)) as `RowJacobians` does, with what `residual` adds."""
        kernel, folded = rest
        coefficients = self.expansion.gradient
        for rows, changes in super().first_order_changes(design - folded / self.ridge):
            own = self._own_residual(kernel, rows, coefficients)[:, 0]
            yield rows, changes + own / self.ridge

    def _own_residual(self, kernel, rows, coefficients):
        """Return the kernel (t, h, n, q) times the sources of rows themselves, (t, h, b)."""
        own = self.weighted_heads(self._source(rows, coefficients[0, rows]), rows)[..., 0]
        return torch.einsum("thmq,mq->thm", kernel[:, :, rows], own.to(kernel)).double().cpu()

    def weighted_heads(self, values, rows=slice(None)):
        """Return what rows' own coordinates leave of values (n, q, m) of their heads."""
        return self._weights[rows] @ values

    def _source(self, rows, output_gradients):
        """Return ``v`` (b, q, 1) with ``S v`` the output gradients (b, C) of rows."""
        return self._heads[rows] @ output_gradients.unsqueeze(-1)

    def changes(self, state):
        """Return the outputs (n, C) of the training rows under a state."""
        return self.outputs(self.features.values, state)[0, ..., 0]

    def seen(self, state):
        """Return the root-weighted outputs of all rows under a state, (n, q, 1)."""
        return self.expansion.root[0].mT @ self.outputs(self.features.values, state)[0]

    def _removed_gradient(self, rows, first_order):
        if first_order:
            return super()._removed_gradient(rows, first_order)
        # Without their curvature, rows' own coordinates take nothing off their gradients.
        gradient = self.expansion.gradient[0, rows].unsqueeze(-1)
        values = self.features.values[rows]
        return (values.mT @ gradient.to(values)).sum(0).double().cpu()[None]

    def remove(self, rows, *, first_order=False):
        state = super().remove(rows, first_order=first_order)
        source, own = -self.seen(state), self.expansion.coefficient[0, rows].unsqueeze(-1)
        if first_order:
            source[rows] += own
        source = self.weighted_heads(source)
        if not first_order:
            source[rows] = own
        ridge = self.ridge[0] - (0.0 if first_order else self.group_share(rows))
        return torch.cat([state, (source / ridge).reshape(1, -1, 1)], 1)

    def edit(self, rows, gradient_change, curvature_change):
        if curvature_change is not None:
            own = self._own_part(rows) / self.ridge
            kept = torch.eye(own.shape[1], dtype=torch.float64) + curvature_change @ own
            gradient_change = torch.linalg.solve(kept, gradient_change.unsqueeze(-1))[..., 0]
            curvature_change = torch.linalg.solve(kept, curvature_change)
        state = super().edit(rows, gradient_change, curvature_change)
        change = gradient_change[0]
        if curvature_change is not None:
            moved = self.outputs(self.row_design(rows), state)[0]
            change = change + (curvature_change[0] @ moved)[..., 0]
        source = -self.seen(state)
        source[rows] -= self._source(rows, change)
        source = self.weighted_heads(source) / self.ridge[0]
        return torch.cat([state, source.reshape(1, -1, 1)], 1)
