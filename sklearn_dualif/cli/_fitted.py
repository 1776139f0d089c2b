"""The model of a call, fitted on four fifths of the rows to be checked, and on all to be asked."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import clone
from sklearn.metrics import log_loss

from ._errors import InputError
from ._model import influence_for
from ._model_file import influence_around, load_model, plain

_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Chosen:
    """A model that was chosen and not fitted yet, and the rows as it takes them.

    Attributes
    ----------
    influence : InfluenceEstimator
        Not fitted.
    name : str
    X : DataFrame
        Features of the rows with a target.
    everything : DataFrame
        Of all rows.
    train, held_out : arrays of int
        Positions among the rows with a target.
    """

    influence: object
    name: str
    X: object
    everything: object
    train: np.ndarray
    held_out: np.ndarray


def parse_model(text, trusted):
    """Return the name of a model that is offered, None, or (estimator, path) from a file."""
    kind, colon, path = (text or "").partition(":")
    if not colon:
        return text
    return load_model(kind, path, trusted), path


def choose(dataset, model, random_state):
    """Return what is `Chosen` for a `Dataset`."""
    train, held_out = split(dataset.y, dataset.target.task, random_state)
    X, y, task = dataset.X, dataset.y, dataset.target.task
    everything = dataset.everything
    if isinstance(model, tuple):
        influence, columns, name = influence_around(model[0], X, model[1], task)
        X, everything = plain(X[columns]), plain(everything[columns])
    else:
        influence, name = influence_for(model, X.iloc[train], y.iloc[train], task, random_state)
    return Chosen(influence, name, X, everything, train, held_out)


def split(y, task, random_state):
    """Return positions to train on and to hold out: a fifth of each class, drawn at random.

    Classes of fewer than five rows are not held out.
    """
    labels = np.asarray(y) if task == "classification" else np.zeros(len(y), dtype=int)
    generator = np.random.default_rng(random_state)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out[rows[_FOLDS - 1 :: _FOLDS]] = True
    if not held_out.any():
        raise InputError(
            f"no class of the target has {_FOLDS} rows, so that none can be held out to check the "
            "model. Pass more rows, or --task regression."
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def evenly(rows, most):
    """Return at most about ``most`` of some rows, evenly spread."""
    return rows[:: max(1, len(rows) // most)]


def fitted(chosen, y, rows=slice(None)):
    """Return the chosen estimator fitted on some rows."""
    try:
        return clone(chosen.influence).fit(chosen.X.iloc[rows], y.iloc[rows])
    except (TypeError, ValueError) as error:
        raise InputError(f"the {chosen.name} cannot be fitted on these columns: {error}") from error


def held_out_scores(influence, X, y, task):
    """Return scores of a fitted model on held-out rows by name, and those of a guess.

    The guess is the most frequent class or the mean.
    """
    if task == "regression":
        return {"r2": float(influence.score(X, y))}, {"r2": 0.0}
    scores = {"accuracy": float(influence.score(X, y))}
    guess = {"accuracy": float(y.value_counts(normalize=True).max())}
    if hasattr(influence, "predict_proba"):
        proba = influence.predict_proba(X)
        scores["log_loss"] = float(log_loss(y, proba, labels=influence.classes_))
    return scores, guess


def is_no_better(influence, X, y, task):
    """Tell whether held-out rows leave it open that a model is better than a guess.

    It is by the mean of what each row's loss gains, of less than two standard errors.
    """
    if task == "regression":
        gains = (y - y.mean()) ** 2 - (y - influence.predict(X)) ** 2
    elif hasattr(influence, "predict_proba"):
        proba = influence.predict_proba(X)
        given = proba[np.arange(len(y)), np.searchsorted(influence.classes_, y)]
        shares = y.map(y.value_counts(normalize=True)).to_numpy(dtype=float)
        gains = np.log(np.maximum(given, np.finfo(float).tiny)) - np.log(shares)
    else:
        gains = (influence.predict(X) == y).astype(float) - (y == y.mode()[0])
    gains = np.asarray(gains, dtype=float)
    return not gains.mean() > 2.0 * gains.std() / np.sqrt(len(gains))
