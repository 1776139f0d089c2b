"""Scores without the first rows of a ranking: against plain loops of refits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer
from sklearn.preprocessing import scale
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.metrics import removal_curve


@cache
def classes():
    X, y = load_wine(return_X_y=True)
    X, y = scale(X), y.copy()
    rng = np.random.default_rng(0)
    wrong = rng.choice(np.arange(0, len(y), 2), 18, replace=False)
    y[wrong] = (y[wrong] + 1) % 3
    return X[::2], y[::2], X[1::2], y[1::2]


@cache
def regression():
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:160], y[:160] / 50.0
    return X[::2], y[::2], X[1::2], y[1::2]


def plain(estimator, data, order, sizes, scoring=None):
    """Return the scores of plain refits without the first rows of an order."""
    X, y, X_query, y_query = data
    scores = []
    for size in sizes:
        kept = np.sort(order[size:])
        model = clone(estimator).fit(X[kept], y[kept])
        if scoring is None:
            scores.append(model.score(X_query, y_query))
        else:
            scores.append(get_scorer(scoring)(model, X_query, y_query))
    return scores


def test_curves_are_those_of_plain_loops():
    X, y, X_query, y_query = classes()
    estimator = LogisticRegression()
    influence = InfluenceEstimator(estimator).fit(X, y)
    curve = removal_curve(influence, X_query, y_query, n_repeats=3, random_state=0)
    assert_array_equal(curve.fractions, [0, 0.05, 0.1, 0.2, 0.3])
    assert_array_equal(curve.n_removed, [0, 4, 9, 18, 27])
    harm = influence.influence(X_query, y_query).mean(0)
    assert_array_equal(curve.ranking, np.argsort(harm))
    assert np.allclose(curve.score, plain(estimator, classes(), np.argsort(harm), curve.n_removed))
    losses = -np.log(influence.predict_proba(X)[np.arange(len(y)), y])
    expected = plain(estimator, classes(), np.argsort(-losses), curve.n_removed)
    assert np.allclose(curve.training_loss, expected)
    assert curve.random.shape == (3, 5)
    assert np.allclose(curve.random_mean, curve.random.mean(0))
    assert np.allclose(curve.random_std, np.std(curve.random, axis=0, ddof=1))
    assert len({*curve.random[:, 0], curve.score[0], curve.training_loss[0]}) == 1
    assert (curve.score[2:] > curve.random_mean[2:]).all()


def test_any_ranking_and_any_metric():
    rng = np.random.default_rng(1)
    influence = InfluenceEstimator(Ridge()).fit(*regression()[:2])
    ranking = rng.permutation(80)
    options = {"scoring": "neg_mean_absolute_error", "fractions": [0.5, 0.1], "n_repeats": 1}
    curve = removal_curve(influence, *regression()[2:], ranking=ranking, **options)
    expected = plain(Ridge(), regression(), ranking, [40, 8], "neg_mean_absolute_error")
    assert np.allclose(curve.score, expected)
    assert np.isnan(curve.random_std).all()
    short = removal_curve(influence, *regression()[2:], ranking=ranking[:40], **options)
    assert_array_equal(short.score, curve.score)


def test_rows_without_weight_stay_and_count_for_nothing():
    X, y, X_query, y_query = regression()
    weights = np.ones(80)
    weights[:20] = 0.0
    influence = InfluenceEstimator(Ridge()).fit(X, y, sample_weight=weights)
    curve = removal_curve(influence, X_query, y_query, ranking=range(80), fractions=[0.5])
    assert_array_equal(curve.n_removed, [30])
    assert curve.score[0] == pytest.approx(Ridge().fit(X[50:], y[50:]).score(X_query, y_query))


def test_a_class_keeps_the_row_that_comes_last():
    X, y, X_query, y_query = classes()
    rare = np.flatnonzero(y == 2)
    ranking = [*rare, *np.flatnonzero(y != 2)]
    estimator = LogisticRegression()
    influence = InfluenceEstimator(estimator).fit(X, y)
    fraction = len(rare) / len(y)
    curve = removal_curve(
        influence, X_query, y_query, ranking=ranking, fractions=[fraction], scoring="neg_log_loss"
    )
    kept = np.setdiff1d(np.arange(len(y)), [*rare[:-1], ranking[len(rare)]])
    expected = get_scorer("neg_log_loss")(estimator.fit(X[kept], y[kept]), X_query, y_query)
    assert curve.score[0] == pytest.approx(expected)


def test_precomputed_kernels_lose_their_columns():
    X, y, X_query, y_query = regression()
    influence = InfluenceEstimator(KernelRidge(alpha=2.0, kernel="precomputed")).fit(X @ X.T, y)
    options = {"ranking": np.arange(80), "fractions": [0.25]}
    curve = removal_curve(influence, X_query @ X.T, y_query, **options)
    expected = KernelRidge(alpha=2.0, kernel="linear").fit(X[20:], y[20:])
    assert curve.score[0] == pytest.approx(expected.score(X_query, y_query))


@pytest.mark.filterwarnings("ignore::sklearn_dualif.exceptions.NotStationaryWarning")
def test_nets_speak_the_caller_s_labels():
    X, y, X_query, y_query = classes()
    labels = np.array(["a", "b", "c"])
    net = NeuralNetClassifier(
        nn.Linear, module__in_features=13, module__out_features=3, max_epochs=30, lr=0.5,
        criterion=nn.CrossEntropyLoss, optimizer__weight_decay=0.01, train_split=None,
        batch_size=-1, verbose=0,
    )  # fmt: skip
    influence = InfluenceEstimator(net).fit(X, labels[y])
    options = {"fractions": [0, 0.1], "n_repeats": 1, "random_state": 0}
    curve = removal_curve(influence, X_query, labels[y_query], **options)
    assert curve.score[0] == influence.score(X_query, labels[y_query]) > 0.8
    curve = removal_curve(influence, X_query, labels[y_query], scoring="accuracy", **options)
    assert curve.score[0] == influence.score(X_query, labels[y_query])


def test_orders_are_drawn_by_random_state():
    influence = InfluenceEstimator(Ridge()).fit(*regression()[:2])
    one, same, other = (
        removal_curve(influence, *regression()[2:], fractions=[0.2, 0.4], random_state=seed)
        for seed in (0, 0, 1)
    )
    assert_array_equal(one.random, same.random)
    assert not np.array_equal(one.random, other.random)


def test_the_frame_has_a_line_for_each_fraction():
    influence = InfluenceEstimator(Ridge()).fit(*regression()[:2])
    curve = removal_curve(influence, *regression()[2:], fractions=[0.0, 0.2], random_state=0)
    frame = curve.frame()
    names = ["fraction", "n_removed", "score", "training_loss", "random_mean", "random_std"]
    assert frame.columns.tolist() == names
    assert_array_equal(frame["random_mean"], curve.random_mean)
    assert_array_equal(frame["n_removed"], [0, 16])


# Refusals


@pytest.fixture
def influence():
    return InfluenceEstimator(Ridge()).fit(*regression()[:2])


@pytest.mark.parametrize("fractions", [[], 0.5, [-0.1], [1.0], [np.nan], ["half"], [[0.1]]])
def test_fractions_out_of_range(influence, fractions):
    with pytest.raises(ValueError, match=r"fractions=.* from 0 to below 1"):
        removal_curve(influence, *regression()[2:], fractions=fractions)


@pytest.mark.parametrize("n_repeats", [0, -1, 2.0, True])
def test_too_few_repeats(influence, n_repeats):
    with pytest.raises(ValueError, match=r"n_repeats=.* at least 1"):
        removal_curve(influence, *regression()[2:], n_repeats=n_repeats)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([80], "Row 80 is out of range"),
        ([1, 1], "Row 1 is named twice"),
        ([0.5], "must be row positions"),
        ([0, 1, 2], r"fraction=0.05 removes 4 rows, and the ranking of 3 has only 3"),
    ],
)
def test_rankings_that_are_none(influence, ranking, message):
    with pytest.raises(ValueError, match=message):
        removal_curve(influence, *regression()[2:], ranking=ranking, fractions=[0.05])


def test_some_rows_must_stay(influence):
    with pytest.raises(ValueError, match=r"fraction=0.999 .*one must stay"):
        removal_curve(influence, *regression()[2:], fractions=[0.1, 0.999])


def test_several_metrics(influence):
    scoring = ["r2", "neg_mean_squared_error"]
    with pytest.raises(ValueError, match=r"no number\. Pass one metric"):
        removal_curve(influence, *regression()[2:], scoring=scoring, fractions=[0.1])


def test_unfitted_and_other_estimators():
    with pytest.raises(NotFittedError):
        removal_curve(InfluenceEstimator(Ridge()), *regression()[2:])
    with pytest.raises(TypeError, match=r"removal_curve needs a fitted InfluenceE.*got Ridge"):
        removal_curve(Ridge(), *regression()[2:])
