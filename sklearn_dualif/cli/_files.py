"""The files that an audit leaves: issues, the clean table, groups, and the report."""

import pandas as pd

from ._cells import harmless_frame
from ._errors import counted

_DIGITS = "%.6g"


def file_names(options, extension):
    """Return what will be written, by what it is."""
    names = {"issues": "issues.csv", "clean": f"clean{extension}"}
    if options.groups is not None:
        names["groups"] = "groups.csv"
    return names | {"report": "report.html"}


def write_files(audit, folder, names, n_rows, seed):
    """Write everything; return the number of cells made harmless.

    Parameters
    ----------
    audit : Audit
        What was found.
    folder : Path
        Where they go.
    names : dict
        From `file_names`.
    n_rows : int
        Rows in the report.
    seed : int
        For the report.
    """
    _write_frame(audit.issues, folder / names["issues"])
    if "groups" in names:
        _write_frame(audit.groups, folder / names["groups"])
    changed = audit.dataset.table.write(folder / names["clean"], audit.kept)
    write_report(audit, folder / names["report"], n_rows, seed)
    return changed


def _write_frame(frame, path):
    harmless_frame(frame).to_csv(path, float_format=_DIGITS, lineterminator="\n", encoding="utf-8")


def write_report(audit, path, n_rows, seed):
    """Write the report."""
    from ..inspection import report

    report(
        audit.influence,
        path,
        issues=audit.judged,
        validation=audit.validation,
        title=f"{audit.dataset.table.path.name}: rows to look at",
        n_rows=n_rows,
        random_state=seed,
        sections=sections_of(audit),
    )


def sections_of(audit):
    """Return what the report says beyond its own: how the table was read, groups and gaps."""
    dataset, chosen = audit.dataset, audit.chosen
    n_out, n_all = len(chosen.held_out), len(dataset.y)
    checked = (
        f"The score and the comparison with refits are of the {chosen.name}, fitted on "
        f"{counted(n_all - n_out, 'row')}, and of the {counted(n_out, 'row')} held out. The rows "
        "were judged by the same model fitted on all of them."
    )
    scores = pd.DataFrame({"model": audit.scores, "guess": audit.guess})
    scores.index.name = "held-out score"
    columns = pd.DataFrame(
        [(name, kind, why) for name, (kind, why) in dataset.treatment.items()],
        columns=["column", "taken as", "note"],
    ).set_index("column")
    columns["taken as"] = columns["taken as"].replace({"role": "no feature"})
    sections = []
    if audit.groups is not None:
        sections.append((f"Groups of {dataset.groups.name}", audit.groups))
    if audit.fairness is not None:
        sections += _fairness_sections(audit.fairness)
    sections += [
        ("How the model was checked", checked),
        ("Held-out scores", scores),
        ("What became of the columns", columns),
    ]
    if audit.notes:
        sections.append(("Notes", ". ".join(audit.notes)))
    return sections


def _fairness_sections(fairness):
    name = fairness.column
    text = (
        f"Differences between the groups of {name} in how often they are, or are predicted to be, "
        f"{fairness.favorable}, on held-out rows. Demographic parity compares all rows; equal "
        "opportunity those that are; equalized odds also those that are not, and takes the larger "
        "difference. Expected rates are means of predicted probabilities. The last column is what "
        f"the gap would be without the {counted(fairness.n_widening, 'training row')} that widen "
        "it most; issues.csv has the effect of each row (negative: the gap is smaller without it)."
    )
    return [
        (f"Gaps between groups of {name}", text),
        (f"Gaps by {name}", fairness.gaps),
        (f"Rates by {name}", fairness.rates),
    ]
