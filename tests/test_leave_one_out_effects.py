"""Refits without single rows: against plain loops, and what they refuse."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from helpers import relative
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, scale
from sklearn.svm import LinearSVC
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif._refitting import Refits
from sklearn_dualif.metrics import leave_one_out_effects, removal_fidelity
from sklearn_dualif.objectives import AdversarialLoss, AverageLoss, DemographicParity

TIGHT = LogisticRegression(tol=1e-10, max_iter=10_000)


@cache
def classes():
    """Return training rows, their targets and queries of them."""
    X, y = load_wine(return_X_y=True)
    X = scale(X)
    return X[::2], y[::2], X[1::2], y[1::2]


@cache
def regression():
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:160], y[:160] / 50.0
    return X[::2], y[::2], X[1::2], y[1::2]


def refit_loop(losses, estimator, data, rows):
    """Return effects (n_rows, n_queries) of plain refits on losses(model, X, y)."""
    X, y, X_query, y_query = data
    before = losses(clone(estimator).fit(X, y), X_query, y_query)
    after = [
        losses(clone(estimator).fit(np.delete(X, i, 0), np.delete(y, i, 0)), X_query, y_query)
        for i in rows
    ]
    return np.array(after) - before


def log_losses(model, X, y):
    kinds = np.eye(len(model.classes_))[y]
    probabilities = model.predict_proba(X)
    return np.array([log_loss(k[None], p[None]) for k, p in zip(kinds, probabilities, strict=True)])


def squared_errors(model, X, y):
    return (model.predict(X) - y) ** 2


@pytest.mark.parametrize("estimator", [TIGHT, LogisticRegression()], ids=["tight", "default"])
def test_refits_are_those_of_plain_loops_at_the_optimum(estimator):
    X, y, X_query, y_query = classes()
    influence = InfluenceEstimator(estimator).fit(X, y)
    result = leave_one_out_effects(influence, X_query, y_query, rows=[40, 3, 7, 81])
    assert_array_equal(result.rows, [40, 3, 7, 81])
    expected = refit_loop(log_losses, TIGHT, classes(), result.rows)
    assert relative(result.refitted, expected) < 1e-4
    single = influence.influence(X_query, y_query)
    assert_allclose(result.predicted, single[:, result.rows].T, rtol=1e-10)
    p, r = result.predicted.ravel(), result.refitted.ravel()
    assert result.slope == pytest.approx(np.polyfit(p, r, 1)[0])
    assert result.pearson == pytest.approx(np.corrcoef(p, r)[0, 1])
    assert result.r2 == pytest.approx(1 - ((r - p) ** 2).sum() / ((r - r.mean()) ** 2).sum())


def test_every_row_of_a_ridge_is_exact():
    X, y, X_query, y_query = regression()
    result = leave_one_out_effects(InfluenceEstimator(Ridge()).fit(X, y), X_query, y_query)
    assert_array_equal(result.rows, np.arange(80))
    expected = refit_loop(squared_errors, Ridge(), regression(), result.rows)
    assert relative(result.refitted, expected) < 1e-8
    assert relative(result.predicted, expected) < 1e-8
    for name in ("r2", "slope", "pearson"):
        assert getattr(result, name) == pytest.approx(1.0, abs=1e-8)
        assert np.allclose(getattr(result, f"{name}_interval"), 1.0, atol=1e-8)


def test_aggregates_have_one_column():
    X, y, X_query, y_query = classes()
    y, y_query = y % 2, y_query % 2
    influence = InfluenceEstimator(TIGHT).fit(X, y)
    group = X_query[:, 0] > 0

    def gap(model, X, y):
        positive = model.predict_proba(X)[:, 1]
        return np.array([positive[group].mean() - positive[~group].mean()])

    def average(model, X, y):
        return np.array([log_losses(model, X, y).mean()])

    rows = [0, 5, 9, 33]
    for objective, value in (
        (DemographicParity(group, reference=False), gap),
        (AverageLoss(), average),
    ):
        options = {"objective": objective, "order": "exact"}
        result = leave_one_out_effects(influence, X_query, y_query, rows=rows, **options)
        assert result.refitted.shape == result.predicted.shape == (4, 1)
        expected = refit_loop(value, TIGHT, (X, y, X_query, y_query), rows)
        assert relative(result.refitted, expected) < 1e-5
        assert result.slope == pytest.approx(1.0, abs=1e-4)
        groups = removal_fidelity(influence, X_query, y_query, random_state=0, **options)
        assert groups.refitted.shape == (10, 1)
        assert groups.slope == pytest.approx(1.0, abs=1e-3)


def test_rows_are_drawn_by_random_state():
    X, y, X_query, y_query = regression()
    influence = InfluenceEstimator(Ridge()).fit(X, y)
    one, same, other = (
        leave_one_out_effects(influence, X_query, y_query, rows=5, random_state=seed)
        for seed in (0, 0, 1)
    )
    assert_array_equal(one.rows, same.rows)
    assert one.slope_interval == same.slope_interval
    assert len(one.rows) == 5
    assert not np.array_equal(one.rows, other.rows)
    mask = np.isin(np.arange(80), one.rows)
    assert_array_equal(leave_one_out_effects(influence, X_query, y_query, rows=mask).rows, one.rows)


def test_jobs_do_not_change_numbers():
    X, y, X_query, y_query = classes()
    influence = InfluenceEstimator(TIGHT).fit(X, y)
    one = leave_one_out_effects(influence, X_query, y_query, rows=[1, 5, 9])
    with parallel_config(backend="threading"):
        two = leave_one_out_effects(influence, X_query, y_query, rows=[1, 5, 9], n_jobs=2)
    assert_array_equal(one.refitted, two.refitted)


def test_rows_without_weight_and_last_of_a_class_are_passed_over():
    X, y, X_query, y_query = classes()
    keep = np.flatnonzero(y != 2).tolist() + np.flatnonzero(y == 2)[:1].tolist()
    weights = np.ones(len(keep))
    weights[:10] = 0.0
    X, y = X[keep], y[keep]
    influence = InfluenceEstimator(LogisticRegression()).fit(X, y, sample_weight=weights)
    result = leave_one_out_effects(influence, X_query, y_query)
    assert_array_equal(result.rows, np.arange(10, len(keep) - 1))
    nothing = leave_one_out_effects(influence, X_query, y_query, rows=[2])
    assert np.abs(nothing.refitted).max() < 1e-8
    with pytest.raises(ValueError, match=r"Row .* is the last one of its class.*Leave it out"):
        leave_one_out_effects(influence, X_query, y_query, rows=[50, len(keep) - 1])


def test_few_rows_have_no_intervals():
    X, y, X_query, y_query = regression()
    influence = InfluenceEstimator(Ridge()).fit(X, y)
    result = leave_one_out_effects(influence, X_query, y_query, rows=[1, 2])
    assert result.slope == pytest.approx(1.0, abs=1e-8)
    assert np.isnan(result.slope_interval).all()
    result = leave_one_out_effects(influence, X_query, y_query, rows=[1], objective=AverageLoss())
    assert np.isnan([result.slope, result.pearson, result.r2]).all()


def test_the_frame_has_a_line_for_each_pair():
    X, y, X_query, y_query = regression()
    influence = InfluenceEstimator(Ridge()).fit(pd.DataFrame(X), y)
    result = leave_one_out_effects(influence, pd.DataFrame(X_query), y_query, rows=[4, 2])
    frame = result.frame()
    assert frame.columns.tolist() == ["row", "query", "predicted", "refitted"]
    line = frame[(frame["row"] == 2) & (frame["query"] == 7)]
    assert line["refitted"].item() == result.refitted[1, 7]
    assert "array" not in repr(result)


def test_networks_are_trained_as_they_were():
    X, y, X_query, y_query = classes()
    estimator = MLPClassifier(
        (32,), activation="tanh", solver="lbfgs", alpha=3.0, tol=1e-8, max_iter=5000, random_state=0
    )
    influence = InfluenceEstimator(estimator, parameters=["*.weight", "1.bias"]).fit(X, y)
    rows = np.argsort(-influence.self_influence_)[:3]
    result = leave_one_out_effects(influence, X_query, y_query, rows=rows)
    expected = refit_loop(log_losses, estimator, classes(), result.rows)
    assert relative(result.refitted, expected) < 1e-6
    assert result.pearson > 0.9


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (LinearSVC(), {"tol": 1e-10, "max_iter": 10_000}),
        (LinearSVC(tol=1e-12, max_iter=20_000), {"tol": 1e-12, "max_iter": 20_000}),
        (Ridge(), {"tol": 1e-10, "max_iter": None}),
    ],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda e: e,
        lambda e: make_pipeline(FunctionTransformer(), e),
        lambda e: GridSearchCV(e, {}, cv=2),
    ],
    ids=["plain", "pipeline", "search"],
)
def test_tolerances_are_lowered_wherever_the_model_is(estimator, expected, wrap):
    X, y, *_ = classes()
    y = y == 0
    refits = Refits.of(InfluenceEstimator(wrap(estimator)).fit(X, y)).to_the_optimum()
    found = refits.estimator.get_params()
    for name, value in expected.items():
        assert [v for key, v in found.items() if key.split("__")[-1] == name] == [value]


# Refusals


@pytest.fixture
def influence():
    return InfluenceEstimator(Ridge()).fit(*regression()[:2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (0, r"rows=0 must be from 1 to 80"),
        (81, r"rows=81 must be from 1 to 80"),
        ([], r"rows names no rows"),
        ([80], r"Row 80 is out of range"),
        ([1, 1], r"Row 1 is named twice"),
        (2.5, r"must be row positions"),
        (True, r"boolean mask"),
    ],
)
def test_rows_that_there_are_not(influence, rows, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out_effects(influence, *regression()[2:], rows=rows)


def test_unfitted_and_other_estimators():
    with pytest.raises(NotFittedError):
        leave_one_out_effects(InfluenceEstimator(Ridge()), *regression()[2:])
    with pytest.raises(TypeError, match=r"leave_one_out_effects needs a fitted Infl.*got Ridge"):
        leave_one_out_effects(Ridge(), *regression()[2:])


def test_objectives_about_other_rows():
    X, y, X_query, y_query = classes()
    influence = InfluenceEstimator(LogisticRegression()).fit(X, y % 2)
    with pytest.raises(ValueError, match="Pass those rows as X"):
        leave_one_out_effects(influence, X_query, y_query % 2, objective=AdversarialLoss(), rows=3)


@pytest.mark.filterwarnings("ignore::sklearn_dualif.exceptions.NotStationaryWarning")
def test_models_that_cannot_be_fitted_again():
    X, y, X_query, y_query = classes()
    model = TorchModel(nn.Linear(13, 3).double(), weight_decay=0.1, classes=[0, 1, 2]).fit(X, y)
    influence = InfluenceEstimator(model).fit(X, y)
    with pytest.raises(ValueError, match="cannot be fitted again"):
        leave_one_out_effects(influence, X_query, y_query, rows=3)
