"""Agreement of predicted with refitted effects, with intervals over the removals."""

import numpy as np

_RESAMPLES = 2000
_COVERAGE = 0.95
_FEWEST = 3


def agreement(predicted, refitted, generator):
    """Return R², slope and correlation of effects, and their intervals, by name.

    Parameters
    ----------
    predicted, refitted : (n_removals, n_queries) array
        Effects.
    generator : RandomState
        Draws the resamples.

    Returns
    -------
    dict
        "r2", "slope" and "pearson", and "r2_interval" and so on: 95 % percentile intervals of a
        bootstrap over the removals. NaN where the refitted effects are all equal, intervals also
        of fewer than 3 removals.
    """
    sums = _sums(predicted, refitted)
    values = _measures(np.ones((1, len(sums))) @ sums)
    spread = _measures(_resamples(len(sums), generator) @ sums)
    result = {}
    for name, value in values.items():
        result[name] = float(value[0]) if len(value) else np.nan
        result[f"{name}_interval"] = interval(spread[name])
    return result


def interval(values):
    """Return the 95 % percentile interval of resampled values; NaN of none."""
    if not len(values):
        return (np.nan, np.nan)
    low, high = np.quantile(values, [0.5 - _COVERAGE / 2, 0.5 + _COVERAGE / 2])
    return float(low), float(high)


def _resamples(n, generator):
    """Return how often each resample holds each removal, (m, n); two removals at least."""
    if n < _FEWEST:
        return np.empty((0, n))
    counts = generator.multinomial(n, np.full(n, 1.0 / n), size=_RESAMPLES)
    return counts[counts.max(1) < n]


def _sums(predicted, refitted):
    """Return what the measures need of each removal, (n, 7), about the common means."""
    p = predicted - predicted.mean() if np.ptp(predicted) else np.zeros_like(predicted)
    r = refitted - refitted.mean() if np.ptp(refitted) else np.zeros_like(refitted)
    error = refitted - predicted
    parts = (np.ones_like(p), p, r, p * p, p * r, r * r, error * error)
    return np.stack([part.sum(1) for part in parts], 1)


def _measures(sums):
    """Return R², slope and correlation, (m,) each, of sums (m, 7) of `_sums`."""
    sums = sums[sums[:, 5] * sums[:, 0] > sums[:, 2] ** 2]
    n, p, r, pp, pr, rr, error = sums.T
    predicted, refitted, common = pp - p * p / n, rr - r * r / n, pr - p * r / n
    varies = predicted > 0
    slope, pearson = np.zeros_like(n), np.zeros_like(n)
    np.divide(common, predicted, out=slope, where=varies)
    np.divide(common, np.sqrt(predicted.clip(0.0) * refitted), out=pearson, where=varies)
    return {"r2": 1.0 - error / refitted, "slope": slope, "pearson": np.clip(pearson, -1.0, 1.0)}
