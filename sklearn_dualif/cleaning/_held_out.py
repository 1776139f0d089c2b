"""What rows do to losses of rows that the model was not trained on, singly and in groups."""

import warnings

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from .._refitting import unfrozen
from ..exceptions import InfluenceWarning
from ..influence import mean_relabel_effects
from ..objectives import resolve_objective


class ValidationLoss:
    """The mean loss over validation rows.

    Parameters
    ----------
    influence : InfluenceEstimator
        Fitted.
    X, y : array-like
        Validation rows and targets.
    """

    name = "X_val"

    def __init__(self, influence, X, y):
        self.influence, self.engine = influence, influence._engine
        self.objective = resolve_objective("loss", self.engine.model)
        self.features, self.targets = self.objective.queries(X, y)

    def removals(self):
        """Return the effect of removing each training row, (n,)."""
        engine = self.engine
        effects = engine.mean_influence(self.features, self.targets, self.objective, engine.order)
        return effects.numpy()

    def relabels(self, rows, y_new):
        """Return the effect of giving each of some training rows its own new target, (b,)."""
        rows = torch.as_tensor(rows)
        targets, weights = self.influence._new_targets(rows, y_new)
        effects = mean_relabel_effects(
            self.engine, rows, targets, weights, self.features, self.targets, self.objective
        )
        return effects.numpy()

    def group(self, rows):
        """Return the effect of removing training rows together on each validation row."""
        engine = self.engine
        state = engine.removal_state(torch.as_tensor(rows), engine.order)
        effects = engine.state_effect(
            state, self.features, self.targets, self.objective, engine.order
        )
        return effects.numpy()


class CrossValidatedLoss:
    """The mean loss over all rows that are not suspect, each of which is held out once.

    Each fold is a fifth of the rows, every fifth one of a class. It is left out of a fit, and the
    effects of the rows in that fit are on its mean loss; of more than ``_MOST`` rows, on that of
    about so many, evenly spread. A row's effect is the mean over the folds that it is not in. The
    only row of a class is in every fit.

    The loss on the training rows themselves would not do, as its gradient vanishes at the optimum;
    nor would leave-one-out losses, whose gradients all but cancel.

    Parameters
    ----------
    influence : InfluenceEstimator
        Fitted.
    suspects : (n,) bool array
        Rows whose losses don't count, since their targets may be wrong.
    labels : (n,) array or None
        Class of each row.
    """

    name = "cross-validation"

    def __init__(self, influence, suspects, labels=None):
        X, y = indexable(influence._X_train, influence._y_train)
        counted = (influence._sample_weight > 0) & ~suspects
        self.n_rows = len(suspects)
        self.folds = []
        folds = _fold_of_each(np.zeros(self.n_rows, dtype=int) if labels is None else labels)
        for fold in range(_FOLDS):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero((folds == fold) & counted)
            if not len(test) or len(train) < 2:
                continue
            test = test[:: max(1, len(test) // _MOST)]
            estimator = without(influence, folds == fold)
            loss = ValidationLoss(estimator, *_safe_split(estimator, X, y, test, train))
            place = np.full(self.n_rows, -1)
            place[train] = np.arange(len(train))
            self.folds.append((loss, place, test))

    def removals(self):
        """Return the effect of removing each training row, (n,)."""
        effects = [_placed(loss.removals(), place) for loss, place, _ in self.folds]
        return _mean_of_known(effects, self.n_rows)

    def relabels(self, rows, y_new):
        """Return the effect of giving each of some training rows its own new target, (b,)."""
        effects = []
        for loss, place, _ in self.folds:
            inside = place[rows] >= 0
            values = np.full(len(rows), np.nan)
            values[inside] = loss.relabels(place[rows[inside]], y_new[inside])
            effects.append(values)
        return _mean_of_known(effects, len(rows))

    def group(self, rows):
        """Return the effect of removing training rows together on each other row held out."""
        effects = []
        for loss, place, test in self.folds:
            inside = place[rows][place[rows] >= 0]
            if len(inside) < (place >= 0).sum():
                effects.append(loss.group(inside)[~np.isin(test, rows)])
        return np.concatenate([[], *effects])


_FOLDS = 5
_MOST = 500


def _fold_of_each(labels):
    """Return a fold of each row: every fifth row of a class is in the same, -1 is in none."""
    folds = np.full(len(labels), -1)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            folds[rows] = np.arange(len(rows)) % _FOLDS
    return folds


def _placed(values, place):
    """Return values (n,) of the rows of a fit where they are among all rows, else NaN."""
    return np.where(place >= 0, values[place], np.nan)


def _mean_of_known(columns, n_rows):
    """Return the mean (n,) of the values that are no NaN; 0 without any."""
    values = np.reshape(columns, (-1, n_rows))
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(0) / np.maximum(known.sum(0), 1)


def without(influence, removed):
    """Return an InfluenceEstimator fitted like another, without some of its rows.

    Parameters
    ----------
    influence : InfluenceEstimator
        Fitted.
    removed : (n,) bool array
        Rows to leave out.
    """
    X, y = indexable(influence._X_train, influence._y_train)
    kept = np.flatnonzero(~removed)
    estimator = clone(influence).set_params(estimator=unfrozen(influence.estimator))
    rows, targets = _safe_split(estimator, X, y, kept)
    params = _check_method_params(X, influence._fit_params, kept)
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        # The fit on all rows has warned already.
        warnings.simplefilter("ignore", InfluenceWarning)
        torch.set_rng_state(influence._torch_state)
        return estimator.fit(rows, targets, **params)


def output_changes(engine, rows):
    """Return the change (n, C) of the training rows' outputs when rows are removed together."""
    state = engine.removal_state(torch.as_tensor(rows), engine.order)
    return engine._moved_outputs(state, engine.problem.features, engine.order)[1][:, 0]


def on_loss(effect):
    """Return what an effect does to the held-out loss, in words."""
    size = f"{abs(effect):.2g}" if abs(effect) < 10.0 else f"{abs(effect):.0f}"
    return f"{'lowers' if effect < 0 else 'raises'} the held-out loss by {size}"
