"""Why the model says what it says of one row: the training rows behind it."""

from dataclasses import dataclass

import numpy as np
from sklearn.base import is_classifier

from ._columns import texts_of
from ._errors import InputError, counted, listed
from ._fitted import choose, fitted, parse_model
from ._terminal import grid, pairs, short

_MOST_COLUMNS = 5

STEPS = 3


@dataclass(frozen=True, eq=False)
class Explanation:
    """What is behind the prediction of a row.

    Attributes
    ----------
    row : object
        The row, as it was named.
    values : dict
        Its features.
    target : object
        Its target, or None.
    prediction : object
    probability : float or None
        Of the prediction, for classifiers.
    unseen : object
        What the model without the row predicts; None for a row without a target.
    unseen_probability : float or None
        What the model without the row leaves to the row's own target.
    own_effect : float or None
        What removing the row does to its own loss.
    about : {"loss", "prediction", "loss of the prediction"}
        What the effects are on: the row's loss, or, without a target, the number predicted or the
        loss of the class predicted.
    helpful, harmful : DataFrame
        Training rows by their effect, the largest first: its size, the target and the features.
    model : str
    """

    row: object
    values: dict
    target: object
    prediction: object
    probability: float | None
    unseen: object
    unseen_probability: float | None
    own_effect: float | None
    about: str
    helpful: object
    harmful: object
    model: str


def explain(dataset, options, progress):
    """Return the `Explanation` of a row."""
    place = _position(dataset, options)
    known = dataset.target.known
    model = parse_model(options.model, options.trust)
    with progress.step("choosing the model"):
        chosen = choose(dataset, model, options.random_state)
    with progress.step("fitting it"):
        influence = fitted(chosen, dataset.y)
    with progress.step("asking for effects"):
        query = chosen.everything.iloc[[place]]
        own = int(known[:place].sum()) if known[place] else None
        y = None if own is None else dataset.y.iloc[[own]]
        about = "loss"
        if own is None:
            about = "prediction"
            if is_classifier(influence):
                about, y = "loss of the prediction", influence.predict(query)
        objective = "prediction" if about == "prediction" else "loss"
        effects = influence.influence(query, y, objective=objective)[0]
        return _explained(influence, chosen, dataset, options, place, own, effects, about)


def _explained(influence, chosen, dataset, options, place, own, effects, about):
    prediction = influence.predict(query := chosen.everything.iloc[[place]])[0]
    probability = unseen = unseen_probability = own_effect = target = None
    if is_classifier(influence) and hasattr(influence, "predict_proba"):
        probability = float(influence.predict_proba(query)[0].max())
    others = np.arange(len(effects))
    if own is not None:
        target, unseen = dataset.y.iloc[own], influence.loo_predict()[own]
        own_effect = float(effects[own])
        if probability is not None:
            column = list(influence.classes_).index(target)
            unseen_probability = float(influence.loo_predict_proba()[own, column])
        others = np.delete(others, own)
    order = others[np.argsort(effects[others], kind="stable")]
    harmful = [row for row in order[: options.k] if effects[row] < 0]
    helpful = [row for row in order[::-1][: options.k] if effects[row] > 0]
    return Explanation(
        row=dataset.everything.index[place],
        values=_shown(chosen.everything.iloc[[place]]).iloc[0].to_dict(),
        target=target,
        prediction=prediction,
        probability=probability,
        unseen=unseen,
        unseen_probability=unseen_probability,
        own_effect=own_effect,
        about=about,
        helpful=_rows(chosen, dataset, helpful, effects),
        harmful=_rows(chosen, dataset, harmful, effects),
        model=chosen.name,
    )


def _position(dataset, options):
    """Return the position among all rows of the row that was asked for."""
    n = dataset.table.n_rows
    if options.index is None:
        if not options.row.isdecimal() or int(options.row) >= n:
            raise InputError(
                f"--row {options.row!r} is no row of {dataset.table.path}: they are numbered from "
                f"0 to {n - 1}. Name rows by a column with --index."
            )
        return int(options.row)
    names = np.array([text or "" for text in texts_of(dataset.table, options.index)])
    found = np.flatnonzero(names == options.row)
    if len(found) != 1:
        says = f"{counted(len(found), 'row')}" if len(found) else "no row"
        raise InputError(
            f"--row {options.row!r} is {says} by the column {options.index!r}, such as "
            f"{listed(dict.fromkeys(names), 3)}. Name one row, or leave out --index and give its "
            "number from 0."
        )
    return int(found[0])


def _rows(chosen, dataset, rows, effects):
    frame = _shown(chosen.X.iloc[rows])
    frame.insert(0, dataset.y.name, dataset.y.iloc[rows].to_numpy())
    frame.insert(0, "effect", effects[rows], allow_duplicates=True)
    return frame


def _shown(X):
    """Return a frame with dates as text and everything else as it is."""
    X = X.copy()
    for name, dtype in X.dtypes.items():
        if dtype.kind == "M":
            X[name] = X[name].dt.strftime("%Y-%m-%d")
        elif dtype.kind != "f":
            X[name] = X[name].astype(object)
    return X


def explanation_lines(found, dataset):
    """Return an explanation in lines."""
    name = dataset.y.name
    certain = "" if found.probability is None else f" at {found.probability:.2f}"
    facts = [
        ("row", f"{found.row}: {_values(found.values)}"),
        ("model", found.model),
        ("predicted", f"{name} = {short(found.prediction)}{certain}"),
    ]
    if found.target is not None:
        left = ""
        if found.unseen_probability is not None:
            own = "" if found.unseen == found.target else f", {short(found.target)}"
            left = f"{own} at {found.unseen_probability:.2f}"
        facts += [
            ("in the table", f"{name} = {short(found.target)}"),
            ("without it", f"the model says {short(found.unseen)}{left}"),
            ("removing it", f"raises its own loss by {found.own_effect:.3g}"),
        ]
        if found.own_effect < 0:
            facts[-1] = ("removing it", f"lowers its own loss by {-found.own_effect:.3g}")
    lines = pairs(facts)
    of = {
        "loss": "its loss",
        "loss of the prediction": f"the loss of {short(found.prediction)}",
        "prediction": "the prediction",
    }[found.about]
    for frame, title in (
        (found.helpful, f"Without these, {of} would be higher by the effect:"),
        (found.harmful, f"Without these, {of} would be lower by the effect:"),
    ):
        lines += ["", title if len(frame) else f"{title} none"]
        if len(frame):
            columns = [*frame.columns[: 2 + _MOST_COLUMNS]]
            rows = frame[columns].itertuples(name=None)
            lines += grid(list(rows), [frame.index.name or "row", *columns], longest=16)
    if found.helpful.shape[1] > 2 + _MOST_COLUMNS:
        lines += ["", f"Of the features, {_MOST_COLUMNS} are shown; --json has all."]
    return lines


def explanation_json(found):
    """Return an explanation as an object for JSON, before it is made plain."""
    said = dict(vars(found))
    for side in ("helpful", "harmful"):
        frame = said[side]
        names = [frame.index.name or "row", "effect", "target", *frame.columns[2:]]
        said[side] = [
            {
                "row": row[0],
                "effect": row[1],
                "target": row[2],
                "values": dict(zip(names[3:], row[3:], strict=True)),
            }
            for row in frame.itertuples(name=None)
        ]
    return said


def _values(values):
    shown = [f"{name} {short(value, 16)}" for name, value in list(values.items())[:_MOST_COLUMNS]]
    return ", ".join(shown) + (", …" if len(values) > _MOST_COLUMNS else "")
