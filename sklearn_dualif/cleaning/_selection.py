"""Which rows of a ranking to act on, and the training set afterwards."""

import numpy as np

from ..exceptions import UnsupportedOptionError


def auto_rows(ranking):
    """Return the rows (m,) that are probably wrong, the worst first; see `find_issues`."""
    return _disputed(ranking)[: ranking.evidence.n_wrong]


def select_rows(ranking, contamination):
    """Return the rows (m,) that a contamination stands for, the worst first.

    Parameters
    ----------
    ranking : Ranking
        Of the training rows.
    contamination : "auto" or float
        The rows that are probably wrong; or a share of all rows, of which only those count whose
        label the model without them disputes.
    """
    if contamination == "auto":
        return auto_rows(ranking)
    return _disputed(ranking)[: round(contamination * len(ranking.order))]


def _disputed(ranking):
    return ranking.order[ranking.evidence.disputed[ranking.order]]


def check_strategy(ranking, strategy):
    """Raise for new labels where targets are numbers."""
    if strategy == "relabel" and ranking.evidence.kind == "target":
        raise UnsupportedOptionError(
            "strategy='relabel' is for classifiers: a row of a regression that is given its own "
            "leave-one-out prediction changes nothing that its removal does not. Use 'remove'."
        )


def without_rows(ranking, rows):
    """Return the positions of the other rows; raise if a class has none left."""
    kept = np.ones(len(ranking.order), dtype=bool)
    kept[rows] = False
    if ranking.evidence.kind == "label":
        _check_classes_stay(ranking, ranking.evidence.given[kept], "Removing", len(rows))
    return np.flatnonzero(kept)


def relabelled(ranking, rows, y):
    """Return targets with the suggested labels of rows; raise if a class has no row left."""
    suggested = ranking.evidence.suggested[rows]
    after = ranking.evidence.given.copy()
    after[rows] = ranking.influence._engine.model.targets.index(suggested)
    _check_classes_stay(ranking, after, "Relabelling", len(rows))
    y = y.copy() if hasattr(y, "iloc") else np.array(y)
    if hasattr(y, "iloc"):
        y.iloc[rows] = suggested
    else:
        y[rows] = suggested.reshape(y[rows].shape)
    return y


def _check_classes_stay(ranking, after, action, n_rows):
    evidence = ranking.evidence
    lost = np.setdiff1d(evidence.given, after)
    if len(lost):
        label = evidence.classes[lost[0]]
        label = label.item() if hasattr(label, "item") else label
        raise ValueError(
            f"{action} the {n_rows} rows found leaves no row of class {label!r}, which the model "
            "is to predict. Lower contamination, use strategy='weight', or leave the class out."
        )
