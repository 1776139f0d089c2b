r"""Whitening maps of a ridge-regularised Hessian with unpenalised parameters.

Let ``H = N + rho diag(0_f, I_p)`` with ``N`` positive semidefinite, the ``f`` unpenalised
parameters first. A whitening is a matrix ``T`` with ``H^+ = T T^T``. In spectral form its columns
also diagonalise the penalised Schur complement, so that lowering the ridge by ``tau`` only rescales
them:

.. math:: (H - \tau\,\mathrm{diag}(0, I))^{-1} = T\,\mathrm{diag}(1 - \tau/\mu)^{-1} T^\top .
"""

import math
from functools import cached_property
from typing import NamedTuple

import torch
from scipy.linalg import lapack

from ._definite import inverse_from_cholesky

_NORM_LIMITS = {torch.float64: 1e9, torch.float32: 1e4}


class Whitening(NamedTuple):
    """``H^+ = T T^T``.

    Attributes
    ----------
    map : (P, r) tensor
        ``T``.
    inverse_spectrum : (r,) tensor or None
        ``1 / mu``, 0 for the unpenalised columns; None where ``T`` is not in spectral form.
    """

    map: torch.Tensor
    inverse_spectrum: torch.Tensor | None

    @property
    def single(self):
        """Whether it is in single precision."""
        return self.map.dtype == torch.float32

    def on_processor(self):
        """Return the same in the processor's memory."""
        spectrum = self.inverse_spectrum
        return Whitening(self.map.cpu(), None if spectrum is None else spectrum.cpu())

    def solve(self, columns):
        """Return ``H^+ columns`` for columns (..., P, m)."""
        return self.map @ (self.map.mT @ columns)


class CholeskyFactor:
    """``H = D U^T U D`` with a diagonal ``D`` that gives ``U^T U`` a diagonal of ones.

    Parameters
    ----------
    upper : (P, P) tensor
        ``U``, column-major, as LAPACK takes it without a copy.
    scale : (P,) tensor
        The diagonal of ``D``.
    inverse_norm : float
        Of ``(U^T U)^{-1}``, an estimate.
    """

    def __init__(self, upper, scale, inverse_norm):
        self.upper = upper
        self.scale = scale[:, None]
        self.inverse_norm = inverse_norm

    @property
    def single(self):
        """Whether it is in single precision."""
        return self.upper.dtype == torch.float32

    def solve(self, columns):
        """Return ``H^{-1} columns`` for columns (..., P, m)."""
        scaled = (columns / self.scale).to(self.upper.dtype)
        return torch.cholesky_solve(scaled, self.upper, upper=True).to(columns) / self.scale

    def inverse(self):
        """Return ``H^{-1}`` (P, P)."""
        return inverse_from_cholesky(self.upper.mT.clone()).div_(self.scale).div_(self.scale.T)

    @cached_property
    def map(self):
        """``T`` with ``H^{-1} = T T^T``."""
        eye = torch.eye(len(self.upper), dtype=self.upper.dtype)
        return torch.linalg.solve_triangular(self.upper, eye, upper=True) / self.scale

    def spectral(self, n_free):
        """Return the `Whitening` in spectral form without a further ridge."""
        return _spectral(self.upper * self.scale.T, 0.0, n_free, len(self.upper))


def factor_hessian(data_hessian, ridge, n_free):
    """Return the `CholeskyFactor` of ``N`` (P, P), which is overwritten, with the ridge added.

    The precision is that of the matrix. None where it is singular or so ill-conditioned that
    forming it has already lost the digits; `whiten_triangle` then serves.
    """
    hessian = data_hessian
    hessian.diagonal()[n_free:] += ridge
    scale = torch.sqrt(hessian.diagonal())
    if not bool((scale > 0).all()):
        return None
    hessian *= (1.0 / scale)[:, None]
    hessian *= 1.0 / scale
    # The transpose of a row-major matrix is the column-major one that LAPACK overwrites in place.
    values = hessian.numpy().T
    potrf, pocon = lapack.get_lapack_funcs(("potrf", "pocon"), (values,))
    upper, info = potrf(values, lower=0, overwrite_a=1)
    if info != 0:
        return None
    reciprocal, _ = pocon(upper, 1.0)
    inverse_norm = 1.0 / reciprocal if reciprocal > 0 else math.inf
    if not inverse_norm < _NORM_LIMITS[hessian.dtype]:
        return None
    return CholeskyFactor(torch.from_numpy(upper), scale, inverse_norm)


def whiten_ridge(data_hessian, ridge, n_free, *, spectral):
    """Whiten where the ridge is positive and free parameters may have no data of their own.

    Free directions without curvature are left out: the least-norm solution. Returns None where the
    penalised block is not positive definite to working precision.
    """
    free, cross = data_hessian[:n_free, :n_free], data_hessian[:n_free, n_free:]
    penalized = data_hessian[n_free:, n_free:]
    result = data_hessian.new_zeros(len(data_hessian), len(data_hessian))
    if spectral:
        free_map = _inverse_root(free)
        pulled = free_map.T @ cross
        values, vectors = torch.linalg.eigh(penalized - pulled.T @ pulled)
        spectrum = values.clamp(min=0.0) + ridge
        columns = vectors / torch.sqrt(spectrum)
        result[:n_free, :n_free] = free_map
        result[:n_free, n_free:] = -free_map @ (pulled @ columns)
        result[n_free:, n_free:] = columns
        return Whitening(result, torch.cat([spectrum.new_zeros(n_free), 1.0 / spectrum]))
    shifted = penalized.clone()
    shifted.diagonal().add_(ridge)
    lower, info = torch.linalg.cholesky_ex(shifted)
    if int(info) != 0:
        return None
    eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    columns = torch.linalg.solve_triangular(lower, eye, upper=False).T
    pulled = cross @ columns
    free_map = _inverse_root(free - pulled @ pulled.T)
    result[:n_free, :n_free] = free_map
    result[n_free:, :n_free] = -columns @ (pulled.T @ free_map)
    result[n_free:, n_free:] = columns
    return Whitening(result, None)


def _inverse_root(matrix):
    """Return ``T`` (f, f) with ``T T^T`` the pseudo-inverse of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    keep = values > 1e-12 * values.max() if len(values) else values > 0
    return vectors * torch.where(keep, torch.where(keep, values, 1.0) ** -0.5, 0.0)


def append_rows(upper, rows):
    """Return the triangle of a QR factorization after ``rows`` joined those behind ``upper``."""
    stacked = rows if upper is None else torch.cat([upper, rows])
    return torch.linalg.qr(stacked, mode="r").R


def whiten_triangle(upper, ridge, n_free, n_rows):
    """Whiten from a triangle ``R`` with ``N = R^T R``: as accurate as the rows themselves.

    Directions without data and without penalty are left out: the pseudo-inverse that gives the
    least-norm solution.
    """
    # Without a ridge, directions without data are left out anyway.
    wanted = n_free if ridge == 0 else upper.shape[1]
    missing = wanted - upper.shape[0]
    if missing > 0:
        upper = torch.cat([upper, upper.new_zeros(missing, upper.shape[1])])
    return _spectral(upper, ridge, n_free, n_rows)


def _spectral(upper, ridge, n_free, n_rows):
    """Eliminate the free parameters and diagonalise what is left."""
    free, cross, penalized = (
        upper[:n_free, :n_free],
        upper[:n_free, n_free:],
        upper[n_free:, n_free:],
    )
    _, sigma, vt = torch.linalg.svd(penalized, full_matrices=False)
    spectrum = sigma**2 + ridge
    if ridge == 0 and len(sigma):
        tolerance = torch.finfo(sigma.dtype).eps * max(n_rows, upper.shape[1]) * upper.abs().max()
        keep = sigma > tolerance
        vt, spectrum = vt[keep], spectrum[keep]
    columns = vt.T / torch.sqrt(spectrum)
    blocks = torch.zeros(upper.shape[1], n_free + columns.shape[1], dtype=upper.dtype)
    blocks[n_free:, n_free:] = columns
    if n_free:
        u, s, wt = torch.linalg.svd(free)
        inverse = torch.where(s > s[0] * 1e-13, 1.0 / s, torch.zeros_like(s)) if s[0] > 0 else 0 * s
        free_map = wt.T * inverse
        blocks[:n_free, :n_free] = free_map
        blocks[:n_free, n_free:] = -free_map @ (u.T @ (cross @ columns))
    inverse_spectrum = torch.cat([spectrum.new_zeros(n_free), 1.0 / spectrum])
    return Whitening(blocks, inverse_spectrum)
