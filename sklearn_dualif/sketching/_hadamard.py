r"""Subsampled randomised Hadamard transform.

With ``D`` the next power of two, ``H`` the Hadamard matrix of order D, random signs ``s`` of the
columns and ``m`` rows ``j`` drawn without replacement, the entries are ``H_{jc} s_c``. A panel of
columns ``c = (a, b)`` needs the transform of its own width alone, as

.. math:: H_{(j_1, j_2), (a, b)} = H_{j_1 a} H_{j_2 b} .
"""

import numpy as np
import torch
from scipy.linalg import hadamard

from ._base import PANEL, PanelProjection, Sketch

_FACTOR = 64


class HadamardPanel:
    """Columns of a subsampled Hadamard matrix.

    Parameters
    ----------
    signs : (w,) tensor
        Of the columns.
    within : (m,) integer tensor
        Of the transform of a panel, the entry that each row takes.
    across : (m,) tensor
        The sign that it takes it with.
    width : int
        Order of that transform.
    """

    def __init__(self, signs, within, across, width):
        self.signs, self.within, self.across, self.width = signs, within, across, width

    def add(self, result, values):
        """Add the projections of values (n, h, w) to ``result`` (n, h, m)."""
        padded = torch.nn.functional.pad(values * self.signs, (0, self.width - values.shape[2]))
        result += transform(padded)[..., self.within] * self.across

    def add_transposed(self, result, values):
        """Add ``P^T values`` to ``result`` (w, k)."""
        spread = values.new_zeros(self.width, values.shape[1])
        spread.index_add_(0, self.within, values * self.across[:, None])
        result += transform(spread.T.contiguous()).T[: len(result)] * self.signs[:, None]


def transform(values):
    """Return the Walsh-Hadamard transform, unscaled, along the last axis, a power of two."""
    order = values.shape[-1]
    shape, factor = values.shape, min(_FACTOR, order)
    matrix = torch.from_numpy(hadamard(factor)).to(values)
    done = 1
    # H of order a b is the Kronecker product of those of orders a and b.
    while done < order:
        size = min(factor, order // done)
        part = matrix[:size, :size]
        values = (
            part @ values.reshape(-1, size, done) if done > 1 else values.reshape(-1, size) @ part
        )
        done *= size
    return values.reshape(shape)


class HadamardProjection(PanelProjection):
    """Rows of a Hadamard matrix with random signs of the columns."""

    def __init__(self, n_components, n_features, seed):
        super().__init__(n_components, n_features, seed)
        self.ambient = 1 << (n_features - 1).bit_length()
        drawn = self.generator(0).permutation(self.ambient)[:n_components]
        self._rows = torch.from_numpy(drawn)

    def _panel(self, index, first, like):
        start, stop = self.columns(index)
        width = min(PANEL, self.ambient)
        rows = self._rows[first:]
        shared = np.bitwise_count((rows // width).numpy() & index)
        across = torch.from_numpy(1.0 - 2.0 * (shared % 2)).to(like)
        signs = 2.0 * self.generator(1, index).integers(0, 2, stop - start) - 1.0
        within = (rows % width).to(like.device)
        return HadamardPanel(torch.from_numpy(signs).to(like), within, across, width)


class HadamardSketch(Sketch):
    """Subsampled randomised Hadamard transform.

    Its rows are orthogonal, so that it is exact once ``n_components`` reaches the number of
    parameters (padded to a power of two), and somewhat more accurate than `GaussianSketch` on the
    way there. Debiased by a formula of its own.

    Parameters
    ----------
    n_components, eps, debias, store, random_state
        See `GaussianSketch`. At most the number of parameters, padded to a power of two.

    References
    ----------
    .. [1] J. A. Tropp, "Improved analysis of the subsampled randomized Hadamard transform",
       Advances in Adaptive Data Analysis 3, 2011.
    """

    def _projection(self, n_components, n_features, seed):
        ambient = 1 << (n_features - 1).bit_length()
        if n_components > ambient:
            raise ValueError(
                f"n_components={n_components} is more than the {ambient} rows of the Hadamard "
                f"matrix of {n_features} parameters. Lower it, or use GaussianSketch."
            )
        return HadamardProjection(n_components, n_features, seed)
