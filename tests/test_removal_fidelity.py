"""Predicted against refitted effects: against plain loops of refits, and what it refuses."""

from __future__ import annotations

import pickle
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from helpers import relative
from joblib import parallel_config
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import HuberRegressor, LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler, scale
from skorch import NeuralNetClassifier
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import InfluenceWarning, NotStationaryWarning
from sklearn_dualif.metrics import RemovalFidelity, removal_fidelity
from sklearn_dualif.objectives import Loss

TIGHT = 1e-8
LOGISTIC = LogisticRegression(tol=1e-10, max_iter=10_000)
not_at_the_optimum = pytest.mark.filterwarnings(
    "ignore::sklearn_dualif.exceptions.NotStationaryWarning"
)


@cache
def regression():
    """Return training rows, their targets and queries of them."""
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:240], y[:240] / 50.0
    return X[::2], y[::2], X[1::2], y[1::2]


@cache
def classes():
    X, y = load_wine(return_X_y=True)
    X = scale(X)
    return X[::2], y[::2], X[1::2], y[1::2]


def fidelity(estimator, data, *, fit_params=None, options=None, **params):
    """Return the agreement of a wrapped model on a data set."""
    X, y, X_query, y_query = data
    influence = InfluenceEstimator(estimator, **(options or {})).fit(X, y, **(fit_params or {}))
    return removal_fidelity(
        influence, X_query, y_query, **{"n_groups": 6, "random_state": 0, **params}
    )


def assert_exact(result, tolerance=TIGHT):
    assert abs(result.r2 - 1.0) < tolerance
    assert abs(result.slope - 1.0) < tolerance
    assert abs(result.pearson - 1.0) < tolerance
    for interval in (result.r2_interval, result.slope_interval, result.pearson_interval):
        assert np.allclose(interval, 1.0, atol=tolerance)


# Agreement


@pytest.mark.parametrize(
    "estimator",
    [
        Ridge(1.0),
        KernelRidge(alpha=0.5, kernel="rbf", gamma=0.05),
        GaussianProcessRegressor(RBF(3.0), alpha=0.5, optimizer=None),
        make_pipeline(FunctionTransformer(np.tanh), Ridge(2.0)),
        FrozenEstimator(Ridge(1.0).fit(*regression()[:2])),
        make_pipeline(FunctionTransformer(), FrozenEstimator(Ridge().fit(*regression()[:2]))),
    ],
    ids=["ridge", "kernel-ridge", "gaussian-process", "pipeline", "frozen", "frozen-in-pipeline"],
)
def test_squared_loss_is_exact(estimator):
    estimator = estimator if isinstance(estimator, FrozenEstimator) else clone(estimator)
    result = fidelity(estimator, regression())
    assert_exact(result)
    assert relative(result.predicted, result.refitted) < TIGHT


def test_several_outputs_are_exact():
    X, y, X_query, y_query = regression()
    both = X, np.column_stack([y, y**2]), X_query, np.column_stack([y_query, y_query**2])
    result = fidelity(Ridge([1.0, 3.0]), both)
    assert_exact(result)
    assert_array_equal(result.ridge, [1.0, 3.0])


@pytest.mark.parametrize("objective", ["loss", "prediction", "margin", Loss()])
def test_exact_removals_of_logistic_rows_are_refits(objective):
    result = fidelity(LOGISTIC, classes(), objective=objective, order="exact")
    assert_exact(result, 1e-5)
    assert result.r2 > 1 - 1e-8


def test_orders_of_logistic_rows_come_closer():
    first, newton, exact = (
        fidelity(LOGISTIC, classes(), order=order, fraction=0.05).r2
        for order in ("first", "newton", "exact")
    )
    assert first < newton < exact
    assert newton > 0.99


@pytest.mark.parametrize(
    "estimator",
    [PoissonRegressor(tol=1e-10, max_iter=1000), HuberRegressor(tol=1e-9, max_iter=10_000)],
    ids=["poisson", "huber"],
)
def test_other_losses_agree(estimator):
    assert_exact(fidelity(estimator, regression(), order="exact"), 1e-3)


def test_first_order_is_too_small_for_groups():
    result = fidelity(Ridge(), regression(), order="first", fraction=0.2)
    low, high = result.slope_interval
    assert 1.0 < low < result.slope < high
    assert result.r2 < result.pearson < 1.0
    assert result.r2_interval[0] < result.r2 < result.r2_interval[1]


def test_weights_travel_with_their_rows():
    weights = np.random.default_rng(0).uniform(0.2, 3.0, len(regression()[0]))
    weights[:10] = 0.0
    result = fidelity(Ridge(), regression(), fit_params={"sample_weight": weights}, fraction=0.5)
    assert_exact(result)
    assert not np.isin(np.arange(10), result.groups).any()
    assert result.groups.shape == (6, 55)
    for fit_params in ({"ridge__sample_weight": weights}, {"ridge__sample_weight": list(weights)}):
        assert_exact(fidelity(make_pipeline(Ridge()), regression(), fit_params=fit_params))


def test_routed_weights_travel_too():
    weights = np.random.default_rng(0).uniform(0.2, 3.0, len(regression()[0]))
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = make_pipeline(Ridge().set_fit_request(sample_weight="importance"))
        options = {"fit_params": {"importance": weights}, "ridges": [0.5, 1.0, 2.0]}
        result = fidelity(estimator, regression(), **options)
    assert_exact(result)
    assert result.ridge == 1.0


def test_a_float_ridge_is_kept_by_refits():
    assert_exact(fidelity(Ridge(), regression(), options={"ridge": 7.0}))
    assert_exact(fidelity(Ridge(), regression(), options={"ridge": "loo"}))


def test_refits_do_what_effects_hold_fixed():
    exact = {"order": "exact"}
    scaled = fidelity(make_pipeline(StandardScaler(), LOGISTIC), classes(), **exact)
    balanced = fidelity(clone(LOGISTIC).set_params(class_weight="balanced"), classes(), **exact)
    for result in (scaled, balanced):
        assert 0.9 < result.r2 < 1 - 1e-6


# The numbers


def refits(estimator, data, groups):
    """Yield plain refits without each group."""
    X, y, *_ = data
    for group in groups:
        yield clone(estimator).fit(np.delete(X, group, 0), np.delete(y, group, 0))


def test_numbers_are_those_of_plain_loops():
    X, y, X_query, y_query = classes()
    influence = InfluenceEstimator(LOGISTIC).fit(X, y)
    result = removal_fidelity(influence, X_query, y_query, n_groups=4, random_state=0)
    kinds = np.eye(3)[y_query]

    def losses(model):
        probabilities = model.predict_proba(X_query)
        return [log_loss(k[None], p[None]) for k, p in zip(kinds, probabilities, strict=True)]

    before = losses(influence.estimator_)
    expected = [np.subtract(losses(m), before) for m in refits(LOGISTIC, classes(), result.groups)]
    assert relative(result.refitted, np.array(expected)) < TIGHT
    predicted = [influence.removal_effect(group, X_query, y_query) for group in result.groups]
    assert relative(result.predicted, np.array(predicted)) < TIGHT
    p, r = result.predicted.ravel(), result.refitted.ravel()
    assert result.r2 == pytest.approx(sklearn.metrics.r2_score(r, p))
    assert result.slope == pytest.approx(np.polyfit(p, r, 1)[0])
    assert result.pearson == pytest.approx(np.corrcoef(p, r)[0, 1])
    assert result.ridge == influence.ridge_
    assert result.by_ridge == {}


def test_regression_losses_are_squared_errors():
    X, y, X_query, y_query = regression()
    result = fidelity(Ridge(), regression())
    before = (Ridge().fit(X, y).predict(X_query) - y_query) ** 2
    models = refits(Ridge(), regression(), result.groups)
    expected = [(model.predict(X_query) - y_query) ** 2 - before for model in models]
    assert relative(result.refitted, np.array(expected)) < TIGHT


def test_intervals_are_those_of_resampled_groups():
    result = fidelity(Ridge(), regression(), order="first", n_groups=30)
    rng, values = np.random.default_rng(0), []
    for _ in range(2000):
        chosen = rng.integers(30, size=30)
        p, r = result.predicted[chosen].ravel(), result.refitted[chosen].ravel()
        values.append(np.polyfit(p, r, 1)[0])
    width = np.ptp(result.slope_interval)
    assert np.allclose(np.quantile(values, [0.025, 0.975]), result.slope_interval, atol=width / 8)


def test_flat_predictions_have_no_correlation():
    result = fidelity(Ridge(fit_intercept=False), regression(), ridges=[1e300])
    assert (result.slope, result.pearson) == (0.0, 0.0)
    assert result.r2 <= 0.0


def test_the_result_is_a_number_a_pickle_and_short():
    result = fidelity(Ridge(), regression(), order="first", ridges=[1.0, 2.0])
    assert float(result) == result.item() == result.r2
    assert pickle.loads(pickle.dumps(result)).by_ridge[2.0].r2 == result.by_ridge[2.0].r2
    assert "array" not in repr(result)


# Groups


def test_groups_are_drawn_by_random_state():
    influence = InfluenceEstimator(Ridge()).fit(*regression()[:2])
    queries = regression()[2:]
    one, same, other = (
        removal_fidelity(influence, *queries, order="first", random_state=seed)
        for seed in (0, 0, 1)
    )
    assert_array_equal(one.groups, same.groups)
    assert (one.r2, one.r2_interval) == (same.r2, same.r2_interval)
    assert not np.array_equal(one.groups, other.groups)
    given = removal_fidelity(influence, *queries, random_state=np.random.RandomState(0))
    assert_array_equal(one.groups, given.groups)
    assert one.groups.shape == (10, 12)
    assert (np.diff(one.groups, axis=1) > 0).all()


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_jobs_do_not_change_numbers(backend):
    influence = InfluenceEstimator(LOGISTIC).fit(*classes()[:2])
    queries = classes()[2:]
    one = removal_fidelity(influence, *queries, n_groups=3, random_state=0)
    with parallel_config(backend=backend):
        two = removal_fidelity(influence, *queries, n_groups=3, random_state=0, n_jobs=2)
    assert_array_equal(one.refitted, two.refitted)


def test_a_rare_class_keeps_a_row():
    X, y, X_query, y_query = classes()
    keep = np.flatnonzero(y != 2).tolist() + np.flatnonzero(y == 2)[:2].tolist()
    rare = np.array(["a", "b", "rare"])
    data = X[keep], rare[y[keep]], X_query, rare[y_query]
    result = fidelity(LOGISTIC, data, order="exact", fraction=0.6, n_groups=20)
    left = [np.delete(data[1], group) for group in result.groups]
    assert all("rare" in labels for labels in left)
    assert len({(labels == "rare").sum() for labels in left}) == 2
    assert result.r2 > 1 - 1e-6


def test_rows_of_weight_zero_do_not_keep_a_class():
    X, y, X_query, y_query = classes()
    weights = np.where(y == 2, 0.0, 1.0)
    weights[np.flatnonzero(y == 2)[:2]] = 1.0
    kept = np.flatnonzero(weights)
    fit_params = {"sample_weight": weights}
    result = fidelity(LOGISTIC, classes(), fit_params=fit_params, fraction=0.7, order="exact")
    assert all((y[np.setdiff1d(kept, group)] == 2).any() for group in result.groups)
    assert result.r2 > 1 - 1e-6


# Rows of all kinds


def test_frames_keep_their_index_and_sparse_rows_their_form():
    X, y, X_query, y_query = regression()
    expected = fidelity(Ridge(solver="cholesky"), regression())
    index = np.arange(len(X))[::-1]
    frame = pd.DataFrame(X, index=index).add_prefix("c"), pd.Series(y, index=index)
    queries = pd.DataFrame(X_query).add_prefix("c")
    result = fidelity(Ridge(solver="cholesky"), (*frame, queries, y_query))
    assert relative(result.refitted, expected.refitted) < TIGHT
    coordinates = sparse.coo_array(X), y, sparse.coo_array(X_query), y_query
    result = fidelity(Ridge(solver="sparse_cg", tol=1e-12), coordinates)
    assert relative(result.refitted, expected.refitted) < 1e-6


def test_precomputed_kernels_lose_their_columns():
    X, y, X_query, y_query = regression()
    data = X @ X.T, y, X_query @ X.T, y_query
    assert_exact(fidelity(KernelRidge(alpha=2.0, kernel="precomputed"), data))


def test_texts_go_through_a_pipeline():
    texts = ["a b", "b c d", "a a", "c c d", "d a b", "b b"] * 8
    y = [0, 1, 0, 1, 1, 0] * 8
    estimator = make_pipeline(CountVectorizer(token_pattern="."), clone(LOGISTIC))
    assert fidelity(estimator, (texts, y, texts[:6], y[:6]), order="exact").r2 > 1 - 1e-6


def test_predictions_need_no_targets():
    X, y, X_query, _ = regression()
    influence = InfluenceEstimator(Ridge(), objective="prediction").fit(X, y)
    assert_exact(removal_fidelity(influence, X_query, random_state=0))


# Choosing a damping


@pytest.mark.parametrize("C", [0.1, 1.0])
def test_ridges_pick_the_model_s_own(C):
    ridges = [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
    result = fidelity(LogisticRegression(C=C, tol=1e-8), classes(), ridges=ridges)
    assert result.ridge == 1.0 / C
    assert result.r2 > 0.99
    assert list(result.by_ridge) == ridges
    values = [one.r2 for one in result.by_ridge.values()]
    assert result.r2 == max(values) > sorted(values)[-2] + 1e-3
    for ridge, one in result.by_ridge.items():
        assert isinstance(one, RemovalFidelity)
        assert one.ridge == ridge
        assert one.refitted is result.refitted


def test_ridges_share_the_refits(monkeypatch):
    fits = []
    fit = Ridge.fit
    monkeypatch.setattr(Ridge, "fit", lambda *args, **kwargs: fits.append(1) or fit(*args))
    influence = InfluenceEstimator(Ridge(3.0)).fit(*regression()[:2])
    fits.clear()
    result = removal_fidelity(
        influence, *regression()[2:], n_groups=5, ridges=[0.0, 1.0, 3.0, 9.0], random_state=0
    )
    assert len(fits) == 6  # one with all rows
    assert_exact(result)
    assert result.ridge == 3.0


def test_each_ridge_is_that_of_a_frozen_model():
    X, y, X_query, y_query = classes()
    result = fidelity(LOGISTIC, classes(), ridges=[0.5, 5.0], order="first")
    model = FrozenEstimator(clone(LOGISTIC).fit(X, y))
    for ridge, one in result.by_ridge.items():
        damped = InfluenceEstimator(model, ridge=ridge, order="first").fit(X, y)
        expected = [damped.removal_effect(group, X_query, y_query) for group in one.groups]
        assert relative(one.predicted, np.array(expected)) < TIGHT


def test_exact_orders_cannot_choose_a_ridge():
    with pytest.raises(ValueError, match=r"all predict the same.*order='newton'"):
        fidelity(LOGISTIC, classes(), order="exact", ridges=[0.1, 1.0])
    assert fidelity(LOGISTIC, classes(), order="exact", ridges=[1.0]).r2 > 0.99
    assert fidelity(Ridge(3.0), regression(), order="exact", ridges=[1.0, 3.0]).ridge == 3.0


# Networks


def perceptron(kind, **params):
    return kind(
        solver="lbfgs", tol=1e-14, max_iter=20_000, max_fun=100_000, random_state=0, **params
    )


@pytest.mark.parametrize(("kind", "data"), [(MLPClassifier, classes), (MLPRegressor, regression)])
def test_linear_networks_are_well_predicted(kind, data):
    estimator = perceptron(kind, hidden_layer_sizes=(3,), activation="identity", alpha=1.0)
    result = fidelity(estimator, data(), fraction=0.05)
    assert result.r2 > 0.98
    assert abs(result.slope - 1.0) < 0.05


def test_a_regularised_network_is_predicted():
    X = np.random.default_rng(0).normal(size=(240, 3))
    y = np.tanh(X @ [1.0, -2.0, 0.5]) + 0.1 * np.random.default_rng(1).normal(size=240)
    estimator = perceptron(MLPRegressor, hidden_layer_sizes=(2,), activation="tanh", alpha=10.0)
    result = fidelity(estimator, (X[::2], y[::2], X[1::2], y[1::2]), fraction=0.02)
    assert result.r2 > 0.8
    assert 0.7 < result.slope < 1.3


def test_a_network_without_decay_gets_a_damping():
    X, y, X_query, y_query = regression()
    estimator = perceptron(MLPRegressor, hidden_layer_sizes=(2,), activation="identity", alpha=0.0)
    with pytest.warns(InfluenceWarning, match="without weight decay"):
        influence = InfluenceEstimator(estimator).fit(X, y)
    ridges = [1e-6, 1e-3, 1.0, 1e3]
    result = removal_fidelity(
        influence, X_query, y_query, n_groups=6, fraction=0.05, ridges=ridges, random_state=0
    )
    assert result.ridge < 1e3
    assert result.r2 > 0.95
    assert result.by_ridge[1e3].r2 < 0.9


class Sequential(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(13, 8), nn.Tanh(), nn.Linear(8, 3))


def net(**params):
    """Return a skorch net that starts anywhere."""
    return NeuralNetClassifier(
        Sequential,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        optimizer__weight_decay=0.01,
        lr=0.1,
        max_epochs=100,
        batch_size=-1,
        verbose=0,
        **{"train_split": None, **params},
    )


@not_at_the_optimum
def test_nets_of_skorch_start_where_the_fit_did():
    X, y, X_query, y_query = classes()
    labels = np.array(["a", "b", "c"])
    ridges = [1e-3, 1.0, 1e3]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        influence = InfluenceEstimator(net()).fit(X, labels[y])
        torch.rand(3)
        before = torch.get_rng_state()
        result = removal_fidelity(
            influence, X_query, labels[y_query], n_groups=4, ridges=ridges, random_state=0
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert result.ridge == 1.0
    assert result.pearson > 0.9


@not_at_the_optimum
def test_a_net_that_holds_out_rows_is_refused():
    influence = InfluenceEstimator(net(train_split=ValidSplit(5))).fit(*classes()[:2])
    with pytest.raises(ValueError, match=r"holds out rows.*train_split=None"):
        removal_fidelity(influence, *classes()[2:])


@not_at_the_optimum
def test_a_torch_model_is_refused():
    module = nn.Linear(13, 3, dtype=torch.float64)
    model = TorchModel(module, weight_decay=0.1, classes=[0, 1, 2]).fit(*classes()[:2])
    for estimator in (model, FrozenEstimator(model), make_pipeline(StandardScaler(), model)):
        influence = InfluenceEstimator(estimator).fit(*classes()[:2])
        with pytest.raises(ValueError, match=r"TorchModel .* cannot be fitted again"):
            removal_fidelity(influence, *classes()[2:])


# As a score


def test_searches_score_by_it():
    X, y, *_ = regression()
    influence = InfluenceEstimator(Ridge())
    scoring = partial(removal_fidelity, n_groups=4, random_state=0)
    search = GridSearchCV(influence, {"order": ["first", "newton"]}, scoring=scoring, cv=3)
    search.fit(X, y)
    assert search.best_params_ == {"order": "newton"}
    assert search.best_score_ == pytest.approx(1.0, abs=TIGHT)
    scores = cross_validate(influence, X, y, scoring=removal_fidelity, cv=3)["test_score"]
    assert scores.dtype == float
    assert np.allclose(scores, 1.0, atol=TIGHT)
    several = {"fidelity": scoring, "r2": "r2"}
    assert np.allclose(
        cross_validate(influence, X, y, scoring=several, cv=3)["test_fidelity"], 1.0, atol=TIGHT
    )


def test_searches_inside_are_searched_again():
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]}, cv=3)
    assert fidelity(search, regression(), n_groups=3).r2 > 0.5
    best = search.fit(*regression()[:2]).best_estimator_
    assert_exact(fidelity(FrozenEstimator(best), regression()))


# Refusals


@pytest.fixture
def influence():
    return InfluenceEstimator(Ridge()).fit(*regression()[:2])


@pytest.mark.parametrize("n_groups", [2, 0, -1, 3.0, True, "4"])
def test_too_few_groups(influence, n_groups):
    with pytest.raises(ValueError, match=r"n_groups=.* at least 3"):
        removal_fidelity(influence, *regression()[2:], n_groups=n_groups)


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1, np.nan, "half", True])
def test_a_fraction_out_of_range(influence, fraction):
    with pytest.raises(ValueError, match=r"fraction=.* between 0 and 1"):
        removal_fidelity(influence, *regression()[2:], fraction=fraction)


@pytest.mark.parametrize("fraction", [0.999, 1e-9])
def test_extreme_fractions(influence, fraction):
    if fraction < 0.5:
        result = removal_fidelity(influence, *regression()[2:], fraction=fraction)
        assert result.groups.shape == (10, 1)
        return
    with pytest.raises(ValueError, match=r"is 120, but one must stay.* at most 119"):
        removal_fidelity(influence, *regression()[2:], fraction=fraction)


def test_no_class_may_vanish():
    with pytest.raises(ValueError, match=r"is 88, but one of each class must stay.* at most 86"):
        fidelity(LOGISTIC, classes(), fraction=0.99)


@pytest.mark.parametrize("ridges", [[], "loo", 1.0, np.ones((2, 2))])
def test_ridges_are_a_sequence(influence, ridges):
    with pytest.raises(ValueError, match=r"(?s)ridges=.* must be a sequence"):
        removal_fidelity(influence, *regression()[2:], ridges=ridges)


@pytest.mark.parametrize("ridge", [-1.0, np.nan, np.inf, "model", True, None])
def test_each_ridge_is_a_number(influence, ridge):
    with pytest.raises(ValueError, match=r"ridges has .* finite number >= 0"):
        removal_fidelity(influence, *regression()[2:], ridges=[1.0, ridge])


def test_an_unfitted_estimator():
    with pytest.raises(NotFittedError):
        removal_fidelity(InfluenceEstimator(Ridge()), *regression()[2:])


def test_another_estimator():
    with pytest.raises(TypeError, match=r"needs a fitted InfluenceEstimator; got Ridge"):
        removal_fidelity(Ridge().fit(*regression()[:2]), *regression()[2:])


def test_queries_that_do_not_fit(influence):
    X_query, y_query = regression()[2:]
    with pytest.raises(ValueError, match="features"):
        removal_fidelity(influence, X_query[:, :4], y_query)
    with pytest.raises(ValueError, match="inconsistent"):
        removal_fidelity(influence, X_query, y_query[:4])
    with pytest.raises(ValueError, match="needs the targets"):
        removal_fidelity(influence, X_query)
    with pytest.raises(ValueError, match="order='third'"):
        removal_fidelity(influence, X_query, y_query, order="third")
    with pytest.raises(ValueError, match="margin"):
        removal_fidelity(influence, X_query, y_query, objective="margin")


def test_effects_that_overflow():
    X, y, X_query, y_query = regression()
    influence = InfluenceEstimator(PoissonRegressor()).fit(X, y)
    with pytest.raises(ValueError, match="predicted effects are not finite"):
        removal_fidelity(influence, 1e5 * X_query, y_query)


def test_refits_that_change_nothing():
    X, y, X_query, y_query = regression()
    influence = InfluenceEstimator(Ridge(fit_intercept=False)).fit(X, y)
    with pytest.raises(ValueError, match="no variation to predict"):
        removal_fidelity(influence, np.zeros_like(X_query), y_query)


def test_a_model_that_stays_frozen_inside_a_search():
    X, y, X_query, y_query = regression()
    pipeline = make_pipeline(StandardScaler(), FrozenEstimator(Ridge().fit(X, y)))
    search = GridSearchCV(pipeline, {"standardscaler__with_mean": [True, False]}, cv=3)
    influence = InfluenceEstimator(search).fit(X, y)
    with pytest.raises(ValueError, match="Ridge inside GridSearchCV is frozen"):
        removal_fidelity(influence, X_query, y_query)


def test_the_caller_s_objects_stay(influence):
    X, y, X_query, y_query = (part.copy() for part in regression())
    estimator = Ridge().fit(X, y)
    before = pickle.dumps(estimator)
    influence = InfluenceEstimator(FrozenEstimator(estimator)).fit(X, y)
    state = {name: id(value) for name, value in vars(influence).items()}
    removal_fidelity(influence, X_query, y_query, ridges=[1.0, 2.0], random_state=0)
    assert pickle.dumps(estimator) == before
    assert {name: id(value) for name, value in vars(influence).items()} == state
    for part, original in zip((X, y, X_query, y_query), regression(), strict=True):
        assert_array_equal(part, original)


def test_a_frozen_model_of_other_rows_is_not_trusted():
    X, y, X_query, y_query = classes()
    model = clone(LOGISTIC).fit(X[::3], y[::3])
    with pytest.warns(NotStationaryWarning):
        influence = InfluenceEstimator(FrozenEstimator(model)).fit(X, y)
    assert removal_fidelity(influence, X_query, y_query, random_state=0).r2 < 0.9
