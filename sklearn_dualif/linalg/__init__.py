"""Factorizations of symmetric positive (semi)definite matrices; knows no model and no loss."""

from ._definite import inverse_from_cholesky, symmetric_pseudo_inverse
from ._memory import parse_bytes
from ._whitening import Whitening, append_rows, whiten_hessian, whiten_triangle

__all__ = [
    "Whitening",
    "append_rows",
    "inverse_from_cholesky",
    "parse_bytes",
    "symmetric_pseudo_inverse",
    "whiten_hessian",
    "whiten_triangle",
]
