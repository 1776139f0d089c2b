"""Models that clean their training set: scikit-learn's checks, hand-made cleaning, mistakes."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cases import regression, three_classes
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.cleaning import InfluenceFilter, InfluenceSampler, find_issues
from sklearn_dualif.exceptions import (
    NotStationaryWarning,
    UnsupportedModelError,
    UnsupportedOptionError,
)

MODEL = LogisticRegression(solver="newton-cholesky")


def noisy(seed=0, share=0.1):
    """Return rows of wine as a frame, labels with errors as strings, the truth, and the errors."""
    data = load_wine(as_frame=True)
    index = [f"bottle {i}" for i in range(178)]
    X = pd.DataFrame(StandardScaler().fit_transform(data.data), index, data.feature_names)
    names = np.array(["barolo", "grignolino", "barbera"])
    truth = names[data.target]
    rng = np.random.default_rng(seed)
    wrong = rng.choice(178, round(share * 178), replace=False)
    y = truth.copy()
    y[wrong] = np.array(["barolo", "grignolino", "barbera"])[
        (data.target.to_numpy()[wrong] + 1) % 3
    ]
    return X, pd.Series(y, index), truth, wrong


# scikit-learn's own checks


@parametrize_with_checks(
    [
        InfluenceFilter(LogisticRegression()),
        InfluenceFilter(Ridge()),
        InfluenceFilter(LogisticRegression(), contamination="auto", strategy="relabel"),
        InfluenceFilter(Ridge(), contamination="auto", strategy="weight"),
        InfluenceSampler(LogisticRegression()),
        InfluenceSampler(Ridge(), contamination="auto"),
    ]
)
def test_scikit_learn_check(estimator, check):
    with warnings.catch_warnings():
        # One check leaves rows of one class alone, for which a free intercept has no optimum.
        warnings.filterwarnings("ignore", "No minimum of the objective", NotStationaryWarning)
        check(estimator)


def test_kinds():
    assert is_classifier(InfluenceFilter(MODEL))
    assert is_regressor(InfluenceFilter(Ridge()))
    assert not hasattr(InfluenceFilter(Ridge()), "predict_proba")
    assert hasattr(InfluenceFilter(MODEL), "predict_log_proba")
    assert not hasattr(InfluenceFilter(MODEL), "transform")


# What is done


def test_rows_are_removed_and_the_model_fitted_again():
    X, y, _, wrong = noisy()
    cleaned = InfluenceFilter(MODEL, contamination=0.1).fit(X, y)
    ranks = find_issues(MODEL, X, y)["rank"].to_numpy()
    assert set(cleaned.removed_indices_) == set(np.argsort(ranks)[:18])
    assert (np.diff(ranks[cleaned.removed_indices_]) > 0).all()
    kept = cleaned.inlier_mask_
    refit = clone(MODEL).fit(X[kept], y[kept])
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        np.testing.assert_array_equal(getattr(cleaned, method)(X), getattr(refit, method)(X))
    assert cleaned.score(X, y) == refit.score(X, y)
    assert np.isin(cleaned.removed_indices_, wrong).mean() > 0.8
    np.testing.assert_array_equal(cleaned.row_weights_, kept.astype(float))
    np.testing.assert_array_equal(cleaned.transduction_, y)
    assert len(cleaned.relabeled_) == 0
    assert list(cleaned.classes_) == ["barbera", "barolo", "grignolino"]
    assert list(cleaned.feature_names_in_) == list(X)
    assert cleaned.n_features_in_ == 13


def test_rows_are_relabelled():
    X, y, truth, wrong = noisy()
    cleaned = InfluenceFilter(MODEL, contamination="auto", strategy="relabel").fit(X, y)
    table = find_issues(MODEL, X, y)
    assert set(cleaned.relabeled_) == set(np.flatnonzero(table["is_issue"]))
    by_hand = y.copy()
    by_hand[table["is_issue"]] = table["suggested_label"][table["is_issue"]]
    np.testing.assert_array_equal(cleaned.transduction_, by_hand)
    refit = clone(MODEL).fit(X, by_hand)
    np.testing.assert_array_equal(cleaned.predict_proba(X), refit.predict_proba(X))
    assert (cleaned.transduction_ == truth).mean() > (y == truth).mean() + 0.05
    assert len(cleaned.removed_indices_) == 0
    assert not (y.iloc[wrong] == truth[wrong]).any()  # the caller's own are as before


def test_rows_are_weighed_less():
    X, y, _, _ = noisy()
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 178)
    cleaned = InfluenceFilter(MODEL, contamination=0.1, strategy="weight")
    cleaned.fit(X, y, sample_weight=weights)
    table = find_issues(MODEL, X, y, sample_weight=weights)
    rows = np.flatnonzero(~cleaned.inlier_mask_)
    assert len(rows) == 18
    proba = InfluenceEstimator(MODEL).fit(X, y, sample_weight=weights).loo_predict_proba()
    assert proba.shape == (178, 3)
    factors = np.exp(-table["score"].to_numpy()[rows])
    np.testing.assert_allclose(cleaned.row_weights_[rows], factors)
    assert (factors < 1).all()
    refit = clone(MODEL).fit(X, y, sample_weight=weights * cleaned.row_weights_)
    np.testing.assert_allclose(cleaned.predict_proba(X), refit.predict_proba(X))
    assert (weights >= 0.5).all()


def test_regressions():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    wrong = np.random.default_rng(0).choice(442, 30, replace=False)
    bad = y.copy()
    bad.iloc[wrong] += 300.0
    cleaned = InfluenceFilter(Ridge(0.1), contamination="auto").fit(X, bad)
    assert set(cleaned.removed_indices_) >= set(wrong)
    assert len(cleaned.removed_indices_) <= 32
    clean = Ridge(0.1).fit(X, y).predict(X)
    off = np.abs(Ridge(0.1).fit(X, bad).predict(X) - clean).mean()
    assert np.abs(cleaned.predict(X) - clean).mean() < 0.5 * off
    weighed = InfluenceFilter(Ridge(0.1), contamination=0.1, strategy="weight").fit(X, bad)
    sizes = find_issues(Ridge(0.1), X, bad)["residual_in_spreads"].to_numpy()
    rows = np.flatnonzero(~weighed.inlier_mask_)
    np.testing.assert_allclose(weighed.row_weights_[rows], np.minimum(1.0, 1.345 / sizes[rows]))
    assert np.abs(weighed.predict(X) - clean).mean() < 0.6 * off


def test_fit_parameters_are_cut_to_the_rows():
    X, y, _, _ = noisy()
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 178)
    pipeline = make_pipeline(StandardScaler(), MODEL)
    params = {"logisticregression__sample_weight": weights}
    cleaned = InfluenceFilter(pipeline, contamination=0.1).fit(X, y, **params)
    kept = cleaned.inlier_mask_
    refit = clone(pipeline).fit(X[kept], y[kept], logisticregression__sample_weight=weights[kept])
    np.testing.assert_array_equal(cleaned.predict_proba(X), refit.predict_proba(X))
    weighed = InfluenceFilter(pipeline, contamination=0.1, strategy="weight").fit(X, y, **params)
    weights = weights * weighed.row_weights_
    refit = clone(pipeline).fit(X, y, logisticregression__sample_weight=weights)
    np.testing.assert_array_equal(weighed.predict_proba(X), refit.predict_proba(X))


def test_metadata_routing():
    X, y, _, _ = noisy()
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 178)
    plain = InfluenceFilter(MODEL).fit(X, y, sample_weight=weights)
    with config_context(enable_metadata_routing=True):
        model = clone(MODEL).set_fit_request(sample_weight=True)
        routed = InfluenceFilter(model).fit(X, y, sample_weight=weights)
        resampled, _ = InfluenceSampler(model).fit_resample(X, y, sample_weight=weights)
    np.testing.assert_array_equal(plain.predict_proba(X), routed.predict_proba(X))
    np.testing.assert_array_equal(resampled, X[plain.inlier_mask_])


def test_validation_rows_move_the_ranking():
    X, y, truth, _ = noisy()
    cleaned = InfluenceFilter(MODEL).fit(X, y, X_val=X[::3], y_val=truth[::3])
    table = find_issues(MODEL, X, y, X_val=X[::3], y_val=truth[::3])
    np.testing.assert_array_equal(cleaned.scores_, table["score"])


def test_clean_rows_are_left_alone():
    data = load_wine()
    X = StandardScaler().fit_transform(data.data)
    cleaned = InfluenceFilter(MODEL, contamination="auto").fit(X, data.target)
    assert cleaned.inlier_mask_.all()
    np.testing.assert_array_equal(
        cleaned.predict_proba(X), MODEL.fit(X, data.target).predict_proba(X)
    )
    untouched = InfluenceFilter(MODEL, contamination=0.0).fit(X, data.target)
    assert untouched.inlier_mask_.all()
    # Nor does a share take rows whose label the model without them gives.
    cleaned = InfluenceFilter(MODEL, contamination=0.5).fit(X, data.target)
    disputed = find_issues(MODEL, X, data.target)["suggested_label"] != data.target
    assert (~cleaned.inlier_mask_).sum() == disputed.sum() < 10
    X, y = load_diabetes(return_X_y=True)
    assert InfluenceFilter(Ridge(0.1), contamination="auto").fit(X, y).inlier_mask_.all()


@pytest.mark.parametrize("strategy", ["remove", "relabel"])
def test_lost_accuracy_is_won_back(strategy):
    X, truth = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    X_train, X_test, y_train, y_test = train_test_split(
        X, truth, test_size=0.5, random_state=0, stratify=truth
    )
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(y_train), len(y_train) // 10, replace=False)
    bad = y_train.copy()
    bad[wrong] = (bad[wrong] + rng.integers(1, 10, len(wrong))) % 10
    clean = clone(model).fit(X_train, y_train).score(X_test, y_test)
    before = clone(model).fit(X_train, bad).score(X_test, y_test)
    cleaned = InfluenceFilter(model, contamination=0.1, strategy=strategy).fit(X_train, bad)
    assert cleaned.score(X_test, y_test) - before > 0.5 * (clean - before)


@pytest.mark.parametrize("strategy", ["remove", "relabel"])
def test_each_class_keeps_its_best_row(strategy):
    X, y, _, _ = noisy(share=0.0)
    y = y.copy()
    y.iloc[[10, 11]] = "vinegar"
    cleaned = InfluenceFilter(MODEL, contamination=4 / 178, strategy=strategy).fit(X, y)
    ranks = find_issues(MODEL, X, y)["rank"].iloc[[10, 11]].to_numpy()
    worse = 10 + ranks.argmin()
    assert not cleaned.inlier_mask_[worse]
    assert cleaned.inlier_mask_[21 - worse]
    assert (~cleaned.inlier_mask_).sum() == 3
    assert "vinegar" in cleaned.estimator_.classes_
    sampler = InfluenceSampler(MODEL, contamination=4 / 178, strategy=strategy)
    assert (sampler.fit_resample(X, y)[1] == "vinegar").sum() == 1


# Composition


def test_contamination_is_searched_for():
    X, y, _, _ = noisy(share=0.15)
    search = GridSearchCV(InfluenceFilter(MODEL), {"contamination": [0.0, 0.05, 0.15, "auto"]})
    search.fit(X, y)
    by_hand = [
        cross_val_score(InfluenceFilter(MODEL, contamination=share), X, y).mean()
        for share in search.cv_results_["param_contamination"]
    ]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], by_hand)
    assert search.best_estimator_.score(X, y) == search.score(X, y)
    nested = GridSearchCV(InfluenceFilter(MODEL), {"estimator__C": [0.1, 1.0]}).fit(X, y)
    assert nested.best_params_["estimator__C"] in (0.1, 1.0)


def test_in_and_around_pipelines():
    X, y, _, _ = noisy()
    inside = make_pipeline(StandardScaler(), InfluenceFilter(MODEL, contamination="auto"))
    around = InfluenceFilter(make_pipeline(StandardScaler(), MODEL), contamination="auto")
    assert inside.fit(X, y).score(X, y) > 0.85
    assert around.fit(X, y).score(X, y) > 0.85
    assert set(inside[-1].removed_indices_) == set(around.removed_indices_)


def test_around_an_influence_estimator():
    X, y, _, _ = noisy()
    influence = InfluenceEstimator(MODEL, order="exact")
    cleaned = InfluenceFilter(influence, contamination="auto").fit(X, y)
    assert isinstance(cleaned.estimator_, InfluenceEstimator)
    kept = cleaned.inlier_mask_
    assert cleaned.estimator_.self_influence_.shape == (kept.sum(),)
    np.testing.assert_array_equal(cleaned.predict(X), clone(MODEL).fit(X[kept], y[kept]).predict(X))
    influence.fit(X, y)  # fitted on other rows: a filter starts anew
    again = InfluenceFilter(influence, contamination="auto").fit(X[:150], y[:150])
    assert again.inlier_mask_.shape == (150,)


def test_sparse_rows():
    data = three_classes(2)
    dense = InfluenceFilter(MODEL, contamination=0.05).fit(data.X, data.y)
    sparse = InfluenceFilter(LogisticRegression(tol=1e-10, max_iter=1000), contamination=0.05)
    sparse.fit(sp.csr_array(data.X), data.y)
    np.testing.assert_array_equal(sparse.inlier_mask_, dense.inlier_mask_)
    np.testing.assert_allclose(
        sparse.predict_proba(sp.csr_array(data.X)), dense.predict_proba(data.X), atol=1e-6
    )


def test_copies():
    X, y, _, _ = noisy()
    cleaned = InfluenceFilter(MODEL, contamination="auto").fit(X, y)
    twin = pickle.loads(pickle.dumps(cleaned))
    np.testing.assert_array_equal(twin.predict_proba(X), cleaned.predict_proba(X))
    fresh = clone(cleaned)
    assert fresh.contamination == "auto"
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    assert not hasattr(MODEL, "coef_") or cleaned.estimator is MODEL


# The sampler


@pytest.mark.parametrize("contamination", ["auto", 0.1])
def test_resampling(contamination):
    X, y, _, _ = noisy()
    sampler = InfluenceSampler(MODEL, contamination=contamination)
    X_clean, y_clean = sampler.fit_resample(X, y)
    expected = InfluenceFilter(MODEL, contamination=contamination).fit(X, y)
    kept = expected.inlier_mask_
    np.testing.assert_array_equal(sampler.sample_indices_, np.flatnonzero(kept))
    pd.testing.assert_frame_equal(X_clean, X[kept])
    pd.testing.assert_series_equal(y_clean, y[kept])
    np.testing.assert_array_equal(sampler.scores_, expected.scores_)
    arrays, labels = sampler.fit_resample(X.to_numpy(), y.to_numpy())
    np.testing.assert_array_equal(arrays, X_clean)
    np.testing.assert_array_equal(labels, y_clean)
    assert not hasattr(sampler, "feature_names_in_")
    sparse, _ = sampler.fit_resample(sp.csr_array(X), y)
    np.testing.assert_array_equal(sparse.toarray(), X_clean)


def test_resampling_by_other_labels():
    X, y, _, _ = noisy()
    sampler = InfluenceSampler(MODEL, contamination="auto", strategy="relabel")
    X_same, y_clean = sampler.fit_resample(X, y)
    expected = InfluenceFilter(MODEL, contamination="auto", strategy="relabel").fit(X, y)
    assert X_same is X
    assert y_clean.index.equals(y.index)
    np.testing.assert_array_equal(y_clean, expected.transduction_)
    np.testing.assert_array_equal(sampler.sample_indices_, np.arange(178))
    np.testing.assert_array_equal(sampler.relabeled_, expected.relabeled_)


def test_a_pipeline_may_have_it_as_a_step():
    # A step has either transform or fit_resample.
    sampler = InfluenceSampler(MODEL)
    assert hasattr(sampler, "fit_resample")
    assert hasattr(sampler, "fit")
    assert not hasattr(sampler, "transform")
    assert not hasattr(sampler, "fit_transform")


# Mistakes


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"contamination": 0.6}, "'contamination' parameter of InfluenceFilter"),
        ({"contamination": -0.1}, "'contamination' parameter"),
        ({"contamination": "some"}, "'contamination' parameter"),
        ({"strategy": "drop"}, r"'strategy' parameter.*'relabel'.*Got 'drop'"),
    ],
)
def test_wrong_options(params, words):
    X, y, _, _ = noisy()
    with pytest.raises(ValueError, match=words):
        InfluenceFilter(MODEL, **params).fit(X, y)
    with pytest.raises(ValueError, match=words.replace("Filter", "Sampler")):
        InfluenceSampler(MODEL, **params).fit_resample(X, y)


def test_new_labels_are_for_classes():
    data = regression(0)
    for cleaner in (InfluenceFilter, InfluenceSampler):
        with pytest.raises(UnsupportedOptionError, match="strategy='relabel' is for classifiers"):
            cleaner(Ridge(), strategy="relabel").fit(data.X, data.y)
    with pytest.raises(ValueError, match="'strategy' parameter"):
        InfluenceSampler(Ridge(), strategy="weight").fit(data.X, data.y)


def test_models_that_cannot_be_fitted_again():
    X, y, _, _ = noisy()
    frozen = FrozenEstimator(clone(MODEL).fit(X, y))
    for model in (frozen, InfluenceEstimator(frozen)):
        with pytest.raises(UnsupportedModelError, match="is given as fitted"):
            InfluenceFilter(model).fit(X, y)
    assert len(InfluenceSampler(frozen, contamination="auto").fit_resample(X, y)[0]) < 178


def test_models_without_weights_or_probabilities():
    data = regression(0)
    gram = data.X @ data.X.T
    kernel = KernelRidge(kernel="precomputed")
    with pytest.raises(UnsupportedOptionError, match="rows out of a precomputed kernel"):
        InfluenceFilter(kernel).fit(gram, data.y)
    assert InfluenceFilter(kernel, strategy="weight").fit(gram, data.y).score(gram, data.y) > 0
    X, y, _, _ = noisy()
    with pytest.raises(UnsupportedModelError, match="RidgeClassifier has no predict_proba"):
        InfluenceFilter(RidgeClassifier()).fit(X, y)


def test_half_of_the_validation_pair():
    X, y, _, _ = noisy()
    with pytest.raises(ValueError, match="X_val was given without y_val"):
        InfluenceFilter(MODEL).fit(X, y, X_val=X)


def test_one_class():
    X = load_breast_cancer().data[:20]
    with pytest.raises(ValueError, match="class"):
        InfluenceFilter(LogisticRegression()).fit(X, np.zeros(20))
