"""Models, options and sizes that are refused: what the message names, and what it advises."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import binary, counts, positive, regression, three_classes
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.cross_decomposition import PLSRegression
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    ElasticNetCV,
    HuberRegressor,
    Lasso,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    PoissonRegressor,
    QuantileRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
    TweedieRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.random_projection import GaussianRandomProjection
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR, NuSVC, NuSVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import (
    MemoryLimitError,
    UnsupportedModelError,
    UnsupportedOptionError,
)

REG, CLS, THREE = regression(0), binary(1), three_classes(2)


@pytest.fixture(scope="module")
def ridge():
    """A fitted ridge regression."""
    return InfluenceEstimator(Ridge()).fit(REG.X, REG.y)


def refuses(model, data, *patterns, kind=ValueError, **params):
    """Check that a fit is refused, before anything is set, with all patterns in the message."""
    influence = InfluenceEstimator(model, **params)
    before = dict(vars(influence))
    with pytest.raises(kind) as caught:
        influence.fit(data.X, data.y)
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), f"{pattern!r} is not in: {caught.value}"
    assert vars(influence) == before
    return caught.value


# Models


REFUSED_MODELS = [
    (SVC(), CLS, "LinearSVC"),
    (NuSVC(), CLS, "LinearSVC"),
    (SVR(), REG, "KernelRidge"),
    (NuSVR(), REG, "KernelRidge"),
    (RandomForestClassifier(), CLS, "refits"),
    (RandomForestRegressor(), REG, "refits"),
    (GradientBoostingRegressor(), REG, "refits"),
    (AdaBoostClassifier(), CLS, "refits"),
    (DecisionTreeClassifier(), CLS, "refits"),
    (DecisionTreeRegressor(), REG, "refits"),
    (KNeighborsClassifier(), CLS, "refits"),
    (DummyClassifier(), CLS, "refits"),
    (Lasso(), REG, "use Ridge"),
    (LassoCV(), REG, "use Ridge"),
    (ElasticNet(), REG, "use Ridge"),
    (ElasticNetCV(), REG, "use Ridge"),
    (PLSRegression(), REG, "use Ridge"),
    (QuantileRegressor(), REG, "HuberRegressor"),
    (Perceptron(), CLS, "LogisticRegression"),
    (CalibratedClassifierCV(LogisticRegression()), CLS, "wrap the classifier that it calibrates"),
    (OneVsRestClassifier(LogisticRegression()), CLS, "wrap the inner"),
    (MultiOutputRegressor(Ridge()), REG, "wrap the inner"),
    (TransformedTargetRegressor(Ridge()), REG, "wrap its regressor"),
]


@pytest.mark.parametrize(
    ("model", "data", "remedy"), REFUSED_MODELS, ids=[type(m).__name__ for m, *_ in REFUSED_MODELS]
)
def test_refused_models(model, data, remedy):
    name = type(model).__name__
    common = (f"{name} is not supported", remedy, "wraps LinearRegression, Ridge, .*KernelRidge")
    registration = "as_model_function.register"
    refuses(model, data, *common, registration, kind=TypeError)
    refuses(make_pipeline(StandardScaler(), model), data, *common, kind=UnsupportedModelError)
    refuses(GridSearchCV(model, {}), data, *common, kind=UnsupportedModelError)


def test_refused_inside_a_frozen_estimator():
    forest = FrozenEstimator(RandomForestClassifier(n_estimators=2).fit(CLS.X, CLS.y))
    refuses(forest, CLS, "RandomForestClassifier is not supported", kind=TypeError)


def test_a_class_is_no_model():
    said = r"Ridge is a class. Pass a model, as in InfluenceEstimator\(Ridge\(\)\)"
    refuses(Ridge, REG, said, kind=TypeError)
    refuses(
        make_pipeline(StandardScaler(), Ridge()).set_params(ridge=Ridge), REG, said, kind=TypeError
    )


def test_nothing_is_fitted_when_the_model_is_refused(monkeypatch):
    monkeypatch.setattr(RandomForestClassifier, "fit", lambda *args: pytest.fail("was fitted"))
    refuses(RandomForestClassifier(), CLS, "not supported", kind=TypeError)
    monkeypatch.setattr(LinearSVC, "fit", lambda *args: pytest.fail("was fitted"))
    refuses(LinearSVC(loss="hinge"), CLS, "hinge")


def test_refused_pipelines():
    refuses(make_pipeline(StandardScaler()), REG, "StandardScaler is not supported", kind=TypeError)
    open_ended = make_pipeline(StandardScaler(), "passthrough")
    refuses(open_ended, REG, "passthrough", kind=TypeError)


def test_not_an_estimator():
    for nothing in (None, "ridge", 3):
        with pytest.raises(ValueError, match=f"'estimator' parameter.* Got {nothing!r}"):
            InfluenceEstimator(nothing).fit(REG.X, REG.y)
    with pytest.raises(TypeError, match="Ridge"):
        InfluenceEstimator(Ridge).fit(REG.X, REG.y)


def test_a_search_that_was_not_refitted():
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 2.0]}, refit=False)
    refuses(search, REG, "refit")


def test_one_training_row():
    for model in (Ridge(), Ridge(fit_intercept=False), LinearRegression(), PoissonRegressor()):
        # Either of these is a clear answer; an error of the linear algebra is not.
        try:
            influence = InfluenceEstimator(model).fit(REG.X[:1], np.abs(REG.y[:1]))
        except ValueError as error:
            assert re.search("1 sample|one row|one training row", str(error)), error
        else:
            assert np.isfinite(influence.self_influence_).all()


# Options of models


REFUSED_OPTIONS = [
    (LogisticRegression(l1_ratio=0.5, solver="saga"), CLS, "l1_ratio=0.5", "l1_ratio=0"),
    (LogisticRegression(l1_ratio=1, solver="liblinear"), CLS, "l1_ratio=1", "l1_ratio=0"),
    (LogisticRegression(penalty="l1", solver="liblinear"), CLS, "penalty='l1'", "l1_ratio=0"),
    (
        LogisticRegressionCV(l1_ratios=(0, 0.5), solver="saga", use_legacy_attributes=False),
        CLS,
        r"l1_ratios=\(0, 0.5\)",
        r"\(0,\)",
    ),
    (
        LogisticRegressionCV(l1_ratios=(0,), refit=False, use_legacy_attributes=True),
        CLS,
        "refit=False",
        "refit=True",
    ),
    (LinearRegression(positive=True), REG, "positive=True", "set False"),
    (Ridge(positive=True), REG, "positive=True", "set False"),
    (RidgeClassifier(positive=True), CLS, "positive=True", "set False"),
    (KernelRidge(alpha=0.0), REG, "alpha=0.0", "positive ridge"),
    (LinearSVC(loss="hinge"), CLS, "loss='hinge'", "squared_hinge"),
    (LinearSVC(penalty="l1", dual=False), CLS, "penalty='l1'", "'l2'"),
    (LinearSVC(multi_class="crammer_singer"), CLS, "multi_class='crammer_singer'", "'ovr'"),
    (LinearSVR(), REG, "loss='epsilon_insensitive'", "squared_epsilon_insensitive"),
    (TweedieRegressor(power=3), REG, "power=3", "1 <= power <= 2"),
    (TweedieRegressor(power=-1), REG, "power=-1", "1 <= power <= 2"),
    (TweedieRegressor(power=0, link="log"), REG, "power=0", "identity"),
    (TweedieRegressor(power=1, link="identity"), REG, "link='identity'", "log link"),
    (SGDClassifier(), CLS, "loss='hinge'", "squared_hinge"),
    (SGDClassifier(loss="perceptron"), CLS, "loss='perceptron'", "log_loss"),
    (SGDClassifier(loss="log_loss", penalty="l1"), CLS, "penalty='l1'", "'l2'"),
    (SGDClassifier(loss="log_loss", penalty="elasticnet"), CLS, "'elasticnet'", "'l2'"),
    (SGDClassifier(loss="log_loss", early_stopping=True), CLS, "early_stopping=True", "False"),
    (SGDRegressor(loss="epsilon_insensitive"), REG, "loss='epsilon_insensitive'", "huber"),
    (SGDRegressor(early_stopping=True), REG, "early_stopping=True", "False"),
]


@pytest.mark.parametrize(
    ("model", "data", "value", "remedy"),
    REFUSED_OPTIONS,
    ids=[f"{type(case[0]).__name__}-{case[2]}" for case in REFUSED_OPTIONS],
)
def test_refused_options(model, data, value, remedy):
    name = type(model).__name__
    patterns = (rf"{name}\(.*{value}", remedy)
    refuses(model, data, *patterns, kind=UnsupportedOptionError)
    refuses(make_pipeline(StandardScaler(), model), data, *patterns, kind=UnsupportedOptionError)


def test_options_that_are_refused_in_a_frozen_model():
    model = LinearSVC(loss="hinge", random_state=0).fit(CLS.X, CLS.y)
    refuses(FrozenEstimator(model), CLS, "loss='hinge'", "squared_hinge")


@pytest.mark.parametrize("power", [0, 1, 1.5, 2])
def test_convex_tweedie_powers_are_accepted(power):
    gain = positive(9)
    InfluenceEstimator(TweedieRegressor(power=power)).fit(gain.X, gain.y)


# The ridge


@pytest.mark.parametrize("ridge", [-1, -1e-9, np.nan, np.inf, "x", "1.0", True, False])
def test_ridges_that_are_none(ridge):
    refuses(Ridge(), REG, f"ridge={ridge!r}", "'model'", "'loo'", "finite number >= 0", ridge=ridge)


@pytest.mark.parametrize("ridge", [None, [1.0], 1j])
def test_ridges_of_a_wrong_type(ridge):
    refuses(Ridge(), REG, "'ridge'", re.escape(repr(ridge)), ridge=ridge)


OWN_PENALTY = [
    (RidgeCV(), REG, "Wrap Ridge"),
    (RidgeClassifierCV(), CLS, "Wrap RidgeClassifier"),
    (
        LogisticRegressionCV(l1_ratios=(0,), use_legacy_attributes=False, scoring="accuracy"),
        CLS,
        "Wrap LogisticRegression",
    ),
    (BayesianRidge(), REG, "Wrap Ridge"),
    (GaussianProcessRegressor(RBF() + WhiteKernel()), REG, "Wrap KernelRidge"),
    (GridSearchCV(Ridge(), {"alpha": [1.0]}), REG, "Wrap the plain estimator"),
]
OWN_NAMES = [type(case[0]).__name__ for case in OWN_PENALTY]


@pytest.mark.parametrize(("model", "data", "remedy"), OWN_PENALTY, ids=OWN_NAMES)
@pytest.mark.parametrize("ridge", [0.0, 2.5])
def test_models_that_choose_their_own_penalty(model, data, remedy, ridge):
    name = type(model).__name__
    patterns = (f"ridge={ridge!r} cannot be set on {name}", remedy, "ridge='model'")
    refuses(model, data, *patterns, ridge=ridge)
    refuses(make_pipeline(StandardScaler(), model), data, *patterns, ridge=ridge)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (LogisticRegression(), CLS),
        (LogisticRegression(), THREE),
        (LinearSVC(), CLS),
        (PoissonRegressor(), counts(10)),
        (HuberRegressor(), REG),
        (SGDRegressor(loss="huber"), REG),
        (TweedieRegressor(power=0), REG),
        (FrozenEstimator(Ridge().fit(REG.X, REG.y)), REG),
        *[case[:2] for case in OWN_PENALTY],
    ],
    ids=lambda value: type(value).__name__,
)
def test_leave_one_out_ridge_where_there_is_none(model, data):
    error = refuses(model, data, "ridge='loo'", "GridSearchCV", ridge="loo")
    assert isinstance(error, UnsupportedOptionError)


@pytest.mark.parametrize("kind", [Ridge, KernelRidge])
def test_leave_one_out_ridge_replaces_a_penalty_per_target(kind):
    data = regression(12, n_targets=2)
    chosen = InfluenceEstimator(kind(alpha=[0.1, 10.0]), ridge="loo").fit(data.X, data.y)
    same = InfluenceEstimator(kind(alpha=1.0), ridge="loo").fit(data.X, data.y)
    assert chosen.ridge_ == same.ridge_ == chosen.estimator_.alpha


def test_leave_one_out_ridge_of_a_model_without_penalty():
    refuses(LinearRegression(), REG, "ridge='loo'", "LinearRegression", "Ridge", ridge="loo")


def test_ridge_of_zero_where_the_model_has_none():
    refuses(LinearSVC(), CLS, "ridge=0", "positive", ridge=0.0)
    refuses(KernelRidge(), REG, r"ridge=0|alpha=0", "positive", ridge=0.0)


# The estimator's own options


def test_a_curvature_that_is_not_known():
    refuses(Ridge(), REG, "curvature='ekfac' is not known", "'kfac'", curvature="ekfac")


@pytest.mark.parametrize("value", [GaussianRandomProjection(), 64, "gaussian"])
def test_what_is_not_a_sketch(value):
    shown = re.escape(f"sketch={value!r}")
    refuses(Ridge(), REG, shown, "not a sketch", "sklearn_dualif.sketching", sketch=value)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("parameters", ["layer*"], "parameters=None"),
        ("device", "cuda", "device=None"),
        ("device", "cpu", "device=None"),
        ("dtype", "float32", "dtype='float64'"),
    ],
)
def test_options_of_networks(name, value, remedy):
    value_shown = re.escape(f"{name}={value!r}")
    refuses(Ridge(), REG, value_shown, "is for networks", remedy, "Ridge", **{name: value})


def test_solvers():
    refuses(Ridge(), REG, "solver='lu'", "'auto', 'primal', 'dual' or 'iterative'", solver="lu")
    refuses(Ridge(), REG, "solver='iterative'", "for networks", "Ridge", solver="iterative")


@pytest.mark.parametrize("dtype", [np.float32, "float16", 64])
def test_dtype_is_one_of_two(dtype):
    refuses(Ridge(), REG, re.escape(f"dtype={dtype!r}"), "'float64' or 'float32'", dtype=dtype)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", "second"),
        ("order", None),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("n_jobs", "all"),
        ("random_state", "seed"),
        ("verbose", -1),
        ("curvature", 3),
        ("solver", 3),
        ("memory_limit", [1]),
    ],
)
def test_options_out_of_range(name, value):
    refuses(Ridge(), REG, name, re.escape(repr(value)), **{name: value})


class Accuracy:
    """An objective of another making."""


@pytest.mark.parametrize("objective", ["accuracy", "Loss", None, 3, Accuracy(), ["loss"]])
def test_objectives_that_are_none(ridge, objective):
    shown = re.escape(f"objective={objective!r}")
    names = "'loss', 'prediction', 'margin'"
    refuses(Ridge(), REG, shown, names, objective=objective)
    if objective is None:
        return
    for ask in (ridge.influence, lambda *args, **kw: ridge.removal_effect([0], *args, **kw)):
        with pytest.raises(ValueError, match=f"{shown}.*{names}"):
            ask(REG.X_query, REG.y_query, objective=objective)


def test_orders_that_are_none(ridge):
    for ask in (
        lambda order: ridge.influence(REG.X_query, REG.y_query, order=order),
        lambda order: ridge.removal_effect([0], order=order),
        lambda order: ridge.output_change([0], order=order),
        lambda order: ridge.relabel_effect([0], 1.0, order=order),
        lambda order: ridge.parameter_change([0], order=order),
        lambda order: ridge.unlearn([0], order=order),
    ):
        for order in ("second", 1):
            with pytest.raises(ValueError, match=f"order={order!r}.*'newton', 'first' or 'exact'"):
                ask(order)


def test_margin_of_a_regression(ridge):
    pattern = "objective='margin' needs a classifier.*'prediction'.*Ridge"
    with pytest.raises(ValueError, match=pattern):
        ridge.influence(REG.X_query, REG.y_query, objective="margin")
    refuses(Ridge(), REG, pattern, objective="margin")


def test_solvers_that_a_model_lacks():
    refuses(Ridge(alpha=0.0), REG, "solver='dual'", "ridge 0", "solver='primal'", solver="dual")
    refuses(Ridge(), REG, "solver='dual'", "positive ridge", solver="dual", ridge=0.0)
    refuses(LinearRegression(), REG, "solver='dual'", "positive ridge", solver="dual")
    refuses(LogisticRegression(C=np.inf), CLS, "solver='dual'", solver="dual")
    refuses(KernelRidge(), REG, "solver='primal'", "solver='dual' or 'auto'", solver="primal")
    process = GaussianProcessRegressor(RBF(), alpha=0.1, optimizer=None)
    refuses(process, REG, "solver='primal'", "solver='dual' or 'auto'", solver="primal")


# Memory


def wide(n=30, d=200):
    """Return more columns than rows."""
    return regression(6, n=n, d=d)


@pytest.mark.parametrize(
    ("model", "data", "solver", "remedy"),
    [
        (Ridge(), wide(), "primal", r"solver='dual' \(30 x 30\) would fit"),
        (Ridge(), regression(7, n=300), "dual", r"solver='primal' \(6 x 6\) would fit"),
        (LinearRegression(), wide(), "auto", r"solver='dual' .* would fit with a positive ridge"),
        (KernelRidge(), regression(7, n=300), "auto", r"Raise memory_limit, or use fewer rows"),
        (make_pipeline(StandardScaler(), Ridge()), wide(), "primal", "solver='dual'"),
    ],
    ids=["wide", "tall", "no-penalty", "kernel", "pipeline"],
)
def test_memory_need_above_the_limit(model, data, solver, remedy):
    error = refuses(
        model,
        data,
        r"\d+ x \d+",
        r"needs (about )?[\d.e+-]+ \w?B",
        r"memory_limit.* [\d.e+-]+ \w?B",
        remedy,
        kind=MemoryLimitError,
        solver=solver,
        memory_limit=100_000,
    )
    assert isinstance(error, ValueError)
    InfluenceEstimator(model, solver=solver, memory_limit="1GB").fit(data.X, data.y)


def test_memory_limit_chooses_the_form_that_fits():
    data = regression(8, n=300, d=3)
    influence = InfluenceEstimator(Ridge(), memory_limit="20kB").fit(data.X, data.y)
    assert influence.solver_ == "primal"
    with pytest.raises(MemoryLimitError, match="needs"):
        InfluenceEstimator(Ridge(), memory_limit="10").fit(data.X, data.y)


def test_memory_of_the_search_for_a_ridge():
    refuses(
        Ridge(), REG, "needs", "memory_limit", kind=MemoryLimitError, ridge="loo", memory_limit=9
    )


@pytest.mark.parametrize("limit", ["lots", "", "GB", "1.5.2GB", "-1GB", "4 gallons", "1e-3 x"])
def test_memory_limits_that_are_no_sizes(limit):
    refuses(
        Ridge(), REG, f"memory_limit={limit!r} is not a size", "'4GB'", "None", memory_limit=limit
    )


@pytest.mark.parametrize("limit", [0, -1, -0.5, np.nan, True])
def test_memory_limits_that_are_not_positive(limit):
    refuses(Ridge(), REG, f"memory_limit={limit!r}", "positive", "None", memory_limit=limit)


@pytest.mark.parametrize("limit", ["1GB", "512 MB", "0.5gib", "800000", 10**9, 1e9, np.inf, None])
def test_memory_limits_that_are_sizes(limit):
    InfluenceEstimator(Ridge(), memory_limit=limit).fit(REG.X, REG.y)
