"""States of networks: one block of all outputs, and a Jacobian of its own for each row."""

import torch

from ._base import Curvature, LeaveOneOut

_BLOCK_DOUBLES = 2**23
_ROW_DOUBLES = 2**25


class RowJacobians(Curvature):
    """`Curvature` of rows with Jacobians (n, C, f + D): free parameters, then coordinates.

    Parameters
    ----------
    features : TangentDesign or KroneckerDesign
        Gives the Jacobians of training and query rows.
    layout, free, expansion, ridge, shiftable
        See `Curvature`; ``free`` only says how many free parameters there are.
    """

    @property
    def name(self):
        """How the coordinates were chosen."""
        return self.features.name

    @property
    def width(self):
        return self.features.shape[1]

    @property
    def map_rows(self):
        """Number of coordinates, free parameters included."""
        return self.n_free + self.width

    @property
    def factor_rows(self):
        return self.map_rows

    @property
    def n_rows(self):
        return self.features.shape[0]

    def weights_of(self, state):
        return state[:, self.n_free :].unsqueeze(2)

    def design_of(self, heads):
        """Return the Jacobians (t, h, P) of heads; see `outputs`."""
        return self.features.design_of(heads)

    def first_order_removals(self):
        """Return a `LeaveOneOut` with no more than first-order states take."""
        degenerate = torch.zeros(self.n_rows, dtype=torch.bool)
        return LeaveOneOut(self.expansion.gradient, None, None, degenerate, None)

    def first_order_changes(self, design):
        """Yield (rows, changes (t, b)) of one head of each query under first-order removals.

        Solves for the queries, where `removal_states` does for the rows.
        """
        solved = self.solve(design[:, 0].double().cpu().T[None])
        pulled = 0.0
        if self.shares is not None:
            pulled = solved[0].T @ self._pull(self.shares.new_ones(1))[0]
        for rows, changes in self._gradient_products(solved):
            if self.shares is not None:
                changes = changes + pulled * self.shares[rows]
            yield rows, changes

    def _gradient_products(self, states):
        """Yield (rows, products (t, b)) of the rows' gradients with states (1, P, t)."""
        for rows in torch.arange(self.n_rows).split(self.columns_per_block()):
            gradients = self.row_gradients(rows, self.expansion.gradient[:, rows])
            yield rows, states[0].T @ gradients[0]

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
