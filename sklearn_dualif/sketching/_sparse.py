"""Sparse projections: a few non-zero entries in each column."""

from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
from scipy import sparse
from sklearn.utils._param_validation import Interval

from ._base import PanelProjection, Sketch


class SparsePanel:
    """Columns of a projection as a sparse matrix (m, w).

    Parameters
    ----------
    matrix : (m, w) scipy sparse array
    """

    def __init__(self, matrix):
        self.matrix = matrix
        self._transposed = matrix.T.tocsr()

    def add(self, result, values):
        """Add the projections of values (n, h, w) to ``result`` (n, h, m)."""
        columns = values.reshape(-1, values.shape[2]).T.contiguous()
        flat = result.permute(2, 0, 1).view(result.shape[2], -1)
        flat += _product(self.matrix, columns)

    def add_transposed(self, result, values):
        """Add ``P^T values`` to ``result`` (w, k)."""
        result += _product(self._transposed, values)


def _product(matrix, columns):
    """Return a scipy matrix times the columns of a tensor."""
    return torch.from_numpy(matrix @ columns.cpu().numpy()).to(columns)


class SparseProjection(PanelProjection):
    """``s`` entries of plus or minus ``(m / s) ** 0.5`` in each column, one in each of s bands."""

    nested = False
    row_major = False

    def __init__(self, n_components, n_features, seed, n_nonzeros):
        super().__init__(n_components, n_features, seed)
        self.n_nonzeros = n_nonzeros

    def _panel(self, index, first, like):
        start, stop = self.columns(index)
        width, s = stop - start, self.n_nonzeros
        generator = self.generator(index)
        edges = np.linspace(0, self.n_components, s + 1).astype(np.int64)
        rows = np.stack([generator.integers(*band, width) for band in pairwise(edges)])
        signs = 2 * generator.integers(0, 2, (s, width)) - 1
        entries = (signs * (self.n_components / s) ** 0.5).ravel()
        columns = np.tile(np.arange(width), s)
        entries = entries.astype(np.float32 if like.dtype == torch.float32 else np.float64)
        matrix = sparse.csr_array(
            (entries, (rows.ravel(), columns)), shape=(self.n_components, width)
        )
        return SparsePanel(matrix)


class SparseSketch(Sketch):
    r"""Sparse Johnson-Lindenstrauss transform: a few random signs in each column.

    Cost goes with the non-zero entries, not with ``n_components``.

    Parameters
    ----------
    n_components, eps, debias, store, random_state
        See `GaussianSketch`. "auto" draws the sketch anew at every doubling.
    n_nonzeros : int, default=4
        Non-zero entries of a column. With fewer than 4 debiased answers come out too small where
        ``n_components`` is near the effective dimension.

    References
    ----------
    .. [1] D. M. Kane and J. Nelson, "Sparser Johnson-Lindenstrauss transforms", JACM 61, 2014 (the
       block construction).
    """

    _parameter_constraints: dict = {
        **Sketch._parameter_constraints,
        "n_nonzeros": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_components="auto",
        *,
        n_nonzeros=4,
        eps=0.1,
        debias=True,
        store=None,
        random_state=None,
    ):
        super().__init__(
            n_components, eps=eps, debias=debias, store=store, random_state=random_state
        )
        self.n_nonzeros = n_nonzeros

    def _projection(self, n_components, n_features, seed):
        if self.n_nonzeros > n_components:
            raise ValueError(
                f"n_nonzeros={self.n_nonzeros} entries of a column need as many rows; "
                f"n_components={n_components} is fewer. Raise n_components or lower n_nonzeros."
            )
        return SparseProjection(n_components, n_features, seed, self.n_nonzeros)
