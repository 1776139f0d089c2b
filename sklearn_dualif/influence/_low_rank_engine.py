"""Networks in the low-rank form: what its coordinates leave out is added where it counts."""

import warnings
from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ..exceptions import InfluenceWarning
from ._descent import FullState, descend
from ._exact import no_optimum
from ._kernel_system import KernelSystem
from ._network import NetworkEngine

# Optima beyond the coordinates are found to this share of ``tol``.
_FINISHED = 1e-2
# Queries that are refined at once.
_COLUMNS = 32


class LowRankEngine(NetworkEngine):
    """`NetworkEngine` of a kernel that is known to low rank.

    Single removals, and groups of order "first" and "newton", are those of the low-rank form. An
    exact group's optimum is one in all parameters. Exact single removals are Newton's at that
    optimum, and what they differ by within the coordinates. First-order effects on queries are
    refined where the rank stayed too small for ``tol``.
    """

    def _factorize(self, damping):
        self._check_gradients_vanish()
        return self.problem.low_rank.curvature

    @property
    def solver_info(self):
        return self.problem.low_rank.info

    @property
    def _design_width(self):
        return super()._design_width + self.problem.low_rank.root[..., 0, :].numel()

    # Exact removals ----------------------------------------------------------------------------

    @cached_property
    def _full_optimum(self):
        """The optimum in all parameters; to rounding, as small groups are compared with it."""
        problem = self.problem
        optimum, converged = descend(problem, FullState.fitted(problem), self.z, 0.0)
        if not converged:
            raise self._no_optimum()
        return optimum

    @cached_property
    def _optimum(self):
        problem, optimum = self.problem, self._full_optimum
        curvature = problem.curvature(optimum.z).anchor(optimum.state, problem.shares)
        return optimum.state, optimum.z, curvature

    @cached_property
    def _newton_at_optimum(self):
        """Curvature and Newton's single removals there, in all parameters."""
        problem, optimum = self.problem, self._full_optimum
        curvature = problem.nystrom(problem.expand(optimum.z))
        curvature.anchor(optimum.state, problem.shares)
        return curvature, curvature.leave_one_out(measured=False)

    def _exact_own(self):
        more = self._newton_at_optimum[1].own - self._optimum_removals.own
        return super()._exact_own() + self.problem.layout.to_outputs(more)

    def _removed_exactly(self, rows):
        return self._change_to(self.problem.without(rows))

    def _relabeled_exactly(self, rows, y_new, weights_new):
        return self._change_to(self.problem.relabeled(rows, y_new, weights_new))

    def _change_to(self, edited):
        """Return the change to the optimum of an edited problem: a state, then its sources."""
        before = self._full_optimum
        after, converged = descend(edited, before, before.z, _FINISHED * self.problem.accuracy.tol)
        if not converged:
            raise no_optimum()
        sources = (after.sources - before.sources).reshape(1, -1, 1)
        return torch.cat([after.state - before.state, sources], 1)

    # Single removals ---------------------------------------------------------------------------

    def _head_changes(self, heads, order):
        if order == "first" and self.problem.low_rank.falls_short:
            yield torch.arange(len(self.z)), self._refined_changes(heads).unsqueeze(-1)
            return
        curvature, removals = self.curvature, self._removals(order)
        if order == "exact":
            curvature, removals = self._newton_at_optimum
        design = curvature.design_of(heads)
        rest = curvature.residual(heads, design)
        if order == "first":
            for rows, effects in curvature.first_order_changes(design, rest):
                yield rows, effects.unsqueeze(-1)
            return
        for rows, states in self._removal_states(order):
            newton = states
            if order == "exact":
                # The coordinates tell how exact removals differ from Newton's.
                newton = curvature.removal_states(rows, removals)
                within = self._optimum[2].removal_states(rows, self._optimum_removals)
                states = states - within + newton
            more = curvature.residual_changes(rest, rows, removals, newton)
            yield rows, curvature.output_changes(design, states) + more.transpose(1, 2)

    def _refined_changes(self, heads):
        """Return the changes (t, n) of one head of each query under first-order removals."""
        curvature, system = self.curvature, KernelSystem(self.curvature)
        columns, design = system.column(heads), curvature.design_of(heads)
        tol, reached, solutions = self.problem.accuracy.tol, 0.0, []
        for part in gen_batches(len(design), _COLUMNS):
            column = columns[:, part]
            start = system.start(column, design[part])
            solution, error = system.refined(column, start, tol)
            solutions.append(solution)
            reached = max(reached, error)
        if reached > tol:
            warnings.warn(
                f"Conjugate gradients left a relative error of {reached:.2g} in first-order "
                f"effects, more than tol={tol:g}. Use dtype='float64', or raise memory_limit or "
                "tol.",
                InfluenceWarning,
                stacklevel=2,
            )
        solution = torch.cat(solutions, 1)
        coefficient = curvature.expansion.coefficient[0].unsqueeze(-1)
        changes = (coefficient * solution.view(*system.shape, -1)).sum(1)
        if curvature.shares is not None:
            pull = curvature.ridge_gradient(curvature.parameters, 1.0 / curvature.ridge)
            pulled = curvature.outputs(design, pull)[0, :, 0, 0]
            pulled = pulled - solution.T @ curvature.seen(pull).flatten()
            changes += curvature.shares[:, None] * pulled
        return changes.T

    # Parameters --------------------------------------------------------------------------------

    def _lift(self, coordinates, order):
        design = self.problem.low_rank.design
        size = design.basis.size
        penalized, rest = design.basis.lift(coordinates[:size]), coordinates[size:]
        if not len(rest):
            return penalized
        rest = rest.view(len(self.z), -1, rest.shape[1])
        if order == "exact":
            return penalized + design.lift_sources(rest)
        return penalized + design.lift_residual(rest)
