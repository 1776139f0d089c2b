"""The report: what it says, that nothing in it is live, and that it is written whole or not."""

from __future__ import annotations

import os
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, scale
from sklearn.svm import LinearSVC
from skorch import NeuralNetClassifier
from torch import nn

import sklearn_dualif
from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.cleaning import find_issues
from sklearn_dualif.exceptions import ReportError
from sklearn_dualif.inspection import report
from sklearn_dualif.metrics import validate

pytest.importorskip("matplotlib")

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Strict(HTMLParser):
    """Balanced tags, no scripts, and nothing that would be loaded from elsewhere."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.images, self.text, self.seen = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.seen.append(tag)
        assert tag not in {"script", "iframe", "object", "embed", "link", "base"}, tag
        for name, value in attrs.items():
            assert not name.startswith("on"), name
            assert name not in {"href", "srcset", "action"}, name
            if name == "src":
                assert value.startswith("data:image/"), value[:40]
        if tag == "img":
            assert attrs["alt"].strip()
            self.images.append(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.text.append(data)


def parsed(path):
    """Return the parsed page; its words are in ``words``."""
    page = Strict()
    page.feed(Path(path).read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    page.words = " ".join(" ".join(page.text).split())
    return page


@cache
def wine():
    X, y = load_wine(return_X_y=True, as_frame=True)
    X.index = [f"bottle {row}" for row in X.index]
    y = pd.Series(np.array(["barolo", "barbera", EVIL])[y], index=X.index)
    y_train = y[::2].copy()
    y_train.iloc[::12] = np.roll(["barolo", "barbera", EVIL], 1)[
        [["barolo", "barbera", EVIL].index(label) for label in y_train.iloc[::12]]
    ]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    influence = InfluenceEstimator(model).fit(X[::2], y_train)
    return influence, X[1::2], y[1::2]


@cache
def regression():
    X, y = load_diabetes(return_X_y=True)
    return InfluenceEstimator(Ridge(0.1)).fit(X[:120], y[:120]), X[120:200], y[120:200]


# What it says


def test_a_report_of_a_table(tmp_path):
    influence, X, y = wine()
    path = report(influence, tmp_path / "wine.html", X, y, random_state=0)
    assert path == tmp_path / "wine.html"
    page = parsed(path)
    verdict = validate(influence, X, y, random_state=0)
    assert str(verdict) in page.words
    assert f"slope {verdict.slope:.2f}" in page.words
    issues = find_issues(influence, influence._X_train, influence._y_train, X_val=X, y_val=y)
    assert f"{issues['is_issue'].sum()} rows look wrong" in page.words
    for name, row in issues.nsmallest(20, "rank").iterrows():
        assert str(name) in page.words
        assert row["reason"] in page.words
    assert issues.nlargest(1, "rank")["reason"].iloc[0] not in page.words
    assert page.words.count("looks wrong") == issues["is_issue"].sum()
    worst = issues["rank"].idxmin()
    shown = influence._X_train.loc[worst]
    assert any(f"{name} {value:.3g}" in page.words for name, value in shown.items())
    assert len(page.images) == 3
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.images)
    for said in ("ridge", "effective dimension", "solver", "Python", "refits to check", "primal"):
        assert said in page.words
    assert f"{len(influence.leverage_)} training rows" in page.words
    assert path.stat().st_size < 2_000_000


def test_head_of_the_page(tmp_path):
    influence, X, y = wine()
    text = report(influence, tmp_path / "r.html", X, y, title=f"{EVIL} & co").read_text("utf-8")
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt; &amp; co</title>" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_everything_of_the_user_is_escaped(tmp_path):
    X, y = load_wine(return_X_y=True, as_frame=True)
    X.columns = [f"{EVIL}{column}" for column in range(13)]
    X.index = [f'"><img src=x onerror=alert({row})>' for row in X.index]
    y = np.array([EVIL, "a & b", "'c'"])[y]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    influence = InfluenceEstimator(model).fit(X[::2], y[::2])
    frame = pd.DataFrame(
        {EVIL: [EVIL, 0.123456], "n": [1, 2]}, index=pd.Index([EVIL, 2], name=EVIL)
    )
    sections = [(EVIL, frame), ("words", f"one {EVIL}\n\ntwo")]
    path = report(influence, tmp_path / "r.html", X[1::2], y[1::2], title=EVIL, sections=sections)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text
    page = parsed(path)
    assert f"one {EVIL}" in page.words
    assert page.words.count(EVIL) > 20
    assert len(page.images) == 3


def test_sections_of_a_caller(tmp_path):
    influence, X, y = regression()
    frame = pd.DataFrame({"value": np.arange(300) / 7})
    path = report(
        influence, tmp_path / "r.html", sections=[("Long", frame), ("Said", "one\n\ntwo")]
    )
    page = parsed(path)
    assert "The first 200 of 300 lines." in page.words
    assert "28.4" in page.words
    assert "42.7" not in page.words
    wrong = ("text", pd.DataFrame(), [("one", 2)], [("one",)], ["ab"])
    for sections in wrong:
        with pytest.raises(TypeError, match="sections"):
            report(influence, tmp_path / "x.html", sections=sections)
    assert not (tmp_path / "x.html").exists()


def test_without_held_out_rows_no_promise(tmp_path):
    influence, _, _ = wine()
    page = parsed(report(influence, tmp_path / "r.html"))
    assert "The sizes of the effects were not checked" in page.words
    assert "No held-out rows were given" in page.words
    assert "report(influence, path, X_val, y_val)" in page.words
    assert "trust the sizes" not in page.words.lower()
    assert "left out of five more fits" in page.words
    assert len(page.images) == 2


def test_results_that_are_known_are_not_computed_again(tmp_path, monkeypatch):
    from sklearn_dualif.inspection import _report

    influence, X, y = wine()
    issues = find_issues(influence, influence._X_train, influence._y_train)
    validation = validate(influence, X, y, n_refits=7, random_state=0)
    for name in ("find_issues", "validate"):
        monkeypatch.setattr(_report, name, None)
    path = report(influence, tmp_path / "r.html", issues=issues, validation=validation)
    page = parsed(path)
    assert str(validation) in page.words
    assert issues.nsmallest(1, "rank")["reason"].iloc[0] in page.words
    assert "refits to check" not in page.words


@pytest.mark.parametrize("n_rows", [1, 7, 200])
def test_number_of_rows(tmp_path, n_rows):
    influence, _, _ = regression()
    page = parsed(report(influence, tmp_path / "r.html", n_rows=n_rows))
    assert page.seen.count("tr") == 1 + min(n_rows, 120)


# Every kind of model


def network(X, y):
    torch.manual_seed(0)
    module = nn.Linear(X.shape[1], 3)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    rows, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(rows), labels)
        loss = loss + 0.005 * sum((p**2).sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return module


def kinds():
    X, y = load_wine(return_X_y=True)
    X = scale(X)
    frame = pd.DataFrame({"alcohol": X[:, 0], "hue": X[:, 10]})
    frame["colour"] = pd.Categorical(np.where(X[:, 9] > 0, "deep", "pale"))
    words = [f"{'red' if label else 'white'} wine {row % 7}" for row, label in enumerate(y)]
    encoder = make_column_transformer(
        (OneHotEncoder(), ["colour"]), remainder="passthrough", verbose_feature_names_out=False
    )
    skorch = NeuralNetClassifier(
        nn.Linear,
        module__in_features=13,
        module__out_features=3,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__weight_decay=0.01,
        lr=0.5,
        max_epochs=300,
        batch_size=-1,
        train_split=None,
        verbose=0,
    )
    mlp = MLPClassifier(4, alpha=1.0, solver="lbfgs", max_iter=3000, tol=1e-9, random_state=0)
    targets = np.c_[X[:, 0], X[:, 1]]
    return {
        "frame": (make_pipeline(encoder, LogisticRegression()), frame, y),
        "texts": (make_pipeline(TfidfVectorizer(), LogisticRegression()), words, y > 0),
        "sparse": (LogisticRegression(), sparse.csr_array(np.where(np.abs(X) > 1, X, 0)), y),
        "two targets": (Ridge(), X[:, 2:], targets),
        "perceptron": (mlp, X, y),
        "skorch": (skorch, X.astype(np.float32), y),
        "torch": (TorchModel(network(X[::2], y[::2]), weight_decay=0.01), X, y),
        "margins": (LinearSVC(), X, y == 1),
        "several labels": (
            MLPClassifier(3, alpha=1.0, solver="lbfgs", max_iter=3000, random_state=0),
            X,
            np.c_[y == 1, y == 2].astype(int),
        ),
    }


@pytest.mark.filterwarnings("ignore::sklearn_dualif.exceptions.InfluenceWarning")
@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("kind", kinds())
def test_every_model_has_a_report(tmp_path, kind, held_out):
    model, X, y = kinds()[kind]
    torch.manual_seed(0)
    influence = InfluenceEstimator(model).fit(X[::2], y[::2])
    validation = (X[1::2], y[1::2]) if held_out else ()
    path = report(influence, tmp_path / "r.html", *validation, n_refits=7, random_state=0)
    page = parsed(path)
    expected = 2 if not held_out or kind == "torch" else 3
    assert len(page.images) == expected
    judged = kind not in ("margins", "several labels")
    assert ("Rows are ranked by self-influence" in page.words) != judged
    if kind == "margins":
        assert "LinearSVC has no predict_proba" in page.words
    if kind == "frame":
        assert "colour pale" in page.words
    if kind == "texts":
        assert "white wine" in page.words
    if kind == "torch" and held_out:
        assert "not checked" in page.words


def test_scores_without_effects(tmp_path):
    X, y = load_wine(return_X_y=True)
    influence = InfluenceEstimator(LogisticRegression(), curvature="identity").fit(scale(X), y)
    page = parsed(report(influence, tmp_path / "r.html", scale(X), y))
    assert "scores that rank rows" in page.words
    assert "squared length of their gradient" in page.words
    assert len(page.images) == 1


def test_images(tmp_path):
    X, y = load_digits(return_X_y=True)
    influence = InfluenceEstimator(LogisticRegression(max_iter=1000)).fit(X[:150] / 16, y[:150])
    path = report(
        influence,
        tmp_path / "r.html",
        X[150:200] / 16,
        y[150:200],
        image_shape=(8, 8),
        n_rows=5,
        n_refits=7,
        random_state=0,
    )
    page = parsed(path)
    small = [image for image in page.images if image.get("class") == "thumbnail"]
    assert len(small) == 5
    assert len(page.images) == 5 + 4
    assert "most unusual values" not in page.words


@pytest.mark.slow
def test_a_hundred_thousand_rows_make_a_small_file(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100_000, 3))
    y = X @ [1.0, 2.0, 3.0] + rng.standard_normal(100_000)
    influence = InfluenceEstimator(Ridge()).fit(X, y)
    path = report(influence, tmp_path / "r.html", X[:500], y[:500], n_refits=7, random_state=0)
    assert path.stat().st_size < 1_500_000
    assert len(parsed(path).images) == 3


# Errors, and the file


def test_what_is_not_accepted(tmp_path):
    influence, X, y = wine()
    path = tmp_path / "r.html"
    issues = find_issues(influence, influence._X_train, influence._y_train)
    groups = find_issues(
        influence, influence._X_train, influence._y_train, groups=np.arange(len(issues)) % 3
    )
    with pytest.raises(TypeError, match="report needs a fitted InfluenceEstimator; got Ridge"):
        report(Ridge(), path)
    with pytest.raises(NotFittedError):
        report(clone(influence), path)
    with pytest.raises(ValueError, match="y_val was given without X_val"):
        report(influence, path, y_val=y)
    with pytest.raises(ValueError, match="X_val was given without y_val"):
        report(influence, path, X)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        report(influence, path, X, y[:-1])
    for wrong in (0, 201, 2.5):
        with pytest.raises(ValueError, match=f"n_rows={wrong} must be"):
            report(influence, path, n_rows=wrong)
    with pytest.raises(ValueError, match=r"image_shape=\(3, 3\) has 9 values"):
        report(influence, path, image_shape=(3, 3))
    with pytest.raises(TypeError, match="issues is a list, not a DataFrame"):
        report(influence, path, issues=[1])
    with pytest.raises(ValueError, match="issues has no column 'given_label'"):
        report(influence, path, issues=groups)
    with pytest.raises(ValueError, match="issues has 5 rows and the training set 89"):
        report(influence, path, issues=issues[:5])
    with pytest.raises(ValueError, match="issues has another index"):
        report(influence, path, issues=issues.sort_values("rank"))
    with pytest.raises(ValueError, match="ranks other than 1 to 89"):
        report(influence, path, issues=issues.assign(rank=1))
    with pytest.raises(TypeError, match="validation is a str, not a Validation"):
        report(influence, path, validation="trust")
    with pytest.raises(ValueError, match="n_refits=2 must be"):
        report(influence, path, X, y, n_refits=2)
    assert os.listdir(tmp_path) == []


def test_where_it_cannot_be_written(tmp_path):
    influence, _, _ = wine()
    with pytest.raises(ReportError, match="no folder"):
        report(influence, tmp_path / "missing" / "r.html")
    with pytest.raises(OSError, match="is a folder"):
        report(influence, tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="no folder"):
        report(influence, tmp_path / "file" / "r.html")
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    influence, _, _ = wine()
    path = tmp_path / "r.html"
    path.write_text("older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ReportError, match=r"No space left on device.*is there still"):
        report(influence, path)
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["r.html"]
    monkeypatch.undo()
    report(influence, str(path))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["r.html"]


def test_a_folder_without_the_right_to_write(tmp_path, monkeypatch):
    influence, _, _ = wine()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ReportError, match="No file can be written to the folder"):
        report(influence, tmp_path / "r.html")


def test_the_caller_s_settings_stay(tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    influence, _, _ = wine()
    with plt.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before, figures = dict(matplotlib.rcParams), plt.get_fignums()
        report(influence, tmp_path / "r.html")
        assert dict(matplotlib.rcParams) == before
        assert plt.get_fignums() == figures


def test_the_template_is_in_the_package():
    template = Path(sklearn_dualif.__file__).parent / "inspection" / "report.html"
    assert "$body" in template.read_text(encoding="utf-8")
