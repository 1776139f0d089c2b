r"""A network's kernel to low rank, grown until a measured error is small enough.

With pivots ``P`` the kernel of the heads is ``A = L L^T + E``. ``M = rho I + A`` is solved by
``M^ = rho I + L L^T + blockdiag(E_ii)`` in place of it, which lacks the blocks of ``E`` between
different rows. For a query with kernel column ``b`` the solution is ``x = M^^{-1} b`` and its error

.. math:: M^{-1} b - x = M^{-1} (b - M x) \approx \hat M^{-1} (b - M x),

which is computed without forming ``M``, on the losses of random training rows. The score of a row
on its own loss is left out: unseen rows have none like it, and it hides the error of the others.
"""

import math
import warnings
from functools import cached_property
from typing import NamedTuple

import torch

from ..curvature import NystromCurvature
from ..exceptions import InfluenceWarning
from ..kernels import KernelBasis, NystromDesign
from ..linalg import RandomPivots
from ._kernel_system import KernelSystem

_QUERIES = 8
_MARGIN = 0.8
_RANK_STEP = 256
# First-order errors seen, over the largest residual diagonal in units of the ridge.
_ERROR_OF_RESIDUAL = 0.02
# Where the residual falls to this share and the error does not follow, rounding is what is left.
_STALLED = 0.25


class _Factor(NamedTuple):
    """What was built at one rank, and its estimated relative error."""

    design: NystromDesign
    curvature: NystromCurvature
    error: float
    rank: int
    residual_trace: float
    largest_residual: float


class LowRankTangent:
    """Coordinates for a network's rows, and what is known of their accuracy.

    Parameters
    ----------
    problem : NetworkProblem
    tol : float
        Relative error of first-order scores to reach.
    memory_limit : int
        Bytes.
    random_state : numpy.random.RandomState
    ridge : tensor
        Of the curvature that effects are computed with.

    Attributes
    ----------
    design : NystromDesign
    curvature : NystromCurvature
    info : dict
        What `InfluenceEstimator` reports as ``solver_info_``.
    falls_short : bool
        Whether memory ended the growth before ``tol`` was met.
    """

    def __init__(self, problem, tol, memory_limit, random_state, ridge):
        self.problem, self.ridge = problem, ridge
        features, root = problem.features, problem.expansion.root[0]
        network = features.network
        self.root = root.to(device=network.device, dtype=network.dtype)
        self.outputs = features.output_heads
        self.heads = self.outputs.mixed(root)
        self.free = self.outputs.free_jacobian
        diagonal = self.heads.diagonal_blocks().diagonal(dim1=1, dim2=2).flatten()
        generator = torch.Generator(device=network.device)
        generator.manual_seed(int(random_state.randint(2**31 - 1)))
        self.pivots = RandomPivots(
            lambda positions: self.outputs.gram(self.heads.picked(positions)),
            self.root,
            diagonal,
            generator,
            self._largest_rank(memory_limit),
        )
        weighted = torch.nonzero(root.flatten(1).any(1))[:, 0]
        chosen = random_state.permutation(len(weighted))[:_QUERIES]
        self.queries = weighted[torch.from_numpy(chosen)].sort().values
        gradient = problem.model.loss.gradient(problem.y, problem.fitted_outputs)
        self.directions = gradient[self.queries].unsqueeze(-1)
        self._grow(tol)

    def _largest_rank(self, memory_limit):
        """Return the rank whose factor and matrices fit."""
        rows, heads = len(self.root) * self.root.shape[1], len(self.root) * self.root.shape[2]
        item = self.root.element_size()
        rank = min(heads, self.problem.features.shape[1])
        while rank > 1 and item * 2.5 * rows * rank + 32.0 * rank**2 > memory_limit:
            rank = int(0.9 * rank)
        return rank

    def _grow(self, tol):
        pivots, ridge, best = self.pivots, float(self.ridge[0]), None
        share, checks, error, seen = _ERROR_OF_RESIDUAL, 0, math.inf, 0.0
        while error > tol:
            # The residual diagonal is known at no cost; how it goes with the error is learnt.
            pivots.grow(min(pivots.largest, pivots.rank + _RANK_STEP))
            left = float(pivots.diagonal.max()) / ridge
            done = pivots.exhausted or pivots.rank >= pivots.largest
            if not done and share * left > _MARGIN * tol and left > _STALLED * seen:
                continue
            design, curvature = self._build()
            before, error, checks = error, self._error(curvature), checks + 1
            # Where rounding is what is left, more pivots can make it worse.
            if best is None or error < best.error:
                trace = float(pivots.diagonal.sum()) / ridge
                best = _Factor(design, curvature, error, pivots.rank, trace, left)
            if done or (left <= _STALLED * seen and error > 0.75 * before):
                break
            share, seen = error / left, left
        self.design, self.curvature = best.design, best.curvature
        self.info = {
            "rank": best.rank,
            "relative_error": best.error,
            "queries": self.queries.tolist(),
            "residual_trace": best.residual_trace,
            "largest_residual": best.largest_residual,
            "iterations": checks,
            "bytes": best.design.values.numel() * best.design.values.element_size(),
        }
        unmet = best.error > tol
        self.falls_short = unmet and pivots.rank >= pivots.largest and not pivots.exhausted
        if unmet:
            self._warn_of(best.error, tol)
        del self.pivots, self.free

    def _warn_of(self, error, tol):
        """Say that the tolerance was not reached, and what to do about it."""
        single = self.root.dtype == torch.float32
        if self.falls_short:
            reason = f"At the largest rank that memory_limit allows ({self.pivots.rank})"
            remedy = (
                "influence() with order='first' is refined by conjugate gradients, which takes "
                "longer. Raise memory_limit or tol"
                + ("." if single else ", or use dtype='float32'.")
            )
        else:
            reason = "At what rounding leaves of the kernel"
            remedy = "Use dtype='float64'." if single else "Raise the ridge or tol."
        warnings.warn(
            f"{reason}, effects are off by an estimated {error:.2g}, more than tol={tol:g}. "
            f"{remedy}",
            InfluenceWarning,
            stacklevel=2,
        )

    @cached_property
    def doubled(self):
        """The design in double precision, for iterations that run to rounding."""
        return self.design.doubled()

    def _build(self):
        """Return the design and the curvature of the present rank."""
        problem, pivots = self.problem, self.pivots
        penalized, _ = problem.model.network.parameters()
        basis = KernelBasis(self.heads.picked(pivots.pivots), pivots.corner, penalized)
        n, outputs = self.root.shape[:2]
        parts = [self.free, pivots.factor.view(n, outputs, -1)]
        if basis.outside.shape[1]:
            parts.append(self.outputs.push(basis.outside))
        values = torch.cat(parts, 2)
        design = NystromDesign(basis, problem.features, "iterative", values, self.root)
        design.heads = self.heads
        return design, problem.nystrom(problem.expansion, self.ridge, design)

    def _error(self, curvature):
        """Return the estimated relative error of first-order scores on the queries' losses."""
        system = KernelSystem(curvature)
        features = self.problem.features.take(self.queries)
        target = features.heads(self.directions)
        column = system.column(target)
        solution = system.start(column, curvature.design_of(target))
        error = system.solve(system.residual(column, solution))
        coefficient = self.problem.expansion.coefficient[0].unsqueeze(-1)
        own = self.queries, torch.arange(len(self.queries))
        sizes = []
        for part in (error, solution):
            scores = (coefficient * part.view(*system.shape, -1)).sum(1)
            scores[own] = 0.0
            sizes.append(torch.linalg.vector_norm(scores))
        return float(sizes[0] / sizes[1]) if sizes[1] > 0 else 0.0
