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


def pivoted_cholesky(matrix):
    """Return the `PivotedFactor` of a positive semidefinite matrix to working precision."""
    a = matrix.to(torch.float64).numpy()
    factor, pivots, rank, _ = lapack.dpstrf(a.T, lower=1, tol=-1.0)
    corner = torch.from_numpy(factor[:rank, :rank]).tril()
    return PivotedFactor(torch.from_numpy(pivots[:rank] - 1).long(), corner)
