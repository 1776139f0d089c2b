"""How differently the model treats groups, and which training rows make it do so.

The gaps are those between the groups' held-out rows, under a model trained on the other rows. The
effect of a training row is on the gap in expected rates: negative, if the gap is smaller without
it. Held-out rows have no effect, since the gap is theirs.
"""

from dataclasses import dataclass

import numpy as np

from ..objectives import DemographicParity, EqualizedOdds, EqualOpportunity
from ._errors import InputError, counted, listed
from ._fitted import evenly

_GAPS = {
    "demographic_parity": DemographicParity,
    "equal_opportunity": EqualOpportunity,
    "equalized_odds": EqualizedOdds,
}
_COLUMNS = ("demographic_parity", "equal_opportunity")
_LEAST = 5
_MOST_ROWS = 4000
_MOST_GROUPS = 20
_WIDENING = 0.01


@dataclass(frozen=True, eq=False)
class Fairness:
    """Gaps between groups.

    Attributes
    ----------
    column, favorable : str
        The sensitive column, and the class whose rate is compared.
    gaps : DataFrame
        Of each gap: its size in predictions and in expected rates, and the latter without the
        training rows that widen it most.
    rates : DataFrame
        Of each group of held-out rows: their number, how many are of the favourable class, and how
        many are predicted to be.
    effects : dict of str to (n,) array
        Of each gap and row: what removing it does, NaN for held-out rows.
    n_widening : int
        Rows that were left out for the last column of ``gaps``.
    left_out : list of str
        Groups that are too small to be compared.
    """

    column: str
    favorable: object
    gaps: object
    rates: object
    effects: dict
    n_widening: int
    left_out: list


def check_sensitive(sensitive, target, favorable):
    """Return the favourable class; raise where no gap can be measured."""
    if target.task != "classification":
        raise InputError(
            f"--sensitive compares rates of a class, and the target {target.name!r} is numbers. "
            "Make it classes first, such as above and below a limit."
        )
    groups = sensitive.unique()
    if not 2 <= len(groups) <= _MOST_GROUPS:
        raise InputError(
            f"--sensitive {sensitive.name!r} has {counted(len(groups), 'group')}, and 2 to "
            f"{_MOST_GROUPS} can be compared. Name a column of groups."
        )
    classes = target.classes
    if favorable is None:
        if len(classes) > 2:
            raise InputError(
                f"--sensitive compares the rate of one class, and {target.name!r} has "
                f"{len(classes)}: {listed(classes)}. Name it with --favorable."
            )
        return classes[-1]
    for label in classes:
        if str(label) == favorable:
            return label
    raise InputError(
        f"--favorable {favorable!r} is no class of {target.name!r}: they are {listed(classes)}."
    )


def fairness_of(influence, chosen, y, sensitive, favorable):
    """Return the `Fairness` of a model fitted on the training rows."""
    import pandas as pd

    held_out = evenly(chosen.held_out, _MOST_ROWS)
    rows, left_out = _comparable(held_out, y, sensitive, favorable)
    X_val, y_val, groups = chosen.X.iloc[rows], y.iloc[rows], sensitive.iloc[rows].to_numpy()
    proba = influence.predict_proba(X_val)
    probabilities = proba[:, list(influence.classes_).index(favorable)]
    predicted = influence.predict(X_val)
    n_widening = max(1, round(_WIDENING * len(chosen.train)))
    gaps, effects = {}, {}
    for name, kind in _GAPS.items():
        gap = kind(groups, favorable=favorable)
        expected = gap.probability_gap(probabilities, y_val)
        effect = influence.influence(X_val, y_val, objective=gap)[0]
        worst = np.argsort(effect, kind="stable")[:n_widening]
        change = influence.removal_effect(worst, X_val, y_val, objective=gap, order="exact")
        gaps[name.replace("_", " ")] = {
            "gap in predictions": gap.prediction_gap(predicted, y_val),
            "gap in expected rates": expected,
            "without the rows that widen it most": expected + float(change[0]),
        }
        if name in _COLUMNS:
            effects[f"{name}_effect"] = np.full(len(y), np.nan)
            effects[f"{name}_effect"][chosen.train] = effect
    frame = pd.DataFrame(
        {
            "rows": 1,
            f"are {favorable}": y_val.to_numpy() == favorable,
            f"predicted {favorable}": predicted == favorable,
        }
    )
    rates = frame.groupby(groups).agg({"rows": "sum"} | dict.fromkeys(frame.columns[1:], "mean"))
    rates.index.name = sensitive.name
    table = pd.DataFrame.from_dict(gaps, orient="index")
    table.index.name = "gap"
    return Fairness(sensitive.name, favorable, table, rates, effects, n_widening, left_out)


def _comparable(held_out, y, sensitive, favorable):
    """Return held-out rows of groups that have enough of both kinds of labels, and the others."""
    groups = sensitive.iloc[held_out].to_numpy()
    positive = y.iloc[held_out].to_numpy() == favorable
    enough, left_out = [], []
    for group in sorted(sensitive.unique()):
        inside = groups == group
        least = min((inside & positive).sum(), (inside & ~positive).sum())
        (enough if least >= _LEAST else left_out).append(group)
    if len(enough) < 2:
        raise InputError(
            f"--sensitive {sensitive.name!r} has fewer than two groups with {_LEAST} held-out rows "
            f"of {favorable!r} and {_LEAST} others: {listed(left_out)} have not. Pass more rows, "
            "or larger groups."
        )
    return held_out[np.isin(groups, enough)], left_out
