"""Dense symmetric positive (semi)definite matrices."""

import torch
from scipy.linalg import lapack

from ..exceptions import SingularCurvatureError

_BLOCK = 512


def symmetric_pseudo_inverse(matrix):
    """Return the pseudo-inverse of a symmetric positive semidefinite (f, f) matrix."""
    if matrix.shape[-1] == 0:
        return matrix
    return torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12)


def inverse_from_cholesky(lower):
    """Return ``(L L^T)^{-1}`` (n, n) of a lower triangular factor, which is overwritten.

    By SciPy's LAPACK: its ``potri`` is many times as fast as torch's on a processor.
    """
    # The transpose of a row-major matrix is the column-major one that LAPACK overwrites in place.
    upper, info = lapack.dpotri(lower.numpy().T, lower=0, overwrite_c=1)
    if info != 0:
        raise SingularCurvatureError(
            "A Cholesky factor with a zero on its diagonal has no inverse."
        )
    inverse = torch.from_numpy(upper.T)
    for start in range(0, len(inverse), _BLOCK):
        stop = start + _BLOCK
        corner = inverse[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        inverse[start:stop, stop:] = inverse[stop:, start:stop].T
    return inverse
