"""Rows that are dropped in steps to move an objective: against refits and a plain search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_helpers import digits_network
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import UnsupportedOptionError
from sklearn_dualif.objectives import AdversarialLoss, AverageLoss, DemographicParity


def tumours():
    """Return scaled rows, labels as strings, and a group of each row that goes with the label."""
    X, y = load_breast_cancer(return_X_y=True)
    group = np.where(X[:, 1] > 19, "coarse", "fine")
    X = StandardScaler().fit_transform(X)[:, :8]
    return X, np.where(y == 1, "benign", "malignant"), group


def fitted(n=150, **params):
    X, y, group = tumours()
    model = LogisticRegression(C=0.05, solver="newton-cholesky", tol=1e-12)
    influence = InfluenceEstimator(model, **params).fit(X[:n], y[:n])
    queries = slice(300, 450)
    return influence, X[queries], y[queries], group[queries]


PARITY = {"reference": "coarse", "favorable": "benign"}


def test_the_exact_path_is_that_of_refits():
    influence, X, y, group = fitted(order="exact")
    parity = DemographicParity(group, **PARITY)
    trimming = influence.trim_for(parity, X, y, step=5, max_removed=20, max_loss=0.1, refit=True)
    assert trimming.n_removed.tolist() == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(trimming.objective, trimming.refitted_objective, atol=1e-8)
    np.testing.assert_array_equal(trimming.score, trimming.refitted_score)
    shown = trimming.estimator.predict_proba(X)[:, 0]
    assert parity.probability_gap(shown) == pytest.approx(trimming.objective[-1], abs=1e-8)
    assert trimming.estimator.score(X, y) == trimming.score[-1]
    # By hand, and with the wrapped model itself.
    kept = np.setdiff1d(np.arange(150), trimming.rows[:10])
    refit = LogisticRegression(C=0.05, solver="newton-cholesky", tol=1e-12)
    rows, labels, _ = tumours()
    refit.fit(rows[kept], labels[kept])
    gap = parity.probability_gap(refit.predict_proba(X)[:, 0])
    assert gap == pytest.approx(trimming.objective[2], abs=1e-8)


def test_the_newton_path_is_close_to_that_of_refits():
    influence, X, y, group = fitted()
    parity = DemographicParity(group, **PARITY)
    trimming = influence.trim_for(parity, X, y, step=2, max_removed=8, max_loss=0.1, refit=True)
    moved = trimming.objective - trimming.objective[0]
    refitted = trimming.refitted_objective - trimming.refitted_objective[0]
    np.testing.assert_allclose(moved[1:], refitted[1:], rtol=0.15)


def test_the_first_rows_are_those_with_the_largest_effects():
    influence, X, y, group = fitted()
    parity = DemographicParity(group, **PARITY)
    trimming = influence.trim_for(parity, X, y, step=3, max_removed=3, max_loss=1.0)
    effects = influence.influence(X, y, objective=parity)[0]
    towards = -np.sign(trimming.objective[0]) * effects
    assert set(trimming.rows) == set(np.argsort(-towards)[:3])


@pytest.mark.parametrize("reference", [None, "coarse"])
def test_every_step_brings_the_objective_closer_to_zero(reference):
    influence, X, y, group = fitted()
    parity = DemographicParity(group, reference=reference, favorable="benign")
    trimming = influence.trim_for(parity, X, y, step=0.02, max_removed=0.2, max_loss=0.2)
    assert len(trimming.objective) > 2
    assert (np.diff(np.abs(trimming.objective)) < 0).all()
    assert (np.sign(trimming.objective) == np.sign(trimming.objective[0])).all()
    assert len(trimming.rows) == trimming.n_removed[-1] == len(set(trimming.rows))


def test_the_sign_is_kept():
    influence, X, y, _ = fitted()
    # Groups at random hardly differ.
    group = np.random.default_rng(2).permutation(np.where(np.arange(len(X)) % 2, "odd", "even"))
    parity = DemographicParity(group, reference="odd", favorable="benign")
    trimming = influence.trim_for(parity, X, y, step=10, max_removed=0.6, max_loss=1.0)
    assert np.sign(trimming.objective[-1]) == np.sign(trimming.objective[0])
    assert abs(trimming.objective[-1]) < 0.1 * abs(trimming.objective[0])
    assert "sign" in trimming.stopped or "no closer" in trimming.stopped


def test_the_score_is_kept():
    influence, X, y, group = fitted()
    parity = DemographicParity(group, **PARITY)
    free = influence.trim_for(parity, X, y, step=0.05, max_removed=0.5, max_loss=1.0)
    assert free.score.min() < free.score[0] - 0.01
    tight = influence.trim_for(parity, X, y, step=0.05, max_removed=0.5, max_loss=0.01)
    assert tight.score.min() >= tight.score[0] - 0.01
    assert len(tight.rows) < len(free.rows)
    assert "score by more than 0.01" in tight.stopped


def test_losses_of_groups_and_plain_ones():
    influence, X, y, group = fitted()
    worst = influence.trim_for(AverageLoss(groups=group), X, y, max_removed=5)
    plain = influence.trim_for("loss", X, y, max_removed=5, refit=True)
    assert worst.objective[-1] < worst.objective[0]
    np.testing.assert_allclose(plain.objective, plain.refitted_objective, rtol=1e-2)
    proba = influence.predict_proba(X)
    own = -np.log(proba[np.arange(len(y)), (y == "malignant").astype(int)]).mean()
    assert plain.objective[0] == pytest.approx(own, rel=1e-6)


def test_a_function_of_ones_own():
    influence, X, y, _ = fitted()

    def squared(outputs, y):
        return (torch.sigmoid(outputs[:, 0]) - y).square().mean()

    trimming = influence.trim_for(squared, X, y, step=2, max_removed=6)
    brier = np.mean((influence.predict_proba(X)[:, 1] - (y == "malignant")) ** 2)
    assert trimming.objective[0] == pytest.approx(brier, rel=1e-6)
    assert trimming.objective[-1] < trimming.objective[0]


def test_regressions_are_scored_by_their_r2():
    X, y = load_diabetes(return_X_y=True)
    influence = InfluenceEstimator(Ridge(1.0)).fit(X[:200], y[:200])
    trimming = influence.trim_for("loss", X[200:], y[200:], step=4, max_removed=12, refit=True)
    assert trimming.score[0] == pytest.approx(influence.score(X[200:], y[200:]), abs=1e-10)
    np.testing.assert_allclose(trimming.objective, trimming.refitted_objective, rtol=1e-9)
    np.testing.assert_allclose(trimming.score, trimming.refitted_score, rtol=1e-9)


def test_networks():
    model, X, y, X_query, y_query = digits_network()
    influence = InfluenceEstimator(model).fit(X, y)
    trimming = influence.trim_for("loss", X_query, y_query, step=1, max_removed=3, max_loss=1.0)
    assert len(trimming.rows) == 3
    assert (np.diff(trimming.objective) < 0).all()
    assert trimming.estimator.predict(X_query).shape == y_query.shape


def test_the_estimator_stays_as_it_was():
    influence, X, y, group = fitted()
    before = influence.predict_proba(X)
    influence.trim_for(DemographicParity(group, **PARITY), X, y, max_removed=3)
    np.testing.assert_array_equal(influence.predict_proba(X), before)


def test_a_frame_of_the_path():
    pytest.importorskip("pandas")
    influence, X, y, group = fitted()
    parity = DemographicParity(group, **PARITY)
    plain = influence.trim_for(parity, X, y, step=2, max_removed=4, max_loss=1.0)
    assert list(plain.frame()) == ["n_removed", "objective", "score"]
    assert "4 rows" in repr(plain)
    refitted = influence.trim_for(parity, X, y, step=2, max_removed=4, max_loss=1.0, refit=True)
    assert refitted.frame().shape == (3, 5)


# Mistakes


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"step": 0}, r"step=0 must be a share"),
        ({"step": 1.0}, r"step=1\.0 must be a share"),
        ({"step": True}, "step=True must be a share"),
        ({"max_removed": 150}, "max_removed=150 must be a share"),
        ({"max_removed": -0.1}, "max_removed"),
        ({"max_loss": -1.0}, r"max_loss=-1\.0 must be a number >= 0"),
        ({"order": "second"}, "order='second' is not known"),
    ],
)
def test_wrong_options(params, words):
    influence, X, y, group = fitted()
    with pytest.raises(ValueError, match=words):
        influence.trim_for(DemographicParity(group, **PARITY), X, y, **params)


@pytest.mark.parametrize("objective", ["prediction", "margin"])
def test_objectives_without_better_or_worse(objective):
    influence, X, y, _ = fitted()
    with pytest.raises(UnsupportedOptionError, match="no value that could be better or worse"):
        influence.trim_for(objective, X, y)


def test_refits_that_there_are_not():
    model, X, y, X_query, y_query = digits_network()
    influence = InfluenceEstimator(model).fit(X, y)
    with pytest.raises(ValueError, match="trained by its owner"):
        influence.trim_for("loss", X_query, y_query, refit=True)


def test_refits_on_rows_that_were_moved():
    influence, X, y, _ = fitted()
    moved = influence.trim_for(AdversarialLoss(0.1), X, y, step=2, max_removed=4)
    assert moved.objective[-1] < moved.objective[0]
    with pytest.raises(UnsupportedOptionError, match="Use refit=False"):
        influence.trim_for(AdversarialLoss(0.1), X, y, refit=True)


def test_scores_are_no_effects():
    X, y, group = tumours()
    scores = InfluenceEstimator(LogisticRegression(), curvature="identity").fit(X[:99], y[:99])
    with pytest.raises(UnsupportedOptionError, match="not effects"):
        scores.trim_for(DemographicParity(group[99:], favorable="benign"), X[99:], y[99:])
