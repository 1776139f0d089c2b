"""Dense symmetric positive (semi)definite matrices."""

import torch

_BASE = 256


def symmetric_pseudo_inverse(matrix):
    """Return the pseudo-inverse of a symmetric positive semidefinite (f, f) matrix."""
    if matrix.shape[-1] == 0:
        return matrix
    return torch.linalg.pinv(matrix, hermitian=True, rtol=1e-12)


def inverse_from_cholesky(lower):
    """Return ``(L L^T)^{-1}`` (n, n) of a lower triangular factor.

    Halves recursively, so that all but the smallest blocks are matrix products: several times as
    fast as LAPACK's ``potri``.
    """
    factor = lower.clone()
    _invert_triangle(factor)
    inverse = torch.empty_like(factor)
    _fill_gram(factor, inverse)
    return inverse


def _invert_triangle(lower):
    """Replace a lower triangular matrix by its inverse."""
    n = len(lower)
    if n <= _BASE:
        eye = torch.eye(n, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    h = n // 2
    _invert_triangle(lower[:h, :h])
    _invert_triangle(lower[h:, h:])
    lower[h:, :h] = -(lower[h:, h:] @ (lower[h:, :h] @ lower[:h, :h]))


def _fill_gram(lower, gram):
    """Put ``X^T X`` of a lower triangular X into ``gram``."""
    n = len(lower)
    if n <= _BASE:
        gram.copy_(lower.T @ lower)
        return
    h = n // 2
    _fill_gram(lower[:h, :h], gram[:h, :h])
    _fill_gram(lower[h:, h:], gram[h:, h:])
    gram[:h, :h].addmm_(lower[h:, :h].T, lower[h:, :h])
    corner = lower[h:, h:].T @ lower[h:, :h]
    gram[h:, :h] = corner
    gram[:h, h:] = corner.T
