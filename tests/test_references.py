"""The oracles themselves: against scikit-learn's solvers, finite differences and each other."""

from __future__ import annotations

import numpy as np
import pytest
from cases import all_cases, case, case_ids, convex_cases, quadratic_cases, sgd_cases
from references import (
    LOGISTIC,
    MODIFIED_HUBER,
    SQUARED,
    SQUARED_HINGE,
    column_objective,
    damped_newton,
    dense_first_order,
    dense_jacobian,
    dense_leverage,
    dense_newton_removal,
    dense_pieces,
    freeze,
    half_tweedie,
    huber_objective,
    margin,
    metric_loss,
    minimise_objective,
    mp_logistic_loo,
    mp_logistic_optimum,
    penalty_share,
    prediction,
    refit_relabelled,
    refit_without,
    removal_effects,
    rows_mask,
    sgd_huber,
    softmax_objective,
    squared_epsilon,
    stated_objective,
    tighten,
    weight_params,
)
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    SGDRegressor,
)
from sklearn.metrics import (
    log_loss,
    mean_gamma_deviance,
    mean_poisson_deviance,
    mean_squared_error,
    mean_tweedie_deviance,
)
from sklearn.svm import LinearSVC, LinearSVR

SOLVED = quadratic_cases() + convex_cases()
LINEAR_QUADRATIC = [
    case
    for case in quadratic_cases()
    if "kernel" not in case.name and "process" not in case.name and "wide" not in case.name
]
SMOOTH = [case for case in convex_cases() if case.smooth and "wide" not in case.name]


def solver_tolerance(plain):
    """Return how near scikit-learn's tight solver comes, relative to the largest output."""
    if isinstance(plain, HuberRegressor):
        return 5e-5
    liblinear = getattr(plain, "solver", "") == "liblinear"
    return 5e-7 if liblinear or isinstance(plain, LinearSVC | LinearSVR) else 1e-10


def outputs_of(model, X, log_link=False):
    """Return a fitted scikit-learn model's outputs before the inverse link, (m, K)."""
    z = model.decision_function(X) if hasattr(model, "decision_function") else model.predict(X)
    z = np.asarray(z).reshape(len(z), -1)
    return np.log(z) if log_link else z


def relative(a, b):
    """Return the largest difference relative to the largest entry."""
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def frozen_of(case):
    """Return the frozen model of a case."""
    return freeze(case.estimator, case.X, case.y, case.sample_weight)


def sklearn_refit(frozen, kept):
    """Return scikit-learn's own tight fit of the kept rows, what is frozen set by hand."""
    plain, y = frozen.plain, frozen.y[kept]
    X, s = frozen.X[kept], frozen.sample_weight[kept]
    if isinstance(plain, GaussianProcessRegressor):
        alpha = plain.alpha[kept] if np.ndim(plain.alpha) else plain.alpha
        y = (y - plain._y_train_mean) / plain._y_train_std
        return GaussianProcessRegressor(plain.kernel_, alpha=alpha, optimizer=None).fit(X, y)
    if isinstance(plain, KernelRidge) and plain.kernel == "precomputed":
        X = X[:, kept]
    model = tighten(plain)
    if frozen.class_weights is not None:
        model.set_params(class_weight=dict(zip(frozen.classes, frozen.class_weights, strict=True)))
    return model.fit(X, y, sample_weight=s)


def sklearn_outputs(frozen, model, rows, kept):
    """Return the outputs of `sklearn_refit`'s model."""
    plain = frozen.plain
    if isinstance(plain, KernelRidge) and plain.kernel == "precomputed":
        rows = rows[:, kept]
    z = outputs_of(model, rows, frozen.objective.log_link)
    if isinstance(plain, GaussianProcessRegressor):
        z = plain._y_train_mean + plain._y_train_std * z
    return z


# Optima


@pytest.mark.parametrize("case", SOLVED, ids=case_ids(SOLVED))
def test_optimum_is_where_the_tight_solver_ends(case):
    reference = minimise_objective(case.estimator, case.X, case.y, case.sample_weight)
    model = tighten(case.estimator).fit(case.X, case.y, **case.fit_params)
    z = outputs_of(model, case.X_query, reference.frozen.objective.log_link)
    assert relative(reference.outputs(case.X_query), z) < solver_tolerance(reference.frozen.plain)


@pytest.mark.parametrize("case", SOLVED, ids=case_ids(SOLVED))
def test_refit_without_a_third_is_where_the_tight_solver_ends(case):
    frozen, rows = frozen_of(case), case.third()
    kept = ~rows_mask(rows, case.n_rows)
    reference = refit_without(case.estimator, case.X, case.y, rows, case.sample_weight)
    model = sklearn_refit(frozen, kept)
    z = sklearn_outputs(frozen, model, frozen.design(case.X_query), kept)
    assert relative(reference.outputs(case.X_query), z) < solver_tolerance(frozen.plain)


@pytest.mark.parametrize("case", sgd_cases(), ids=case_ids(sgd_cases()))
def test_averaged_sgd_ends_near_the_optimum(case):
    reference = minimise_objective(case.estimator, case.X, case.y, case.sample_weight)
    model = clone(case.estimator).fit(case.X, case.y, **case.fit_params)
    assert relative(outputs_of(model, case.X_query), reference.outputs(case.X_query)) < 1e-2


@pytest.mark.parametrize("case", sgd_cases(), ids=case_ids(sgd_cases()))
def test_averaged_sgd_without_rows_ends_near_the_optimum(case):
    frozen, rows = frozen_of(case), case.third()
    kept = ~rows_mask(rows, case.n_rows)
    model = clone(frozen.plain)
    if frozen.class_weights is not None:
        model.set_params(class_weight=dict(zip(frozen.classes, frozen.class_weights, strict=True)))
    model.fit(frozen.X[kept], frozen.y[kept], sample_weight=frozen.sample_weight[kept])
    z = frozen.without(rows).outputs(case.X_query)
    assert relative(outputs_of(model, case.X_query), z) < 2e-2


@pytest.mark.parametrize("case", all_cases(), ids=case_ids(all_cases()))
def test_every_row_can_be_left_out(case):
    frozen = frozen_of(case)
    groups = [[i] for i in range(0, case.n_rows, 5)]
    losses, changes = removal_effects(frozen, groups, case.X_query, case.y_query)
    assert losses.shape == (len(case.y_query), len(groups))
    assert np.isfinite(losses).all()
    assert np.isfinite(changes).all()
    if case.sample_weight is not None and stated_objective(frozen.plain).per != "rows":
        assert np.abs(changes[0]).max() < 1e-8  # the first row's weight is zero


def test_removed_rows_may_be_positions_or_a_mask():
    ridge = case("ridge-weights")
    args = ridge.estimator, ridge.X, ridge.y
    by_position = refit_without(*args, [3, 7], ridge.sample_weight).coef
    by_mask = refit_without(*args, rows_mask([3, 7], ridge.n_rows), ridge.sample_weight).coef
    np.testing.assert_array_equal(by_position, by_mask)


def test_relabelled_refit_is_a_fit_of_the_new_labels():
    softmax = case("softmax")
    y_new = softmax.y.copy()
    y_new[[1, 4]] = "cedar"
    model = refit_relabelled(softmax.estimator, softmax.X, softmax.y, [1, 4], "cedar")
    expected = tighten(softmax.estimator).fit(softmax.X, y_new)
    z = outputs_of(expected, softmax.X_query)
    assert relative(model.outputs(softmax.X_query), z) < 1e-10


def test_sgd_has_no_tight_solver():
    with pytest.raises(TypeError, match="minimise_objective"):
        tighten(SGDRegressor())


def test_tightening_changes_no_hyperparameter_of_the_objective():
    for each in SOLVED:
        before, after = each.estimator.get_params(), tighten(each.estimator).get_params()
        for name, value in after.items():
            free = name.split("__")[-1] in ("tol", "max_iter", "solver", "dual", "error_score")
            if not free and isinstance(value, int | float | str | dict):
                assert before.get(name, value) == value


# Derivatives


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (SQUARED, "real"),
        (squared_epsilon(0.3), "real"),
        (sgd_huber(0.7), "real"),
        (half_tweedie(1), "positive"),
        (half_tweedie(1.4), "positive"),
        (half_tweedie(2), "positive"),
        (LOGISTIC, "sign"),
        (SQUARED_HINGE, "sign"),
        (MODIFIED_HUBER, "sign"),
    ],
)
def test_derivatives_of_column_losses(loss, kind):
    rng = np.random.default_rng(0)
    A, w, R = rng.standard_normal((20, 3)), rng.uniform(0.5, 1.5, 20), np.array([1.0, 0.3, 0.0])
    t = rng.standard_normal(20)
    t = {"real": t, "positive": np.exp(t), "sign": np.sign(t)}[kind]
    check_derivatives(column_objective(A, t, w, loss, R), rng.standard_normal(3))


def test_derivatives_of_joint_losses():
    rng = np.random.default_rng(1)
    A, w, R = rng.standard_normal((20, 3)), rng.uniform(0.5, 1.5, 20), np.array([1.0, 0.3, 0.0])
    T = np.eye(3)[rng.integers(0, 3, 20)]
    check_derivatives(softmax_objective(A, T, w, R), rng.standard_normal(9))
    theta = np.append(rng.standard_normal(3), 0.8)
    check_derivatives(huber_objective(A, rng.standard_normal(20), w, 1.3, R), theta)


def check_derivatives(fun, theta, step=1e-6):
    """Compare a gradient and a Hessian with central differences."""
    _, grad, hess = fun(theta)
    for j, direction in enumerate(np.eye(len(theta)) * step):
        up, down = fun(theta + direction), fun(theta - direction)
        np.testing.assert_allclose((up[0] - down[0]) / (2 * step), grad[j], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose((up[1] - down[1]) / (2 * step), hess[j], rtol=1e-5, atol=1e-5)


def test_newton_says_when_there_is_no_optimum():
    separable = column_objective(
        np.array([[-1.0], [1.0]]), np.array([-1.0, 1.0]), *[np.ones(2)], LOGISTIC, np.zeros(1)
    )
    with pytest.raises(RuntimeError, match="not reached"):
        damped_newton(separable, np.zeros(1), max_iter=10)


# Textbook formulas


@pytest.mark.parametrize("case", LINEAR_QUADRATIC, ids=case_ids(LINEAR_QUADRATIC))
def test_dense_newton_is_the_refit_for_squared_loss(case):
    frozen, rows = frozen_of(case), case.third()
    pieces = vars(dense_pieces(frozen.refit()))
    move = dense_newton_removal(**pieces, rows=rows, share=penalty_share(frozen, rows))
    J = dense_jacobian(frozen.refit(), frozen.design(case.X_query))
    expected = frozen.without(rows).outputs(case.X_query) - frozen.refit().outputs(case.X_query)
    assert relative(J @ move, expected) < 1e-9


@pytest.mark.parametrize("case", SMOOTH, ids=case_ids(SMOOTH))
def test_dense_first_order_is_the_derivative_in_the_weight(case):
    frozen, row, step = frozen_of(case), 1, 1e-4
    full = frozen.refit()
    pieces = vars(dense_pieces(full))
    move = dense_first_order(**pieces, rows=[row], share=penalty_share(frozen, [row]))
    J = dense_jacobian(full, frozen.X)
    weight = frozen.sample_weight.copy()
    ends = []
    for sign in (1.0, -1.0):
        frozen.sample_weight = weight.copy()
        frozen.sample_weight[row] *= 1.0 - sign * step
        ends.append(frozen.refit().fitted_outputs())
    assert relative((ends[0] - ends[1]) / (2 * step), J @ move) < 1e-5


@pytest.mark.parametrize("name", ["poisson", "gamma", "softmax", "logistic", "huber", "sgd-log"])
def test_dense_newton_is_near_the_refit_for_other_losses(name):
    each = case(name)
    frozen = frozen_of(each)
    full = frozen.refit()
    pieces, J = vars(dense_pieces(full)), dense_jacobian(full, frozen.X)
    newton, first, exact = [], [], []
    for row in range(each.n_rows):
        share = penalty_share(frozen, [row])
        newton.append((J @ dense_newton_removal(**pieces, rows=[row], share=share))[:, 0])
        first.append((J @ dense_first_order(**pieces, rows=[row], share=share))[:, 0])
        exact.append((frozen.without([row]).fitted_outputs() - full.fitted_outputs())[:, 0])
    errors = [np.median(np.linalg.norm(np.subtract(a, exact), axis=1)) for a in (newton, first)]
    assert errors[0] < 0.5 * errors[1]


def test_dense_leverage_is_the_hat_matrix_diagonal():
    each = case("linear-weights")
    model = minimise_objective(each.estimator, each.X, each.y, each.sample_weight)
    pieces = dense_pieces(model)
    A = np.sqrt(each.sample_weight)[:, None] * np.column_stack([each.X, np.ones(each.n_rows)])
    h = dense_leverage(pieces.J, pieces.Lam, pieces.R)
    np.testing.assert_allclose(h, np.diag(A @ np.linalg.pinv(A)), atol=1e-12)


def test_penalty_share_follows_the_total_objective():
    poisson, sgd = case("poisson-weights"), case("sgd-log-weights")
    s = poisson.sample_weight
    assert penalty_share(frozen_of(poisson), [1, 2]) == pytest.approx((s[1] + s[2]) / s.sum())
    assert penalty_share(frozen_of(sgd), [0, 2]) == pytest.approx(2 / sgd.n_rows)
    assert penalty_share(frozen_of(case("ridge")), [1]) == 0.0


# 60 digits


@pytest.mark.parametrize("name", ["logistic", "logistic-no-intercept", "softmax"])
def test_high_precision_matches_the_dense_formula(name):
    each = case(name)
    frozen = frozen_of(each)
    full = frozen.refit()
    pieces, J = vars(dense_pieces(full)), dense_jacobian(full, frozen.design(each.X_query))
    index = np.searchsorted(frozen.classes, each.y)
    index_query = np.searchsorted(frozen.classes, each.y_query)
    dz, dl = mp_logistic_loo(
        frozen.X[:12],
        index[:12],
        full.coef.T,
        full.intercept if frozen.plain.fit_intercept else None,
        1.0 / frozen.plain.C,
        each.X_query,
        index_query,
    )
    few = {**pieces, "J": pieces["J"][:12], "Lam": pieces["Lam"][:12], "r": pieces["r"][:12]}
    before = metric_loss(full, full.outputs(each.X_query), each.y_query)
    for row in range(12):
        change = J @ dense_newton_removal(**few, rows=[row])
        z = full.outputs(each.X_query) + change
        assert relative(change, dz[row]) < 1e-10
        np.testing.assert_allclose(
            metric_loss(full, z, each.y_query) - before, dl[:, row], rtol=1e-8, atol=1e-12
        )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_high_precision_is_finite_on_confident_models(n_classes):
    rng = np.random.default_rng(3)
    index = np.arange(12) % n_classes
    X = np.column_stack([np.eye(n_classes)[index], 0.1 * rng.standard_normal(12)])
    coef = 80.0 * np.eye(n_classes, n_classes + 1)[-1 if n_classes == 2 else slice(None)]
    coef = np.atleast_2d(coef)
    dz, dl = mp_logistic_loo(X, index, coef, np.zeros(len(coef)), 1e-3, X[:4], index[:4])
    assert dz.shape == (12, 4, len(coef))
    assert np.isfinite(dz).all()
    assert dl[0, 0] > 0
    fine = mp_logistic_loo(X, index, coef, np.zeros(len(coef)), 1e-3, X[:4], index[:4], digits=150)
    np.testing.assert_allclose(dl, fine[1], rtol=1e-14)
    np.testing.assert_allclose(dz, fine[0], rtol=1e-14)


@pytest.mark.parametrize(("name", "fit_intercept"), [("logistic", True), ("softmax", False)])
def test_high_precision_optimum_is_the_reference_optimum(name, fit_intercept):
    each = case(name)
    estimator = clone(each.estimator).set_params(fit_intercept=fit_intercept, C=0.7)
    reference = minimise_objective(estimator, each.X[:15], each.y[:15])
    index = np.searchsorted(reference.frozen.classes, each.y[:15])
    coef, intercept = mp_logistic_optimum(each.X[:15], index, 1 / 0.7, fit_intercept=fit_intercept)
    np.testing.assert_allclose(coef.T, reference.coef, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(intercept, reference.intercept, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_high_precision_optimum_of_separable_rows_is_stationary(n_classes):
    rng = np.random.default_rng(4)
    index = np.arange(9) % n_classes
    X = np.column_stack([np.eye(n_classes)[index], 0.2 * rng.standard_normal(9)])
    rho = 1e-33
    coef, intercept = mp_logistic_optimum(X, index, rho, fit_intercept=True)
    z = X @ coef.T + intercept
    scores = np.column_stack([np.zeros(9), z]) if n_classes == 2 else z
    assert np.ptp(scores, axis=1).min() > 65
    others = np.exp(scores - scores[np.arange(9), index][:, None])
    others[np.arange(9), index] = 0.0
    others[np.arange(9), index] = -others.sum(axis=1)
    grad = others.T @ X
    np.testing.assert_allclose(grad[-len(coef) :], -rho * coef, rtol=1e-10)


# Units


def test_metric_losses_are_those_of_scikit_learn():
    metrics = {
        "logistic": lambda c, m: log_loss(c.y_query, m.predict_proba(c.X_query)),
        "softmax": lambda c, m: log_loss(c.y_query, m.predict_proba(c.X_query)),
        "ridge-multi-weights": lambda c, m: mean_squared_error(c.y_query, m.predict(c.X_query)),
        "process-multi": lambda c, m: mean_squared_error(c.y_query, m.predict(c.X_query)),
        "sgd-squared": lambda c, m: mean_squared_error(c.y_query, m.predict(c.X_query)),
        "poisson": lambda c, m: mean_poisson_deviance(c.y_query, m.predict(c.X_query)),
        "gamma": lambda c, m: mean_gamma_deviance(c.y_query, m.predict(c.X_query)),
        "tweedie": lambda c, m: mean_tweedie_deviance(
            c.y_query, m.predict(c.X_query), power=m.power
        ),
    }
    for name, metric in metrics.items():
        each = case(name)
        model = clone(each.estimator).fit(each.X, each.y, **each.fit_params)
        z = outputs_of(model, each.X_query, stated_objective(model).log_link)
        value = metric_loss(model, z, each.y_query).mean()
        assert value == pytest.approx(metric(each, model), rel=1e-9), name


def test_one_vs_rest_losses_are_summed_over_the_problems():
    each = case("svc-three")
    model = minimise_objective(each.estimator, each.X, each.y)
    z = model.outputs(each.X_query)
    signs = np.where(each.y_query[:, None] == model.frozen.classes, 1.0, -1.0)
    expected = (np.maximum(0.0, 1.0 - signs * z) ** 2).sum(axis=1)
    np.testing.assert_allclose(metric_loss(model, z, each.y_query), expected)


def test_huber_loss_adds_up_to_the_objective_of_scikit_learn():
    each = case("huber-penalty")
    model = minimise_objective(each.estimator, each.X, each.y, each.sample_weight)
    r = np.abs(each.y - model.fitted_outputs()[:, 0]) / model.scale
    epsilon = each.estimator.epsilon
    H = np.where(r < epsilon, r**2, 2 * epsilon * r - epsilon**2)
    np.testing.assert_allclose(
        metric_loss(model, model.fitted_outputs(), each.y), model.scale * (1.0 + H)
    )


def test_prediction_and_margin():
    softmax, svc, logistic = case("softmax"), case("svc-three"), case("logistic")
    model = minimise_objective(softmax.estimator, softmax.X, softmax.y)
    z = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    logit = 2.0 - np.log(np.e + 1.0), 3.0 - np.log(2.0)
    np.testing.assert_allclose(prediction(model, z), logit)
    np.testing.assert_allclose(margin(model, z, ["ash", "cedar"]), logit)
    np.testing.assert_allclose(prediction(model, z, np.array([0, 2])), logit)
    model = minimise_objective(svc.estimator, svc.X, svc.y)
    np.testing.assert_allclose(prediction(model, z), [1.0, 3.0])
    np.testing.assert_allclose(margin(model, z, ["birch", "ash"]), [-1.0, -3.0])
    model = tighten(logistic.estimator).fit(logistic.X, logistic.y)
    np.testing.assert_allclose(margin(model, [0.5, 0.5], [0, 1]), [-0.5, 0.5])
    with pytest.raises(ValueError, match="classifier"):
        margin(Ridge().fit(logistic.X, logistic.y), [0.5], [1.0])


def test_prediction_of_a_log_link_is_the_mean_or_the_linear_predictor():
    poisson = case("poisson")
    model = clone(poisson.estimator).fit(poisson.X, poisson.y)
    z = outputs_of(model, poisson.X_query, log_link=True)
    np.testing.assert_allclose(prediction(model, z), model.predict(poisson.X_query))
    np.testing.assert_allclose(prediction(model, z, response=False), z[:, 0])


# The zoo


def test_cases_have_distinct_names_and_cover_every_kind():
    names = case_ids(all_cases())
    assert len(names) == len(set(names))
    plain = {type(frozen_of(each).plain) for each in all_cases()}
    assert {Ridge, LinearRegression, LogisticRegression, PoissonRegressor, KernelRidge} <= plain
    for each in all_cases():
        name = list(weight_params(each.estimator, np.ones(each.n_rows)))
        assert not each.fit_params or list(each.fit_params) == name
        assert frozen_of(each).refit().outputs(each.X_query).shape[0] == len(each.y_query)


def test_every_class_survives_the_loss_of_a_third():
    for each in all_cases():
        frozen = frozen_of(each)
        if frozen.classes is not None:
            used = ~rows_mask(each.third(), each.n_rows) & (frozen.sample_weight > 0)
            assert set(frozen.y[used]) == set(frozen.classes), each.name
