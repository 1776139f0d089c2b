"""Dense symmetric positive (semi)definite matrices."""

import torch
from scipy.linalg import blas, lapack

from ..exceptions import SingularCurvatureError

_BLOCK = 128


def symmetric_pseudo_inverse(matrix):
    """Return the pseudo-inverse of a symmetric positive semidefinite (f, f) matrix."""
    if matrix.shape[-1] == 0:
        return matrix
    return torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12)


def inverse_from_cholesky(lower):
    """Return ``(L L^T)^{-1}`` (n, n), on the processor, of a factor L, which is overwritten.

    By SciPy's LAPACK there: its ``potri`` is many times as fast as torch's.
    """
    if lower.device.type != "cpu":
        return torch.cholesky_inverse(lower).cpu()
    # The transpose of a row-major matrix is the column-major one that LAPACK overwrites in place.
    upper, info = lapack.dpotri(lower.numpy().T, lower=0, overwrite_c=1)
    if info != 0:
        raise SingularCurvatureError(
            "A Cholesky factor with a zero on its diagonal has no inverse."
        )
    return _mirrored(torch.from_numpy(upper.T))


def column_gram(rows):
    """Return ``X^T X`` (p, p) in double precision from rows (n, p).

    By SciPy's BLAS on a processor: ``syrk`` does half the work of a general product.
    """
    if rows.device.type != "cpu" or not len(rows):
        return (rows.T @ rows).double().cpu()
    values = rows.contiguous().numpy().T
    upper = blas.get_blas_funcs("syrk", [values])(1.0, values, lower=0)
    return _mirrored(torch.from_numpy(upper.T).double())


def _mirrored(lower):
    """Return a matrix with its lower triangle also above the diagonal, in place."""
    for start in range(0, len(lower), _BLOCK):
        stop = start + _BLOCK
        corner = lower[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        lower[start:stop, stop:] = lower[stop:, start:stop].T
    return lower
