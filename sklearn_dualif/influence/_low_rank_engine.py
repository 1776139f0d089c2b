"""Networks in the low-rank form: what its coordinates leave out is added where it counts."""

from functools import cached_property

import torch

from ._descent import FullState, descend
from ._exact import no_optimum
from ._kernel_system import KernelSystem
from ._network import NetworkEngine

# Optima beyond the coordinates are found to this share of ``tol``.
_FINISHED = 1e-2


class LowRankEngine(NetworkEngine):
    """`NetworkEngine` of a kernel that is known to low rank.

    Single removals, and groups of order "first" and "newton", are those of the low-rank form. An
    exact group's optimum is one in all parameters. Exact single removals are Newton's at that
    optimum, and what they differ by within the coordinates. First-order effects are refined where
    the rank stayed too small for ``tol``.
    """

    def _factorize(self, damping):
        problem = self.problem
        self._check_gradients_vanish()
        if damping is None:
            return problem.low_rank.curvature
        return problem.nystrom(problem.expansion, damping)

    @property
    def solver_info(self):
        return self.problem.low_rank.info

    @property
    def _design_width(self):
        return super()._design_width + self.problem.low_rank.root[..., 0, :].numel()

    def _curvature_for(self, order):
        return self.curvature

    # Exact removals ----------------------------------------------------------------------------

    @cached_property
    def _full_optimum(self):
        """The optimum in all parameters."""
        problem = self.problem
        start = FullState.near(problem, problem.start, self.z)
        optimum, converged = descend(problem, start, self.z, self._left)
        if not converged:
            raise self._no_optimum()
        return optimum

    @property
    def _left(self):
        return _FINISHED * self.problem.accuracy.tol

    @cached_property
    def _optimum(self):
        problem, optimum = self.problem, self._full_optimum
        curvature = problem.curvature(optimum.z).anchor(optimum.state, problem.shares)
        return optimum.state, optimum.z, curvature

    @cached_property
    def _beyond(self):
        """Newton's single removals at the optimum, in all parameters: curvature and removals."""
        problem, optimum = self.problem, self._full_optimum
        curvature = problem.nystrom(problem.expand(optimum.z))
        curvature.anchor(optimum.state, problem.shares)
        return curvature, curvature.leave_one_out(measured=False)

    def _exact_own(self):
        more = self._beyond[1].own - self._optimum_removals.own
        return super()._exact_own() + self.problem.layout.to_outputs(more)

    def _removed_exactly(self, rows):
        return self._change_to(self.problem.without(rows))

    def _relabeled_exactly(self, rows, y_new, weights_new):
        return self._change_to(self.problem.relabeled(rows, y_new, weights_new))

    def _change_to(self, edited):
        """Return the state change to the optimum of an edited problem."""
        before = self._full_optimum
        after, converged = descend(edited, before, before.z, self._left)
        if not converged:
            raise no_optimum()
        weights = self.curvature.weights_of_sources(after.sources - before.sources)
        return torch.cat([after.state - before.state, weights], 1)

    # Single removals ---------------------------------------------------------------------------

    def _head_changes(self, heads, order):
        if order == "first" and self.problem.low_rank.falls_short:
            yield torch.arange(len(self.z)), self._refined_changes(heads).unsqueeze(-1)
            return
        curvature, removals = self.curvature, self._removals(order)
        if order == "exact":
            curvature, removals = self._beyond
        design = curvature.design_of(heads)
        rest = curvature.residual(heads, design)
        if order == "first":
            for rows, effects in curvature.first_order_changes(design, rest):
                yield rows, effects.unsqueeze(-1)
            return
        for rows, states in self._removal_states(order):
            beyond = states
            if order == "exact":
                beyond = curvature.removal_states(rows, removals)
                newton = self._optimum[2].removal_states(rows, self._optimum_removals)
                states = states - newton + beyond
            more = curvature.residual_changes(rest, rows, removals, beyond)
            yield rows, curvature.output_changes(design, states) + more.transpose(1, 2)

    def _refined_changes(self, heads):
        """Return the changes (t, n) of one head of each query under first-order removals."""
        curvature, system = self.curvature, KernelSystem(self.curvature)
        column, design = system.column(heads), curvature.design_of(heads)
        solution = system.start(column, design)
        solution = system.refined(column, solution, self.problem.accuracy.tol)
        coefficient = curvature.expansion.coefficient[0].unsqueeze(-1)
        changes = (coefficient * solution.view(*system.shape, -1)).sum(1)
        if curvature.shares is not None:
            pull = curvature.ridge_gradient(curvature.parameters, 1.0 / curvature.ridge)
            pulled = curvature.outputs(design, pull)[0, :, 0, 0]
            pulled = pulled - solution.T @ curvature.seen(pull).flatten()
            changes += curvature.shares[:, None] * pulled
        return changes.T

    # Parameters --------------------------------------------------------------------------------

    def _lift(self, coordinates):
        design = self.problem.low_rank.design
        size = design.basis.size
        penalized = design.basis.lift(coordinates[:size])
        if len(coordinates) > size:
            weights = coordinates[size:].view(*design.heads.shape, -1)
            penalized = penalized + design.lift_residual(weights)
        return penalized
