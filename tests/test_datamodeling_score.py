"""Linear datamodeling scores: against plain loops with scipy's rank correlation."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from helpers import relative
from numpy.testing import assert_array_equal
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import scale

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.metrics import linear_datamodeling_score
from sklearn_dualif.objectives import AverageLoss, Loss


@cache
def classes():
    X, y = load_wine(return_X_y=True)
    X = scale(X)
    return X[::2], y[::2], X[1::8], y[1::8]


@cache
def regression():
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:160], y[:160] / 50.0
    return X[::2], y[::2], X[1::8], y[1::8]


def ridge(**params):
    return InfluenceEstimator(Ridge(), **params).fit(*regression()[:2])


def test_numbers_are_those_of_plain_loops():
    X, y, X_query, y_query = classes()
    influence = InfluenceEstimator(LogisticRegression()).fit(X, y)
    result = linear_datamodeling_score(influence, X_query, y_query, n_subsets=8, random_state=0)
    assert result.subsets.shape == (8, 44)
    scores = influence.influence(X_query, y_query, objective=Loss(linear=True))
    tight = LogisticRegression(tol=1e-10, max_iter=10_000)
    refitted, predicted = [], []
    for subset in result.subsets:
        assert set(y[subset]) == {0, 1, 2}
        probabilities = tight.fit(X[subset], y[subset]).predict_proba(X_query)
        losses = [
            log_loss([k], [p], labels=[0, 1, 2])
            for k, p in zip(y_query, probabilities, strict=True)
        ]
        refitted.append(losses)
        predicted.append(sum(scores[:, i] for i in range(len(X)) if i not in subset))
    refitted, predicted = np.array(refitted), np.array(predicted)
    assert relative(result.predicted, predicted) < 1e-10
    spread = refitted - refitted[0]
    assert relative(result.refitted - result.refitted[0], spread) < 1e-4
    expected = [spearmanr(p, r).statistic for p, r in zip(predicted.T, refitted.T, strict=True)]
    assert np.allclose(result.by_query, expected)
    assert result.score == float(result) == result.item() == pytest.approx(np.mean(expected))
    assert result.interval[0] < result.score < result.interval[1]


def test_any_scores_can_be_judged_by_the_same_refits():
    X, y, X_query, y_query = regression()
    influence, options = ridge(), {"n_subsets": 12, "random_state": 0}
    own = linear_datamodeling_score(influence, X_query, y_query, **options)
    scores = influence.influence(X_query, y_query, objective=Loss(linear=True))
    given = linear_datamodeling_score(influence, X_query, y_query, scores=7.0 * scores, **options)
    assert given.score == pytest.approx(own.score)
    assert given.interval == pytest.approx(own.interval)
    assert_array_equal(given.refitted, own.refitted)
    opposite = own.rescored(-scores)
    assert opposite.score == pytest.approx(-own.score)
    assert_array_equal(opposite.subsets, own.subsets)
    assert own.score > 0.7
    flat = own.rescored(np.zeros_like(scores))
    assert flat.score == 0.0
    with pytest.raises(ValueError, match=r"scores has shape \(3, 80\); it must be \(20, 80\)"):
        own.rescored(scores[:3])


def test_scores_that_refits_confirm_entirely():
    X, y, X_query, y_query = regression()
    own = linear_datamodeling_score(ridge(), X_query, y_query, n_subsets=10, random_state=0)
    removed = np.ones((10, 80))
    np.put_along_axis(removed, own.subsets, 0.0, axis=1)
    fitting = np.linalg.pinv(removed) @ own.refitted
    result = own.rescored(fitting.T)
    assert result.score == pytest.approx(1.0)
    assert np.allclose(result.interval, 1.0)


def test_the_interval_is_that_of_resampled_subsets():
    X, y, X_query, y_query = regression()
    result = linear_datamodeling_score(ridge(), X_query, y_query, n_subsets=20, random_state=0)
    rng, means = np.random.default_rng(0), []
    for _ in range(400):
        chosen = rng.integers(20, size=20)
        columns = zip(result.predicted[chosen].T, result.refitted[chosen].T, strict=True)
        means.append(np.mean([spearmanr(p, r).statistic for p, r in columns]))
    width = np.ptp(result.interval)
    assert np.allclose(np.quantile(means, [0.025, 0.975]), result.interval, atol=width / 5)


def test_aggregates_and_predictions():
    X, y, X_query, y_query = regression()
    options = {"n_subsets": 8, "random_state": 0, "fraction": 0.8}
    result = linear_datamodeling_score(
        ridge(), X_query, y_query, objective=AverageLoss(), **options
    )
    assert result.by_query.shape == (1,)
    assert result.predicted.shape == (8, 1)
    assert result.subsets.shape == (8, 64)
    result = linear_datamodeling_score(ridge(), X_query, objective="prediction", **options)
    assert result.score > 0.8


def test_hessian_free_scores_are_scores():
    X, y, X_query, y_query = regression()
    options = {"n_subsets": 10, "random_state": 0}
    free = linear_datamodeling_score(ridge(curvature="identity"), X_query, y_query, **options)
    assert 0.0 < free.score < linear_datamodeling_score(ridge(), X_query, y_query, **options).score


def test_subsets_are_drawn_by_random_state_among_rows_with_weight():
    X, y, X_query, y_query = regression()
    weights = np.ones(80)
    weights[:20] = 0.0
    influence = InfluenceEstimator(Ridge()).fit(X, y, sample_weight=weights)
    one, same, other = (
        linear_datamodeling_score(influence, X_query, y_query, n_subsets=4, random_state=seed)
        for seed in (0, 0, 1)
    )
    assert_array_equal(one.subsets, same.subsets)
    assert one.interval == same.interval
    assert not np.array_equal(one.subsets, other.subsets)
    assert one.subsets.shape == (4, 50)  # 30 rows with weight, and the 20 without


def test_the_frame_has_a_line_for_each_query():
    X, y, X_query, y_query = regression()
    result = linear_datamodeling_score(ridge(), X_query, y_query, n_subsets=4, random_state=0)
    frame = result.frame()
    assert frame.columns.tolist() == ["query", "score"]
    assert_array_equal(frame["score"], result.by_query)
    assert "array" not in repr(result)


def test_queries_that_nothing_changes_are_left_out():
    X, y, X_query, y_query = regression()
    influence = InfluenceEstimator(Ridge(fit_intercept=False)).fit(X, y)
    queries = np.vstack([np.zeros(10), X_query[:4]])
    result = linear_datamodeling_score(influence, queries, y_query[:5], n_subsets=6, random_state=0)
    assert np.isnan(result.by_query[0])
    assert result.score == pytest.approx(result.by_query[1:].mean())
    with pytest.raises(ValueError, match=r"same objective, so that there is nothing to rank"):
        linear_datamodeling_score(influence, queries[:1], y_query[:1], n_subsets=6)


# Refusals


@pytest.mark.parametrize("n_subsets", [2, 0, 3.0, True, "4"])
def test_too_few_subsets(n_subsets):
    with pytest.raises(ValueError, match=r"n_subsets=.* at least 3"):
        linear_datamodeling_score(ridge(), *regression()[2:], n_subsets=n_subsets)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, np.nan, "half", True])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"fraction=.* between 0 and 1"):
        linear_datamodeling_score(ridge(), *regression()[2:], fraction=fraction)


def test_each_class_needs_a_row():
    X, y, X_query, y_query = classes()
    influence = InfluenceEstimator(LogisticRegression()).fit(X, y)
    with pytest.raises(ValueError, match=r"All but fraction=0.01 .* one of each class must stay"):
        linear_datamodeling_score(influence, X_query, y_query, fraction=0.01)


def test_scores_that_are_none():
    scores = np.zeros((20, 80))
    scores[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        linear_datamodeling_score(ridge(), *regression()[2:], scores=scores)
    with pytest.raises(ValueError, match=r"scores has shape \(80, 20\)"):
        linear_datamodeling_score(ridge(), *regression()[2:], scores=scores.T)


def test_unfitted_and_other_estimators():
    with pytest.raises(NotFittedError):
        linear_datamodeling_score(InfluenceEstimator(Ridge()), *regression()[2:])
    with pytest.raises(TypeError, match=r"needs a fitted InfluenceEstimator; got Ridge"):
        linear_datamodeling_score(Ridge(), *regression()[2:])
