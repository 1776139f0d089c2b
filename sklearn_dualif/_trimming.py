"""Rows to drop, a few at a time, to move an objective without losing accuracy."""

from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.parallel import Parallel, delayed

from ._refitting import Refits
from .exceptions import UnsupportedOptionError
from .objectives import resolve_objective


@dataclass(frozen=True, eq=False, kw_only=True)
class Trimming:
    """What `InfluenceEstimator.trim_for` found.

    Attributes
    ----------
    rows : (n_dropped,) array
        Positions of the training rows to drop, in the order of the steps.
    n_removed : (n_steps + 1,) array
        Rows dropped up to each step; the first is 0.
    objective, score : (n_steps + 1,) arrays
        Predicted objective, and accuracy or R², on the query rows.
    refitted_objective, refitted_score : (n_steps + 1,) arrays or None
        The same of refits without the rows, if they were asked for; the first is the model as
        fitted.
    stopped : str
        Why no more rows are dropped.
    estimator : estimator
        A fitted copy of the wrapped estimator without the influence of ``rows``.
    """

    rows: np.ndarray
    n_removed: np.ndarray
    objective: np.ndarray
    score: np.ndarray
    refitted_objective: np.ndarray | None
    refitted_score: np.ndarray | None
    stopped: str
    estimator: object = field(repr=False)

    def frame(self):
        """Return the path as a data frame, one row a step.

        Returns
        -------
        DataFrame
            With the columns n_removed, objective, score and, if there are refits,
            refitted_objective and refitted_score.
        """
        import pandas as pd

        names = ["n_removed", "objective", "score", "refitted_objective", "refitted_score"]
        columns = {name: getattr(self, name) for name in names}
        return pd.DataFrame({key: value for key, value in columns.items() if value is not None})

    def __repr__(self):
        return (
            f"<Trimming: {len(self.rows)} rows, objective {self.objective[0]:.4g} to "
            f"{self.objective[-1]:.4g}, score {self.score[0]:.4g} to {self.score[-1]:.4g}; "
            f"{self.stopped}>"
        )


def trim(influence, objective, X, y, *, step, max_removed, max_loss, order, refit, n_jobs):
    """Return the `Trimming` of a fitted InfluenceEstimator; see its `trim_for`."""
    order = influence.order if order is None else order
    engine = influence._engine
    n_train = len(influence._sample_weight)
    step, limit = _count("step", step, n_train), _count("max_removed", max_removed, n_train)
    _check_loss(max_loss)
    if isinstance(objective, str) and objective in ("prediction", "margin"):
        raise UnsupportedOptionError(
            f"objective={objective!r} has no value that could be better or worse. Trim for a gap, "
            "'loss' or an objective of your own."
        )
    bound = resolve_objective(objective, engine.model)
    refits = Refits.of(influence) if refit else None
    if refit and bound.moves_rows:
        raise UnsupportedOptionError(
            "refit=True evaluates refits on the rows X, and this objective is about others that "
            "it makes of them. Use refit=False."
        )
    features, targets = bound.queries(X, y)
    path = _Path(influence, bound, features, targets, y, order)
    stopped = path.drop(step, limit, max_loss)
    refitted = (None, None)
    if refit:
        refitted = path.refitted(refits, X, n_jobs)
    return Trimming(
        rows=np.array(path.rows, dtype=np.intp),
        n_removed=np.array(path.sizes),
        objective=np.array(path.values),
        score=np.array(path.scores),
        refitted_objective=refitted[0],
        refitted_score=refitted[1],
        stopped=stopped,
        estimator=influence.unlearn(path.rows, order=order),
    )


class _Path:
    """Rows that are dropped so far, and what is predicted without them.

    Parameters
    ----------
    influence : InfluenceEstimator
    objective : BoundObjective
        Prepared for the queries.
    features, targets, y
        The queries, their encoded targets, and these as the caller gave them.
    order : str
        Of the removals.
    """

    def __init__(self, influence, objective, features, targets, y, order):
        self.influence, self.engine = influence, influence._engine
        self.objective, self.features, self.targets = objective, features, targets
        self.y, self.order = np.asarray(y), order
        self.z = self.engine.query_outputs(features, order)
        self.rows, self.sizes = [], [0]
        self.values, self.scores = [self._value(self.z)], [self._score(self.z)]
        self._moved = self.z

    def drop(self, step, limit, max_loss):
        """Drop rows step by step; return why it ended."""
        while len(self.rows) < limit:
            if self.values[-1] == 0.0:
                return "the objective is zero"
            size = min(step, limit - len(self.rows))
            chosen = self._next(size)
            if not len(chosen):
                return "no row brings the objective closer to zero"
            reason = "ends"
            while len(chosen):
                found = self._without([*self.rows, *chosen])
                reason = self._against(found, max_loss)
                if reason is None:
                    break
                chosen = chosen[: len(chosen) // 2]
            if not len(chosen):
                return reason
            z, value, score = found
            self._moved = z
            self.rows += chosen
            self.sizes.append(len(self.rows))
            self.values.append(value)
            self.scores.append(score)
        return f"the most rows that may be dropped, {limit}"

    def _next(self, size):
        """Return up to ``size`` rows whose removal brings the objective closest to zero.

        Effects are linear at the outputs without the rows dropped before.
        """
        slopes = self._slopes(self._moved)
        order = "first" if self.order == "first" else "newton"
        effects = self.engine.linear_influence(self.features, slopes, order).numpy()
        value = self.values[-1]
        towards = -np.sign(value) * effects
        towards[self.rows] = -np.inf
        towards[self.influence._sample_weight <= 0] = -np.inf
        best = np.argsort(-towards, kind="stable")[:size]
        best = best[towards[best] > 0.0]
        if not len(best):
            return []
        # No further than to zero.
        reached = np.searchsorted(np.cumsum(towards[best]), abs(value))
        return best[: max(1, reached)].tolist()

    def _against(self, found, max_loss):
        """Return what speaks against a step, or None."""
        _, value, score = found
        if np.sign(value) == -np.sign(self.values[-1]):
            return "the next rows would change the sign of the objective"
        if abs(value) >= abs(self.values[-1]):
            return "the next rows would bring the objective no closer to zero"
        if score < self.scores[0] - max_loss:
            return f"the next rows would lower the score by more than {max_loss:g}"
        return None

    def _without(self, rows):
        """Return outputs (t, C), objective and score without some rows."""
        rows = torch.as_tensor(sorted(rows))
        state = self.engine.removal_state(rows, self.order)
        z, dz = self.engine._moved_outputs(state, self.features, self.order)
        moved = z + dz[:, 0]
        return moved, self._value(moved), self._score(moved)

    def _value(self, z):
        return float(self.objective.value(z, self.targets).mean())

    def _slopes(self, z):
        slopes = self.objective.gradient(z, self.targets)
        return slopes if self.objective.aggregate else slopes / len(slopes)

    def _score(self, z):
        model, conversion = self.engine.model, self.influence._conversion
        shown = model.from_outputs("predict", z[:, : model.n_outputs].numpy())
        predicted = conversion.predictions(shown)
        metric = r2_score if model.targets.classes is None else accuracy_score
        return float(metric(self.y, predicted))

    def refitted(self, refits, X, n_jobs):
        """Return objectives and scores (n_steps + 1,) of refits."""
        parts = [self.rows[:size] for size in self.sizes[1:]]
        outputs = Parallel(n_jobs=n_jobs)(delayed(refits.outputs)(part, X) for part in parts)
        outputs = [self.engine.model.outputs(self.features), *map(torch.from_numpy, outputs)]
        values = [self._value(z) for z in outputs]
        return np.array(values), np.array([self._score(z) for z in outputs])


def _count(name, value, n_rows):
    """Return the number of rows that a number or a share stands for."""
    if isinstance(value, Integral) and not isinstance(value, bool) and 1 <= value < n_rows:
        return int(value)
    share = isinstance(value, Real) and not isinstance(value, bool | Integral)
    if share and 0.0 < value < 1.0:
        return max(1, round(value * n_rows))
    raise ValueError(
        f"{name}={value!r} must be a share between 0 and 1 of the {n_rows} training rows, or a "
        "whole number of them below all."
    )


def _check_loss(max_loss):
    number = isinstance(max_loss, Real) and not isinstance(max_loss, bool)
    if not (number and max_loss >= 0):
        raise ValueError(
            f"max_loss={max_loss!r} must be a number >= 0: how much lower the score may become."
        )
