"""Where a concave function is largest, by damped Newton steps."""

import numpy as np

_MAX_STEPS = 50
_TIGHT = 1e-6


def maximised(value, derivatives, x, units):
    """Return where a concave function is largest, (k,).

    Parameters
    ----------
    value : callable
        Of x; minus infinity outside of the domain.
    derivatives : callable
        Of x: the gradient (k,) and minus the second derivatives (k, k), which may be singular.
    x : (k,) array
        Where to start.
    units : (k,) array
        The gradient times these is to vanish.
    """
    best = value(x)
    for _ in range(_MAX_STEPS):
        gradient, curvature = derivatives(x)
        if not len(x) or np.abs(units * gradient).max() < _TIGHT:
            break
        step, size = np.linalg.lstsq(curvature, gradient, rcond=1e-12)[0], 1.0
        rise, rounding = gradient @ step, 1e-12 * abs(best)
        while size > 1e-8:
            found = value(x + size * step)
            if found >= best + 1e-4 * size * rise - rounding:
                break
            size *= 0.5
        else:
            break
        x, best = x + size * step, found
    return x
