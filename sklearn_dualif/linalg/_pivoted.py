"""Cholesky factorizations that choose their pivots: of matrices of any rank."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import lapack

# A pivot with less than this share of its block's largest adds rounding, not information.
_DEPENDENT = 1e-6
# Rounding errors of a residual diagonal, in units of its entries' precision.
_ROUNDED = 64
# Columns that are reserved at once.
_RESERVED = 2048


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


def pivoted_cholesky(matrix, tolerance, *, relative=0.0):
    """Return the `PivotedFactor` of a positive semidefinite matrix, without its last pivots.

    Those below the tolerance, below ``relative`` times the largest, or below what rounding leaves
    are left out.
    """
    a = matrix.to(torch.float64).cpu().numpy()
    relative = max(relative, len(a) * np.finfo(float).eps)
    tolerance = max(tolerance, relative * float(a.diagonal().max()))
    factor, pivots, rank, _ = lapack.dpstrf(a.T, lower=1, tol=tolerance)
    corner = torch.from_numpy(factor[:rank, :rank]).tril()
    return PivotedFactor(torch.from_numpy(pivots[:rank] - 1).long(), corner)


class RandomPivots:
    """A partial Cholesky factorization with random pivots, grown as far as it is needed.

    Of a kernel ``A = X X^T`` of *heads*, combinations ``X = S^T J`` of rows of ``J``: pivots are
    heads, drawn in blocks in proportion to what the factorization has left of their diagonal, and
    the factor is kept for ``J``, from which that of the heads follows (Chen, Epperly, Tropp and
    Webber, "Randomly pivoted Cholesky", 2023).

    Parameters
    ----------
    columns : callable
        ``columns(positions)`` returns the kernel of all rows of ``J`` with some heads, (N, m).
    root : (n, C, q) tensor
        ``S``; heads are the n q columns, rows of ``J`` the n C rows.
    diagonal : (n q,) tensor
        Of ``A``.
    generator : torch.Generator
    largest : int
        Rank beyond which nothing is reserved.
    """

    def __init__(self, columns, root, diagonal, generator, largest):
        self._columns = columns
        self._root = root
        self._generator = generator
        self.largest = largest
        self.diagonal = diagonal.double()
        # Less than this is what rounding leaves of a pivot: nothing to factorise.
        self._floor = _ROUNDED * torch.finfo(root.dtype).eps * self.diagonal
        self.pivots = torch.empty(0, dtype=torch.long, device=diagonal.device)
        self.corner = torch.empty(0, 0, dtype=torch.float64, device=diagonal.device)
        self._buffer = torch.empty(
            root.shape[0] * root.shape[1], 0, dtype=root.dtype, device=root.device
        )

    @property
    def rank(self):
        """Number of pivots."""
        return len(self.pivots)

    @property
    def factor(self):
        """``Phi`` (n C, r): ``J`` in coordinates of the pivots' span."""
        return self._buffer[:, : self.rank]

    @property
    def exhausted(self):
        """Whether nothing is left to factorise."""
        return not bool((self.diagonal > 0).any())

    def mixed(self, values):
        """Return ``S^T`` times rows (n C, m): rows (n q, m) of heads."""
        n, outputs, q = self._root.shape
        return (self._root.mT @ values.view(n, outputs, -1)).view(n * q, -1)

    def _at(self, positions, values):
        """Return some rows of `mixed`."""
        n, outputs, q = self._root.shape
        rows, heads = positions // q, positions % q
        weights = self._root[rows, :, heads]  # (m, C)
        return torch.einsum("mc,mcr->mr", weights, values.view(n, outputs, -1)[rows])

    def grow(self, rank, block=256):
        """Add pivots until there are ``rank`` of them or nothing is left."""
        self._reserve(rank)
        while self.rank < rank and not self.exhausted:
            self._add(min(block, rank - self.rank))
        return self

    def _reserve(self, rank):
        size = self._buffer.shape[1]
        if rank > size:
            # Ahead of what is needed, so that growing in small steps copies little.
            ahead = min(self.largest, max(_RESERVED, 3 * size // 2))
            buffer = self._buffer.new_empty(len(self._buffer), max(rank, ahead))
            buffer[:, : self.rank] = self.factor
            self._buffer = buffer

    def _add(self, size):
        size = min(size, int((self.diagonal > 0).sum()))
        drawn = torch.multinomial(self.diagonal, size, generator=self._generator)
        known = self._at(drawn, self.factor)
        columns = self._columns(drawn)
        columns.addmm_(self.factor, known.T, alpha=-1.0)
        inner = pivoted_cholesky(self._at(drawn, columns).cpu(), 0.0, relative=_DEPENDENT)
        kept, start = inner.pivots.to(drawn.device), self.rank
        new = slice(start, start + len(kept))
        corner = inner.corner.to(self._buffer)
        self._buffer[:, new] = torch.linalg.solve_triangular(
            corner.T, columns[:, kept], upper=True, left=False
        )
        self.pivots = torch.cat([self.pivots, drawn[kept]])
        grown = self.corner.new_zeros(new.stop, new.stop)
        grown[:start, :start] = self.corner
        grown[new, :start] = known[kept].to(grown)
        grown[new, new] = inner.corner.to(grown)
        self.corner = grown
        self.diagonal -= (self.mixed(self._buffer[:, new].contiguous()).double() ** 2).sum(1)
        self.diagonal[self.diagonal <= self._floor] = 0.0
        self.diagonal[drawn] = 0.0
