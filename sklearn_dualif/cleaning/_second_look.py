"""What a model without the suspects says of each training row.

Wrong rows stand up for each other: of two digits mislabelled alike, either is what makes the model
without the other believe it. So the suspects are removed together.

From models that are linear in their parameters one Newton step takes them, and each row is then
left out by itself; for residuals, which have no bound, the optimum without the suspects is found
and each row is left out of that. A tenth of the rows is more than a network's linearisation stands,
and a network that knows its rows by heart makes too much of each. It is therefore fitted again
without the suspects, and once more without those that are suspect then. Those are judged by a
network that has not seen them. The odds of the other labels are best told by that network, too,
which has seen them: it was trained on right rows mostly. Residuals of the other rows are those of
leaving each out.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import _safe_indexing

from .._refitting import Refits
from ..exceptions import InfluenceWarning, UnsupportedOptionError
from ..influence import InfluenceEngine, build_engine
from ._held_out import output_changes, without


class Look(NamedTuple):
    """What a model says of each training row.

    Attributes
    ----------
    outputs : (n, C) array
        The model's own outputs, C of them.
    leverage : (n,) array
        Of the rows, in the model that they were left out of; 0 of rows that were never in it.
    suspects : (n,) bool array
        Rows that the model was made without.
    unseen : (n,) bool array
        Rows that the model was not trained on.
    """

    outputs: np.ndarray
    leverage: np.ndarray
    suspects: np.ndarray
    unseen: np.ndarray


def first_look(influence):
    """Return what the model without each row says of it, a `Look` without suspects."""
    outputs = _own(influence, influence._engine.loo_outputs())
    n = len(outputs)
    return Look(outputs, influence.leverage_, np.zeros(n, dtype=bool), np.ones(n, dtype=bool))


def second_look(influence, first, suspects_of, *, residuals=False):
    """Return what the model without the suspects says of each row, a `Look`.

    Parameters
    ----------
    influence : InfluenceEstimator
        Fitted.
    first : Look
        Of `first_look`.
    suspects_of : callable
        Gives the suspects, a bool array (n,), of a `Look`.
    residuals : bool
        Whether rows that are not suspect are left out of the last fit one by one.
    """
    suspects = suspects_of(first)
    if not suspects.any():
        return first
    if residuals and type(influence._engine) is InfluenceEngine and not influence._engine.damped:
        return _by_optimum(influence, suspects)
    if influence._engine.moves_to_optimum:
        outputs = _by_newton_step(influence, suspects)
        return first._replace(outputs=outputs, suspects=suspects)
    try:
        refits = Refits.of(influence)
    except UnsupportedOptionError:  # nobody but its owner can train it
        return first._replace(suspects=suspects)
    suspects = suspects_of(_by_refit(influence, suspects))
    if not suspects.any():
        return first
    if residuals:
        return _by_refit(influence, suspects)
    outputs = refits.outputs(np.flatnonzero(suspects), influence._X_train)
    return first._replace(outputs=_own(influence, outputs), suspects=suspects, unseen=suspects)


def _own(influence, outputs):
    return np.asarray(outputs)[:, : influence._engine.model.n_outputs]


def _by_newton_step(influence, suspects):
    """Return each row's outputs without itself and without all suspects."""
    engine = influence._engine
    # Without the suspects, none of them has a part of its own in the model any more.
    outputs = torch.where(torch.from_numpy(suspects)[:, None], engine.z, engine.loo_outputs())
    return _own(influence, outputs + output_changes(engine, np.flatnonzero(suspects)))


def _by_optimum(influence, suspects):
    """Return what the optimum without the suspects says of each row that it is without, too."""
    engine = influence._engine
    problem = engine.problem.without(torch.from_numpy(suspects))
    with warnings.catch_warnings():
        # It is not the model as fitted, and is not meant to be.
        warnings.simplefilter("ignore", InfluenceWarning)
        again = build_engine(
            problem, None, order=engine.order, batch_size=engine.batch_size, frozen=False
        )
        outputs, leverage = _own(influence, again.loo_outputs()), again.leverage().numpy()
    return Look(outputs, leverage, suspects, np.ones(len(suspects), dtype=bool))


def _by_refit(influence, suspects):
    """Return what a model fitted without the suspects says of each row that it is without, too."""
    again = without(influence, suspects)
    model, n = again._engine.model, len(suspects)
    outputs, leverage = np.empty((n, model.n_outputs)), np.zeros(n)
    held_out = model.features(_safe_indexing(influence._X_train, np.flatnonzero(suspects)))
    outputs[suspects] = _own(again, model.outputs(held_out))
    outputs[~suspects] = _own(again, again._engine.loo_outputs())
    leverage[~suspects] = again.leverage_
    return Look(outputs, leverage, suspects, np.ones(n, dtype=bool))
