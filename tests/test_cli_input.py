"""Hostile and broken tables: each ends with one line that says what to do, and leaves nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from cli_helpers import call, patients, refused, tumours, without_report, written

from sklearn_dualif.cli._columns import as_numbers, column_of
from sklearn_dualif.cli._csv_file import CsvTable

pytest.importorskip("matplotlib")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, which a refused call has to leave as it was."""
    monkeypatch.chdir(tmp_path)
    without_report(monkeypatch)
    yield tmp_path
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not hidden


def audit_refused(capsys, path, *options, target="diagnosis"):
    before = (
        {p: p.stat().st_mtime_ns for p in path.parent.iterdir()} if path.parent.exists() else {}
    )
    said = refused(capsys, "audit", path, "--target", target, *options)
    assert {p: p.stat().st_mtime_ns for p in path.parent.iterdir()} == before
    return said


def test_no_such_file(here, capsys):
    written(tumours(30), here / "tumours.csv")
    said = audit_refused(capsys, here / "tumors.csv")
    assert "there is no file" in said and "Did you mean 'tumours.csv'?" in said


def test_a_folder(here, capsys):
    (here / "data.csv").mkdir()
    assert "is a folder" in audit_refused(capsys, here / "data.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,b,diagnosis\n", "has a header and no rows"),
        (b"a,b,diagnosis\n1,2,x\n1,2\n", "line 3 of .* has 2 cells and its header 3"),
        (b"a,b,diagnosis\n1,2,x\n1,2,x,y\n", "line 3 of .* has 4 cells"),
        (b"a,b,diagnosis\n1,\x002,x\n", "line 2 of .* has a NUL byte"),
        (b"a,b,diagnosis\n1,caf\xe9,x\n", "line 2 .* not utf-8 .byte 0xe9.*cp1252 .*'1,café,x'"),
        ("a,b,diagnosis\n1,2,x\n".encode("utf-16"), "looks like UTF-16. Pass --encoding utf-16"),
        (b"a,a,diagnosis\n1,2,x\n", "several columns called 'a'"),
        (b"diagnosis\nx\ny\n", "one column only"),
        (b'a,b,diagnosis\n1,"2,x\n' + b"1,2,x\n" * 3, "line 2 of .* has 2 cells"),
        (b"a,b,diagnosis\n" + b"1," * 10**6 + b"x\n", "has 1,000,001 cells"),
        (b",".join([b"%d" % k for k in range(10**6)]) + b"\n1\n", "has 1,000,000 columns"),
        (b"a,b,diagnosis\n" + b"1,2,x\n" * 5, "at least 20 are needed|is 'x' in every row"),
    ],
)
def test_broken_files(here, capsys, content, said):
    import re

    path = here / "data.csv"
    path.write_bytes(content)
    assert re.search(said, audit_refused(capsys, path))


def test_a_cell_that_does_not_end(here, capsys):
    path = here / "data.csv"
    path.write_text('a,b,diagnosis\n1,"' + "x" * 10_000_001 + '",y\n')
    said = audit_refused(capsys, path, "--separator", ",")
    assert "is no CSV" in said and "quotation mark without its pair" in said
    assert "quotation mark without its pair" in audit_refused(capsys, path)


def test_encodings(here, capsys):
    frame = tumours(60)
    frame["clinic"] = frame["clinic"].replace("north", "café")
    path = here / "data.csv"
    path.write_bytes(frame.to_csv(index=False).encode("cp1252"))
    assert "--encoding cp1252" in audit_refused(capsys, path)
    assert "--encoding klingon is not known" in audit_refused(capsys, path, "--encoding", "klingon")
    code, *_ = call(capsys, "audit", path, "--target", "diagnosis", "--encoding", "cp1252")
    assert code == 0
    kept = (here / "data-audit" / "clean.csv").read_bytes()
    assert "café".encode("cp1252") in kept


def test_columns_that_are_not_there(here, capsys):
    path = written(tumours(60), here / "data.csv")
    said = audit_refused(capsys, path, target="Diagnosys")
    assert "--target 'Diagnosys' is no column" in said and "Did you mean 'diagnosis'?" in said
    assert "Its columns are 'patient', 'mean radius'" in audit_refused(capsys, path, target="zzz")
    for option in ("--index", "--drop", "--keep", "--groups", "--sensitive"):
        assert f"{option} 'nope' is no column" in audit_refused(capsys, path, option, "nope")


def test_targets_that_cannot_be_learned(here, capsys):
    frame = tumours(60)
    path = written(frame.assign(one="x", none="", many=frame.index), here / "data.csv")
    assert "is 'x' in every row" in audit_refused(capsys, path, target="one")
    assert "is empty in all 60 rows" in audit_refused(capsys, path, target="none")
    assert "60 classes in 60 rows" in audit_refused(capsys, path, target="patient")
    said = audit_refused(capsys, path, "--task", "classification", target="many")
    assert "Pass --task regression" in said
    said = audit_refused(capsys, path, "--task", "regression")
    assert "--task regression needs numbers" in said and "in line 2" in said
    mixed = frame["mean radius"].astype(object)
    mixed[3] = "wide"
    path = written(frame.assign(size=mixed), here / "data.csv")
    said = audit_refused(capsys, path, target="size")
    assert "numbers but for 1 value, 'wide'" in said


def test_nothing_to_learn_from(here, capsys):
    frame = tumours(60)[["patient", "diagnosis"]]
    path = written(frame, here / "data.csv")
    assert "has no column left to learn from" in audit_refused(capsys, path)


def test_classes_that_cannot_be_held_out(here, capsys):
    frame = patients(24)
    frame["target"] = np.repeat([f"k{k}" for k in range(4)], 6)
    path = written(frame, here / "data.csv")
    assert call(capsys, "audit", path, "--target", "target")[0] == 0
    frame = patients(30).assign(target=np.repeat([f"k{k}" for k in range(10)], 3))
    path = written(frame, here / "other.csv")
    assert "too many to learn" in audit_refused(capsys, path, target="target")


def test_broken_parquet(here, capsys):
    path = here / "data.parquet"
    path.write_bytes(b"PAR1 not at all")
    assert "is no Parquet file" in audit_refused(capsys, path)


def test_a_missing_library_is_named_with_its_extra(here, capsys, monkeypatch):
    import sys

    path = written(tumours(30), here / "data.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "sklearn-dualif[tables]"' in audit_refused(capsys, path)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["audit"], "the following arguments are required: FILE, --target"),
        (["audit", "x.csv", "--target", "y", "--contamination", "0.7"], "0.7 is not auto"),
        (
            ["audit", "x.csv", "--target", "y", "--contamination", "x"],
            "invalid _share value|not auto",
        ),
        (["audit", "x.csv", "--target", "y", "--rows", "0"], "at least 1"),
        (["audit", "x.csv", "--target", "y", "--model", "forest"], "'forest' is not logistic"),
        (["audit", "x.csv", "--target", "y", "--separator", "ab"], "is not one character"),
        (["audit", "x.csv", "--target", "y", "--random-state", "-1"], "from 0 to"),
        (["clean", "x.csv"], "invalid choice: 'clean'"),
        ([], "required: COMMAND"),
    ],
)
def test_usage(capsys, argv, said):
    import re

    code, out, err = call(capsys, *argv)
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and re.search(said, err) and "--help" in err


@pytest.mark.parametrize("option", ["--index", "--groups", "--sensitive", "--drop", "--keep"])
def test_the_target_has_no_other_role(here, capsys, option):
    path = written(tumours(60), here / "data.csv")
    said = audit_refused(capsys, path, option, "diagnosis")
    assert f"{option} 'diagnosis' is the target. Name another column." in said


def test_a_column_is_dropped_or_kept(here, capsys):
    path = written(tumours(60), here / "data.csv")
    options = ["--index", "clinic", "--drop", "clinic", "method", "--keep", "method", "clinic"]
    said = audit_refused(capsys, path, *options)
    assert "--drop and --keep both name 'clinic', 'method'" in said


# What is not an error


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1.5", "-2", "1e3"], [1.5, -2.0, 1000.0]),
        (["1,5", "2,25"], [1.5, 2.25]),
        (["12%", "3.5 %", "-4%"], [12.0, 3.5, -4.0]),
        (["$1,234.50", "$12.00", "-$3"], [1234.5, 12.0, -3.0]),
        (["1.234,50 €", "12,00 €", "3 €"], [1234.5, 12.0, 3.0]),
        (["1,234", "950", "1,200,000"], [1234.0, 950.0, 1200000.0]),
        (["1,234", "0,500"], [1.234, 0.5]),
        (["1,234", "1500"], None),  # decimals or thousands
        (["P12", "P13"], None),
        (["1,2,3", "4,5,6"], None),
        (["12-30", "12-31"], None),
    ],
)
def test_numbers_as_people_write_them(texts, numbers):
    found = as_numbers(np.array(texts, dtype=object), np.ones(len(texts), dtype=int))
    if numbers is None:
        assert np.isnan(found).any()
    else:
        np.testing.assert_allclose(found, numbers)


@pytest.mark.parametrize("form", ["%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M:%S %p", "%Y-%m-%d %H:%M"])
def test_dates_with_times(here, form):
    times = pd.date_range("2024-01-05 11:30", periods=60, freq="31h")
    path = written(pd.DataFrame({"at": times.strftime(form), "y": range(60)}), here / "data.csv")
    found = column_of(CsvTable(path), "at")
    assert found.kind == "date" and not found.said
    np.testing.assert_array_equal(found.values.to_numpy(), times.to_numpy())


def test_columns_are_taken_for_what_they_are(here, capsys):
    import json

    frame = tumours(80)
    n = len(frame)
    frame["number"] = np.arange(n)
    frame["day"] = pd.date_range("2024-03-01", periods=n).strftime("%d.%m.%Y")
    frame["price"] = [f"{k % 7},{k % 10}" for k in range(n)]
    frame["empty"] = ""
    frame["same"] = "x"
    mixed = frame["mean texture"].astype(object)
    mixed[[3, 4]] = ["?", "n.d."]
    frame["mean texture"] = mixed
    frame["huge"] = np.where(np.arange(n) == 3, 1e300, np.arange(n) % 9)
    path = written(frame, here / "data.csv")
    code, out, _ = call(capsys, "audit", path, "--target", "diagnosis", "--json", "--quiet")
    assert code == 0
    columns = json.loads(out)["columns"]
    kinds = {name: kind for name, (kind, _) in columns.items()}
    assert kinds["patient"] == kinds["number"] == kinds["empty"] == kinds["same"] == "left out"
    assert "names, ids or prose" in columns["patient"][1]
    assert columns["number"][1] == "numbers the rows"
    assert kinds["day"] == "date"
    assert kinds["price"] == kinds["mean texture"] == "number"
    assert columns["mean texture"][1] == "1 value no number ('n.d.'), taken as missing"
    assert columns["huge"][1] == "1 value infinite or too large, taken as missing"
    assert kinds["clinic"] == "category"
    assert kinds["diagnosis"] == "role"


def test_another_encoding_makes_one_column(here, capsys):
    path = here / "data.csv"
    path.write_bytes(b"a,b,diagnosis\n" + b"1,2,x\n" * 40)
    said = audit_refused(capsys, path, "--encoding", "utf-16-le")
    assert "one column only" in said and "or another encoding than utf-16-le" in said


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators_are_found(here, capsys, separator):
    path = here / "data.csv"
    tumours(60).to_csv(path, index=False, sep=separator)
    assert call(capsys, "audit", path, "--target", "diagnosis")[0] == 0
    header = (here / "data-audit" / "clean.csv").read_text().splitlines()[0]
    assert header == separator.join(tumours(60).columns)
