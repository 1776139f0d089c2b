"""Factorizations of symmetric positive (semi)definite matrices; knows no model and no loss."""

from ._definite import symmetric_pseudo_inverse
from ._memory import available_bytes, parse_bytes, require_bytes
from ._whitening import Whitening, append_rows, whiten_hessian, whiten_triangle

__all__ = [
    "Whitening",
    "append_rows",
    "available_bytes",
    "parse_bytes",
    "require_bytes",
    "symmetric_pseudo_inverse",
    "whiten_hessian",
    "whiten_triangle",
]
