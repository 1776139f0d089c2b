"""The pictures of a report. They are drawn on figures of their own, without pyplot."""

import numpy as np
from sklearn.utils import _safe_indexing

from ..objectives import TrainingLoss
from ._drawing import clipped, row_names, signed
from ._fidelity import FidelityDisplay
from ._html import element, joined, picture, table
from ._influence import InfluenceDisplay
from ._neighbors import NeighborsDisplay
from ._rows import n_rows_of, targets_of
from ._self_influence import SelfInfluenceDisplay
from ._wording import target_of

_SIZE = (5.2, 4.2)
_QUERIES = 3
_NEIGHBORS = 3


def pictures(found):
    """Return the pictures of the training rows and of the refits."""
    import matplotlib.style

    # A reader's page, not the caller's screen: the same look whatever is set there.
    with matplotlib.style.context("default"), found.timed("pictures"):
        drawn = [_self_influence(found)]
        if found.influence._engine.gives_effects:
            drawn.append(_influence(found))
        if found.validation is not None and found.validation.groups is not None:
            drawn.append(_fidelity(found))
        return element("div", *drawn, class_="pictures")


def _figure(size=_SIZE):
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _self_influence(found):
    display = SelfInfluenceDisplay(
        self_influence=found.influence.self_influence_, names=found.influence._train_index
    ).plot(ax=_figure().subplots())
    names = row_names(found.influence._train_index, found.n_train)
    largest = ", ".join(clipped(names[row], 24) for row in display.above_[:5])
    said = f" The largest: {largest}." if largest else ""
    return picture(
        display.figure_,
        f"Training rows ranked by self-influence; {len(display.above_)} are above the line.{said}",
        "The model learns the rows above the line from no other one: they are atypical, memorised "
        "or mislabelled.",
    )


def _influence(found):
    influence, issues = found.influence, found.issues
    if issues is not None and "removal_effect" in issues:
        effects, target = issues["removal_effect"].to_numpy(), target_of("loss", "held-out")
    else:
        try:
            effects = influence.influence_
        except AttributeError:  # an objective about other rows than the training rows
            return ""
        rows = "held-out" if influence._diagnostics.held_out else "training"
        target = target_of(influence.objective, rows)
    display = InfluenceDisplay(
        leverage=influence.leverage_,
        influence=effects,
        self_influence=influence.self_influence_,
        names=influence._train_index,
        target=target.name,
        is_loss=target.is_loss,
    ).plot(ax=_figure().subplots())
    order = np.argsort(effects, kind="stable")
    names = row_names(influence._train_index, found.n_train)
    return picture(
        display.figure_,
        f"Effect of removing each training row on the {target.name} against its leverage. Removing "
        f"{clipped(names[order[0]], 24)} lowers it most, removing {clipped(names[order[-1]], 24)} "
        "raises it most.",
        f"Above the line: {target.raises}. Below: {target.lowers}. Rows at the right decide their "
        "own prediction.",
    )


def _fidelity(found):
    target = target_of(found.influence.objective)
    display = FidelityDisplay.from_predictions(
        found.validation, target=target.name, ax=_figure().subplots()
    )
    low, high = display.slope_interval
    return picture(
        display.figure_,
        "Effects in refits against predicted ones, with the line of equality and the fitted line "
        f"of slope {display.slope:.2f}, 95 % interval {low:.2f} to {high:.2f}.",
        "On the dashed line, a refit does what was predicted.",
    )


# Rows behind errors ----------------------------------------------------------------------------


def behind_errors(found):
    """Return the training rows behind the largest held-out losses; None where not known."""
    influence = found.influence
    if found.y_val is None or not influence._engine.gives_effects:
        return None
    import matplotlib.style

    with matplotlib.style.context("default"), found.timed("rows behind the largest losses"):
        losses = _losses(influence, found.X_val, found.y_val)
        worst = np.argsort(-losses, kind="stable")[:_QUERIES]
        X, y = (_safe_indexing(data, worst) for data in (found.X_val, found.y_val))
        index = found.X_val.index[worst] if hasattr(found.X_val, "iloc") else worst
        display = NeighborsDisplay(
            effects=influence.influence(X, y, objective="loss"),
            X=X,
            X_train=influence._X_train,
            y=y,
            y_train=influence._y_train,
            k=_NEIGHBORS,
            image_shape=found.image_shape,
            names=influence._train_index,
            query_names=index,
        )
        shown = _as_table if found.image_shape is None else _as_picture
        return joined(
            [
                element("h2", "Rows behind the largest held-out losses"),
                element(
                    "p",
                    f"The {len(worst)} validation rows with the largest loss, each with the "
                    "training rows whose removal changes it most.",
                ),
                shown(display, losses[worst], targets_of(influence.predict(X))),
            ]
        )


def _losses(influence, X, y):
    """Return the loss (n_queries,) of each held-out row."""
    objective, _ = influence._choices("loss", None)
    features, targets = influence._queries(X, y, objective)
    model = influence._engine.model
    return TrainingLoss(model).value(model.outputs(features), targets).numpy()


def _as_picture(display, losses, predicted):
    n = n_rows_of(display.X)
    figure = _figure((1.05 * (2 * _NEIGHBORS + 1) + 0.4, 1.32 * n + 0.4))
    display.plot(fig=figure)
    frame = display.frame()
    said = "; ".join(
        f"query {query}: {', '.join(f'{row} {kind} it' for row, kind in rows)}"
        for query, rows in (
            (query, list(zip(part["row"], part["kind"], strict=True)))
            for query, part in frame.groupby("query", sort=False)
        )
    )
    return picture(
        figure,
        f"Images of the validation rows with the largest loss beside training rows. {said}",
        "Under each image its row and target and, of training rows, what its removal does to the "
        "loss on the query.",
        wide=True,
    )


def _as_table(display, losses, predicted):
    targets = targets_of(display.y)
    own = dict(zip(display._names()[0], zip(targets, predicted, losses, strict=True), strict=True))
    head = ["validation row", "training row", "its target", "removing it changes the loss by", ""]
    lines, last = [], None
    frame = display.frame()
    shown = targets_of(frame["target"].to_numpy())
    for (_, line), target in zip(frame.iterrows(), shown, strict=True):
        query = line["query"]
        given, says, loss = own[query]
        about = f"{query}: {given}, predicted {says}, loss {loss:.3g}" if query != last else ""
        last = query
        helps = "it helps" if line["kind"] == "raises" else "it hurts"
        lines.append([about, line["row"], target, signed(line["effect"]), helps])
    return table(head, lines, "Rows behind the largest held-out losses", numeric={3})
