"""Seconds, bytes and agreement, measured the same way for every contender."""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def interleave(contenders, repeats):
    """Time the contenders in turn, so that a slow spell of the machine hits all of them.

    Parameters
    ----------
    contenders : dict of str to callable
        Work to time, by name.
    repeats : dict of str to int
        How often each is run, by name; at least 1.

    Returns
    -------
    seconds : dict of str to list of float
        Wall-clock seconds of every run.
    results : dict
        What the last run of each returned.
    """
    seconds = {name: [] for name in contenders}
    results = {}
    for turn in range(max(repeats.values())):
        for name, work in contenders.items():
            if turn >= repeats[name]:
                continue
            results.pop(name, None)
            gc.collect()
            start = time.perf_counter()
            results[name] = work()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def _resident(field):
    """Bytes of a memory field of ``/proc/self/status``."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{_STATUS} has no field {field!r}.")


def peak_growth(work):
    """Bytes by which the resident memory rises above its level before `work`, at the peak.

    Linux can reset the high-water mark of a process; elsewhere the mark of the whole process so
    far is taken, which understates the growth when the preparations needed more than the work.
    """
    gc.collect()
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        kept = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    else:
        before = _resident("VmRSS")
        kept = work()
        peak = _resident("VmHWM")
    del kept
    return peak - before


def agreement(predicted, refitted):
    """How well predicted effects agree with those of refits, over all entries pooled.

    Parameters
    ----------
    predicted, refitted : ndarray of the same shape
        Effects of removal.

    Returns
    -------
    dict
        `pearson`; `slope` of predicted on refitted (1: no shrinking; 0.8: effects are
        understated by a fifth); `slope back` of refitted on predicted; `spearman`; `rms error`,
        the root mean square of the difference relative to that of the refits.
    """
    predicted, refitted = np.ravel(predicted).astype(float), np.ravel(refitted)
    x, y = refitted - refitted.mean(), predicted - predicted.mean()
    return {
        "pearson": float(x @ y / np.sqrt((x @ x) * (y @ y))),
        "slope": float(x @ y / (x @ x)),
        "slope back": float(x @ y / (y @ y)),
        "spearman": float(spearmanr(predicted, refitted).statistic),
        "rms error": float(np.linalg.norm(predicted - refitted) / np.linalg.norm(refitted)),
    }
