"""Rows moved so that the model's loss on them rises: to worst cases nearby, or past the boundary.

Rows are those of `movable_rows`, at ``values`` (n, ...).
"""

import torch

from ..kernels import as_tensor

OVERSHOOT = 1.3
"""Length of a step through the decision boundary, in distances to it."""


def ascend(rows, loss, y, eps, n_steps, step_size):
    """Return the values after steps up the loss by the signs of its derivatives.

    They stay within eps of where they started, in each value: projected gradient ascent. One step
    of size eps is the fast gradient sign method, which where the loss has one output that is
    linear in the values finds the largest loss.

    Parameters
    ----------
    rows : LinearRows or NetworkRows
        Where they start.
    loss : Loss
        Of their outputs.
    y : tensor
        Encoded targets.
    eps : float
        Largest change of a value.
    n_steps : int
        How many steps.
    step_size : float
        Change of a value in one.
    """
    low, high, values = rows.values - eps, rows.values + eps, rows.values
    for _ in range(n_steps):
        slopes = loss.slope(y, rows.outputs(values))
        values = values + step_size * rows.gradient(values, slopes).sign()
        values = torch.minimum(torch.maximum(values, low), high)
    return values


def cross_boundary(rows, n_outputs, coef):
    """Return the values `OVERSHOOT` times the way to the nearest decision boundary.

    With one output ``z = w.x + b`` that is ``x - 1.3 (z / w.w) w``; with several, the boundary is
    between the predicted class and the one that is nearest to taking its place.

    Parameters
    ----------
    rows : LinearRows
        Where they start.
    n_outputs : int
        Outputs that decide.
    coef : (n_outputs, d) array
        Of the linear classifier.
    """
    z, coef = rows.outputs(rows.values)[:, :n_outputs], as_tensor(coef)
    if n_outputs == 1:
        gaps, normals = z, -coef.expand(len(z), 1, -1)
    else:
        best = z.argmax(1)
        gaps = torch.take_along_dim(z, best[:, None], 1) - z
        normals = coef - coef[best][:, None]
    squares = (normals**2).sum(-1)
    apart = squares > 0
    shares = torch.where(apart, gaps / torch.where(apart, squares, 1.0), 0.0)
    distances = torch.where(apart, shares.abs() * squares.sqrt(), torch.inf)
    nearest = distances.argmin(1, keepdim=True)
    normal = torch.take_along_dim(normals, nearest[..., None], 1)[:, 0]
    return rows.values + OVERSHOOT * torch.take_along_dim(shares, nearest, 1) * normal
