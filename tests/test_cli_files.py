"""The files that an audit leaves: all of them or none, safe to open, and the table as it was."""

from __future__ import annotations

import csv
import io
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_helpers import call, read_issues, refused, tumours, without_report, written

from sklearn_dualif.cli import _files, _main
from sklearn_dualif.cli._cells import harmless, harmless_frame, is_formula
from sklearn_dualif.cli._csv_file import CsvTable

pytest.importorskip("matplotlib")


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_report(monkeypatch)
    return written(tumours(), tmp_path / "tumours.csv")


def everything(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def audit(capsys, table, *options):
    code, out, err = call(capsys, "audit", table, "--target", "diagnosis", "--quiet", *options)
    assert code == 0, err
    return out


# Cells


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "=cmd|' /C calc'!A0",
        "+SUM(1)",
        "-2+3",
        "@x",
        "\t=1",
        "\r=1",
        "\n=1",
        "-",
        "＝1",
        "+-1",
    ],
)
def test_formulas(text):
    assert is_formula(text)
    assert harmless(text) == "'" + text


@pytest.mark.parametrize("text", ["", "a=1", "-3", "+1.5", "-1e-7", " 3", "x@y.z", "'=1", "1-2"])
def test_texts_that_are_no_formulas(text):
    assert not is_formula(text)
    assert harmless(text) == text


def test_frames_are_made_harmless():
    frame = pd.DataFrame(
        {"=a": [1, -2], "b": ["-x", "y"], "c": pd.Categorical(["@z", "-4"])},
        index=pd.Index(["+p", "q"], name="=n"),
    )
    safe = harmless_frame(frame)
    assert safe.columns.tolist() == ["'=a", "b", "c"]
    assert safe.index.tolist() == ["'+p", "q"] and safe.index.name == "'=n"
    assert safe["'=a"].tolist() == [1, -2]
    assert safe["b"].tolist() == ["'-x", "y"] and safe["c"].tolist() == ["'@z", "-4"]
    assert frame.columns.tolist() == ["=a", "b", "c"]


def test_nothing_that_is_written_runs_as_a_formula(table, capsys):
    frame = tumours()
    evil = {"malignant": "=cmd|' /C calc'!A0", "benign": "-benign"}
    frame["diagnosis"] = frame["diagnosis"].map(evil)
    frame["clinic"] = frame["clinic"].map({"north": "@north", "south": "+south", "west": "west"})
    frame["patient"] = "\t" + frame["patient"]
    frame = frame.rename(columns={"method": "=method", "patient": "-patient"})
    written(frame, table)
    audit(capsys, table, "--groups", "clinic", "--out", "out")
    for name in ("issues.csv", "groups.csv", "clean.csv"):
        with open(table.parent / "out" / name, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) > 2
        assert not [cell for row in rows for cell in row if is_formula(cell)]
    clean = pd.read_csv(table.parent / "out" / "clean.csv")
    assert set(clean["diagnosis"]) == {f"'{label}" for label in evil.values()}
    assert clean["'-patient"].iloc[0] == "'\tP000"
    code, out, _ = call(capsys, "audit", table, "--target", "diagnosis", "--out", "again")
    assert code == 0 and "cells of clean.csv begin with ' now" in out


# The clean table


def test_the_clean_table_is_the_table_without_the_issues(table, capsys):
    audit(capsys, table)
    issues = read_issues(table.parent / "tumours-audit")
    lines = table.read_bytes().splitlines(keepends=True)
    gone = issues["line"][issues["is_issue"]].tolist()
    assert gone
    kept = [line for number, line in enumerate(lines, start=1) if number not in gone]
    assert (table.parent / "tumours-audit" / "clean.csv").read_bytes() == b"".join(kept)


def test_rows_are_written_as_they_stood(tmp_path):
    text = (
        '\ufeffa;"b ""x""";c\r\n007;"1;5";x\r\n\r\n1.50;"two\r\nlines";"y"\r\n'
        "-3; 4 ;z\r\n3;\u2028;last"
    )
    path = tmp_path / "odd.csv"
    path.write_bytes(text.encode())
    table = CsvTable(path)
    assert table.names == ["a", 'b "x"', "c"]
    assert table.line_of == [2, 4, 6, 7]
    out = tmp_path / "clean.csv"
    assert table.write(out, np.ones(4, dtype=bool)) == 0
    assert out.read_bytes() == text.replace("\r\n\r\n", "\r\n").encode()
    table.write(out, np.array([False, True, False, True]))
    expected = '\ufeffa;"b ""x""";c\r\n1.50;"two\r\nlines";"y"\r\n3;\u2028;last'
    assert out.read_bytes() == expected.encode()


def test_only_rows_with_formulas_are_written_anew(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text('a,b\n"1",=x\n"2",y\n', newline="")
    out = tmp_path / "clean.csv"
    assert CsvTable(path).write(out, np.ones(2, dtype=bool)) == 1
    assert out.read_text() == 'a,b\n1,\'=x\n"2",y\n'


def test_parquet_stays_parquet(table, capsys):
    frame = tumours()
    frame["patient"] = frame["patient"].astype("category")
    frame["day"] = pd.date_range("2024-01-01", periods=len(frame), freq="h")
    path = written(frame, table.parent / "rows.parquet")
    audit(capsys, path)
    issues = read_issues(table.parent / "rows-audit")
    clean = pd.read_parquet(table.parent / "rows-audit" / "clean.parquet")
    kept = frame[~issues["is_issue"].to_numpy()].reset_index(drop=True)
    pd.testing.assert_frame_equal(clean, kept)
    # The same rows are found as in the text of the table.
    frame.to_csv(table, index=False)
    audit(capsys, table)
    from_text = read_issues(table.parent / "tumours-audit")
    assert from_text["is_issue"].tolist() == issues["is_issue"].tolist()


# The folder


def test_a_folder_is_made(table, capsys):
    audit(capsys, table, "--out", "here")
    folder = table.parent / "here"
    assert sorted(path.name for path in folder.iterdir()) == [
        "clean.csv",
        "issues.csv",
        "report.html",
    ]
    assert sorted(path.name for path in table.parent.iterdir()) == ["here", "tumours.csv"]
    mask = os.umask(0)
    os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_folder_with_other_files_is_used_and_an_older_audit_kept(table, capsys):
    folder = table.parent / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    audit(capsys, table, "--out", "mine")
    first = everything(folder)
    said = refused(capsys, "audit", table, "--target", "diagnosis", "--out", "mine")
    assert "has 'issues.csv', 'clean.csv', 'report.html' already" in said
    assert "--overwrite" in said
    assert everything(folder) == first
    (folder / "issues.csv").write_text("old")
    audit(capsys, table, "--out", "mine", "--overwrite")
    assert everything(folder) == first


def test_places_that_cannot_be_written(table, capsys):
    def said(out, *options):
        before = everything(table.parent)
        message = refused(capsys, "audit", table, "--target", "diagnosis", "--out", out, *options)
        assert everything(table.parent) == before
        return message

    (table.parent / "file").write_text("x")
    (table.parent / "taken" / "clean.csv").mkdir(parents=True)
    assert "--out file is a file" in said("file")
    assert "there is no folder no/such" in said("no/such/place")
    assert "has folders called 'clean.csv'" in said("taken", "--overwrite")
    if sys.platform == "linux":
        assert "--out /proc/audit cannot be written" in said("/proc/audit")


@pytest.mark.parametrize("out", ["new", "old"])
def test_a_read_only_folder(table, capsys, monkeypatch, out):
    # Root may write anywhere, so that a real one would not do.
    def denied(**_):
        raise PermissionError(13, "Permission denied")

    (table.parent / "old").mkdir()
    monkeypatch.setattr("tempfile.mkdtemp", denied)
    said = refused(capsys, "audit", table, "--target", "diagnosis", "--out", out)
    assert f"--out {out} cannot be written (Permission denied). Name another folder." in said


@pytest.mark.parametrize("out", ["new", "old"])
@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (OSError(28, "No space left on device"), 2, "No space left on device. Nothing was written"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("what?"), 1, "unexpected: RuntimeError: what? (--traceback shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_leave_nothing_behind(table, capsys, monkeypatch, out, failure, code, said):
    old = table.parent / "old"
    old.mkdir()
    (old / "issues.csv").write_text("old")
    before = everything(table.parent)

    def fail(*_):
        raise failure

    monkeypatch.setattr(_files, "write_report", fail)
    argv = ["audit", table, "--target", "diagnosis", "--out", out, "--overwrite", "--quiet"]
    found, shown, error = call(capsys, *argv)
    assert found == code and shown == ""
    assert said in error and len(error.splitlines()) == 1
    assert everything(table.parent) == before


def test_a_traceback_if_it_is_asked_for(table, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("what?")

    monkeypatch.setattr(_files, "write_files", fail)
    code, _, err = call(capsys, "audit", table, "--target", "diagnosis", "--quiet", "--traceback")
    assert code == 1 and "Traceback" in err


# The process


def command(*argv):
    return [sys.executable, "-m", "sklearn_dualif", *map(str, argv)]


def test_help_needs_none_of_the_heavy_libraries():
    code = (
        "import sys\nfrom sklearn_dualif.cli import main\nassert main(['audit', '--help']) == 0\n"
        "heavy = {'torch', 'sklearn', 'numpy', 'pandas', 'matplotlib', 'skorch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "examples:" in run.stdout and "exit codes:" in run.stdout


def test_version(capsys):
    import sklearn_dualif

    code, out, err = call(capsys, "--version")
    assert (code, out, err) == (0, f"sklearn-dualif {sklearn_dualif.__version__}\n", "")


def test_an_audit_as_a_process(tmp_path):
    written(tumours(), tmp_path / "tumours.csv")
    run = subprocess.run(
        command("audit", "tumours.csv", "--target", "diagnosis"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "suspects" in run.stdout
    page = (tmp_path / "tumours-audit" / "report.html").read_text(encoding="utf-8")
    assert "tumours.csv" in page
    assert len(run.stderr.splitlines()) == 6


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_an_interrupted_process_leaves_nothing(tmp_path):
    written(tumours(), tmp_path / "tumours.csv")
    # What a shell starts in the background is deaf to SIGINT, and so would be this process.
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from sklearn_dualif.cli import main\n"
        "sys.exit(main(['audit', 'tumours.csv', '--target', 'diagnosis']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline().startswith("[1/6]")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) == 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == "" and err.splitlines()[-1] == "sklearn-dualif: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["tumours.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes are set otherwise there")
def test_a_full_disk(tmp_path):
    written(tumours(), tmp_path / "tumours.csv")
    code = (
        "import resource, sys\nfrom sklearn_dualif.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "sys.exit(main(['audit', 'tumours.csv', '--target', 'diagnosis', '--quiet']))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "sklearn-dualif: error: File too large" in run.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["tumours.csv"]


def test_a_reader_that_has_had_enough(table, monkeypatch, capfd):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Closed())
    assert _main.main(["audit", str(table), "--target", "diagnosis"]) == 0


def test_the_demo_finds_swapped_diagnoses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_report(monkeypatch)
    demo = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "demo_table.py"))
    demo["write"]("demo/tumours.csv")
    audit(capsys, "demo/tumours.csv", "--index", "patient", "--out", "demo/audit")
    demo["count"]("demo/audit/issues.csv")
    assert "Of the 24 suspects 22 are among the 28 diagnoses" in capsys.readouterr().out
