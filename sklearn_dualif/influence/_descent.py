r"""Optima of a network's linearisation in all its parameters, its low-rank form as a guide.

With ``Q`` the coordinates of the low-rank form and ``Phi = J Q``, parameters that any optimum can
have are ``Q c + (I - Q Q^T) J^T s``: a *state* ``c`` and *sources* ``s``, one for each output of
the training rows. Their outputs are ``Phi c + E s`` with ``E = J J^T - Phi Phi^T``, whose products
are computed through the network. Gradients are those of the true objective. The inverse Hessian
within the coordinates and that of the ridge alone beyond them turn gradients into steps of
conjugate gradients; they may be inexact, and are made anew where the steps become slow.
"""

from typing import NamedTuple

import torch

from ._problem import line_search

_STEPS = 300
# Steps without a new smallest one: rounding is what is left.
_PATIENCE = 5
# Of the outputs, what rounding may leave of a step.
_ROUNDED = 1e-6
# Slopes are to fall to this share in a step, or the curvature is factorised anew.
_SLOW = 0.2
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
    def fitted(cls, problem):
        """Return a start at the fitted parameters, or at ones like them that promise more.

        An optimum has the sources ``-r / ridge``.
        """
        z, loss = problem.fitted_outputs, problem.model.loss
        none = torch.zeros_like(z)
        plain = cls(problem.start, none, none, z)
        sources = -loss.weighted_gradient(problem.y, z, problem.weights) / problem.ridge[0]
        beyond = problem.low_rank.design.beyond(sources.unsqueeze(-1))[..., 0]
        better = cls(problem.start, sources, beyond, z + beyond)
        if not loss.in_domain(better.z):
            return plain
        before = _objective(problem, plain)
        return better if _objective(problem, better) <= before + _ROUNDED * abs(before) else plain

    def moved(self, size, direction):
        """Return the state after a step."""
        parts = zip(self, direction, strict=True)
        return FullState(*(part + size * step for part, step in parts))


def _objective(problem, at):
    penalized = at.state[:, problem.model.network.n_free :]
    square = float((penalized**2).sum() + (at.sources * at.beyond).sum())
    total = float(problem.model.loss.total(problem.y, at.z, problem.weights))
    return total + 0.5 * float(problem.ridge[0]) * square


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
    slope = smallest = last = torch.inf
    waited, since, patience = 0, 0, 1
    for _ in range(_STEPS):
        gradient = _Gradient(problem, at)
        previous, step = step, gradient.step(curvature)
        was, slope = slope, gradient.along(step)
        if slope < _SLOW * was and since >= patience and not problem.model.loss.quadratic:
            # Each time it takes longer until this is tried again.
            curvature = problem.nystrom(problem.expand(at.z))
            direction, since, patience = None, 0, 2 * patience
            step = gradient.step(curvature)
            slope = gradient.along(step)
        if not (slope < torch.inf and torch.isfinite(step.z).all()):
            return at, False
        if not slope < 0.0:
            return at, True
        if direction is None:
            direction = step
        else:
            # By the share of the gradient that is new, after Polak and Ribiere.
            turn = max(0.0, (slope - gradient.along(previous)) / was)
            direction = step.moved(turn, direction)
            if not gradient.along(direction) < 0.0:
                direction = step
        wanted, size = gradient.sizes(direction)
        change = wanted * _length(direction.z)
        if size > 0.0:
            at = at.moved(size, direction)
        enough = max(tol * _length(at.z - origin), rounding * _length(at.z))
        # Were the steps to shrink on at this rate, their sum; unlike the last one, an error.
        left = change / (1.0 - change / last) if change < last else torch.inf
        if left <= enough:
            return at, True
        settled = change <= _ROUNDED * _length(at.z)
        waited = waited + 1 if settled and change >= smallest else 0
        smallest, last, since = min(smallest, change), change, since + 1
        if size == 0.0 or waited > _PATIENCE:
            return at, settled
    return at, False


def _length(values):
    return float(torch.linalg.vector_norm(values))


class _Gradient:
    """The gradient of an objective at a `FullState`, and what it says about steps."""

    def __init__(self, problem, at):
        self.problem, self.at = problem, at
        self.ridge = float(problem.ridge[0])
        self.free = problem.model.network.n_free
        loss = problem.model.loss
        outputs = loss.weighted_gradient(problem.y, at.z, problem.weights)
        self.total = float(loss.total(problem.y, at.z, problem.weights))
        pulled = self.ridge * at.state
        pulled[:, : self.free] = 0.0
        # By the coordinates, and by outputs as seen from outside of them.
        self.inside = problem.low_rank.design.pull(outputs)[None] + pulled
        self.outside = outputs + self.ridge * at.sources

    def step(self, curvature):
        """Return a step down: the low-rank form's in its coordinates, the ridge's beyond them."""
        state = -curvature.solve(self.inside)
        sources = -self.outside / self.ridge
        beyond = curvature.features.beyond(sources.unsqueeze(-1))[..., 0]
        return FullState(state, sources, beyond, curvature.changes(state) + beyond)

    def along(self, step):
        """Return the slope of the objective along a step."""
        return float((self.inside * step.state).sum() + (self.outside * step.beyond).sum())

    def _product(self, first, second):
        """Return the inner product of two steps of the penalised parameters."""
        inside = (first.state * second.state)[:, self.free :].sum()
        return float(inside + (first.sources * second.beyond).sum())

    def sizes(self, step):
        """Return the size of a step to the minimum as seen from here, and one that is safe."""
        slope, square = self.along(step), self.ridge * self._product(step, step)
        root = self.problem.expand(self.at.z).root[0]
        bend = float(((root.mT @ step.z.unsqueeze(-1)) ** 2).sum()) + square
        size = -slope / bend if bend > 0.0 else 0.0
        if self.problem.model.loss.quadratic or -slope * size <= _HIDDEN * self.total:
            return size, size
        along = size * self.ridge * self._product(self.at, step)
        share = line_search(
            self.problem, self.at.z, size * step.z, size * slope, along, size**2 * square
        )
        return size, share * size
