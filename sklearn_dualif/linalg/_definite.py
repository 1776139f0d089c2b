"""Small dense symmetric helpers."""

import torch


def symmetric_pseudo_inverse(matrix):
    """Return the pseudo-inverse of a symmetric positive semidefinite (f, f) matrix."""
    if matrix.shape[-1] == 0:
        return matrix
    return torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12)
