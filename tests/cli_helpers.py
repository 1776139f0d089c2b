"""Small tables for the tests of the command line, and a way to call it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes

from sklearn_dualif.cli import main

TUMOUR_COLUMNS = ("mean radius", "mean texture", "worst area", "worst concavity")
SWAPPED = (23, 50, 150)


def tumours(n=200):
    """Tumours with a few wrong diagnoses, a name, a clinic and a method of two kinds."""
    data = load_breast_cancer(as_frame=True)
    frame = data.frame[list(TUMOUR_COLUMNS)].iloc[:n].round(3)
    rng = np.random.default_rng(0)
    frame.insert(0, "patient", [f"P{k:03d}" for k in range(n)])
    frame["clinic"] = rng.choice(["north", "south", "west"], n)
    frame["method"] = rng.choice(["needle", "cut"], n)
    names = data.target_names[data.target[:n]]
    other = {"malignant": "benign", "benign": "malignant"}
    frame["diagnosis"] = [other[d] if k in SWAPPED else d for k, d in enumerate(names)]
    return frame


def patients(n=150):
    """Cases of diabetes, of which one has a wrong score."""
    frame = load_diabetes(as_frame=True, scaled=False).frame.iloc[:n].round(3)
    frame["sex"] = frame["sex"].map({1.0: "f", 2.0: "m"})
    frame.loc[7, "target"] += 600
    return frame


def written(frame, path):
    """Write a frame as CSV or Parquet and return the path."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def without_report(monkeypatch):
    """Let audits write a page of one word, which takes no time."""
    import sklearn_dualif.inspection

    def report(influence_estimator, path, **options):
        path.write_text("report", encoding="utf-8")
        return path

    monkeypatch.setattr(sklearn_dualif.inspection, "report", report)


def call(capsys, *argv):
    """Return exit code, stdout and stderr of a call."""
    code = main([str(part) for part in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *argv):
    """Return the message of a call that has to end with one line and exit code 2."""
    code, out, err = call(capsys, *argv, "--quiet")
    assert code == 2, (code, out, err)
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("sklearn-dualif: error: ")
    return lines[0].removeprefix("sklearn-dualif: error: ")


def read_issues(folder):
    """Return the issues of an audit."""
    return pd.read_csv(folder / "issues.csv", index_col=0)
