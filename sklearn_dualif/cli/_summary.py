"""What an audit says at its end: ten lines, or one JSON object."""

import math

import numpy as np

from ._errors import counted, one_line
from ._terminal import pairs

_WORST = 3


def summary_lines(audit, paths, seconds, n_changed):
    """Return the summary of an audit in lines.

    Parameters
    ----------
    audit : Audit
        What was found.
    paths : dict of str to Path
        Files that were written.
    seconds : float
        Time that it took.
    n_changed : int
        Cells of the clean table that were made harmless.
    """
    dataset, table, target = audit.dataset, audit.dataset.table, audit.dataset.target
    n_features = counted(audit.chosen.X.shape[1], "feature")
    n_issues = int(audit.issues["is_issue"].sum())
    share = f"{100 * n_issues / len(dataset.y):.1f} %"
    facts = [
        ("table", f"{table.path}: {counted(table.n_rows, 'row')}, {n_features}"),
        ("target", f"{target.name}: {target.task} ({target.why})"),
        ("model", audit.chosen.name),
        ("held out", _scores(audit)),
        ("believe it?", "not checked" if audit.validation is None else str(audit.validation)),
        ("suspects", f"{counted(n_issues, 'row')} of {len(dataset.y):,} ({share})"),
    ]
    facts += [("", says) for says in worst_rows(audit)]
    if audit.groups is not None:
        first = audit.groups.iloc[0]
        facts.append(("worst group", f"{audit.groups.index[0]}: {first['reason']}"))
    if audit.fairness is not None:
        facts.append(("gaps", _gaps(audit.fairness)))
    facts += [("note", note) for note in audit.notes]
    if n_changed:
        said = f"{counted(n_changed, 'cell')} of {paths['clean'].name} begin with ' now:"
        facts.append(("note", f"{said} a spreadsheet would have run them as formulas"))
    folder = paths["report"].parent
    facts.append(("written", f"{folder}: {', '.join(path.name for path in paths.values())}"))
    facts.append(("time", f"{seconds:.1f} s"))
    return pairs(facts)


def worst_rows(audit):
    """Return a line for each of the worst suspects."""
    judged = audit.judged
    positions = np.flatnonzero(judged["is_issue"])
    positions = positions[judged["rank"].to_numpy()[positions].argsort()][:_WORST]
    name = judged.index.name or "row"
    return [
        f"{name} {one_line(judged.index[position], 30)}, {_given(judged, position)}: "
        f"{judged['reason'].iloc[position].partition('; removing it ')[0]}"
        for position in positions
    ]


def as_json(audit, paths, seconds, n_changed):
    """Return the summary of an audit as an object for JSON."""
    dataset, target = audit.dataset, audit.dataset.target
    judged, validation = audit.judged, audit.validation
    order = judged["rank"].to_numpy().argsort()
    worst = order[judged["is_issue"].to_numpy()[order]][:_WORST]
    said = {
        "file": str(dataset.table.path),
        "n_rows": dataset.table.n_rows,
        "n_judged": len(dataset.y),
        "features": list(audit.chosen.X.columns),
        "columns": {name: list(treatment) for name, treatment in dataset.treatment.items()},
        "target": {"name": target.name, "task": target.task, "why": target.why},
        "model": audit.chosen.name,
        "held_out": {"n_rows": len(audit.chosen.held_out), **audit.scores},
        "guess": audit.guess,
        "validation": None,
        "n_issues": int(judged["is_issue"].sum()),
        "worst": [
            {
                "row": judged.index[position],
                "given": judged["given_label"].iloc[position],
                "suggested": judged["suggested_label"].iloc[position],
                "score": judged["score"].iloc[position],
                "reason": judged["reason"].iloc[position],
            }
            for position in worst
        ],
        "notes": audit.notes,
        "n_cells_made_harmless": n_changed,
        "files": {name: str(path) for name, path in paths.items()},
        "seconds": round(seconds, 2),
    }
    if validation is not None:
        said["validation"] = {
            "verdict": validation.verdict,
            "said": str(validation),
            "slope": validation.slope,
            "slope_interval": list(validation.slope_interval),
            "correlation": validation.correlation,
            "n_refits": validation.n_refits,
        }
    if audit.groups is not None:
        said["groups"] = audit.groups.reset_index(names="group").to_dict(orient="records")
    if audit.fairness is not None:
        said["fairness"] = {
            "sensitive": audit.fairness.column,
            "favorable": audit.fairness.favorable,
            "gaps": audit.fairness.gaps.to_dict(orient="index"),
            "rates": audit.fairness.rates.to_dict(orient="index"),
        }
    return plain_json(said)


def plain_json(value):
    """Return a value with nothing in it but what JSON has: NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | bool | None) else str(value)


def _given(judged, position):
    given = judged["given_label"].iloc[position]
    return f"given {given:.4g}" if isinstance(given, float) else f"given {one_line(given, 30)}"


def _scores(audit):
    names = {"r2": "R²", "log_loss": "log loss"}
    said = []
    for name, score in audit.scores.items():
        guess = f" (a guess: {audit.guess[name]:.3f})" if name in audit.guess else ""
        said.append(f"{names.get(name, name)} {score:.3f}{guess}")
    return f"{', '.join(said)} on {counted(len(audit.chosen.held_out), 'row')}"


def _gaps(fairness):
    gaps = fairness.gaps["gap in predictions"]
    said = ", ".join(f"{name} {gap:.3f}" for name, gap in gaps.items())
    return f"{said} between groups of {fairness.column}"
