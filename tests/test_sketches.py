"""Effects of models that are seen through random projections of their gradients."""

from __future__ import annotations

import pickle
import warnings
from functools import partial

import numpy as np
import pytest
from helpers import relative
from network_helpers import (
    SKETCHES,
    Oracle,
    case_of,
    each_network,
    each_order,
    each_sketch,
    fit_case,
    matrix_of,
    oracle,
    single_steps,
)
from network_references import LinearisedNetwork, dense_jacobian
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import (
    InfluenceWarning,
    MemoryLimitError,
    UnsupportedOptionError,
)
from sklearn_dualif.metrics import removal_fidelity
from sklearn_dualif.sketching import (
    FactorizedSketch,
    GaussianSketch,
    HadamardSketch,
    RademacherSketch,
    SparseSketch,
)

# Effects of networks


def sketched_oracle(dense, projection, ridge, sketched_ridge):
    """Return the `Oracle` of a network whose penalised parameters are seen through a projection."""
    net, P = dense.network, matrix_of(projection)
    free = net.R == 0.0
    scale = np.sqrt(net.R.max() / np.where(free, 1.0, net.R))

    def seen(J):
        return np.concatenate([J[..., free], (J * scale)[..., ~free] @ P.T], -1)

    theta = P @ (net.theta / scale)[~free] * (ridge / sketched_ridge)
    R = np.r_[np.zeros(free.sum()), np.full(len(P), sketched_ridge)]
    network = LinearisedNetwork(
        seen(net.J),
        net.z,
        np.r_[net.theta[free], theta],
        net.loss,
        net.y,
        net.weights,
        R,
        net.penalty_scales,
    )
    return Oracle(network, seen(dense.J_query), dense.z_query, dense.y_query)


@each_sketch
@each_order
@each_network("linear-mse")
def test_sketched_effects_are_those_of_the_dense_sketch(name, order, sketch):
    case, dense = case_of(name), oracle(name)
    d = int((dense.network.R > 0).sum())
    m = min(24, d)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_components=", InfluenceWarning)
        found = fit_case(case, sketch=sketch(m, random_state=1), order=order)
    info = found.sketch_info_
    projection = sketch(m, random_state=1).projection(d)
    # The package counts half squares.
    unit = dense.network.R.max() / found.ridge_
    expected = sketched_oracle(
        dense, projection, unit * found.ridge_, unit * info["sketched_ridge"]
    )
    steps = single_steps(expected, order)
    effects = found.influence(case.X_query, case.y_query)
    assert relative(effects, expected.effects(steps, order).T) < 1e-8
    own = expected.effects(steps, order, training=True).diagonal()
    assert relative(found.self_influence_, own) < 1e-8
    group = [0, 2, 4, 9]
    change = found.output_change(group, case.X_query, order=order)
    step = expected.step(group, order)
    if case.loss != "binary_cross_entropy" or order != "first":
        assert change.shape == expected.z_query.shape
    assert (
        relative(
            found.removal_effect(group, case.X_query, case.y_query, order=order),
            expected.effects(step, order),
        )
        < 1e-7
    )
    assert relative(found.leverage_, expected.reference.leverages()) < 1e-8


@pytest.mark.parametrize("sketch", [SparseSketch, HadamardSketch])
def test_both_sides_agree(digits, sketch):
    model, X, y, X_query, y_query = digits
    answers = []
    for solver in ("primal", "dual"):
        found = InfluenceEstimator(model, sketch=sketch(1000, random_state=0), solver=solver)
        found.fit(X, y)
        assert found.solver_ == solver
        answers.append(
            [
                found.influence(X_query, y_query),
                found.removal_effect(np.arange(40), X_query, y_query, order="exact"),
                found.relabel_effect([3], 7, X_query, y_query, order="exact"),
                found.parameter_change([3, 4]),
                found.self_influence_,
                found.leakage(X_query, y_query),
            ]
        )
    for primal, dual in zip(*answers, strict=True):
        assert relative(primal, dual) < 1e-7
    assert found.solver_info_["size"] < 1000


@each_sketch
def test_parameter_changes_move_outputs_as_they_should(digits, sketch):
    model, X, y, X_query, _ = digits
    found = InfluenceEstimator(model, sketch=sketch(500, random_state=0)).fit(X, y)
    change = dense_jacobian(model.module, X_query) @ found.parameter_change([3, 4, 5])
    assert relative(change, found.output_change([3, 4, 5], X_query)) < 1e-10


def test_float32(digits):
    model, X, y, X_query, y_query = digits
    effects = []
    for dtype in ("float32", "float64"):
        sketch = GaussianSketch(300, random_state=0)
        found = InfluenceEstimator(model, sketch=sketch, dtype=dtype).fit(X, y)
        effects.append(found.influence(X_query, y_query))
    assert relative(*effects) < 1e-4


@pytest.mark.parametrize("order", ["first", "newton"])
def test_empirical_fisher(digits, order):
    model, X, y, X_query, y_query = digits
    options = {"curvature": "empirical_fisher", "order": order}
    exact = InfluenceEstimator(model, **options).fit(X, y).influence(X_query, y_query)
    effects = [
        InfluenceEstimator(model, sketch=GaussianSketch(m, random_state=0), **options)
        .fit(X, y)
        .influence(X_query, y_query)
        for m in (300, 4_000)
    ]
    errors = [relative(each, exact) for each in effects]
    assert errors[1] < 0.15
    assert errors[1] < 0.5 * errors[0]


def test_damping_of_a_frozen_network(digits):
    model, X, y, X_query, y_query = digits
    exact = InfluenceEstimator(model, ridge=3.0).fit(X, y)
    found = InfluenceEstimator(model, ridge=3.0, sketch=GaussianSketch(300, random_state=0))
    found.fit(X, y)
    assert found.ridge_ == exact.ridge_ == 3.0
    assert found.sketch_info_["sketched_ridge"] < 3.0
    assert found.effective_dimension_ == pytest.approx(exact.effective_dimension_, rel=0.05)
    pairs = exact.influence(X_query, y_query), found.influence(X_query, y_query)
    assert np.corrcoef(*(pair.ravel() for pair in pairs))[0, 1] > 0.9


# Statistics of whole estimators


@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES)
def test_self_influence_is_unbiased_on_digits(digits, sketch):
    model, X, y, _, _ = digits
    exact = InfluenceEstimator(model, order="first").fit(X, y)
    m = int(np.ceil(1.5 * exact.effective_dimension_))
    ratios, found = [], []
    for seed in range(12):
        each = InfluenceEstimator(
            model, order="first", sketch=sketch(m, random_state=seed), solver="primal"
        ).fit(X, y)
        ratios.append((each.self_influence_ / exact.self_influence_).mean())
        found.append(each.sketch_info_["effective_dimension"])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)
    np.testing.assert_allclose(found, exact.effective_dimension_, rtol=0.05)
    plain = InfluenceEstimator(
        model, order="first", sketch=sketch(m, debias=False, random_state=0)
    ).fit(X, y)
    assert (plain.self_influence_ / exact.self_influence_).mean() < 0.8


def outside_query(model, X, seed=0):
    """Return a row whose gradient has a large part that no training row has."""
    return 3.0 * np.random.default_rng(seed).standard_normal((1, X.shape[1]))


@pytest.mark.parametrize("sketch", [GaussianSketch, SparseSketch])
@pytest.mark.parametrize("n_sketches", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_leakage_is_what_the_choice_of_the_sketch_scatters(digits, sketch, n_sketches):
    model, X, y, _, _ = digits
    query = outside_query(model, X)
    exact = InfluenceEstimator(model, order="first").fit(X, y)
    expected = exact.influence(query, objective="prediction")
    assert exact.leakage(query) == 0.0
    errors, predicted = [], []
    for seed in range(n_sketches):
        found = InfluenceEstimator(model, order="first", sketch=sketch(300, random_state=seed))
        found.fit(X, y)
        errors.append(found.influence(query, objective="prediction") - expected)
        predicted.append(found.leakage(query))
    measured = np.sqrt(np.mean(np.square(errors)))
    assert np.mean(predicted) == pytest.approx(measured, rel=0.15)
    np.testing.assert_allclose(predicted, np.mean(predicted), rtol=0.25)


# Factorised sketches


@pytest.mark.parametrize("order", ["first", "newton", "exact"])
@each_network("linear-mse")
def test_factorized_effects_are_those_of_the_dense_sketch(name, order):
    case, dense = case_of(name), oracle(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_components=", InfluenceWarning)
        found = fit_case(case, sketch=FactorizedSketch(60, random_state=1), order=order)
    projection = found._engine.problem.design.basis.projection
    unit = dense.network.R.max() / found.ridge_
    expected = sketched_oracle(
        dense, projection, unit * found.ridge_, unit * found.sketch_info_["sketched_ridge"]
    )
    effects = found.influence(case.X_query, case.y_query)
    assert relative(effects, expected.effects(single_steps(expected, order), order).T) < 1e-8
    step = expected.step([0, 2, 4, 9], order)
    removed = found.removal_effect([0, 2, 4, 9], case.X_query, case.y_query, order=order)
    assert relative(removed, expected.effects(step, order)) < 1e-7


@pytest.mark.parametrize(("size", "low"), [(160, 0.9), (400, 0.92), (1200, 0.96)])
def test_factorized_self_influence_on_digits(digits, size, low):
    model, X, y, _, _ = digits
    exact = InfluenceEstimator(model, order="first").fit(X, y)
    ratios, plain, found = [], [], []
    for seed in range(4):
        each, biased = (
            InfluenceEstimator(
                model,
                order="first",
                sketch=FactorizedSketch(size, random_state=seed, debias=debias),
                solver="primal",
            ).fit(X, y)
            for debias in (True, False)
        )
        ratios.append((each.self_influence_ / exact.self_influence_).mean())
        plain.append((biased.self_influence_ / exact.self_influence_).mean())
        found.append(each.sketch_info_["effective_dimension"])
    assert low < np.mean(ratios) < 1.05
    assert np.mean(plain) < np.mean(ratios) - 0.02
    assert np.mean(found) == pytest.approx(exact.effective_dimension_, rel=0.08)


def test_a_factorized_sketch_that_is_too_small(digits):
    model, X, y, _, _ = digits
    influence = InfluenceEstimator(model, sketch=FactorizedSketch(40, random_state=0))
    with pytest.warns(InfluenceWarning, match="n_components=4. is fewer"):
        influence.fit(X, y)
    assert influence.sketch_info_["too_small"]


# Linear models

X_DIGITS, Y_DIGITS = load_digits(return_X_y=True)
X_DIABETES, Y_DIABETES = load_diabetes(return_X_y=True)
TIGHT = {"tol": 1e-10, "max_iter": 10_000}
LINEAR = {
    "multinomial": (LogisticRegression(**TIGHT), X_DIGITS / 16.0, Y_DIGITS),
    "binary": (LogisticRegression(**TIGHT), X_DIGITS / 16.0, Y_DIGITS > 4),
    "sparse": (LogisticRegression(**TIGHT), sparse.csr_array(X_DIGITS / 16.0), Y_DIGITS),
    "ridge": (Ridge(0.1), X_DIABETES, Y_DIABETES),
    "no intercept": (Ridge(0.1, fit_intercept=False), X_DIABETES, Y_DIABETES - 150.0),
    "two ridges": (Ridge([0.1, 0.3]), X_DIABETES, np.c_[Y_DIABETES, Y_DIABETES**2 / 100.0]),
    "least squares": (LinearRegression(), X_DIABETES, Y_DIABETES),
    "poisson": (PoissonRegressor(alpha=0.1, tol=1e-9), X_DIABETES, np.round(Y_DIABETES / 50.0)),
    "huber": (HuberRegressor(tol=1e-9, max_iter=5000), X_DIABETES, Y_DIABETES),
    "penalised intercept": (LinearSVC(tol=1e-9, max_iter=100_000), X_DIGITS / 16.0, Y_DIGITS > 4),
}
TRAIN, QUERY = slice(0, 60), slice(200, 215)


@pytest.mark.parametrize("order", ["first", "newton", "exact"])
@pytest.mark.parametrize("name", LINEAR)
def test_sketches_of_linear_models_converge_to_the_exact_form(name, order):
    model, X, y = LINEAR[name]
    exact = InfluenceEstimator(model, order=order).fit(X[TRAIN], y[TRAIN])
    errors = []
    for m in (500, 8_000):
        found = InfluenceEstimator(model, order=order, sketch=RademacherSketch(m, random_state=0))
        found.fit(X[TRAIN], y[TRAIN])
        answers = [
            (each.influence(X[QUERY], y[QUERY]), each.removal_effect(range(15), X[QUERY], y[QUERY]))
            for each in (found, exact)
        ]
        errors.append(max(relative(*pair) for pair in zip(*answers, strict=True)))
        np.testing.assert_allclose(found.ridge_, exact.ridge_)
        assert found.n_parameters_ == exact.n_parameters_
        assert found.parameter_names_ == exact.parameter_names_
    # The sizes go with the square root.
    assert errors[1] < 0.6 * errors[0] or errors[1] < 1e-8


@each_sketch
def test_without_a_ridge_a_sketch_of_full_rank_is_exact(sketch):
    # Ten features and the Hadamard matrix of order 16.
    model = LinearRegression()
    exact = InfluenceEstimator(model).fit(X_DIABETES, Y_DIABETES)
    # Columns of few or equal entries are independent with near certainty where there is room.
    sizes = {SparseSketch: (60, 200), RademacherSketch: (14, 16)}.get(sketch, (10, 16))
    for m in sizes:
        found = InfluenceEstimator(model, sketch=sketch(m, random_state=3)).fit(
            X_DIABETES, Y_DIABETES
        )
        assert relative(found.self_influence_, exact.self_influence_) < 1e-8
        effects = [e.influence(X_DIABETES[:9], Y_DIABETES[:9]) for e in (found, exact)]
        assert relative(*effects) < 1e-8
    with pytest.warns(InfluenceWarning, match="n_components=9 is fewer"):
        found = InfluenceEstimator(model, sketch=sketch(9, random_state=0)).fit(
            X_DIABETES, Y_DIABETES
        )
    assert relative(found.self_influence_, exact.self_influence_) > 1e-3


@pytest.mark.parametrize("name", ["multinomial", "ridge", "huber", "penalised intercept"])
def test_linear_models_are_written_back(name):
    model, X, y = LINEAR[name]
    found = InfluenceEstimator(model, sketch=RademacherSketch(8_000, random_state=0))
    found.fit(X[TRAIN], y[TRAIN])
    exact = InfluenceEstimator(model).fit(X[TRAIN], y[TRAIN])
    unlearned, expected = (each.unlearn([1, 5, 9]) for each in (found, exact))
    assert (
        relative(unlearned.coef_ - found.estimator_.coef_, expected.coef_ - exact.estimator_.coef_)
        < 0.2
    )
    assert relative(unlearned.intercept_, expected.intercept_) < 0.1


@pytest.mark.parametrize(
    "model", [KernelRidge(), GaussianProcessRegressor(alpha=1.0, optimizer=None)]
)
def test_kernel_models_have_nothing_to_sketch(model):
    with pytest.raises(UnsupportedOptionError, match=r"one parameter a row.*Use sketch=None"):
        InfluenceEstimator(model, sketch=GaussianSketch(50)).fit(X_DIABETES, Y_DIABETES)


# Sizes


@each_sketch
def test_auto_takes_the_exact_form_where_it_is_smaller(digits, sketch):
    model, X, y, X_query, y_query = digits
    found = InfluenceEstimator(model, sketch=sketch(random_state=0)).fit(X, y)
    exact = InfluenceEstimator(model).fit(X, y)
    info = found.sketch_info_
    assert info["n_components"] is None
    assert info["exact"] == {"solver": exact.solver_, "size": 810, "bytes": 20_995_200}
    assert info["effective_dimension"] == pytest.approx(exact.effective_dimension_, rel=0.05)
    np.testing.assert_array_equal(
        found.influence(X_query, y_query), exact.influence(X_query, y_query)
    )


@each_sketch
def test_auto_takes_the_size_that_its_error_asks_for(digits, sketch):
    model, X, y, _, _ = digits
    sizes = []
    for eps in (0.3, 0.4):
        found = InfluenceEstimator(model, sketch=sketch(eps=eps, random_state=0)).fit(X, y)
        info = found.sketch_info_
        assert info["error"] == pytest.approx(eps, rel=0.03)
        assert not info["too_small"]
        sizes.append(info["n_components"])
    assert sizes[0] > sizes[1] > 1.5 * info["effective_dimension"]


@each_sketch
def test_auto_is_the_sketch_of_the_size_that_it_finds(digits, sketch):
    model, X, y, X_query, y_query = digits
    found = InfluenceEstimator(model, sketch=sketch(eps=0.4, random_state=0)).fit(X, y)
    size = found.sketch_info_["n_components"]
    same = InfluenceEstimator(model, sketch=sketch(size, random_state=0)).fit(X, y)
    assert relative(found.influence(X_query, y_query), same.influence(X_query, y_query)) < 1e-10


@each_sketch
def test_a_sketch_that_is_too_small_says_what_would_do(digits, sketch):
    model, X, y, X_query, y_query = digits
    influence = InfluenceEstimator(model, sketch=sketch(40, random_state=0))
    with pytest.warns(InfluenceWarning, match="effective dimension is about") as caught:
        influence.fit(X, y)
    info = influence.sketch_info_
    assert info["too_small"]
    assert info["error"] == np.inf
    # The true one is 76.
    assert 50 < info["effective_dimension"] < 150
    (message,) = (str(w.message) for w in caught if "n_components" in str(w.message))
    size = int(message.split("Use n_components=")[1].split()[0])
    enough = InfluenceEstimator(model, sketch=sketch(size, random_state=0)).fit(X, y)
    assert not enough.sketch_info_["too_small"]


def test_memory(digits):
    model, X, y, _, _ = digits
    influence = InfluenceEstimator(model, sketch=GaussianSketch(5000), memory_limit="40MB")
    with pytest.raises(MemoryLimitError, match=r"5000.*GB; memory_limit.*n_components=") as error:
        influence.fit(X, y)
    size = int(str(error.value).split("which is n_components=")[1].split(".")[0])
    influence.set_params(sketch__n_components=size).fit(X, y)
    assert influence.sketch_info_["n_components"] == size


def test_auto_that_memory_ends_says_so(digits):
    model, X, y, _, _ = digits
    for limit, allowed in (("8MB", "not eps=0.3"), ("1MB", "the error is inf")):
        influence = InfluenceEstimator(
            model, sketch=GaussianSketch(eps=0.3, random_state=0), memory_limit=limit
        )
        with pytest.warns(InfluenceWarning, match=allowed) as caught:
            influence.fit(X, y)
        (message,) = (str(w.message) for w in caught if "memory_limit" in str(w.message))
        size = influence.sketch_info_["n_components"]
        assert f"allows n_components={size}," in message
        assert int(message.split(" or more would do")[0].split()[-1]) > size


def test_without_a_ridge_leakage_is_not_known():
    found = InfluenceEstimator(LinearRegression(), sketch=GaussianSketch(20, random_state=0))
    found.fit(X_DIABETES, Y_DIABETES)
    with pytest.raises(UnsupportedOptionError, match=r"leakage is that of a ridge.*Set ridge"):
        found.leakage(X_DIABETES[:2])


@pytest.mark.parametrize(
    ("sketch", "message"),
    [
        (GaussianSketch(0), "n_components"),
        (GaussianSketch(-3), "n_components"),
        (GaussianSketch(2.5), "n_components"),
        (GaussianSketch("many"), "n_components"),
        (GaussianSketch(eps=0.0), "eps"),
        (SparseSketch(20, n_nonzeros=0), "n_nonzeros"),
        (SparseSketch(3), r"n_nonzeros=4 entries.*n_components=3 is fewer"),
        (HadamardSketch(3000), r"n_components=3000 is more than the 2048 rows.*1810 parameters"),
        (GaussianSketch(20, debias="yes"), "debias"),
        (GaussianSketch(20, random_state="seed"), "random_state"),
    ],
)
def test_sizes_that_cannot_be(digits, sketch, message):
    model, X, y, _, _ = digits
    with pytest.raises(ValueError, match=message):
        InfluenceEstimator(model, sketch=sketch).fit(X, y)


def test_the_iterative_solver_takes_no_sketch(digits):
    model, X, y, _, _ = digits
    influence = InfluenceEstimator(model, solver="iterative", sketch=GaussianSketch(50))
    with pytest.raises(ValueError, match=r"needs no sketch. Use sketch=None"):
        influence.fit(X, y)


# As scikit-learn's users expect


@each_sketch
def test_parameters_are_searched(sketch):
    influence = InfluenceEstimator(Ridge(0.1), sketch=sketch(16, random_state=0))
    search = GridSearchCV(influence, {"sketch__n_components": [12, 16]}, cv=3)
    search.fit(X_DIABETES, Y_DIABETES)
    assert search.best_params_["sketch__n_components"] in (12, 16)
    copied = clone(influence)
    assert copied.sketch is not influence.sketch
    assert copied.get_params()["sketch__n_components"] == 16


def test_sizes_are_chosen_by_fidelity_to_refits():
    influence = InfluenceEstimator(
        Ridge(0.01), objective="prediction", sketch=GaussianSketch(16, random_state=0)
    )
    search = GridSearchCV(
        influence,
        {"sketch__n_components": [16, 4000]},
        scoring=partial(removal_fidelity, random_state=0),
        cv=3,
    )
    search.fit(X_DIABETES, Y_DIABETES)
    small, large = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"sketch__n_components": 4000}
    assert large > small


def test_fitted_estimators_are_pickled(digits):
    model, X, y, X_query, y_query = digits
    found = InfluenceEstimator(model, sketch=GaussianSketch(200, random_state=0)).fit(X, y)
    copied = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(
        copied.influence(X_query, y_query), found.influence(X_query, y_query)
    )


def test_without_a_seed_sketches_differ(digits):
    model, X, y, X_query, y_query = digits
    one, other = (
        InfluenceEstimator(model, sketch=GaussianSketch(200)).fit(X, y).influence(X_query, y_query)
        for _ in range(2)
    )
    assert relative(one, other) > 1e-3
