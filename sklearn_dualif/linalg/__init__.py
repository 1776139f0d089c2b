"""Factorizations of symmetric positive (semi)definite matrices; knows no model and no loss."""

from ._definite import column_gram, inverse_from_cholesky, symmetric_pseudo_inverse
from ._memory import parse_bytes
from ._pivoted import PivotedFactor, RandomPivots, pivoted_cholesky
from ._threads import threads_for, torch_threads
from ._whitening import (
    CholeskyFactor,
    Whitening,
    append_rows,
    factor_hessian,
    whiten_ridge,
    whiten_triangle,
)

__all__ = [
    "CholeskyFactor",
    "PivotedFactor",
    "RandomPivots",
    "Whitening",
    "append_rows",
    "column_gram",
    "factor_hessian",
    "inverse_from_cholesky",
    "parse_bytes",
    "pivoted_cholesky",
    "symmetric_pseudo_inverse",
    "threads_for",
    "torch_threads",
    "whiten_ridge",
    "whiten_triangle",
]
