"""What holds for all data: symmetries, invariances, and nothing of the caller's touched."""

from __future__ import annotations

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from cases import all_cases, case
from helpers import forms, relative
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    GammaRegressor,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    TweedieRegressor,
)
from sklearn.svm import LinearSVC, LinearSVR

from sklearn_dualif import InfluenceEstimator

# scikit-learn says that it goes on with lbfgs, from where the effects are polished.
pytestmark = pytest.mark.filterwarnings("ignore:Line search of Newton solver")

NEWTON = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 10_000}
LIBLINEAR = {"tol": 1e-10, "max_iter": 1_000_000}
SVR = {"loss": "squared_epsilon_insensitive", "epsilon": 0.2, "dual": False, **LIBLINEAR}

# From a sum-form ridge to the model; with its kind of target.
MODELS = {
    "ridge": (lambda ridge: Ridge(ridge), "real"),
    "ridge-multi": (lambda ridge: Ridge(ridge), "reals"),
    "ridge-classifier": (lambda ridge: RidgeClassifier(ridge), "three"),
    "kernel-ridge": (lambda ridge: KernelRidge(alpha=ridge, kernel="rbf"), "real"),
    "process": (lambda ridge: GaussianProcessRegressor(RBF(), alpha=ridge, optimizer=None), "real"),
    "logistic": (lambda ridge: LogisticRegression(C=1 / ridge, **NEWTON), "two"),
    "softmax": (lambda ridge: LogisticRegression(C=1 / ridge, **NEWTON), "three"),
    "liblinear": (
        lambda ridge: LogisticRegression(C=1 / ridge, solver="liblinear", **LIBLINEAR),
        "two",
    ),
    "svc": (lambda ridge: LinearSVC(C=1 / ridge, dual=False, **LIBLINEAR), "three"),
    "svr": (lambda ridge: LinearSVR(C=1 / ridge, **SVR), "real"),
    "huber": (lambda ridge: HuberRegressor(alpha=ridge / 2, tol=1e-9, max_iter=10_000), "real"),
    "poisson": (lambda ridge: PoissonRegressor(alpha=ridge / 30, **NEWTON), "count"),
    "gamma": (lambda ridge: GammaRegressor(alpha=ridge / 30, **NEWTON), "positive"),
    "tweedie": (lambda ridge: TweedieRegressor(power=1.5, alpha=ridge / 30, **NEWTON), "positive"),
}
LINEAR = [name for name in MODELS if name not in ("kernel-ridge", "process")]
SUM_FORM = [name for name in MODELS if name not in ("poisson", "gamma", "tweedie")]
WEIGHTED = [name for name in MODELS if name != "process"]  # fit takes no weights
SQUARED = ["ridge", "ridge-multi", "ridge-classifier", "kernel-ridge"]

seeds = st.integers(0, 2**32 - 1)
log_ridges = st.floats(-4.0, 2.0)


def draw(seed, kind, n=18, d=3):
    """Return rows, targets and weights; each class with its share of rows."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    if kind == "two":
        y = rng.permutation(np.arange(n) % 2)
    elif kind == "three":
        y = np.array(["a", "b", "c"])[rng.permutation(np.arange(n) % 3)]
    elif kind == "count":
        y = rng.poisson(3.0, n).astype(float)
    elif kind == "positive":
        y = rng.gamma(2.0, 1.0, n) + 0.1
    else:
        shape = (n, 2) if kind == "reals" else n
        y = X[:, :1] + rng.standard_normal((n, 2)) if kind == "reals" else None
        y = X[:, 0] + rng.standard_normal(shape) if y is None else y
    return X, y, rng.uniform(0.3, 2.0, n)


def model_of(name, log_ridge):
    """Return a model and its kind of target."""
    make, kind = MODELS[name]
    return make(10.0**log_ridge), kind


def numbers(influence, X, y):
    """Return everything that has one column a training row."""
    return {
        "self_influence_": influence.self_influence_,
        "influence_": influence.influence_,
        "leverage_": influence.leverage_,
        "loo_loss_": influence.loo_loss_,
        "influence": influence.influence(X, y),
        "transform": influence.transform(X),
    }


def assert_equal_numbers(ours, theirs, tolerance):
    """Compare relative to each number's largest; ``influence_`` to the matrix that it averages.

    At the optimum without a ridge its terms cancel.
    """
    for name, value in ours.items():
        scale = np.abs(theirs["influence" if name == "influence_" else name]).max()
        assert np.abs(value - theirs[name]).max() <= tolerance * scale, name


# Two forms of one thing


@pytest.mark.parametrize("name", LINEAR)
@given(seed=seeds, log_ridge=log_ridges, wide=st.booleans(), weighted=st.booleans())
def test_dual_equals_primal(name, seed, log_ridge, wide, weighted):
    model, kind = model_of(name, log_ridge)
    # Of interpolated rows, Huber's scale vanishes.
    X, y, s = draw(seed, kind, d=30 if wide and name != "huber" else 3)
    params = {"sample_weight": s} if weighted else {}
    primal, dual = (
        InfluenceEstimator(clone(model), solver=solver).fit(X, y, **params)
        for solver in ("primal", "dual")
    )
    assert_equal_numbers(numbers(dual, X, y), numbers(primal, X, y), 1e-7)
    rows = [0, 3, 11]
    change = primal.parameter_change(rows)
    assert relative(dual.parameter_change(rows), change) < 1e-7


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("name", LINEAR)
@given(seed=seeds, log_damping=st.floats(-2.0, 2.0))
def test_damping_a_frozen_model_moves_no_output(name, solver, seed, log_damping):
    model, kind = model_of(name, 0.0)
    X, y, _ = draw(seed, kind)
    frozen = FrozenEstimator(model.fit(X, y))
    damped = InfluenceEstimator(frozen, ridge=10.0**log_damping, solver=solver).fit(X, y)
    assert damped.ridge_ == pytest.approx(10.0**log_damping)
    diagonal = np.diag(damped.influence(X, y))
    np.testing.assert_allclose(damped.self_influence_, diagonal, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", LINEAR)
@given(seed=seeds, log_damping=st.floats(-2.0, 2.0))
def test_damped_dual_equals_damped_primal(name, seed, log_damping):
    model, kind = model_of(name, 0.0)
    X, y, _ = draw(seed, kind)
    frozen = FrozenEstimator(model.fit(X, y))
    primal, dual = (
        InfluenceEstimator(frozen, ridge=10.0**log_damping, solver=solver).fit(X, y)
        for solver in ("primal", "dual")
    )
    assert_equal_numbers(numbers(dual, X, y), numbers(primal, X, y), 1e-7)


# Signs


@pytest.mark.parametrize("name", SUM_FORM)
@given(seed=seeds, log_ridge=log_ridges)
def test_self_influence_is_not_negative(name, seed, log_ridge):
    model, kind = model_of(name, log_ridge)
    X, y, _ = draw(seed, kind)
    for order in ("newton", "first", "exact"):
        influence = InfluenceEstimator(clone(model), order=order).fit(X, y)
        floor = -1e-9 * np.abs(influence.self_influence_).max()
        if name == "huber":
            continue  # its loss has the scale in it, which a removal moves as well
        assert influence.self_influence_.min() >= floor, order


@pytest.mark.parametrize("name", list(MODELS))
@given(seed=seeds, log_ridge=log_ridges)
def test_leverages_are_between_zero_and_the_number_of_outputs(name, seed, log_ridge):
    model, kind = model_of(name, log_ridge)
    X, y, _ = draw(seed, kind)
    influence = InfluenceEstimator(model).fit(X, y)
    outputs = 2 if name == "huber" else influence.n_outputs_
    assert influence.leverage_.min() >= -1e-10
    assert influence.leverage_.max() <= outputs + 1e-10
    assert influence.effective_dimension_ == pytest.approx(influence.leverage_.sum())


# Order of the rows


@pytest.mark.parametrize("name", list(MODELS))
@given(seed=seeds, log_ridge=log_ridges)
def test_permuting_rows_permutes_columns(name, seed, log_ridge):
    model, kind = model_of(name, log_ridge)
    X, y, _ = draw(seed, kind)
    order = np.random.default_rng(seed).permutation(len(X))
    before = InfluenceEstimator(clone(model)).fit(X, y)
    after = InfluenceEstimator(clone(model)).fit(X[order], y[order])
    expected = {key: value[..., order] for key, value in numbers(before, X, y).items()}
    assert_equal_numbers(numbers(after, X, y), expected, 1e-7)
    rows = [2, 5, 9]
    effects = after.removal_effect(np.argsort(order)[rows], X, y)
    assert relative(effects, before.removal_effect(rows, X, y)) < 1e-7


# Weights


@pytest.mark.parametrize("name", WEIGHTED)
@given(seed=seeds, log_ridge=log_ridges, row=st.integers(0, 17))
def test_a_row_of_weight_two_is_the_row_given_twice(name, seed, log_ridge, row):
    model, kind = model_of(name, log_ridge)
    X, y, s = draw(seed, kind)
    s[row] = 2.0
    twice = np.append(np.arange(len(X)), row)
    s_twice = s[twice]
    s_twice[[row, -1]] = 1.0
    heavy = InfluenceEstimator(clone(model)).fit(X, y, sample_weight=s)
    pair = InfluenceEstimator(clone(model)).fit(X[twice], y[twice], sample_weight=s_twice)
    for method in ("predict", "decision_function", "predict_proba"):
        if not hasattr(heavy, method):
            continue
        ours, theirs = getattr(heavy, method)(X), getattr(pair, method)(X)
        if is_classifier(model) and method == "predict":
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert relative(ours, theirs) < 1e-5, method
    both = [row, len(X)]
    for order in ("newton", "exact", "first"):
        together = pair.removal_effect(both, X, y, order=order)
        alone = heavy.removal_effect([row], X, y, order=order)
        scale = np.abs(heavy.influence(X, y, order=order)).max()
        assert np.abs(together - alone).max() < 1e-7 * scale, order
    columns = pair.influence(X, y, order="first")
    expected = heavy.influence(X, y, order="first")
    assert relative(columns[:, both].sum(axis=1), expected[:, row]) < 1e-6
    others = np.arange(len(X)) != row
    assert relative(columns[:, :-1][:, others], expected[:, others]) < 1e-6
    for order in ("newton", "exact"):
        ours = heavy.influence(X, y, order=order)[:, others]
        theirs = pair.influence(X, y, order=order)[:, :-1][:, others]
        assert relative(theirs, ours) < 1e-7, order


@pytest.mark.parametrize("name", WEIGHTED)
@given(seed=seeds, log_ridge=log_ridges)
def test_rows_of_weight_zero_have_no_influence(name, seed, log_ridge):
    model, kind = model_of(name, log_ridge)
    X, y, s = draw(seed, kind)
    s[[2, 7]] = 0.0
    kept = s > 0
    influence = InfluenceEstimator(clone(model)).fit(X, y, sample_weight=s)
    fewer = InfluenceEstimator(clone(model)).fit(X[kept], y[kept], sample_weight=s[kept])
    for order in ("newton", "first", "exact"):
        matrix = influence.influence(X, y, order=order)
        scale = np.abs(matrix).max()
        assert np.abs(matrix[:, ~kept]).max() < 1e-8 * scale
        expected = fewer.influence(X, y, order=order)
        assert np.abs(matrix[:, kept] - expected).max() < 1e-7 * scale
    assert np.abs(influence.leverage_[~kept]).max() < 1e-12


# Sizes of blocks and numbers of threads


@pytest.mark.parametrize("order", ["newton", "first", "exact"])
@pytest.mark.parametrize(
    "name",
    ["ridge-multi-weights", "softmax-weights", "poisson-weights", "kernel-ridge", "huber-penalty"],
)
def test_batches_and_blocks_change_nothing(name, order, monkeypatch):
    each = case(name)
    for solver in forms(each):

        def fit(batch_size, solver=solver):
            influence = InfluenceEstimator(
                clone(each.estimator), solver=solver, order=order, batch_size=batch_size
            )
            queries = {"X_val": each.X_query, "y_val": each.y_query}
            return influence.fit(each.X, each.y, **queries, **each.fit_params)

        whole = numbers(fit(None), each.X_query, each.y_query)
        for batch_size in (2, 1000):
            assert_equal_numbers(numbers(fit(batch_size), each.X_query, each.y_query), whole, 1e-11)
        for name_of_limit in ("_rows_per_block", "columns_per_block"):
            monkeypatch.setattr(
                "sklearn_dualif.curvature._base.Curvature." + name_of_limit, lambda self: 7
            )
        monkeypatch.setattr("sklearn_dualif.influence._engine._TILE_DOUBLES", 5)
        monkeypatch.setattr("sklearn_dualif.influence._exact._BLOCK_DOUBLES", 300)
        assert_equal_numbers(numbers(fit(None), each.X_query, each.y_query), whole, 1e-10)
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["ridge", "softmax", "poisson", "kernel-ridge", "huber"])
def test_threads_change_nothing(name):
    each = case(name)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            influence = InfluenceEstimator(clone(each.estimator)).fit(each.X, each.y)
            results.append(numbers(influence, each.X, each.y))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_equal_numbers(other, results[0], 1e-11)


# Nothing of the caller's is changed


@pytest.mark.parametrize("each", all_cases(), ids=lambda each: each.name)
def test_nothing_of_the_caller_is_changed(each):
    callers = each.estimator, each.X, each.y, each.X_query, each.y_query, each.fit_params
    before = pickle.dumps(callers)
    start = np.random.get_state()
    clone(each.estimator).fit(each.X, each.y, **each.fit_params)
    alone = pickle.dumps(np.random.get_state())  # liblinear's own fit draws from the global state
    np.random.set_state(start)
    torch_state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    order = "newton" if each.quadratic else "exact"
    influence = InfluenceEstimator(each.estimator)
    influence.fit(each.X, each.y, X_val=each.X_query, y_val=each.y_query, **each.fit_params)
    fitted = pickle.dumps(influence.estimator_)
    rows = each.third()
    influence.influence(each.X_query, each.y_query)
    influence.transform(each.X_query)
    influence.removal_effect(rows, order=order)
    influence.relabel_effect([4], np.asarray(each.y)[3:4], order=order)
    influence.parameter_change(rows)
    unlearned = influence.unlearn(rows, order=order)
    influence.loo_predict()
    influence.explain(each.X_query, k=2)
    assert pickle.dumps(callers) == before
    assert pickle.dumps(influence.estimator_) == fitted
    assert unlearned is not influence.estimator_
    assert pickle.dumps(np.random.get_state()) == alone
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_default_dtype() is dtype


@pytest.mark.parametrize("name", ["ridge", "softmax-weights", "kernel-ridge"])
def test_writing_into_an_answer_changes_no_other(name):
    each = case(name)
    influence = InfluenceEstimator(clone(each.estimator)).fit(each.X, each.y, **each.fit_params)

    def answers():
        rows = each.third()
        return {
            **numbers(influence, each.X_query, each.y_query),
            "loo_predict": influence.loo_predict(),
            "removal_effect": influence.removal_effect(rows),
            "output_change": influence.output_change(rows),
            "parameter_change": influence.parameter_change(rows),
            "decision": influence.unlearn(rows).predict(each.X_query),
        }

    first = answers()
    expected = deepcopy(first)
    for key in ("influence", "transform", "loo_predict", "removal_effect", "output_change"):
        first[key][:] = first[key].ravel()[0]
    model = influence.unlearn([0])
    getattr(model, "dual_coef_" if name == "kernel-ridge" else "coef_")[:] = 0.0
    for key, value in answers().items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


# Groups compose


@pytest.mark.parametrize("name", SQUARED)
@given(seed=seeds, log_ridge=log_ridges, sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_removing_one_group_after_another_is_removing_both(name, seed, log_ridge, sizes):
    model, kind = model_of(name, log_ridge)
    X, y, s = draw(seed, kind)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(X))[: sum(sizes)]
    A, B = rows[: sizes[0]], rows[sizes[0] :]
    kept = np.setdiff1d(np.arange(len(X)), A)
    whole = InfluenceEstimator(clone(model)).fit(X, y, sample_weight=s)
    half = InfluenceEstimator(clone(model)).fit(X[kept], y[kept], sample_weight=s[kept])
    later = np.searchsorted(kept, B)
    together = whole.output_change(rows, X)
    apart = whole.output_change(A, X) + half.output_change(later, X)
    assert relative(apart, together) < 1e-7
    effects = whole.removal_effect(A, X, y) + half.removal_effect(later, X, y)
    assert relative(effects, whole.removal_effect(rows, X, y)) < 1e-7
    if name != "kernel-ridge":
        steps = whole.parameter_change(A) + half.parameter_change(later)
        assert relative(steps, whole.parameter_change(rows)) < 1e-7
    # The unlearned model is the model of the rows that stay.
    ours = whole.unlearn(A).predict(X)
    if not is_classifier(model):
        assert relative(ours, half.predict(X)) < 1e-7
    if name != "kernel-ridge":
        frozen = InfluenceEstimator(FrozenEstimator(whole.unlearn(A)))
        frozen.fit(X[kept], y[kept], sample_weight=s[kept])
        assert frozen.stationarity_ < 1e-6
        assert relative(frozen.output_change(later, X), half.output_change(later, X)) < 1e-7


# Frozen or fitted


@pytest.mark.parametrize(
    "each",
    [each for each in all_cases() if not isinstance(each.estimator, FrozenEstimator)],
    ids=lambda each: each.name,
)
def test_a_frozen_model_gives_the_numbers_of_a_fitted_one(each):
    fresh = InfluenceEstimator(clone(each.estimator)).fit(each.X, each.y, **each.fit_params)
    frozen = InfluenceEstimator(FrozenEstimator(each.fit()))
    frozen.fit(each.X, each.y, **each.fit_params)
    assert_equal_numbers(
        numbers(frozen, each.X_query, each.y_query),
        numbers(fresh, each.X_query, each.y_query),
        1e-12,
    )
    assert frozen.stationarity_ == fresh.stationarity_
    assert relative(frozen.ridge_, fresh.ridge_) < 1e-15


@pytest.mark.parametrize("name", ["linear", "linear-wide", "poisson-no-penalty"])
@given(log_damping=st.floats(-2.0, 2.0))
def test_a_ridge_on_a_model_without_a_penalty_only_damps(name, log_damping):
    each = case(name)
    estimator = clone(each.estimator)
    if isinstance(estimator, LinearRegression):
        fitted = estimator.fit(each.X, each.y)
        forms_ = [
            InfluenceEstimator(clone(estimator), ridge=10.0**log_damping, solver=solver)
            for solver in ("primal", "dual")
        ]
        effects = []
        for influence in forms_:
            influence.fit(each.X, each.y)
            np.testing.assert_array_equal(influence.estimator_.coef_, fitted.coef_)
            effects.append(influence.influence(each.X_query, each.y_query))
        assert relative(effects[1], effects[0]) < 1e-7
    else:
        influence = InfluenceEstimator(estimator, ridge=10.0**log_damping)
        influence.fit(each.X, each.y, **each.fit_params)
        assert influence.ridge_ == pytest.approx(10.0**log_damping)
