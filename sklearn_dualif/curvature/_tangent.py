"""The inverse Gauss-Newton matrix of a network, in coordinates in which its Jacobian is explicit.

Every row has a Jacobian of its own: free parameters first, then the coordinates of the penalised
ones (see `kernels._basis`). With all parameters as coordinates this is the primal form; with the
span of the rows' gradients it is the dual one, whose size is that of the kernel matrix whatever the
number of parameters.
"""

import torch
from sklearn.utils import gen_batches

from ..linalg import append_rows, whiten_ridge, whiten_triangle
from ._primal import PrimalCurvature

_BLOCK_DOUBLES = 2**23
_ROW_DOUBLES = 2**25


class TangentCurvature(PrimalCurvature):
    """``H^+ = T T^T`` of rows with explicit Jacobians (n, C, P).

    Parameters
    ----------
    features : TangentDesign
        Gives the Jacobians of training and query rows.
    layout, free, expansion, ridge, shiftable
        See `Curvature`; ``free`` only says how many free parameters there are.
    """

    @property
    def name(self):
        """How the coordinates were chosen."""
        return self.features.name

    def _factorize(self):
        ridge = float(self.ridge[0])
        self._hessian = None
        if ridge > 0:
            hessian = torch.zeros(self.map_rows, self.map_rows, dtype=torch.float64)
            for rows in gen_batches(self.n_rows, self._rows_per_block()):
                block = self._root_rows(0, rows, None)
                hessian += (block.T @ block).double().cpu()
            whitening = whiten_ridge(hessian, ridge, self.n_free, spectral=False)
            if whitening is not None:
                self._hessian = hessian if self.shiftable else None
                self._take(whitening)
                return
        upper = None
        for rows in gen_batches(self.n_rows, self.map_rows):
            upper = append_rows(upper, self._root_rows(0, rows, None).double().cpu())
        self._take(whiten_triangle(upper, ridge, self.n_free, self.n_rows))

    def _take(self, whitening):
        self.map = whitening.map[None]
        spectrum = whitening.inverse_spectrum
        self.inverse_spectrum = None if spectrum is None else spectrum[None]

    def _diagonalize(self):
        """Bring the map into the form in which the ridge can be shifted; it costs more."""
        if self._hessian is not None:
            hessian, self._hessian = self._hessian, None
            self._take(whiten_ridge(hessian, float(self.ridge[0]), self.n_free, spectral=True))

    def _root_rows(self, block, rows, shift):
        return self._mixed(rows, self.row_design(rows)).flatten(0, 1)

    def _mixed(self, rows, values):
        """Return ``S^T`` times values (b, C, m) of rows."""
        return self.expansion.root[0, rows].mT.to(values) @ values

    @property
    def width(self):
        return self.features.shape[1]

    @property
    def map_rows(self):
        return self.n_free + self.width

    @property
    def n_rows(self):
        return self.features.shape[0]

    def weights_of(self, state):
        return state[:, self.n_free :].unsqueeze(2)

    def design(self, features):
        return features.values if features is self.features else self.features.design(features)

    def design_of(self, heads):
        """Return the Jacobians (t, h, P) of heads; see `outputs`."""
        return self.features.design_of(heads)

    def row_design(self, rows):
        return self.features.values[rows]

    def row_gradients(self, rows, output_gradients):
        values = self.row_design(rows)
        pulled = torch.einsum("bcp,bc->pb", values, output_gradients[0].to(values))
        return pulled.double().cpu()[None]

    def sum_gradients(self, output_gradients):
        values = self.features.values.flatten(0, 1)
        return (values.T @ output_gradients[0].flatten(0, 1).to(values)).double().cpu()[None]

    def solve(self, gradients, shift=None):
        if shift is not None:
            self._diagonalize()
        return super().solve(gradients, shift)

    def whitened_rows(self, rows):
        values = self.row_design(rows)
        return (values @ self.map[0].to(values))[None]

    def row_quadratics(self, rows, shift=None):
        if shift is not None:
            self._diagonalize()
        return super().row_quadratics(rows, shift).double().cpu()

    def remove(self, rows, *, first_order=False):
        if self.group_share(rows) and not first_order:
            self._diagonalize()
        return super().remove(rows, first_order=first_order)

    def _kept_hessian(self, rows, share):
        kept = torch.eye(self.map.shape[2], dtype=torch.float64)
        for chunk in rows.split(self._rows_per_block()):
            group = self._mixed(chunk, self.whitened_rows(chunk)[0]).flatten(0, 1)
            kept -= (group.T @ group).double().cpu()
        if share:
            kept -= share * torch.diag(self.inverse_spectrum[0])
        return kept[None]

    def own_outputs(self, rows, states):
        values = self.row_design(rows)
        return torch.einsum("bcp,pb->bc", values, states[0].to(values)).double().cpu()[None]

    def outputs(self, design, state):
        flat = design.flatten(0, 1)
        return (flat @ state[0].to(flat)).double().cpu().view(1, *design.shape[:2], -1)

    def output_changes(self, design, state):
        return self.outputs(design, state)[0].transpose(1, 2)

    def _rows_per_block(self):
        return max(1, min(self.n_rows, _ROW_DOUBLES // (self.map_rows * self.layout.n_outputs)))

    def columns_per_block(self):
        return max(1, min(self.n_rows, _BLOCK_DOUBLES // self.map_rows))

    residual_width = 0

    def residual(self, heads, design):
        """Return what the coordinates leave of the kernel of heads with the training rows."""
        return None


class NystromCurvature(TangentCurvature):
    r"""`TangentCurvature` in coordinates that leave a small part of the kernel out.

    With ``E = K - Phi Phi^T`` what they leave, states of groups and edits have a coefficient for
    each output of the training rows besides, which ``E`` is multiplied by; `residual_states` gives
    them for single removals. Single rows' hat blocks get the part of their own exact block: with
    ``Q`` the quadratic form in the coordinates, to first order in ``E``,

    .. math:: J_i H^{-1} J_i^\top = Q + (I - Q \Lambda_i) E_{ii} (I - \Lambda_i Q) / \rho .
    """

    def row_quadratics(self, rows, shift=None):
        inside = super().row_quadratics(rows, shift)[0]
        root = self.expansion.root[0, rows]
        left = torch.eye(inside.shape[1], dtype=torch.float64) - inside @ root @ root.mT
        ridge = self.ridge if shift is None else (self.ridge - shift)[:, None, None]
        return (inside + left @ self.features.left_out[rows] @ left.mT / ridge)[None]

    def design(self, features):
        if features is self.features:
            return super().design(features)
        heads = features.heads()
        design = self.design_of(heads)
        rest = self.residual(heads, design)
        return torch.cat([design, rest.to(design.dtype)], 2)

    @property
    def residual_width(self):
        """Columns of `residual`: outputs of the training rows."""
        return self.n_rows * self.layout.n_outputs

    def residual(self, heads, design):
        return self.features.residual(heads, design)

    def residual_states(self, rows, leave_one_out, states, *, first_order=False):
        """Return what `residual` is multiplied by for single removals, (n C, m)."""
        result = -self._bent(states)
        own = leave_one_out.coefficients[0, rows].to(result)
        outputs = torch.arange(result.shape[1])
        result[rows[:, None], outputs, torch.arange(len(rows))[:, None]] += own
        ridge = self.ridge[0].expand(len(rows))
        if self.shares is not None and not first_order:
            ridge = ridge - self.shares[rows]
        return (result / ridge.to(result)).flatten(0, 1)

    def _bent(self, states):
        """Return the curvatures times the outputs of all rows under states, (n, C, m)."""
        values = self.features.values
        moved = (values.flatten(0, 1) @ states[0].to(values)).view(*values.shape[:2], -1)
        root = self.expansion.root[0].to(values)
        return root @ (root.mT @ moved)

    def remove(self, rows, *, first_order=False):
        state = super().remove(rows, first_order=first_order)
        gradient = -self._bent(state).double().cpu()
        own = self.expansion.gradient[0, rows, :, None]
        gradient[rows] = own + gradient[rows] if first_order else own
        ridge = self.ridge[0] - (0.0 if first_order else self.group_share(rows))
        return torch.cat([state, (gradient / ridge).flatten(0, 1)[None]], 1)

    def edit(self, rows, gradient_change, curvature_change):
        state = super().edit(rows, gradient_change, curvature_change)
        gradient = -self._bent(state).double().cpu()
        gradient[rows] -= gradient_change[0, :, :, None]
        if curvature_change is not None:
            gradient[rows] -= curvature_change[0] @ self.row_design(rows).double().cpu() @ state[0]
        return torch.cat([state, (gradient / self.ridge[0]).flatten(0, 1)[None]], 1)
