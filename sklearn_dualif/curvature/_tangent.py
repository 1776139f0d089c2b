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
        whitening = None
        if ridge > 0:
            hessian = torch.zeros(self.map_rows, self.map_rows, dtype=torch.float64)
            for rows in gen_batches(self.n_rows, self._rows_per_block()):
                block = self._root_rows(0, rows, None)
                hessian.addmm_(block.T, block)
            whitening = whiten_ridge(hessian, ridge, self.n_free, spectral=self.shiftable)
        if whitening is None:
            upper = None
            for rows in gen_batches(self.n_rows, self.map_rows):
                upper = append_rows(upper, self._root_rows(0, rows, None))
            whitening = whiten_triangle(upper, ridge, self.n_free, self.n_rows)
        self.map = whitening.map[None]
        self.inverse_spectrum = whitening.inverse_spectrum[None] if self.shiftable else None

    def _root_rows(self, block, rows, shift):
        return (self.expansion.root[0, rows].mT @ self.row_design(rows)).flatten(0, 1)

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

    def row_design(self, rows):
        return self.features.values[rows]

    def row_gradients(self, rows, output_gradients):
        return torch.einsum("bcp,bc->pb", self.row_design(rows), output_gradients[0])[None]

    def sum_gradients(self, output_gradients):
        flat = output_gradients[0].flatten(0, 1)
        return (self.features.values.flatten(0, 1).T @ flat)[None]

    def whitened_rows(self, rows):
        return (self.row_design(rows) @ self.map[0])[None]

    def own_outputs(self, rows, states):
        return torch.einsum("bcp,pb->bc", self.row_design(rows), states[0])[None]

    def outputs(self, design, state):
        return (design.flatten(0, 1) @ state[0]).view(1, *design.shape[:2], -1)

    def output_changes(self, design, state):
        return self.outputs(design, state)[0].transpose(1, 2)

    def _rows_per_block(self):
        return max(1, min(self.n_rows, _BLOCK_DOUBLES // (self.map_rows * self.layout.n_outputs)))

    def columns_per_block(self):
        return max(1, min(self.n_rows, _BLOCK_DOUBLES // self.map_rows))
