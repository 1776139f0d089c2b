"""Explanations of single rows: the library's numbers, and what stands in the table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_helpers import SWAPPED, call, patients, refused, tumours, written

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.cli._arguments import build_parser
from sklearn_dualif.cli._dataset import read_dataset
from sklearn_dualif.cli._fitted import choose

pytest.importorskip("matplotlib")


@pytest.fixture
def table(tmp_path):
    return written(tumours(), tmp_path / "tumours.csv")


def explained(capsys, path, row, *options, target="diagnosis"):
    """Return the JSON of an explanation, and the fitted estimator and dataset by hand."""
    argv = ["explain", str(path), "--target", target, "--row", str(row), *options]
    code, out, err = call(capsys, *argv, "--json", "--quiet")
    assert code == 0 and err == "", err
    dataset = read_dataset(build_parser().parse_args(argv))
    chosen = choose(dataset, None, 0)
    influence = InfluenceEstimator(chosen.influence.estimator).fit(dataset.X, dataset.y)
    return json.loads(out), influence, dataset


def test_the_numbers_are_those_of_the_library(table, capsys):
    row = SWAPPED[0]
    said, influence, dataset = explained(capsys, table, row, "--k", "4")
    X, y = dataset.X, dataset.y
    effects = influence.influence(X.iloc[[row]], y.iloc[[row]])[0]
    assert said["own_effect"] == pytest.approx(influence.self_influence_[row])
    assert said["own_effect"] == pytest.approx(effects[row])
    effects[row] = 0.0
    order = np.argsort(-effects)
    for side, rows in (("helpful", order[:4]), ("harmful", order[::-1][:4])):
        assert [other["row"] for other in said[side]] == rows.tolist()
        assert [other["effect"] for other in said[side]] == pytest.approx(effects[rows])
        first = said[side][0]
        assert first["target"] == y.iloc[rows[0]]
        assert first["values"]["mean radius"] == tumours()["mean radius"][rows[0]]
        assert first["values"]["clinic"] == tumours()["clinic"][rows[0]]
    assert said["about"] == "loss"
    assert said["target"] == tumours()["diagnosis"][row]
    assert said["prediction"] == influence.predict(X.iloc[[row]])[0]
    assert said["unseen"] == influence.loo_predict()[row] != said["target"]
    column = list(influence.classes_).index(said["target"])
    left = influence.loo_predict_proba()[row, column]
    assert said["unseen_probability"] == pytest.approx(left)


def test_numbers_as_a_target(tmp_path, capsys):
    path = written(patients(), tmp_path / "patients.csv")
    said, influence, dataset = explained(capsys, path, 7, target="target")
    assert said["probability"] is None
    assert said["unseen"] == pytest.approx(influence.loo_predict()[7])
    assert said["target"] == dataset.y[7]
    code, out, _ = call(capsys, "explain", path, "--target", "target", "--row", 7, "--quiet")
    assert code == 0
    assert "without it    the model says" in out


def test_what_is_printed(table, capsys):
    code, out, err = call(capsys, "explain", table, "--target", "diagnosis", "--row", 50)
    assert code == 0
    assert err.splitlines()[0].startswith("[1/4] reading tumours.csv")
    assert "in the table  diagnosis = malignant" in out
    assert "without it    the model says benign, malignant at 0." in out
    assert "removing it   raises its own loss by" in out
    assert "Without these, its loss would be higher by the effect:" in out
    assert "Without these, its loss would be lower by the effect:" in out
    header = next(line for line in out.splitlines() if " effect " in line)
    assert header.split()[:3] == ["row", "effect", "diagnosis"]
    assert max(map(len, out.splitlines())) < 160


def test_rows_by_name(table, capsys):
    options = "--index", "patient"
    by_name, *_ = explained(capsys, table, "P050", *options)
    by_number, *_ = explained(capsys, table, 50)
    assert by_name["own_effect"] == pytest.approx(by_number["own_effect"])
    assert by_name["row"] == "P050" and by_number["row"] == 50
    assert by_name["helpful"][0]["row"] == f"P{by_number['helpful'][0]['row']:03d}"


def test_a_row_without_a_target(tmp_path, capsys):
    frame = tumours()
    frame.loc[3, "diagnosis"] = ""
    path = written(frame, tmp_path / "holes.csv")
    said, influence, dataset = explained(capsys, path, 3)
    assert said["about"] == "loss of the prediction"
    assert said["target"] is None and said["own_effect"] is None
    query = dataset.everything.iloc[[3]]
    effects = influence.influence(query, influence.predict(query))[0]
    top = said["helpful"][0]
    assert top["effect"] == pytest.approx(effects.max())
    assert top["row"] == dataset.X.index[effects.argmax()]
    # Without the most helpful row the prediction is less probable.
    moved = influence.output_change([int(effects.argmax())], query)[0, 0]
    assert moved * (1 if influence.predict(query)[0] == influence.classes_[1] else -1) < 0
    # Rows after the hole are still themselves.
    after, influence, dataset = explained(capsys, path, 50)
    assert after["own_effect"] == pytest.approx(influence.self_influence_[49])
    code, out, _ = call(capsys, "explain", path, "--target", "diagnosis", "--row", 3, "--quiet")
    assert code == 0 and "in the table" not in out
    assert f"Without these, the loss of {said['prediction']} would be higher" in out


def test_rows_that_are_not_there(table, capsys):
    def said(row, *options):
        return refused(capsys, "explain", table, "--target", "diagnosis", "--row", row, *options)

    assert "they are numbered from 0 to 199" in said("200")
    assert "--row 'P001' is no row" in said("P001")
    assert "--row '-1'" in refused(capsys, "explain", table, "--target", "diagnosis", "--row=-1")
    assert "is no row by the column 'patient'" in said("Q1", "--index", "patient")
    assert "rows by the column 'clinic'" in said("north", "--index", "clinic")
