"""InfluenceEstimator around and inside other estimators: metadata, pipelines, searches, frozen."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cases import binary, counts, positive, regression, three_classes
from helpers import sparse_rows
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.compose import make_column_transformer
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    GammaRegressor,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import NotStationaryWarning

TIGHT = {"tol": 1e-10, "max_iter": 10_000}


@pytest.fixture
def reg():
    """Rows of a regression."""
    return regression(0)


@pytest.fixture
def cls():
    """Rows of two classes."""
    return binary(1)


@pytest.fixture
def routing():
    """Enable metadata routing."""
    with config_context(enable_metadata_routing=True):
        yield


@pytest.fixture
def weights():
    """Sample weights of 40 rows, far from uniform."""
    return np.random.default_rng(2).uniform(0.2, 3.0, 40)


def without(X, row):
    """Return the rows of X but one."""
    return X[np.arange(X.shape[0]) != row]


# Metadata


def weighted_reference(reg, weights):
    """Return an estimator fitted with weights, checked against a refit."""
    fitted = InfluenceEstimator(Ridge()).fit(reg.X, reg.y, sample_weight=weights)
    refit = Ridge().fit(without(reg.X, 0), reg.y[1:], sample_weight=weights[1:])
    np.testing.assert_allclose(fitted.loo_predict()[:1], refit.predict(reg.X[:1]), rtol=1e-9)
    return fitted


def assert_same(fitted, reference):
    """Check that two fits give the same effects."""
    np.testing.assert_allclose(fitted.influence_, reference.influence_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fitted.loo_loss_, reference.loo_loss_, rtol=1e-9, atol=1e-12)


def test_routed_weights_reach_the_model(reg, weights, routing):
    fitted = InfluenceEstimator(Ridge().set_fit_request(sample_weight=True))
    fitted.fit(reg.X, reg.y, sample_weight=weights)
    with config_context(enable_metadata_routing=False):
        assert_same(fitted, weighted_reference(reg, weights))


def test_weights_nobody_requested_are_an_error(reg, weights, routing):
    with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
        InfluenceEstimator(Ridge()).fit(reg.X, reg.y, sample_weight=weights)


@pytest.mark.parametrize("inside", [True, False])
def test_routed_weights_and_a_pipeline(reg, weights, routing, inside):
    scaler = StandardScaler().set_fit_request(sample_weight=False)
    ridge = Ridge().set_fit_request(sample_weight=True)
    if inside:
        fitted = InfluenceEstimator(make_pipeline(scaler, ridge))
        fitted.fit(reg.X, reg.y, sample_weight=weights)
    else:
        pipeline = make_pipeline(scaler, InfluenceEstimator(ridge))
        fitted = pipeline.fit(reg.X, reg.y, sample_weight=weights)[-1]
    scaled = StandardScaler().fit_transform(reg.X)
    with config_context(enable_metadata_routing=False):
        reference = InfluenceEstimator(Ridge()).fit(scaled, reg.y, sample_weight=weights)
    assert_same(fitted, reference)


def test_routed_weights_and_a_search(reg, weights, routing):
    ridge = Ridge().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    grid = [0.1, 1.0, 10.0]
    search = GridSearchCV(InfluenceEstimator(ridge), {"ridge": grid})
    plain = GridSearchCV(ridge, {"alpha": grid})
    for each in (search, plain):
        each.fit(reg.X, reg.y, sample_weight=weights)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"], rtol=1e-12
    )
    alpha = search.best_params_["ridge"]
    with config_context(enable_metadata_routing=False):
        reference = InfluenceEstimator(Ridge(alpha)).fit(reg.X, reg.y, sample_weight=weights)
    assert_same(search.best_estimator_, reference)
    around = InfluenceEstimator(plain).fit(reg.X, reg.y, sample_weight=weights)
    assert_same(around, reference)


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_routed_weights_and_a_frozen_model(reg, weights, routing, in_pipeline):
    model = Ridge().set_fit_request(sample_weight=True)
    if in_pipeline:
        model = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
    model.fit(reg.X, reg.y, sample_weight=weights)
    frozen = InfluenceEstimator(FrozenEstimator(model))
    frozen.fit(reg.X, reg.y, sample_weight=weights)
    assert_same(frozen, InfluenceEstimator(model).fit(reg.X, reg.y, sample_weight=weights))


def test_routed_weights_in_score(reg, weights, routing):
    ridge = Ridge().set_score_request(sample_weight=True)
    fitted = InfluenceEstimator(ridge).fit(reg.X, reg.y)
    expected = Ridge().fit(reg.X, reg.y).score(reg.X, reg.y, sample_weight=weights)
    assert fitted.score(reg.X, reg.y, sample_weight=weights) == pytest.approx(expected)


def test_weights_in_score_without_routing(reg, weights):
    fitted = InfluenceEstimator(Ridge()).fit(reg.X, reg.y)
    expected = Ridge().fit(reg.X, reg.y).score(reg.X, reg.y, sample_weight=weights)
    assert fitted.score(reg.X, reg.y, sample_weight=weights) == pytest.approx(expected)


def test_weights_by_step_name_without_routing(reg, weights):
    inner = Pipeline([("scale", StandardScaler()), ("clf", Ridge())])
    nested = Pipeline([("centre", StandardScaler(with_std=False)), ("inner", inner)])
    scaled = StandardScaler().fit_transform(reg.X)
    reference = InfluenceEstimator(Ridge()).fit(scaled, reg.y, sample_weight=weights)
    named = {"clf__sample_weight": weights}
    assert_same(InfluenceEstimator(inner).fit(reg.X, reg.y, **named), reference)
    deep = {"inner__clf__sample_weight": weights}
    assert_same(InfluenceEstimator(nested).fit(reg.X, reg.y, **deep), reference)
    search = GridSearchCV(inner, {"clf__alpha": [1.0]})
    assert_same(InfluenceEstimator(search).fit(reg.X, reg.y, **named), reference)
    last = Pipeline([("scale", StandardScaler()), ("clf", InfluenceEstimator(Ridge()))])
    assert_same(last.fit(reg.X, reg.y, **named)[-1], reference)
    frozen = FrozenEstimator(clone(inner).fit(reg.X, reg.y, **named))
    assert_same(InfluenceEstimator(frozen).fit(reg.X, reg.y, **named), reference)


# Text, categories, sparse matrices


TEXTS = [
    "a good and pleasant film",
    "an awful film",
    "pleasant people and a good story",
    "terrible story and awful people",
    "good fun",
    "a terrible bore",
    "what a good story",
    "what an awful bore",
] * 3
OPINIONS = np.array(["liked", "loathed"] * 12)


@pytest.fixture
def no_large_dense(monkeypatch):
    """Fail where a sparse matrix with many columns is made dense."""
    for kind in (sp.csr_array, sp.csr_matrix, sp.csc_array, sp.csc_matrix, sp.coo_array):
        original = kind.toarray

        def guarded(self, *args, original=original, **kwargs):
            assert self.shape[1] <= len(TEXTS), f"{self.shape} was made dense"
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "toarray", guarded)


@pytest.mark.parametrize("form", [list, np.array, pd.Series])
def test_text_in_a_pipeline(form, no_large_dense):
    texts = form(TEXTS)
    bigrams = TfidfVectorizer(ngram_range=(1, 3))
    pipeline = make_pipeline(bigrams, LogisticRegression())
    influence = InfluenceEstimator(pipeline, order="exact")
    influence.fit(texts, OPINIONS, X_val=texts[:4], y_val=OPINIONS[:4])
    effects = influence.influence(texts[:4], OPINIONS[:4])
    assert effects.shape == (4, 24)
    np.testing.assert_allclose(influence.influence_, effects.mean(axis=0), rtol=1e-9, atol=1e-12)
    assert influence.solver_ == "dual"
    X = influence.estimator_[0].transform(TEXTS)
    assert X.shape[1] > len(TEXTS)
    refit = LogisticRegression(**TIGHT).fit(X[1:], OPINIONS[1:])
    np.testing.assert_allclose(
        influence.loo_predict_proba()[:1], refit.predict_proba(X[:1]), rtol=1e-6
    )
    table = influence.explain(texts[:2], OPINIONS[:2], k=3)
    assert len(table) == 6
    assert set(influence.loo_predict()) <= set(OPINIONS)


def test_sparse_rows_stay_sparse(no_large_dense):
    X = sparse_rows(24, 300, 0.05)
    for model in (LogisticRegression(), Ridge(), LinearSVC(), RidgeClassifier()):
        y = OPINIONS if is_classifier(model) else np.arange(24.0)
        influence = InfluenceEstimator(model).fit(X, y)
        assert influence.influence(X[:3], y[:3]).shape == (3, 24)
        influence.removal_effect([0, 5], X[:3], y[:3])


@pytest.mark.parametrize("pandas_inside", [False, True])
def test_frame_with_categories(reg, pandas_inside):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(reg.X, columns=list("abcde"), index=[f"row {i}" for i in range(40)])
    X["city"] = pd.Categorical(rng.choice(["Oslo", "Rome", "Kyoto"], 40))
    encode = make_column_transformer(
        (OneHotEncoder(sparse_output=not pandas_inside), ["city"]),
        (StandardScaler(), list("abcde")),
    )
    if pandas_inside:
        encode.set_output(transform="pandas")
    influence = InfluenceEstimator(make_pipeline(encode, Ridge())).fit(X, reg.y)
    assert list(influence.feature_names_in_) == [*"abcde", "city"]
    table = influence.explain(X[:3], reg.y[:3], k=2)
    assert list(table["query"].unique()) == ["row 0", "row 1", "row 2"]
    assert (table["train_index"] == X.index[table["position"]]).all()
    if pandas_inside:
        assert "coef_[onehotencoder__city_Kyoto]" in influence.parameter_names_
    rows = [0, 7, 30]
    kept = np.setdiff1d(np.arange(40), rows)
    Z = influence.estimator_[0].transform(X)
    Z = Z.to_numpy() if pandas_inside else Z
    refit = Ridge().fit(Z[kept], reg.y[kept])
    np.testing.assert_allclose(
        influence.output_change(rows, X)[:, 0],
        refit.predict(Z) - influence.predict(X),
        rtol=1e-8,
        atol=1e-10,
    )
    np.testing.assert_allclose(influence.unlearn(rows).predict(X), refit.predict(Z), rtol=1e-8)


# Inside pipelines and searches


def test_last_step_of_a_pipeline(cls):
    pipeline = make_pipeline(StandardScaler(), InfluenceEstimator(LogisticRegression()))
    pipeline.fit(cls.X, cls.y)
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(cls.X, cls.y)
    np.testing.assert_array_equal(
        pipeline.predict_proba(cls.X_query), plain.predict_proba(cls.X_query)
    )
    whole = InfluenceEstimator(make_pipeline(StandardScaler(), LogisticRegression()))
    whole.fit(cls.X, cls.y)
    np.testing.assert_allclose(pipeline.transform(cls.X_query), whole.transform(cls.X_query))
    np.testing.assert_allclose(pipeline[-1].self_influence_, whole.self_influence_)
    assert pipeline.get_feature_names_out()[0] == "influenceestimator0"


def test_search_over_ridge_is_the_search_over_the_penalty(reg, cls):
    grid = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    search = GridSearchCV(InfluenceEstimator(Ridge()), {"ridge": grid}).fit(reg.X, reg.y)
    plain = GridSearchCV(Ridge(), {"alpha": grid}).fit(reg.X, reg.y)
    assert search.best_params_["ridge"] == plain.best_params_["alpha"]
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    scoring = "neg_log_loss"
    logistic = InfluenceEstimator(LogisticRegression())
    search = GridSearchCV(logistic, {"ridge": grid}, scoring=scoring).fit(cls.X, cls.y)
    plain = GridSearchCV(LogisticRegression(), {"C": 1 / grid}, scoring=scoring)
    plain.fit(cls.X, cls.y)
    assert search.best_params_["ridge"] == 1 / plain.best_params_["C"]
    assert search.best_estimator_.ridge_ == search.best_params_["ridge"]


def test_search_over_the_wrapped_model(cls):
    Cs = [0.01, 0.1, 1.0]
    search = GridSearchCV(InfluenceEstimator(LogisticRegression()), {"estimator__C": Cs})
    search.fit(cls.X, cls.y)
    plain = GridSearchCV(LogisticRegression(), {"C": Cs}).fit(cls.X, cls.y)
    assert search.best_params_["estimator__C"] == plain.best_params_["C"]
    assert search.predict(cls.X_query).tolist() == plain.predict(cls.X_query).tolist()
    in_pipeline = make_pipeline(StandardScaler(), InfluenceEstimator(LogisticRegression()))
    GridSearchCV(in_pipeline, {"influenceestimator__ridge": [0.1, 1.0]}, cv=2).fit(cls.X, cls.y)


def test_cross_val_predict(cls):
    kwargs = {"method": "predict_proba", "cv": 4}
    ours = cross_val_predict(InfluenceEstimator(LogisticRegression()), cls.X, cls.y, **kwargs)
    plain = cross_val_predict(LogisticRegression(), cls.X, cls.y, **kwargs)
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("objective", ["loss", "prediction", "margin"])
@pytest.mark.parametrize("order", ["first", "newton", "exact"])
def test_validation_rows(cls, objective, order):
    influence = InfluenceEstimator(LogisticRegression(), objective=objective, order=order)
    y_val = None if objective == "prediction" else cls.y_query
    influence.fit(cls.X, cls.y, X_val=cls.X_query, y_val=y_val)
    effects = influence.influence(cls.X_query, y_val)
    np.testing.assert_allclose(influence.influence_, effects.mean(axis=0), rtol=1e-9, atol=1e-13)


def test_validation_rows_in_a_pipeline(reg, routing):
    step = InfluenceEstimator(Ridge()).set_fit_request(X_val=True, y_val=True)
    pipeline = Pipeline([("scale", StandardScaler()), ("model", step)], transform_input=["X_val"])
    pipeline.fit(reg.X, reg.y, X_val=reg.X_query, y_val=reg.y_query)
    whole = InfluenceEstimator(make_pipeline(StandardScaler(), Ridge()))
    whole.fit(reg.X, reg.y, X_val=reg.X_query, y_val=reg.y_query)
    np.testing.assert_allclose(pipeline[-1].influence_, whole.influence_, rtol=1e-9)


def test_validation_rows_in_a_search(reg):
    search = GridSearchCV(InfluenceEstimator(Ridge()), {"ridge": [1.0, 2.0]})
    search.fit(reg.X, reg.y, X_val=reg.X_query, y_val=reg.y_query)
    best = search.best_estimator_
    effects = best.influence(reg.X_query, reg.y_query)
    np.testing.assert_allclose(best.influence_, effects.mean(axis=0), rtol=1e-9)


@pytest.mark.parametrize("frozen", [False, True])
def test_around_a_search(reg, frozen):
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0, 10.0]})
    wrapped = FrozenEstimator(search.fit(reg.X, reg.y)) if frozen else search
    influence = InfluenceEstimator(wrapped).fit(reg.X, reg.y)
    alpha = clone(search).fit(reg.X, reg.y).best_params_["alpha"]
    assert influence.ridge_ == alpha
    refit = Ridge(alpha).fit(reg.X[1:], reg.y[1:])
    np.testing.assert_allclose(influence.loo_predict()[:1], refit.predict(reg.X[:1]), rtol=1e-9)
    np.testing.assert_allclose(
        influence.unlearn([0]).predict(reg.X_query), refit.predict(reg.X_query), rtol=1e-9
    )


def test_search_that_chooses_the_loss(cls):
    search = GridSearchCV(LinearSVC(loss="hinge"), {"loss": ["squared_hinge"]})
    assert InfluenceEstimator(search).fit(cls.X, cls.y).estimator_.best_params_


# Frozen models


FROZEN = {
    "logistic": (LogisticRegression(), binary(20)),
    "softmax": (LogisticRegression(), three_classes(21)),
    "pipeline": (make_pipeline(StandardScaler(), LogisticRegression()), binary(22)),
    "ridge": (Ridge(), regression(23)),
    "ridge-lsqr": (Ridge(solver="lsqr"), regression(23)),
    "linear": (LinearRegression(), regression(24)),
    "kernel": (KernelRidge(kernel="rbf", gamma=0.2), regression(25)),
    "svc": (LinearSVC(), binary(26)),
    "ridge-classifier": (RidgeClassifier(), three_classes(27)),
    "poisson": (PoissonRegressor(), counts(28)),
    "gamma": (GammaRegressor(), positive(29)),
    "huber": (HuberRegressor(), regression(30)),
}


@pytest.fixture(params=FROZEN)
def frozen(request):
    """A model as a user fits it, at default tolerances, and its rows."""
    model, data = FROZEN[request.param]
    return clone(model).fit(data.X, data.y), data


def test_a_frozen_model_on_its_own_rows(frozen):
    model, data = frozen
    before = pickle.dumps(model)
    influence = InfluenceEstimator(FrozenEstimator(model)).fit(data.X, data.y)
    assert influence.stationarity_ < 0.1
    assert pickle.dumps(model) == before
    reference = InfluenceEstimator(model).fit(data.X, data.y)
    np.testing.assert_allclose(
        influence.influence_, reference.influence_, rtol=1e-6, atol=1e-8 * influence.loo_loss_.max()
    )


def test_a_frozen_model_on_other_rows(frozen):
    model, data = frozen
    rows = np.arange(0, len(data.y), 2)
    with pytest.warns(NotStationaryWarning, match=r"trained on other rows.*Pass the ones"):
        influence = InfluenceEstimator(FrozenEstimator(model)).fit(data.X[rows], data.y[rows])
    assert influence.stationarity_ > 0.1
    np.testing.assert_array_equal(influence.predict(data.X), model.predict(data.X))


def test_a_frozen_model_on_other_targets(frozen):
    model, data = frozen
    with pytest.warns(NotStationaryWarning):
        InfluenceEstimator(FrozenEstimator(model)).fit(data.X, np.roll(data.y, 7))


def test_a_frozen_model_with_other_weights(reg, weights):
    model = Ridge().fit(reg.X, reg.y, sample_weight=weights)
    influence = InfluenceEstimator(FrozenEstimator(model))
    influence.fit(reg.X, reg.y, sample_weight=weights)
    with pytest.warns(NotStationaryWarning, match="weights"):
        influence.fit(reg.X, reg.y)


def test_a_frozen_model_in_cross_validation(cls):
    model = FrozenEstimator(LogisticRegression().fit(cls.X, cls.y))
    with pytest.warns(NotStationaryWarning):
        cross_val_predict(InfluenceEstimator(model), cls.X, cls.y, cv=2)
