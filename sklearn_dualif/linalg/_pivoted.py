"""Cholesky factorizations that choose their pivots: of matrices of any rank."""

from typing import NamedTuple

import torch
from scipy.linalg import lapack


class PivotedFactor(NamedTuple):
    """``A[:, pivots]`` determines ``A`` up to a small residual.

    Attributes
    ----------
    pivots : (r,) integer tensor
    corner : (r, r) tensor
        Lower Cholesky factor of ``A[pivots, pivots]``.
    """

    pivots: torch.Tensor
    corner: torch.Tensor


def pivoted_cholesky(matrix, tolerance):
    """Return the `PivotedFactor` of a positive semidefinite matrix, without its last pivots.

    Those below the tolerance, or below what rounding leaves, are left out.
    """
    a = matrix.to(torch.float64).numpy()
    tolerance = max(tolerance, len(a) * 2.2e-16 * float(a.diagonal().max()))
    factor, pivots, rank, _ = lapack.dpstrf(a.T, lower=1, tol=tolerance)
    corner = torch.from_numpy(factor[:rank, :rank]).tril()
    return PivotedFactor(torch.from_numpy(pivots[:rank] - 1).long(), corner)
