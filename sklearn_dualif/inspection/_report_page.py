"""The parts of a report as HTML."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from string import Template

import numpy as np

from ..models import final_estimator
from ._drawing import clipped, row_names, short, signed
from ._html import definitions, element, frame_table, joined, paragraphs, table, thumbnail
from ._report_pictures import behind_errors, pictures
from ._rows import as_images, in_words, targets_of
from ._unusual import values_in_words

_MOST_LETTERS = 4000

# What each verdict means: a word for the style, a heading, and what a reader may do.
_MEANING = {
    "trust the sizes": (
        "good",
        "Trust the sizes",
        "The model was fitted again without some of its rows, and what changed is what had been "
        "predicted. An effect in this report is about what you would see if you removed the row "
        "and fitted the model again.",
    ),
    "ranking only": (
        "fair",
        "Trust the ranking only",
        "Rows with large effects come first, but how large the effects are was not confirmed. Use "
        "the order of the rows, and don't compare the effects with other numbers.",
    ),
    "don't trust": (
        "bad",
        "Don't trust the effects",
        "What the model becomes without a row is not what is predicted. Don't act on the effects "
        "in this report before you have tried what is said here.",
    ),
}

_HEADS = {
    "given_label": "given",
    "suggested_label": "the model says",
    "loo_probability": "probability of the given label",
    "loo_residual": "residual without it",
    "residual_in_spreads": "residual in spreads",
    "removal_effect": "removing it: held-out loss",
    "relabel_effect": "relabelling it: held-out loss",
}
_TARGETS = ("given", "the model says")
_SIGNED = ("loo_residual", "removal_effect", "relabel_effect")


def page(found, title, sections):
    """Return a report as text.

    Parameters
    ----------
    found : Findings
        What to tell.
    title : str or None
        Of the page. None: with the name of the model.
    sections : list of (str, DataFrame or str)
        Headings and contents of more parts.
    """
    name = type(final_estimator(found.influence.estimator_)).__name__
    title = f"Training rows of {name}" if title is None else str(title)
    first = f"{found.n_train:,} training rows. {_date()}"
    drawn = pictures(found)
    parts = [
        element("h1", title),
        element("p", first, class_="subtitle"),
        _verdict(found),
        element("h2", "Rows to look at first"),
        _rows(found),
        element("h2", "Pictures"),
        drawn,
        behind_errors(found),
    ]
    for heading, content in sections:
        shown = paragraphs(content) if isinstance(content, str) else _frame(content, heading)
        parts += [element("h2", heading), shown]
    parts += [element("h2", "How to read it"), _explanation(found)]
    parts += [element("h2", "What was computed"), _computed(found)]
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        generator=_version("sklearn-dualif"),
        title=joined([title]),
        body=joined([part for part in parts if part is not None]),
    )


def _date():
    from datetime import datetime

    return f"Written on {datetime.now():%Y-%m-%d at %H:%M}."


def _frame(frame, heading):
    return frame_table(frame, heading, lambda value: in_words(value, 200))


# The verdict -----------------------------------------------------------------------------------


def _verdict(found):
    validation = found.validation
    if validation is None:
        says = [
            element("p", "The sizes of the effects were not checked"),
            element("p", found.no_validation),
        ]
        if found.influence._engine.gives_effects:
            stationarity = found.influence.stationarity_
            says.append(
                element(
                    "p",
                    f"What is known: the gradient left over at the fitted parameters is "
                    f"{short(stationarity)} times that of a typical row (0 at an optimum; above "
                    "0.1 the effects of a network are in doubt). To have the sizes checked, pass "
                    "rows that the model was not trained on: ",
                    element("code", "report(influence, path, X_val, y_val)"),
                    ".",
                )
            )
        return element("div", *says, class_="verdict")
    kind, heading, meaning = _MEANING[validation.verdict]
    known = _agreement(validation)
    return element(
        "div",
        element("p", heading),
        element("p", meaning),
        element("p", element("code", str(validation))),
        *([element("p", known, class_="note")] if known else []),
        class_=f"verdict {kind}",
    )


def _agreement(validation):
    if not np.isfinite(validation.slope):
        return None
    low, high = validation.slope_interval
    return (
        f"From {validation.n_refits} refits: the effects that were seen are {validation.slope:.2f} "
        f"times the predicted ones (95 % interval {low:.2f} to {high:.2f}; 1 is right, below 1 the "
        f"predictions are too large), with a correlation of {validation.correlation:.2f} and of "
        f"{validation.rank_correlation:.2f} between their ranks."
    )


# The rows --------------------------------------------------------------------------------------


def _rows(found):
    if found.issues is None:
        return _rows_by_self_influence(found)
    issues, n_rows = found.issues, min(found.n_rows, found.n_train)
    order = np.argsort(issues["rank"].to_numpy(), kind="stable")[:n_rows]
    flagged = issues["is_issue"].to_numpy(dtype=bool)
    kind = "label" if "loo_probability" in issues else "target"
    names = {name: _head(name) for name in issues.columns if _head(name)}
    columns = {head: _column(issues[name].iloc[order], name) for name, head in names.items()}
    if kind == "label":  # labels are no quantities, even where they are numbers
        columns |= {head: (columns[head][0], False) for head in _TARGETS}
    says = _how_many(int(flagged.sum()), found.n_train, kind, n_rows)
    return joined([says, _table(found, order, flagged, columns, issues["reason"].iloc[order])])


def _how_many(n_wrong, n_train, kind, n_rows):
    if not n_wrong:
        said = f"No row has a {kind} that is clearly wrong."
    else:
        rows = "1 row looks" if n_wrong == 1 else f"{n_wrong:,} rows look"
        said = f"Of {n_train:,} training rows, {rows} wrong."
    shown = f"These {n_rows} come first." if n_rows < n_train else "All of them:"
    why = (
        f"Each is judged by what the model says of it that was not trained on it, nor on the other "
        f"suspects. Not every row that the model gets wrong has a wrong {kind}: look before you "
        "act."
    )
    return joined([element("p", f"{said} {shown}"), element("p", why, class_="note")])


def _head(name):
    base, _, output = name.rpartition("_")
    if base in _HEADS and output.isdigit():
        return f"{_HEADS[base]}, output {output}"
    return _HEADS.get(name)


def _column(values, name):
    """Return (texts, whether they are numbers)."""
    numbers = getattr(values.dtype, "kind", "O") in "iuf"
    if name in _SIGNED:
        return [signed(value) for value in values], True
    if name.endswith("probability"):
        return [f"{value:.2f}" for value in values], True
    return [in_words(value) for value in values], numbers


def _rows_by_self_influence(found):
    influence, n_rows = found.influence, min(found.n_rows, found.n_train)
    own = influence.self_influence_
    order = np.argsort(-own, kind="stable")[:n_rows]
    given = targets_of(influence._y_train)
    columns = {
        "given": ([given[row] for row in order], False),
        "self-influence": ([short(own[row]) for row in order], True),
    }
    scores = not influence._engine.gives_effects
    if scores:
        reasons = ["its gradient is long: the model strains to fit it"] * n_rows
    else:
        columns["leverage"] = [short(influence.leverage_[row]) for row in order], True
        reasons = [f"removing it changes its own loss by {signed(own[row])}" for row in order]
    says = joined(
        [
            element(
                "p",
                f"Rows are ranked by self-influence, "
                f"{'the squared length of their gradient' if scores else _SELF}: the first are "
                f"atypical, memorised or mislabelled. These {n_rows} of {found.n_train:,} come "
                "first.",
            ),
            element(
                "p", f"Whether they are wrong was not judged: {found.no_issues}", class_="note"
            ),
        ]
    )
    return joined([says, _table(found, order, np.zeros(found.n_train, bool), columns, reasons)])


_SELF = "what removing a row does to its own loss"


def _table(found, order, flagged, columns, reasons):
    """Return the table of some rows: rank, name, picture, columns, reason and values."""
    influence = found.influence
    names = row_names(influence._train_index, found.n_train)[order]
    head, numeric = ["rank", "row"], set()
    lines = []
    for rank, (row, name) in enumerate(zip(order, names, strict=True), 1):
        flag = [element("span", "looks wrong", class_="flag")] if flagged[row] else []
        lines.append([str(rank), joined([clipped(name, 60), *flag])])
    if found.image_shape is not None:
        head.append("image")
        images = as_images(influence._X_train, order, found.image_shape)
        for line, image, name in zip(lines, images, names, strict=True):
            line.append(thumbnail(image, f"row {clipped(name, 60)}"))
    why = [element("span", clipped(reason, 400), class_="long") for reason in reasons]
    # What a phone shows first: the targets and the reason; the numbers behind it after that.
    first = {title: column for title, column in columns.items() if title.startswith(_TARGETS)}
    first["why"] = why, False
    if found.image_shape is None:
        texts, title = values_in_words(influence._X_train, order)
        if texts is not None:
            first[title] = [element("span", text, class_="long") for text in texts], False
    for title, (texts, number) in (first | columns).items():
        numeric |= {len(head)} if number else set()
        head.append(title)
        for line, text in zip(lines, texts, strict=True):
            line.append(text)
    return table(head, lines, "Rows to look at first", numeric=numeric)


# Words and settings ----------------------------------------------------------------------------


def _explanation(found):
    held_out = None if found.issues is None else found.issues.attrs.get("held_out")
    says = [
        "An effect is what removing a row does, as a refit without it would show. On a loss, a "
        "positive effect says that the row helps: without it, the loss rises. A negative one says "
        "that it hurts.",
        "Self-influence is what removing a row does to its own loss. Large: the model learns the "
        "row from no other one. Leverage is how far a row decides its own prediction, whatever its "
        "target.",
    ]
    if held_out == "X_val":
        says.append("The held-out loss is the mean loss over the validation rows.")
    elif held_out == "cross-validation":
        says.append(
            "The held-out loss is that of rows left out of five more fits, each with four fifths "
            "of the training rows. Validation rows whose targets can be trusted would tell more."
        )
    return joined([element("p", text) for text in says])


def _computed(found):
    influence = found.influence
    engine = influence._engine
    pairs = [
        ("model", type(final_estimator(influence.estimator_)).__name__),
        ("training rows", _counted(influence)),
    ]
    if hasattr(influence, "n_features_in_"):
        pairs.append(("features", f"{influence.n_features_in_:,}"))
    if hasattr(influence, "classes_"):
        classes = [in_words(label, 30) for label in influence.classes_]
        more = f" and {len(classes) - 12} more" if len(classes) > 12 else ""
        pairs.append(("classes", ", ".join(classes[:12]) + more))
    if found.X_val is not None:
        from ._rows import n_rows_of

        pairs.append(("validation rows", f"{n_rows_of(found.X_val):,}"))
    pairs += [
        ("parameters of the model", f"{influence.n_parameters_:,}"),
        ("curvature", influence.curvature),
        ("order", influence.order),
        ("solver", _solver(influence)),
    ]
    if engine.gives_effects:
        ridges = np.atleast_1d(influence.ridge_)
        pairs += [
            ("ridge", ", ".join(short(ridge) for ridge in ridges[:6])),
            (
                "effective dimension",
                f"{short(influence.effective_dimension_)} (sum of the leverages: parameters that "
                "the rows determine)",
            ),
            (
                "stationarity",
                f"{short(influence.stationarity_)} (gradient left over, in units of a typical "
                "row's; 0 at an optimum)",
            ),
        ]
    packages = ("sklearn-dualif", "numpy", "scipy", "scikit-learn", "torch")
    pairs.append(
        (
            "versions",
            ", ".join(
                [f"Python {platform.python_version()}"]
                + [_version(package) for package in packages]
            ),
        )
    )
    shown = [(f"{part}", f"{short(seconds)} s") for part, seconds in found.seconds.items()]
    settings = repr(influence)
    if len(settings) > _MOST_LETTERS:
        settings = f"{settings[:_MOST_LETTERS]}…"
    return joined(
        [
            definitions(pairs),
            element("pre", settings, tabindex="0"),
            element("h3", "Time taken"),
            definitions(shown),
        ]
    )


def _version(package):
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # used from a folder, without having been installed
        return package


def _counted(influence):
    weights = influence._sample_weight
    without = int((weights == 0).sum())
    more = f", of them {without:,} without weight" if without else ""
    return f"{len(weights):,}{more}"


def _solver(influence):
    size = influence.solver_info_.get("size")
    return f"{influence.solver_}, a matrix of {size:,} × {size:,}" if size else influence.solver_
