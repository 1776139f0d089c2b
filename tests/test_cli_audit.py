"""What an audit says: the numbers of the library on the same pipeline, in the table's order."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pandas as pd
import pytest
from cli_helpers import (
    SWAPPED,
    call,
    patients,
    read_issues,
    refused,
    tumours,
    without_report,
    written,
)
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.cleaning import InfluenceFilter, find_issues
from sklearn_dualif.cli._arguments import build_parser
from sklearn_dualif.cli._dataset import read_dataset
from sklearn_dualif.cli._fitted import choose, split
from sklearn_dualif.metrics import validate
from sklearn_dualif.objectives import DemographicParity, EqualOpportunity

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Spare the tests the time of the report, unless they are about it."""
    if "report" not in request.node.name:
        without_report(monkeypatch)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return written(tumours(), tmp_path / "tumours.csv")


def audited(capsys, path, *options, target="diagnosis"):
    """Return the JSON of an audit, and its folder."""
    code, out, err = call(capsys, "audit", path, "--target", target, *options, "--json", "--quiet")
    assert code == 0 and err == "", err
    said = json.loads(out)
    return said, path.parent / f"{path.stem}-audit"


def by_hand(path, *options, target="diagnosis"):
    """Return the dataset of a call and what was chosen for it."""
    options = build_parser().parse_args(["audit", str(path), "--target", target, *options])
    dataset = read_dataset(options)
    return dataset, choose(dataset, options.model, options.random_state)


def assert_same(issues, expected):
    assert list(issues.columns) == ["line", *expected.columns]
    for name in expected:
        ours, theirs = issues[name].to_numpy(), expected[name].to_numpy()
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12, err_msg=name)
        else:
            assert ours.tolist() == theirs.tolist(), name


def test_the_numbers_are_those_of_the_library(table, capsys):
    said, folder = audited(capsys, table)
    dataset, chosen = by_hand(table)
    X, y = dataset.X, dataset.y
    pipeline = chosen.influence.estimator
    assert isinstance(pipeline[-1], LogisticRegression)
    issues = read_issues(folder)
    assert_same(issues, find_issues(pipeline, X, y))
    assert issues.index.tolist() == list(range(len(y)))
    assert issues["line"].tolist() == list(range(2, len(y) + 2))
    assert set(SWAPPED) <= set(np.flatnonzero(issues["is_issue"]))
    train, held_out = chosen.train, chosen.held_out
    assert sorted([*train, *held_out]) == list(range(len(y)))
    checked = InfluenceEstimator(pipeline).fit(X.iloc[train], y.iloc[train])
    loss = log_loss(y.iloc[held_out], checked.predict_proba(X.iloc[held_out]))
    assert said["held_out"]["log_loss"] == pytest.approx(loss)
    assert said["held_out"]["n_rows"] == len(held_out)
    expected = validate(checked, X.iloc[held_out], y.iloc[held_out], random_state=0)
    assert said["validation"]["said"] == str(expected)
    assert said["validation"]["slope"] == pytest.approx(expected.slope)
    assert said["n_issues"] == issues["is_issue"].sum()


def test_the_penalty_is_that_of_least_leave_one_out_loss(table):
    dataset, chosen = by_hand(table)
    pipeline = chosen.influence.estimator
    X, y = dataset.X.iloc[chosen.train], dataset.y.iloc[chosen.train]
    prepared, losses = pipeline[:-1].fit_transform(X), {}
    for strength in (0.01, 0.1, 1.0, 10.0):
        model = clone(pipeline[-1]).set_params(C=strength)
        rows = []
        for row in range(len(y)):
            kept = np.delete(np.arange(len(y)), row)
            refit = model.fit(prepared[kept], y.iloc[kept])
            proba = refit.predict_proba(prepared[[row]])[0]
            rows.append(-np.log(proba[list(refit.classes_).index(y.iloc[row])]))
        losses[strength] = np.mean(rows)
    assert pipeline[-1].C == min(losses, key=losses.get)


def test_numbers_as_a_target(tmp_path, capsys):
    path = written(patients(), tmp_path / "patients.csv")
    said, folder = audited(capsys, path, "--out", str(tmp_path / "patients-audit"), target="target")
    dataset, chosen = by_hand(path, target="target")
    pipeline = chosen.influence.estimator
    assert isinstance(pipeline[-1], Ridge)
    assert_same(read_issues(folder), find_issues(pipeline, dataset.X, dataset.y))
    assert said["target"]["task"] == "regression"
    assert "distinct numbers" in said["target"]["why"]
    train, held_out = chosen.train, chosen.held_out
    fit = clone(pipeline).fit(dataset.X.iloc[train], dataset.y.iloc[train])
    expected = fit.score(dataset.X.iloc[held_out], dataset.y.iloc[held_out])
    assert said["held_out"]["r2"] == pytest.approx(expected)
    assert said["worst"][0]["row"] == 7


def test_tasks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = tumours()
    frame["diagnosis"] = (frame["diagnosis"] == "benign").astype(int)
    path = written(frame, tmp_path / "coded.csv")
    said, folder = audited(capsys, path)
    assert said["target"]["task"] == "classification"
    assert said["target"]["why"] == "2 distinct whole numbers"
    assert set(read_issues(folder)["given_label"]) == {0, 1}
    said, _ = audited(capsys, path, "--task", "regression", "--overwrite")
    assert said["target"] == {"name": "diagnosis", "task": "regression", "why": "as --task says"}
    assert said["model"].startswith("ridge")
    said = refused(
        capsys, "audit", path, "--target", "diagnosis", "--model", "ridge", "--overwrite"
    )
    assert "--model ridge is for a target of numbers" in said


def test_the_same_call_gives_the_same_files(table, capsys):
    _, folder = audited(capsys, table, "--random-state", "3")
    first = (folder / "issues.csv").read_bytes(), (folder / "clean.csv").read_bytes()
    said, _ = audited(capsys, table, "--random-state", "3", "--overwrite")
    assert first == ((folder / "issues.csv").read_bytes(), (folder / "clean.csv").read_bytes())
    again, _ = audited(capsys, table, "--random-state", "4", "--overwrite")
    assert said["held_out"] != again["held_out"]


@pytest.mark.parametrize("target", ["diagnosis", "worst area"])
def test_a_model_that_is_no_better_than_a_guess_is_called_so(tmp_path, capsys, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    says = "as far as 40 held-out rows tell, the model is no better than a guess and judges nothing"
    frame = tumours()
    path = written(frame, tmp_path / "told.csv")
    assert says not in audited(capsys, path, target=target)[0]["notes"]
    frame[target] = np.random.default_rng(0).permutation(frame[target])
    path = written(frame, tmp_path / "shuffled.csv")
    assert audited(capsys, path, target=target)[0]["notes"][0] == says


def test_rows_without_a_target_are_kept_and_not_judged(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = tumours()
    whole = written(frame.drop(index=[0, 7]), tmp_path / "whole.csv")
    frame.loc[[0, 7], "diagnosis"] = ["", "NA"]
    path = written(frame, tmp_path / "holes.csv")
    said, folder = audited(capsys, path)
    assert said["n_rows"] == 200 and said["n_judged"] == 198
    assert "2 rows without a target not judged" in said["notes"]
    issues = read_issues(folder)
    assert len(issues) == 200
    assert issues["score"].isna().to_numpy().nonzero()[0].tolist() == [0, 7]
    assert not issues.loc[[0, 7], "is_issue"].any()
    assert set(issues.loc[[0, 7], "reason"]) == {"no target, not judged"}
    kept = pd.read_csv(folder / "clean.csv")
    assert {"P000", "P007"} <= set(kept["patient"])
    _, other = audited(capsys, whole)
    np.testing.assert_allclose(issues["score"].dropna(), read_issues(other)["score"], rtol=1e-5)


def test_an_index_names_the_rows(table, capsys):
    said, folder = audited(capsys, table, "--index", "patient")
    issues = pd.read_csv(folder / "issues.csv", index_col="patient")
    assert issues.index.tolist() == tumours()["patient"].tolist()
    assert "patient" not in said["features"]
    assert {"P023", "P050", "P150"} <= set(issues.index[issues["is_issue"]])


def test_contamination(table, capsys):
    _, folder = audited(capsys, table, "--contamination", "0.02")
    issues = read_issues(folder)
    dataset, chosen = by_hand(table)
    expected = InfluenceFilter(chosen.influence.estimator, contamination=0.02)
    expected.fit(dataset.X, dataset.y)
    marked = np.flatnonzero(issues["is_issue"])
    assert marked.tolist() == np.flatnonzero(~expected.inlier_mask_).tolist()
    audited(capsys, table, "--contamination", "0", "--overwrite")
    assert (folder / "clean.csv").read_bytes() == table.read_bytes()


def test_groups(table, capsys):
    said, folder = audited(capsys, table, "--groups", "clinic")
    dataset, chosen = by_hand(table, "--groups", "clinic")
    assert "clinic" not in dataset.X
    expected = find_issues(
        chosen.influence.estimator, dataset.X, dataset.y, groups=dataset.groups.to_numpy()
    )
    groups = pd.read_csv(folder / "groups.csv", index_col="clinic")
    assert groups.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(groups["removal_effect"], expected["removal_effect"], rtol=1e-5)
    assert said["groups"][0]["group"] == expected.index[0]
    dataset, _ = by_hand(table, "--groups", "clinic", "--keep", "clinic")
    assert "clinic" in dataset.X
    said = refused(
        capsys, "audit", table, "--target", "diagnosis", "--groups", "clinic", "--model", "mlp",
        "--overwrite",
    )  # fmt: skip
    assert "--groups are judged" in said


def test_gaps_between_groups(table, capsys):
    options = "--sensitive", "method", "--favorable", "benign"
    said, folder = audited(capsys, table, *options)
    dataset, chosen = by_hand(table, *options)
    assert "method" not in said["features"]
    train, held_out = chosen.train, chosen.held_out
    X, y = dataset.X, dataset.y
    influence = InfluenceEstimator(chosen.influence.estimator).fit(X.iloc[train], y.iloc[train])
    groups = tumours()["method"].to_numpy()[held_out]
    issues = read_issues(folder)
    for kind, name in (
        (DemographicParity, "demographic parity"),
        (EqualOpportunity, "equal opportunity"),
    ):
        gap = kind(groups, favorable="benign")
        effects = influence.influence(X.iloc[held_out], y.iloc[held_out], objective=gap)[0]
        column = issues[f"{name.replace(' ', '_')}_effect"]
        np.testing.assert_allclose(column.to_numpy()[train], effects, rtol=1e-5, atol=1e-12)
        assert column.to_numpy()[held_out].tolist() == pytest.approx(
            [np.nan] * len(held_out), nan_ok=True
        )
        found = said["fairness"]["gaps"][name]
        predicted = influence.predict(X.iloc[held_out])
        assert found["gap in predictions"] == gap.prediction_gap(predicted, y.iloc[held_out])
        # What is predicted for the rows that widen the gap most is what a refit gives.
        worst = train[np.argsort(effects)[: round(0.01 * len(train))]]
        kept = np.setdiff1d(train, worst)
        prepared = clone(chosen.influence.estimator[:-1]).fit(X.iloc[train])
        model = clone(chosen.influence.estimator[-1]).set_params(tol=1e-10)
        model.fit(prepared.transform(X.iloc[kept]), y.iloc[kept])
        column = list(model.classes_).index("benign")
        proba = model.predict_proba(prepared.transform(X.iloc[held_out]))[:, column]
        refitted = gap.probability_gap(proba, y.iloc[held_out])
        assert found["without the rows that widen it most"] == pytest.approx(refitted, abs=1e-4)


def test_the_report_has_groups_gaps_and_columns(table, capsys):
    said, folder = audited(capsys, table, "--groups", "clinic", "--sensitive", "method")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert said["validation"]["verdict"] in page.lower()
    for part in (
        "Groups of clinic",
        "Gaps by method",
        "demographic parity",
        "Rates by method",
        "Held-out scores",
        "What became of the columns",
        "names, ids or prose",
    ):
        assert part in page, part
    worst = read_issues(folder).nsmallest(3, "rank")
    assert all(reason.split(";")[0] in page for reason in worst["reason"])


def test_gaps_that_cannot_be_measured(table, tmp_path, capsys):
    def said(*options, path=table, target="diagnosis"):
        return refused(capsys, "audit", path, "--target", target, *options)

    assert "--favorable 'bad' is no class" in said("--sensitive", "method", "--favorable", "bad")
    assert "has 200 groups" in said("--sensitive", "patient")
    assert "is numbers" in said("--sensitive", "method", target="worst area")
    few = written(tumours(40), tmp_path / "few.csv")
    assert "fewer than two groups with 5 held-out rows" in said("--sensitive", "method", path=few)


def test_splits():
    y = pd.Series(["a"] * 50 + ["b"] * 10 + ["c"] * 4)
    train, held_out = split(y, "classification", 0)
    assert y.iloc[held_out].value_counts().to_dict() == {"a": 10, "b": 2}
    assert len(train) + len(held_out) == 64
    assert len(split(y, "regression", 0)[1]) == 12


# Models of the user's own


def test_a_model_from_a_pickle(table, tmp_path, capsys):
    frame = tumours()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
    model.fit(frame[["worst area", "mean radius"]], frame["diagnosis"])
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(model))
    said, folder = audited(capsys, table, "--model", f"pickle:{path}", "--trust")
    assert said["features"] == ["worst area", "mean radius"]
    assert said["model"] == "Pipeline from model.pickle"
    expected = find_issues(clone(model), frame[["worst area", "mean radius"]], frame["diagnosis"])
    assert_same(read_issues(folder), expected)


def test_a_model_from_skops(table, tmp_path, capsys):
    skops = pytest.importorskip("skops.io")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
    model.fit(tumours()[["mean radius"]], tumours()["diagnosis"])
    path = tmp_path / "model.skops"
    skops.dump(model, path)
    said, _ = audited(capsys, table, "--model", f"skops:{path}", "--trust")
    assert said["features"] == ["mean radius"]


def test_model_files_that_are_refused(table, tmp_path, capsys, monkeypatch):
    path = tmp_path / "model.pickle"

    def said(content=None, kind="pickle", trust=True):
        if content is not None:
            path.write_bytes(content)
        options = ["--model", f"{kind}:{path}"] + ["--trust"] * trust
        return refused(capsys, "audit", table, "--target", "diagnosis", *options)

    class Bomb:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    assert "Pass --trust if you know" in said(pickle.dumps(Bomb()), trust=False)
    assert "Pass --trust if you know" in said(kind="skops", trust=False)
    assert not (tmp_path / "ran").exists()
    assert "cannot be loaded as a pickle file" in said(b"not a pickle")
    assert "cannot be loaded as a skops file" in said(kind="skops")
    assert "holds a dict, which is no classifier" in said(pickle.dumps({"a": 1}))
    assert "holds a type" in said(pickle.dumps(LogisticRegression))
    assert "holds a regressor" in said(pickle.dumps(Ridge()))
    forest = RandomForestClassifier(2)
    assert re.search("RandomForestClassifier", said(pickle.dumps(forest)))
    others = LogisticRegression().fit(pd.DataFrame({"length": [0.0, 1.0]}), [0, 1])
    assert "fitted on columns that are not among the features: 'length'" in said(
        pickle.dumps(others)
    )
    others = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    assert "was fitted on 1 columns, and there are 6 features" in said(pickle.dumps(others))
    assert "cannot be fitted on these columns" in said(pickle.dumps(LogisticRegression()))
    path.unlink()
    assert "there is no such file" in said()


def test_networks(table, capsys):
    said, folder = audited(capsys, table, "--model", "mlp")
    assert said["model"] == "network of 32 units, weight decay 3"
    issues = read_issues(folder)
    assert set(SWAPPED) <= set(issues.index[issues["rank"] <= 20])


# What is said


def test_the_summary(table, capsys):
    code, out, err = call(capsys, "audit", table, "--target", "diagnosis")
    assert code == 0
    lines = out.splitlines()
    assert 8 <= len(lines) <= 13
    assert lines[0].startswith("table        ") and "200 rows, 6 features" in lines[0]
    assert "logistic regression, C = " in out
    assert "held out     accuracy 0." in out
    assert len(re.findall(r"row \d+, given (?:malignant|benign): the model without it", out)) == 3
    assert "issues.csv, clean.csv, report.html" in out
    assert err.splitlines()[0].startswith("[1/6] reading tumours.csv")
    assert err.splitlines()[-1].startswith("[6/6] writing the report")
    code, out, err = call(capsys, "audit", table, "--target", "diagnosis", "--quiet", "--overwrite")
    assert (code, out, err) == (0, "", "")
    code, out, err = call(capsys, "audit", table, "--target", "diagnosis", "--json", "--overwrite")
    assert json.loads(out)["files"]["report"].endswith("report.html")
    assert "[6/6]" in err


def test_json_has_no_nan(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said, _ = audited(capsys, written(tumours(), tmp_path / "t.csv"), "--groups", "clinic")
    json.dumps(said, allow_nan=False)


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = tumours()
    frame["diagnosis"] = frame["diagnosis"].replace("benign", "\x1b[31mbenign\x07")
    frame["patient"] = "\x1b]0;" + frame["patient"]
    path = written(frame, tmp_path / "rude.csv")
    code, out, err = call(capsys, "audit", path, "--target", "diagnosis", "--index", "patient")
    assert code == 0
    assert all(c.isprintable() or c == "\n" for c in out + err)


def test_progress_overwrites_its_line_on_a_terminal(table, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = call(capsys, "audit", table, "--target", "diagnosis")
    assert err.endswith("\r\x1b[K")
    assert "\n" not in err
