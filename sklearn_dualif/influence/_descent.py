r"""Optima of a network's linearisation in all its parameters, its low-rank form as a guide.

With ``Q`` the coordinates of the low-rank form and ``Phi = J Q``, parameters that any optimum can
have are ``Q c + (I - Q Q^T) J^T s``: a *state* ``c`` and *sources* ``s``, one for each output of
the training rows. Their outputs are ``Phi c + E s`` with ``E = J J^T - Phi Phi^T``, whose products
are computed through the network. Gradients are those of the true objective, so that the low-rank
form, which turns them into steps of conjugate gradients, may be inexact and lag behind: it is
factorised again where the steps become slow.
"""

from typing import NamedTuple

import torch

from ._problem import line_search

_STEPS = 300
_PATIENCE = 5
# Slopes are to fall to this share in a step, or the curvature is factorised anew.
_SLOW = 0.2
# Steps of this many times what may be left are far from the optimum.
_FAR = 100.0
# Changes of the objective that its rounding hides, relative to it.
_HIDDEN = 1e-9


class FullState(NamedTuple):
    """Parameters within and outside of the coordinates.

    Attributes
    ----------
    state : (1, P, 1) tensor
    sources : (n, C) tensor
    beyond : (n, C) tensor
        What the sources add to the outputs of the training rows.
    z : (n, C) tensor
        Outputs of the training rows.
    """

    state: torch.Tensor
    sources: torch.Tensor
    beyond: torch.Tensor
    z: torch.Tensor

    @classmethod
    def near(cls, problem, state, z):
        """Return a start near an optimum within the coordinates.

        ``-J^T r / ridge`` are an optimum's parameters, which the coordinates hold but for a small
        part; left to itself, the low-rank form would take that part for a large one.
        """
        loss = problem.model.loss
        sources = -loss.weighted_gradient(problem.y, z, problem.weights) / problem.ridge[0]
        beyond = problem.low_rank.design.beyond(sources.unsqueeze(-1))[..., 0]
        return cls(state, sources, beyond, z + beyond)

    def moved(self, size, direction):
        """Return the state after a step."""
        parts = zip(self, direction, strict=True)
        return FullState(*(part + size * step for part, step in parts))


def descend(problem, at, origin, tol):
    """Run preconditioned conjugate gradients to the optimum of a problem.

    Parameters
    ----------
    problem : NetworkProblem
        In the low-rank form.
    at : FullState
        Where to start.
    origin : (n, C) tensor
        Outputs that the optimum's are compared with.
    tol : float
        Error that may be left, relative to the change of outputs from the origin.

    Returns
    -------
    at : FullState
    converged : bool
    """
    curvature = problem.nystrom(problem.expand(at.z))
    rounding = torch.finfo(curvature.features.values.dtype).eps
    step = direction = None
    slope = best = torch.inf
    waited, far = 0, True
    for _ in range(_STEPS):
        gradient = _Gradient(problem, at)
        previous, step = step, gradient.step(curvature)
        was, slope = slope, gradient.along(step)
        if not torch.isfinite(step.z).all():
            return at, False
        if not slope < 0.0:
            return at, True
        if direction is not None and slope < _SLOW * was and far:
            curvature, direction = problem.nystrom(problem.expand(at.z)), None
            step = gradient.step(curvature)
            slope = gradient.along(step)
        if direction is None:
            direction = step
        else:
            # By the share of the gradient that is new, after Polak and Ribiere.
            turn = max(0.0, (slope - gradient.along(previous)) / was)
            direction = step.moved(turn, direction)
        size = gradient.best_size(direction)
        if size == 0.0:
            return at, not far
        at = at.moved(size, direction)
        change = size * _length(direction.z)
        enough = max(tol * _length(at.z - origin), rounding * _length(at.z))
        far = change > _FAR * enough
        waited = 0 if change < best else waited + 1
        best = min(best, change)
        if not change > enough or waited > _PATIENCE:
            return at, not far
    return at, False


def _length(values):
    return float(torch.linalg.vector_norm(values))


class _Gradient:
    """The gradient of an objective at a `FullState`, and what it says about steps."""

    def __init__(self, problem, at):
        self.problem, self.at = problem, at
        self.ridge = float(problem.ridge[0])
        self.free = problem.model.network.n_free
        design = problem.low_rank.design
        loss = problem.model.loss
        outputs = loss.weighted_gradient(problem.y, at.z, problem.weights)
        pulled = self.ridge * at.state
        pulled[:, : self.free] = 0.0
        # By the coordinates, and by outputs as seen from outside of them.
        self.inside = design.pull(outputs)[None] + pulled
        self.outside = outputs + self.ridge * at.sources
        self.total = float(loss.total(problem.y, at.z, problem.weights))

    def step(self, curvature):
        """Return minus the low-rank form's inverse Hessian times the gradient."""
        return FullState(*curvature.full_step(self.inside, self.outside))

    def along(self, step):
        """Return the slope of the objective along a step."""
        return float((self.inside * step.state).sum() + (self.outside * step.beyond).sum())

    def _product(self, first, second):
        """Return the inner product of two steps of the penalised parameters."""
        inside = (first.state * second.state)[:, self.free :].sum()
        return float(inside + (first.sources * second.beyond).sum())

    def _bend(self, step):
        """Return the second derivative of the objective along a step."""
        root = self.problem.expand(self.at.z).root[0]
        losses = ((root.mT @ step.z.unsqueeze(-1)) ** 2).sum()
        return float(losses) + self.ridge * self._product(step, step)

    def best_size(self, step):
        """Return the size of a step that lowers the objective most, or at least enough."""
        slope = self.along(step)
        size = -slope / self._bend(step)
        if -slope * size <= _HIDDEN * self.total:
            return size
        along = self.ridge * self._product(self.at, step)
        square = self.ridge * self._product(step, step)
        return line_search(self.problem, self.at.z, step.z, slope, along, square, size)
