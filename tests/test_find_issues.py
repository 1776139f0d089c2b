"""Tables of suspicious rows and groups: against refits, hand-made rankings and naive rules."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cases import counts, regression, three_classes
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.multitest import fdrcorrection

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.cleaning import find_issues
from sklearn_dualif.cleaning._confident import confident_errors
from sklearn_dualif.cleaning._outliers import RATE, discoveries, spread_of
from sklearn_dualif.exceptions import UnsupportedModelError, UnsupportedOptionError

TIGHT = {"tol": 1e-12, "solver": "newton-cholesky"}
MODEL = LogisticRegression(solver="newton-cholesky")
NETWORK = MLPClassifier((4,), alpha=1.0, solver="lbfgs", max_iter=500, random_state=0)


def iris(wrong=(7, 60, 120)):
    """Return frames of iris with some labels wrong, as strings, and an index of names."""
    data = load_iris(as_frame=True)
    names = data.target_names[data.target]
    labels = names.copy()
    for row in wrong:
        labels[row] = data.target_names[(data.target[row] + 1) % 3]
    index = [f"flower {i}" for i in range(150)]
    return data.data.set_axis(index), pd.Series(labels, index=index, name="kind"), names


def log_losses(model, X, y):
    """Return each row's log loss."""
    codes = np.searchsorted(model.classes_, y)
    return -np.log(model.predict_proba(X)[np.arange(len(y)), codes])


def squared_errors(model, X, y):
    """Return each row's squared error."""
    return (model.predict(X) - y) ** 2


# The table


def test_planted_errors_come_first_with_index_and_reason():
    X, y, _ = iris()
    table = find_issues(MODEL, X, y)
    assert table.index.equals(X.index)
    assert sorted(table["rank"]) == list(range(1, 151))
    worst = table.nsmallest(3, "rank")
    assert set(worst.index) == {"flower 7", "flower 60", "flower 120"}
    assert worst["is_issue"].all()
    assert worst.loc["flower 7", "given_label"] == "versicolor"
    assert worst.loc["flower 7", "suggested_label"] == "setosa"
    reason = worst.loc["flower 7", "reason"]
    assert reason.startswith("the model without it calls it setosa at .9")
    assert "removing it lowers the held-out loss by 0.0" in reason
    assert (table["score"].to_numpy()[np.argsort(table["rank"])][:-1]).size == 149
    by_rank = table.sort_values("rank")["score"]
    assert (np.diff(by_rank) <= 0).all()
    assert table.attrs["held_out"] == "cross-validation"


def test_columns_of_the_estimator():
    X, y, _ = iris()
    influence = InfluenceEstimator(MODEL).fit(X, y)
    table = find_issues(MODEL, X, y)
    codes = np.searchsorted(influence.classes_, y)
    given = influence.loo_predict_proba()[np.arange(150), codes]
    np.testing.assert_allclose(table["loo_probability"], given)
    np.testing.assert_allclose(table["self_influence"], influence.self_influence_)
    np.testing.assert_allclose(table["leverage"], influence.leverage_)


def test_a_fitted_estimator_is_not_fitted_again(monkeypatch):
    X, y, _ = iris()
    influence = InfluenceEstimator(MODEL).fit(X, y)
    expected = find_issues(MODEL, X, y, X_val=X[::3], y_val=y[::3])

    def fit(*args, **kwargs):
        pytest.fail("the model was fitted again")

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    table = find_issues(influence, X, y, X_val=X[::3], y_val=y[::3])
    pd.testing.assert_frame_equal(table, expected)


def test_one_fit_finds_the_rows_and_five_more_measure_them(monkeypatch):
    X, y, _ = iris()
    fits, fit = [], LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, *a, **k: fits.append(1) or fit(self, *a, **k)
    )
    find_issues(MODEL, X, y, X_val=X[::3], y_val=y[::3])
    assert len(fits) == 1
    find_issues(MODEL, X, y)
    assert len(fits) == 7


def test_options_of_the_estimator_are_kept():
    X, y, _ = iris()
    exact = find_issues(InfluenceEstimator(MODEL, order="exact"), X, y)
    newton = find_issues(MODEL, X, y)
    assert list(exact.nsmallest(3, "rank").index) == list(newton.nsmallest(3, "rank").index)
    assert not np.allclose(exact["loo_probability"], newton["loo_probability"], rtol=1e-6)


# What rows do to held-out losses


def test_removal_effects_on_validation_rows_are_those_of_refits():
    data = regression(0)
    table = find_issues(Ridge(), data.X, data.y, X_val=data.X_query, y_val=data.y_query)
    full = squared_errors(Ridge().fit(data.X, data.y), data.X_query, data.y_query).mean()
    for row in range(0, 40, 7):
        kept = np.delete(np.arange(40), row)
        refit = Ridge().fit(data.X[kept], data.y[kept])
        effect = squared_errors(refit, data.X_query, data.y_query).mean() - full
        assert table["removal_effect"].iloc[row] == pytest.approx(effect, rel=1e-7)
    assert table.attrs["held_out"] == "X_val"


@pytest.mark.parametrize("class_weight", [None, {"setosa": 1.0, "versicolor": 3.0}])
def test_relabel_effects_are_those_of_refits(class_weight):
    X, y, truth = iris()
    X_val, y_val = X[1::4].to_numpy(), truth[1::4]
    model = LogisticRegression(C=0.5, class_weight=class_weight, **TIGHT)
    table = find_issues(model, X.to_numpy(), y.to_numpy(), X_val=X_val, y_val=y_val)
    full = log_losses(clone(model).fit(X.to_numpy(), y), X_val, y_val).mean()
    influence = InfluenceEstimator(model).fit(X.to_numpy(), y.to_numpy())
    rows = np.flatnonzero(table["given_label"] != table["suggested_label"])
    assert len(rows) >= 3
    for row in rows:
        relabeled = y.copy()
        relabeled.iloc[row] = table["suggested_label"].iloc[row]
        refit = clone(model).fit(X.to_numpy(), relabeled)
        effect = log_losses(refit, X_val, y_val).mean() - full
        # One Newton step; exactly that of the estimator.
        assert table["relabel_effect"].iloc[row] == pytest.approx(effect, rel=0.25, abs=2e-5)
        step = influence.relabel_effect([row], relabeled.iloc[[row]], X_val, y_val)
        assert table["relabel_effect"].iloc[row] == pytest.approx(step.mean(), rel=1e-8)
    others = table["relabel_effect"].drop(index=rows)
    assert (others == 0.0).all()


def by_hand(n, labels=None):
    """Return the fold of each row: every fifth of a class."""
    folds = np.zeros(n, dtype=int)
    seen = {}
    for row in range(n):
        label = None if labels is None else labels[row]
        folds[row] = seen.get(label, 0) % 5
        seen[label] = seen.get(label, 0) + 1
    return folds


def cross_validated(model, X, y, folds, counted, loss, removed):
    """Return by refits what removing rows does to the loss of rows held out."""
    effects = []
    for fold in range(5):
        train = np.flatnonzero(folds != fold)
        test = np.flatnonzero((folds == fold) & counted & ~np.isin(np.arange(len(y)), removed))
        if len(removed) == 1 and removed[0] not in train:
            continue
        kept = np.setdiff1d(train, removed)
        before, after = clone(model).fit(X[train], y[train]), clone(model).fit(X[kept], y[kept])
        effects.append(loss(after, X[test], y[test]) - loss(before, X[test], y[test]))
    return effects


def test_effects_without_validation_rows_are_those_of_refits():
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:80], y[:80].copy()
    y[3] += 800.0
    table = find_issues(Ridge(0.1), X, y)
    assert table["is_issue"].to_numpy().nonzero()[0].tolist() == [3]
    counted = np.arange(80) != 3
    for row in (0, 3, 17, 40):
        parts = cross_validated(Ridge(0.1), X, y, by_hand(80), counted, squared_errors, [row])
        expected = np.mean([part.mean() for part in parts])
        assert table["removal_effect"].iloc[row] == pytest.approx(expected, rel=1e-7)
    groups = np.arange(80) // 10
    table = find_issues(Ridge(0.1), X, y, groups=groups)
    for group in (0, 5):
        rows = np.flatnonzero(groups == group)
        parts = cross_validated(Ridge(0.1), X, y, by_hand(80), counted, squared_errors, rows)
        expected = np.concatenate(parts).mean()
        assert table.loc[group, "removal_effect"] == pytest.approx(expected, rel=1e-7)


def test_folds_go_by_class():
    X, y, _ = iris(wrong=())
    X, labels = X.to_numpy(), y.to_numpy()
    model = InfluenceEstimator(LogisticRegression(C=0.5, **TIGHT), order="exact")
    table = find_issues(model, X, labels)
    folds = by_hand(150, labels)
    counted = ~confident_errors_by_hand(
        clone(model).fit(X, labels).loo_predict_proba(), np.searchsorted(np.unique(labels), labels)
    )
    for row in (60, 106):
        parts = cross_validated(model.estimator, X, labels, folds, counted, log_losses, [row])
        expected = np.mean([part.mean() for part in parts])
        assert table["removal_effect"].iloc[row] == pytest.approx(expected, rel=1e-4)


# The evidence


def confident_errors_by_hand(proba, labels):
    """Return by loops which rows are confidently of another class."""
    thresholds = [proba[labels == k, k].mean() for k in range(proba.shape[1])]
    wrong = []
    for row, label in zip(proba, labels, strict=True):
        above = [k for k in range(len(row)) if row[k] >= thresholds[k]]
        wrong.append(bool(above) and max(above, key=lambda k: row[k]) != label)
    return np.array(wrong)


def test_confident_errors():
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(4) / 2, 300)
    labels = np.where(rng.random(300) < 0.7, proba.argmax(1), rng.integers(0, 4, 300))
    found = confident_errors(proba, labels)
    assert 10 < found.sum() < 150
    np.testing.assert_array_equal(found, confident_errors_by_hand(proba, labels))
    # A class without rows is no one's.
    assert not confident_errors(np.array([[0.4, 0.6], [0.3, 0.7]]), np.array([0, 0])).any()


def test_the_second_look_is_a_refit_without_the_suspects():
    data = load_digits()
    rng = np.random.default_rng(0)
    X, y = data.data[:400] / 16, data.target[:400].copy()
    wrong = rng.choice(400, 40, replace=False)
    y[wrong] = (y[wrong] + 1) % 10
    model = LogisticRegression(C=0.5, **TIGHT)
    influence = InfluenceEstimator(model, order="exact").fit(X, y)
    table = find_issues(influence, X, y, X_val=X, y_val=y)
    suspects = confident_errors_by_hand(influence.loo_predict_proba(), y)
    assert suspects.sum() > 20
    refit = clone(model).fit(X[~suspects], y[~suspects])
    expected = refit.predict_proba(X)[np.arange(400), y]
    np.testing.assert_allclose(
        table["clean_probability"][suspects], expected[suspects], rtol=1e-5, atol=1e-12
    )
    row = np.flatnonzero(~suspects)[5]
    kept = ~suspects & (np.arange(400) != row)
    refit = clone(model).fit(X[kept], y[kept])
    expected = refit.predict_proba(X[[row]])[0, y[row]]
    assert table["clean_probability"].iloc[row] == pytest.approx(expected, rel=0.02)
    # It tells wrong rows better than leaving out one row does.
    planted = np.isin(np.arange(400), wrong)
    second = roc_auc_score(planted, -table["clean_probability"])
    assert second > roc_auc_score(planted, -table["loo_probability"])


def confused_digits():
    """Return digits of which every tenth one has the label of another, and which these are."""
    data = load_digits()
    X, y = data.data[:300] / 16, data.target[:300].copy()
    wrong = np.arange(3, 300, 10)
    y[wrong] = (y[wrong] + 5) % 10
    return X, y, wrong


PERCEPTRON = MLPClassifier((8,), alpha=0.3, solver="lbfgs", max_iter=1000, random_state=0)


@pytest.mark.filterwarnings(
    "ignore:The fitted MLP", "ignore::sklearn.exceptions.ConvergenceWarning"
)
def test_the_second_look_at_a_network_is_by_two_refits():
    X, y, wrong = confused_digits()
    table = find_issues(PERCEPTRON, X, y)
    rows, suspects = np.arange(300), np.zeros(300, dtype=bool)
    proba = InfluenceEstimator(PERCEPTRON).fit(X, y).loo_predict_proba()
    np.testing.assert_allclose(table["loo_probability"], proba[rows, y])
    suspects = confident_errors_by_hand(proba, y)
    again = InfluenceEstimator(PERCEPTRON).fit(X[~suspects], y[~suspects])
    proba[~suspects] = again.loo_predict_proba()
    proba[suspects] = again.predict_proba(X[suspects])
    suspects = confident_errors_by_hand(proba, y)
    assert 10 < suspects.sum() < 100
    proba = clone(PERCEPTRON).fit(X[~suspects], y[~suspects]).predict_proba(X)
    np.testing.assert_allclose(table["clean_probability"], proba[rows, y], rtol=1e-6)
    disputed = proba.argmax(1) != y
    np.testing.assert_array_equal(table["is_issue"], suspects & disputed)
    unseen = table["reason"].str.startswith("the model without it calls it")
    np.testing.assert_array_equal(unseen, suspects)
    assert table["reason"][~suspects].str.startswith("the model calls it").all()
    # It tells wrong rows better than the linearisation of one fit does.
    planted = np.isin(rows, wrong)
    second = roc_auc_score(planted, -table["clean_probability"])
    assert second > roc_auc_score(planted, -table["loo_probability"])
    assert planted[table["is_issue"]].mean() > 0.9 and table["is_issue"][wrong].mean() > 0.5


@pytest.mark.filterwarnings(
    "ignore:The fitted MLP", "ignore::sklearn.exceptions.ConvergenceWarning"
)
def test_residuals_of_a_network_are_by_two_refits():
    data = regression(3, n=120)
    y = (data.y - data.y.mean()) / data.y.std()
    y[::12] += 3.0
    net = MLPRegressor(
        hidden_layer_sizes=(4,), alpha=1.0, solver="lbfgs", max_iter=1000, random_state=0
    )
    table = find_issues(net, data.X, y)
    influence = InfluenceEstimator(net).fit(data.X, y)
    squares = (y - influence.loo_predict()) ** 2 * (1.0 - influence.leverage_)
    suspects = discoveries(np.sqrt(squares) / spread_of(squares, 1), 1)
    assert suspects.any()
    for _ in range(2):
        again = InfluenceEstimator(net).fit(data.X[~suspects], y[~suspects])
        squares = (y - again.predict(data.X)) ** 2
        squares[~suspects] = (y[~suspects] - again.loo_predict()) ** 2 * (1.0 - again.leverage_)
        last, strength = suspects, np.sqrt(squares) / spread_of(squares[~suspects], 1)
        suspects = discoveries(np.sqrt(squares) / spread_of(squares, 1), 1)
    np.testing.assert_allclose(table["residual_in_spreads"], strength, rtol=1e-6)
    np.testing.assert_array_equal(table["is_issue"], discoveries(strength, 1))
    assert last.sum() > 0
    assert table["is_issue"][::12].mean() > 0.8 and table["is_issue"].sum() < 20


@pytest.mark.filterwarnings("ignore::sklearn_dualif.exceptions.InfluenceWarning")
def test_a_module_that_cannot_be_trained_again_is_judged_by_the_first_look():
    X, y, _ = confused_digits()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)
        )
    module = module.double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, weight_decay=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            module(torch.from_numpy(X)), torch.from_numpy(y)
        ).backward()
        optimizer.step()
    model = TorchModel(module, weight_decay=0.01)
    influence = InfluenceEstimator(model).fit(X, y)
    table = find_issues(influence, X, y)
    proba = influence.loo_predict_proba()
    np.testing.assert_allclose(table["clean_probability"], table["loo_probability"])
    suspects = confident_errors_by_hand(proba, y) & (proba.argmax(1) != y)
    assert table["is_issue"].sum() == suspects.sum()


def test_the_number_of_issues_is_that_of_the_suspects():
    X, y, _ = iris()
    table = find_issues(MODEL, X, y)
    influence = InfluenceEstimator(MODEL).fit(X, y)
    codes = np.searchsorted(influence.classes_, y)
    suspects = confident_errors_by_hand(influence.loo_predict_proba(), codes)
    assert table["is_issue"].sum() == suspects.sum() == 3
    assert not find_issues(MODEL, *iris(wrong=())[:2])["is_issue"].any()


def test_a_class_keeps_rows_at_the_second_look():
    X, y, _ = iris(wrong=())
    y = y.copy()
    y.iloc[[10, 11]] = "weed"  # a class that no one would recognise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = find_issues(MODEL, X, y)
    assert set(table.nsmallest(2, "rank").index) == {"flower 10", "flower 11"}


def test_validation_rows_enter_the_score():
    X, y, truth = iris()
    plain = find_issues(MODEL, X, y)
    table = find_issues(MODEL, X, y, X_val=X[::3], y_val=truth[::3])
    effects = table["removal_effect"]
    moved = np.tanh(-effects / np.sqrt(np.mean(effects**2)))
    np.testing.assert_allclose(table["score"], plain["score"] + moved)


# Regressions


def test_discoveries_are_those_of_benjamini_and_hochberg():
    from scipy.stats import chi2

    rng = np.random.default_rng(0)
    for n_outputs in (1, 3):
        sizes = np.sqrt(rng.chisquare(n_outputs, 200) / n_outputs)
        sizes[:15] += 3.0
        p = chi2.sf(n_outputs * sizes**2, n_outputs)
        found = discoveries(sizes, n_outputs)
        np.testing.assert_array_equal(found, fdrcorrection(p, RATE)[0])
        assert 5 < found.sum() < 30
    assert not discoveries(np.ones(50), 1).any()


def test_spreads():
    rng = np.random.default_rng(0)
    residuals = 3.0 * rng.standard_normal(20_000)
    residuals[:2000] = 1000.0
    assert spread_of(residuals**2, 1) == pytest.approx(3.0 * 1.15, rel=0.05)
    several = 3.0 * rng.standard_normal((20_000, 4))
    assert spread_of((several**2).mean(1), 4) == pytest.approx(3.0, rel=0.02)
    assert spread_of(np.array([0.0, 0.0, 0.0, 4.0]), 1) == 1.0


def test_residuals_in_spreads():
    X, y = load_diabetes(return_X_y=True)
    influence = InfluenceEstimator(Ridge(0.1)).fit(X, y)
    table = find_issues(influence, X, y, X_val=X, y_val=y)
    residual = y - influence.loo_predict()
    standard = np.abs(residual) * np.sqrt(1.0 - influence.leverage_)
    spread = np.median(standard) / 0.6744897501960817
    np.testing.assert_allclose(table["loo_residual"], residual)
    np.testing.assert_allclose(table["residual_in_spreads"], standard / spread, rtol=1e-6)
    assert not table["is_issue"].any()
    assert "relabel_effect" not in table


def test_planted_targets_come_first():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    wrong = np.random.default_rng(0).choice(442, 30, replace=False)
    y = y.copy()
    y.iloc[wrong] += 300.0
    table = find_issues(Ridge(0.1), X, y)
    assert set(table["rank"].nsmallest(30).index) == set(wrong)
    found = set(np.flatnonzero(table["is_issue"]))
    assert found >= set(wrong) and len(found) <= 32
    first = table.nsmallest(1, "rank").iloc[0]
    assert f"not {first['given_label']:.4g}" in first["reason"]
    assert "spreads off" in first["reason"]


@pytest.mark.parametrize("wrong", [1e2, 1e5, 1e9])
def test_one_gross_target_spoils_no_other_row(wrong):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = X @ [3.0, 1.0, -2.0, 0.5] + rng.normal(size=200)
    clean, y[30] = y.copy(), wrong
    table = find_issues(Ridge(0.03), X, y)
    assert table["is_issue"].iloc[30] and table["is_issue"].sum() <= 2
    for row in (0, 1, 129):
        others = np.setdiff1d(np.arange(200), [row, 30])
        wanted = Ridge(0.03).fit(X[others], clean[others]).predict(X[[row]])
        # Suspects of the first look, few rows more than the wrong one, are left out as well.
        np.testing.assert_allclose(table["suggested_label"].iloc[row], wanted[0], atol=0.3)


def test_one_gross_count_spoils_no_other_row():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = rng.poisson(np.exp(0.5 * X[:, 0] + 0.5)).astype(float)
    y[30] = 10000.0
    assert find_issues(PoissonRegressor(), X, y)["is_issue"].to_numpy().nonzero()[0].tolist() == [
        30
    ]


def test_a_mistyped_label_spoils_no_other_row():
    X, y = load_wine(return_X_y=True)
    y[5] = 9
    assert not find_issues(LogisticRegression(), StandardScaler().fit_transform(X), y)[
        "is_issue"
    ].any()


def test_deviances_stand_for_residuals():
    data = counts(0)
    y = data.y.copy()
    y[4] += 60
    table = find_issues(PoissonRegressor(), data.X, y)
    assert table["rank"].iloc[4] == 1
    influence = InfluenceEstimator(PoissonRegressor()).fit(data.X, y)
    first = np.sqrt(influence.loo_loss_ * (1.0 - influence.leverage_))
    suspects = discoveries(first / spread_of(first**2, 1), 1)
    assert suspects[4]


def test_several_outputs():
    data = regression(1)
    y = np.column_stack([data.y, -data.y])
    y[5] += 100.0
    table = find_issues(Ridge(), data.X, y)
    assert table["rank"].iloc[5] == 1
    assert {"given_label_0", "suggested_label_1", "loo_residual_0"} <= set(table)
    assert "spreads off" in table["reason"].iloc[5]


def test_targets_that_are_met_exactly():
    X = np.arange(24.0).reshape(12, 2)
    table = find_issues(Ridge(1e-9), X, np.ones(12))
    assert not table["is_issue"].any()
    assert np.isfinite(table["residual_in_spreads"]).all()


@pytest.mark.parametrize("wrong", [0.0, 1e-3, 10.0])
def test_rounding_is_no_issue(wrong):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 5))
    y = X @ np.arange(5.0) + 3.0
    y[4] += wrong
    table = find_issues(LinearRegression(), X, y)
    assert table["is_issue"].to_numpy().nonzero()[0].tolist() == ([4] if wrong else [])


def test_more_parameters_than_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 50))
    y = X[:, :3].sum(1) + 0.1 * rng.normal(size=30)
    y[4] += 50.0
    table = find_issues(LinearRegression(), X, y)
    assert table["is_issue"].to_numpy().nonzero()[0].tolist() == [4]
    others = np.arange(30) != 4
    wanted = LinearRegression().fit(X[others], y[others]).predict(X[[4]])
    np.testing.assert_allclose(table["suggested_label"].iloc[4], wanted[0])


def test_a_row_with_a_parameter_of_its_own_is_not_judged():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(100, 4)), np.arange(100) == 9])
    y = X[:, :4].sum(1) + 0.1 * rng.normal(size=100)
    y[9] += 40.0
    table = find_issues(LinearRegression(), X, y)
    assert table["residual_in_spreads"].iloc[9] == 0.0
    assert not table["is_issue"].any()


# Models and inputs


def test_pipelines_sparse_rows_and_weights():
    data = three_classes(3)
    rows = find_issues(make_pipeline(StandardScaler(), MODEL), data.X, data.y)
    assert rows.index.equals(pd.RangeIndex(len(data.y)))
    dense = find_issues(MODEL, data.X, data.y)
    sparse = find_issues(MODEL, sp.csr_array(data.X), data.y)
    np.testing.assert_allclose(sparse["score"], dense["score"], rtol=1e-6)
    weights = np.random.default_rng(0).integers(1, 4, len(data.y)).astype(float)
    weighted = find_issues(MODEL, data.X, data.y, sample_weight=weights)
    influence = InfluenceEstimator(MODEL)
    influence.fit(data.X, data.y, sample_weight=weights)
    np.testing.assert_allclose(weighted["self_influence"], influence.self_influence_)


@pytest.mark.filterwarnings("ignore:The fitted MLP")
def test_networks_have_effects_on_validation_rows_only():
    data = three_classes(4)
    plain = find_issues(NETWORK, data.X, data.y)
    assert "removal_effect" not in plain
    assert plain.attrs["held_out"] is None
    assert "removing" not in plain["reason"].iloc[0]
    table = find_issues(NETWORK, data.X, data.y, X_val=data.X_query, y_val=data.y_query)
    assert table["removal_effect"].abs().max() > 0
    assert "relabel_effect" not in table
    with pytest.raises(UnsupportedOptionError, match="Pass X_val and y_val"):
        find_issues(NETWORK, data.X, data.y, groups=data.y)


def test_a_frozen_model_is_fitted_again_for_the_effects_only():
    X, y, _ = iris()
    model = LogisticRegression(**TIGHT).fit(X, y)
    frozen = find_issues(FrozenEstimator(model), X, y)
    plain = find_issues(LogisticRegression(**TIGHT), X, y)
    pd.testing.assert_frame_equal(frozen, plain)


# Groups


def annotators():
    """Digits by ten annotators, one of whom often takes 3 for 8 and 4 for 9, or the reverse."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    who = rng.integers(0, 10, len(y))
    alike = {3: 8, 8: 3, 4: 9, 9: 4}
    for row in np.flatnonzero((who == 4) & (rng.random(len(y)) < 0.7)):
        y[row] = alike.get(y[row], y[row])
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.05)), X, y, who, 4


def laboratories():
    """Tumours by eight laboratories, one of which mixes up four of ten findings."""
    X, y = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(0)
    lab = rng.choice(list("ABCDEFGH"), len(y))
    wrong = (lab == "C") & (rng.random(len(y)) < 0.4)
    return make_pipeline(StandardScaler(), MODEL), X, np.where(wrong, 1 - y, y), lab


def months():
    """Cases of diabetes by the month, in one of which the instrument shows half of the score."""
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(442) * 0.82, unit="D")
    month = pd.Series(days.to_period("M"), index=X.index, name="month")
    return Ridge(0.1), X, y.where(month != "2024-08", y / 2), month, pd.Period("2024-08")


@pytest.mark.parametrize(
    ("model", "X", "y", "groups", "wrong"), [annotators(), (*laboratories(), "C"), months()]
)
def test_the_group_with_the_planted_fault_comes_first(model, X, y, groups, wrong):
    table = find_issues(model, X, y, groups=groups)
    assert table.index[0] == wrong
    assert table["removal_effect"].iloc[0] < 0
    assert (table["removal_effect"].diff().dropna() >= 0).all()
    assert table["n_rows"].sum() == len(y)
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    assert table["n_issues"].sum() == find_issues(model, X, y)["is_issue"].sum()
    np.testing.assert_allclose(table["effect_per_row"] * table["n_rows"], table["removal_effect"])
    assert "rows lowers the held-out loss" in table["reason"].iloc[0]
    assert table.index.name == ("month" if isinstance(groups, pd.Series) else "group")


def test_effects_of_groups_on_validation_rows_are_those_of_refits():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    X_val, y_val, X, y = X[300:], y[300:], X[:300], y[:300]
    sex = X["sex"].map("{:.2f}".format)
    X = X.assign(sex=sex)
    model = Ridge(0.1)
    numbers = X.drop(columns="sex")
    table = find_issues(model, numbers, y, X_val=X_val.drop(columns="sex"), y_val=y_val, groups=sex)
    full = squared_errors(clone(model).fit(numbers, y), X_val.drop(columns="sex"), y_val).mean()
    for group, row in table.iterrows():
        refit = clone(model).fit(numbers[sex != group], y[sex != group])
        effect = squared_errors(refit, X_val.drop(columns="sex"), y_val).mean() - full
        assert row["removal_effect"] == pytest.approx(effect, rel=1e-6)
    named = find_issues(model, X.assign(sex=X["sex"].astype(float)), y, groups="sex")
    assert named.index.name == "sex"
    assert len(named) == 2


def test_a_missing_group_is_a_group():
    X, y = load_diabetes(return_X_y=True)
    site = np.array(["a", None], dtype=object)[np.arange(442) % 2]
    table = find_issues(Ridge(), X, y, groups=site)
    assert len(table) == 2
    assert table["n_rows"].sum() == 442


# Mistakes


def test_wrong_groups():
    X, y, _ = iris()
    model = MODEL
    with pytest.raises(ValueError, match="groups='site' is not a column of X: its columns are"):
        find_issues(model, X, y, groups="site")
    with pytest.raises(ValueError, match="X has no named columns"):
        find_issues(model, X.to_numpy(), y, groups="site")
    with pytest.raises(ValueError, match=r"groups has shape \(149,\) and X 150 rows"):
        find_issues(model, X, y, groups=np.arange(149))
    with pytest.raises(ValueError, match="one group only, 'a'"):
        find_issues(model, X, y, groups=["a"] * 150)
    with pytest.raises(ValueError, match="index is not that of X"):
        find_issues(model, X, y, groups=pd.Series(np.arange(150) % 3))


def test_other_rows_than_those_of_the_fit():
    X, y, truth = iris()
    influence = InfluenceEstimator(MODEL).fit(X, y)
    with pytest.raises(ValueError, match="X has 100 rows, and the InfluenceEstimator was fitted"):
        find_issues(influence, X[:100], y[:100])
    with pytest.raises(ValueError, match="y differs from the targets"):
        find_issues(influence, X, truth)
    with pytest.raises(ValueError, match=r"\['sample_weight'\] are for fitting"):
        find_issues(influence, X, y, sample_weight=np.ones(150))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        find_issues(influence, X, y[:100])


def test_half_of_the_validation_pair():
    X, y, _ = iris()
    with pytest.raises(ValueError, match="X_val was given without y_val"):
        find_issues(MODEL, X, y, X_val=X)
    with pytest.raises(ValueError, match="y_val was given without X_val"):
        find_issues(MODEL, X, y, y_val=y)


@pytest.mark.filterwarnings("ignore:The fitted MLP")
def test_models_that_are_not_judged():
    X, y, _ = iris()
    with pytest.raises(UnsupportedModelError, match="RidgeClassifier has no predict_proba"):
        find_issues(RidgeClassifier(), X, y)
    several = np.column_stack([y == "setosa", y == "virginica"]).astype(int)
    with pytest.raises(UnsupportedModelError, match="several labels a row"):
        find_issues(NETWORK, StandardScaler().fit_transform(X), several)
    scores = InfluenceEstimator(MODEL, curvature="identity")
    with pytest.raises(UnsupportedModelError, match="curvature='identity' gives scores"):
        find_issues(scores, X, y)
