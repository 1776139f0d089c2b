"""Removals run to their optimum: equal to a refit for every convex model.

One group takes damped Newton steps on the rows that stay. All single removals at once share the
curvature of the full data, minus each one's own row: a simplified Newton iteration whose cost is
that of a few passes over the data, since one row moves the others' curvature little. Rows for
which that is not so are finished one at a time.
"""

import warnings

import torch

from ..exceptions import InfluenceWarning
from ..losses import weigh
from ..models import class_codes
from ._problem import minimise

_STEPS = 60
_TIGHT = 1e-12
_BLOCK_DOUBLES = 6 * 2**20


def remove_exactly(problem, state, z, curvature, rows):
    """Return the state change (G, D, 1) that removing ``rows`` together makes at the optimum."""
    if problem.model.loss.quadratic:
        return curvature.remove(rows)
    kept = problem.without(rows)
    start = curvature.remove(rows)
    return _from_start(kept, curvature, state, z, start)


def relabel_exactly(problem, state, z, curvature, start):
    """Return the state change of an edited problem, from a first guess of it."""
    return _from_start(problem, curvature, state, z, start)


def _from_start(problem, curvature, state, z, start):
    design = curvature.design(problem.features)
    guess = z + curvature.output_changes(design, start)[:, 0]
    if not problem.model.loss.in_domain(guess) or _objective_rises(problem, z, guess):
        start, guess = torch.zeros_like(start), z
    found = minimise(problem, state + start, guess)
    if not found.converged:
        found = minimise(problem, state, z)
    if not found.converged:
        raise no_optimum()
    return found.state - state


def no_optimum():
    """Return the error of rows without which the objective has no optimum."""
    return ValueError(
        "order='exact' found no optimum of the objective after this change of rows (classes that "
        "become separable without a penalty have none). Use order='newton', or give the model a "
        "ridge."
    )


def _objective_rises(problem, z, guess):
    """Tell whether a first guess is so far off that the start itself is the better start."""
    loss, y, weights = problem.model.loss, problem.y, problem.weights
    return not loss.total(y, guess, weights) <= 10.0 * abs(loss.total(y, z, weights)) + 1e3


def leave_one_out_states(problem, state, z, curvature, newton):
    """Yield (rows, states) of every single removal at its optimum, a block of columns at a time.

    Parameters
    ----------
    problem, state, z, curvature
        The full optimum.
    newton : LeaveOneOut
        Newton's removals, the starting points.
    """
    n = problem.features.shape[0]
    alone = _alone_in_class(problem)
    if bool(alone.any()):
        row = int(torch.nonzero(alone)[0, 0])
        warnings.warn(
            f"Row {row} is the last row of its class, and no refit keeps a class without rows; its "
            "effects are those of order='newton'.",
            InfluenceWarning,
            stacklevel=2,
        )
    width = max(1, min(n, _BLOCK_DOUBLES // (n * z.shape[1])))
    for rows in torch.arange(n).split(width):
        yield rows, _block_of_removals(problem, curvature, state, z, newton, rows, alone[rows])


def _block_of_removals(problem, curvature, state, z, newton, rows, alone):
    """Return the exact states (G, D, b) of single removals."""
    states = curvature.removal_states(rows, newton)
    if problem.model.loss.quadratic:
        return states
    fixed = newton.degenerate[rows] | alone
    active = torch.nonzero(~fixed)[:, 0]
    design = curvature.design(problem.features)
    shares = None if problem.shares is None else problem.shares[rows]
    downdate = _Downdate(curvature, rows, shares)
    previous = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    stalled = []
    for _ in range(_STEPS):
        if not len(active):
            break
        step = downdate.solve(
            _kept_gradients(problem, curvature, design, state, z, states, rows, shares, active),
            active,
        )
        # Measured on the row itself and on the spread of all others.
        size = curvature.output_changes(design, step).abs().amax((0, 2))
        scale = 1.0 + z.abs().max()
        bad = ~(size < 0.7 * previous[active]) & (size > _TIGHT * scale)
        at_floor = bad & (size < 1e-9 * scale)
        bad &= ~at_floor
        stalled += active[bad].tolist()
        states[:, :, active[~bad]] -= step[:, :, ~bad]
        previous[active] = size
        active = active[~bad & ~at_floor & (size > _TIGHT * scale)]
    for column in stalled + active.tolist():
        single = rows[column : column + 1]
        states[:, :, column] = remove_exactly(problem, state, z, curvature, single)[..., 0]
    return states


def _kept_gradients(problem, curvature, design, state, z, states, rows, shares, active):
    """Return the gradients (G, D, m) of the objectives without each row, at state + states."""
    moved = z[:, None] + curvature.output_changes(design, states[:, :, active])
    loss, y = problem.model.loss, problem.y
    gradient = loss.gradient(y.unsqueeze(1).expand(-1, len(active), *y.shape[1:]), moved)
    weights = problem.weights if problem.weights.ndim == 2 else problem.weights[:, None]
    gradient = weigh(weights[:, None], gradient)
    gradient[rows[active], torch.arange(len(active))] = 0.0
    n, m, _ = gradient.shape
    blocks = problem.layout.to_blocks(gradient.flatten(0, 1))
    blocks = blocks.reshape(blocks.shape[0], n, m, -1).transpose(2, 3)
    ridge = problem.ridge[:, None, None]
    if shares is not None:
        ridge = ridge - shares[active]
    penalty = curvature.ridge_gradient(state + states[:, :, active], ridge)
    return curvature.sum_gradients(blocks) + penalty


class _Downdate:
    """Solves with the full Hessian less one row a column, and less its penalty share."""

    def __init__(self, curvature, rows, shares):
        self.curvature, self.rows, self.shares = curvature, rows, shares
        self.root = curvature.expansion.root[:, rows]
        quadratics = curvature.row_quadratics(rows, shares)
        eye = torch.eye(self.root.shape[-1], dtype=torch.float64)
        self.inverse = torch.linalg.pinv(eye - self.root.mT @ quadratics @ self.root)

    def solve(self, gradients, active):
        """Return the solutions (G, D, m) for the columns ``active``."""
        rows = self.rows[active]
        shift = None if self.shares is None else self.shares[active]
        solution = self.curvature.solve(gradients, shift)
        own = self.curvature.own_outputs(rows, solution).unsqueeze(-1)
        root = self.root[:, active]
        pushed = (root @ (self.inverse[:, active] @ (root.mT @ own))).squeeze(-1)
        return solution + self.curvature.solve(self.curvature.row_gradients(rows, pushed), shift)


def _alone_in_class(problem):
    """Tell which rows are the only one of their class, whose removal has no optimum to find."""
    if problem.model.targets.classes is None:
        return torch.zeros(len(problem.y), dtype=torch.bool)
    y = class_codes(problem.y)
    weighted = problem.weights if problem.weights.ndim == 1 else problem.weights.sum(1)
    counts = torch.zeros(int(y.max()) + 1, dtype=torch.long)
    counts.index_add_(0, y[weighted > 0], torch.ones_like(y[weighted > 0]))
    return (counts[y] == 1) & (weighted > 0)
