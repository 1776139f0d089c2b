"""Numbers that other libraries publish: statsmodels, RidgeCV, and searches over penalties."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from cases import binary, counts, regression, three_classes, weights
from helpers import relative
from references import freeze
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeCV,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.influence._ridge_path import GRID

TIGHT = 1e-9


def parameter_changes(influence, n, order=None):
    """Return the changes (n, p), the intercept last."""
    return np.stack([influence.parameter_change([row], order=order) for row in range(n)])


def intercept_first(table):
    """Return columns as statsmodels has them after ``add_constant``, with its sign."""
    return -np.column_stack([table[:, -1], table[:, :-1]])


# Least squares: OLSInfluence


@pytest.fixture(scope="module")
def least_squares():
    data = regression(0, n=50)
    published = sm.OLS(data.y, sm.add_constant(data.X)).fit().get_influence()
    return data, published, InfluenceEstimator(LinearRegression()).fit(data.X, data.y)


def test_leverage_is_the_hat_diagonal(least_squares):
    _, published, influence = least_squares
    assert relative(influence.leverage_, published.hat_matrix_diag) < TIGHT


def test_leave_one_out_residuals_are_the_press_residuals(least_squares):
    data, published, influence = least_squares
    assert relative(data.y - influence.loo_predict(), published.resid_press) < TIGHT
    assert relative(influence.loo_loss_, published.resid_press**2) < TIGHT
    assert influence.loo_loss_.sum() == pytest.approx(published.ess_press, rel=TIGHT)
    rise = published.resid_press**2 - published.resid**2
    assert relative(influence.self_influence_, rise) < TIGHT


def test_parameter_changes_are_dfbeta(least_squares):
    _, published, influence = least_squares
    ours = intercept_first(parameter_changes(influence, len(published.resid)))
    assert relative(ours, published.dfbeta) < TIGHT
    first = intercept_first(parameter_changes(influence, len(published.resid), "first"))
    kept = (1.0 - published.hat_matrix_diag)[:, None]
    assert relative(first, published.dfbeta * kept) < TIGHT


def test_prediction_changes_are_cooks_distance(least_squares):
    data, published, influence = least_squares
    size = (influence.transform(data.X) ** 2).sum(axis=0)
    p, variance = data.X.shape[1] + 1, published.results.mse_resid
    assert relative(size / (p * variance), published.cooks_distance[0]) < TIGHT


def residual_variances(data, influence):
    """Return the residual variance without each row, from the loss effects alone."""
    n, p = data.X.shape[0], data.X.shape[1] + 1
    residuals = data.y - influence.predict(data.X)
    total = (residuals**2).sum() + influence.influence(data.X, data.y).sum(axis=0)
    return (total - influence.loo_loss_) / (n - 1 - p)


def test_own_prediction_changes_are_dffits(least_squares):
    data, published, influence = least_squares
    deviation = np.sqrt(residual_variances(data, influence) * influence.leverage_)
    own = influence.predict(data.X) - influence.loo_predict()
    assert relative(own / deviation, published.dffits[0]) < TIGHT


def test_studentised_residuals(least_squares):
    data, published, influence = least_squares
    residuals = data.y - influence.predict(data.X)
    root = np.sqrt(1.0 - influence.leverage_)
    external = residuals / (np.sqrt(residual_variances(data, influence)) * root)
    assert relative(external, published.resid_studentized_external) < TIGHT
    internal = residuals / (np.sqrt(published.results.mse_resid) * root)
    assert relative(internal, published.resid_studentized_internal) < TIGHT


def test_scaled_parameter_changes_are_dfbetas(least_squares):
    data, published, influence = least_squares
    A = sm.add_constant(data.X)
    spread = np.sqrt(np.diag(np.linalg.inv(A.T @ A)))
    changes = intercept_first(parameter_changes(influence, len(data.y)))
    deviation = np.sqrt(residual_variances(data, influence))[:, None] * spread
    assert relative(changes / deviation, published.dfbetas) < TIGHT


# Generalized linear models: GLMInfluence


TO_THE_OPTIMUM = {"solver": "newton-cholesky", "tol": 1e-12}


@pytest.fixture(scope="module", params=["poisson", "logistic"])
def generalized(request):
    if request.param == "poisson":
        data, family = counts(1, n=60), sm.families.Poisson()
        model = PoissonRegressor(alpha=0.0, **TO_THE_OPTIMUM)
    else:
        data, family = binary(2, n=80), sm.families.Binomial()
        model = LogisticRegression(C=np.inf, **TO_THE_OPTIMUM)
    result = sm.GLM(data.y, sm.add_constant(data.X), family=family).fit(tol=1e-14, maxiter=200)
    return data, result.get_influence(), InfluenceEstimator(model).fit(data.X, data.y)


def test_generalized_leverage(generalized):
    _, published, influence = generalized
    assert relative(influence.leverage_, published.hat_matrix_diag) < TIGHT


def test_one_step_parameter_changes(generalized):
    data, published, influence = generalized
    changes = intercept_first(parameter_changes(influence, len(data.y)))
    assert relative(changes, published.d_params) < TIGHT
    first = intercept_first(parameter_changes(influence, len(data.y), "first"))
    kept = (1.0 - published.hat_matrix_diag)[:, None]
    assert relative(first, published.d_params * kept) < TIGHT


def test_one_step_changes_of_the_linear_predictor(generalized):
    data, published, influence = generalized
    changes = parameter_changes(influence, len(data.y))
    own = (np.column_stack([data.X, np.ones(len(data.y))]) * changes).sum(axis=1)
    assert relative(-own, published.d_linpred) < TIGHT
    if hasattr(influence, "decision_function"):
        without = influence.loo_decision_function()
        assert relative(influence.decision_function(data.X) - without, -own) < TIGHT
    else:
        without = np.log(influence.loo_predict())
        assert relative(np.log(influence.predict(data.X)) - without, -own) < TIGHT


def test_one_step_changes_of_the_mean(generalized):
    data, published, influence = generalized
    own = [
        influence.output_change([row], data.X[[row]], order="first")[0, 0]
        for row in range(len(data.y))
    ]
    slope = 1.0 - published.hat_matrix_diag
    if isinstance(influence.estimator, LogisticRegression):
        p = influence.predict_proba(data.X)[:, 1]
        own = own * p * (1.0 - p)
    assert relative(-np.asarray(own), published.d_fittedvalues * slope) < TIGHT


def test_generalized_cooks_distance(generalized):
    data, published, influence = generalized
    A, changes = sm.add_constant(data.X), intercept_first(parameter_changes(influence, len(data.y)))
    distance = np.einsum("np,pq,nq->n", changes, -published.hessian, changes) / A.shape[1]
    assert relative(distance, published.cooks_distance[0]) < TIGHT


# RidgeCV's own leave-one-out


@pytest.mark.parametrize("mode", ["svd", "eigen"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shape", ["tall", "wide", "multi"])
def test_leave_one_out_losses_are_those_of_ridge_cv(shape, fit_intercept, mode):
    sizes = {"tall": {}, "wide": {"n": 30, "d": 60}, "multi": {"n_targets": 3}}
    data = regression(3, **sizes[shape])
    alphas = (0.01, 0.3, 1.0, 20.0)
    search = RidgeCV(alphas, store_cv_results=True, fit_intercept=fit_intercept, gcv_mode=mode).fit(
        data.X, data.y
    )
    for k, alpha in enumerate(alphas):
        for solver in ("primal", "dual"):
            influence = InfluenceEstimator(
                Ridge(alpha, fit_intercept=fit_intercept), solver=solver
            ).fit(data.X, data.y)
            errors = (data.y - influence.loo_predict()) ** 2
            assert relative(errors, search.cv_results_[..., k]) < TIGHT
            mean = errors if errors.ndim == 1 else errors.mean(axis=1)
            assert relative(influence.loo_loss_, mean) < 1e-12


def test_leave_one_out_predictions_are_those_of_a_scored_ridge_cv():
    data = regression(4)
    s = weights(len(data.y))
    s[0] = 0.7
    search = RidgeCV((0.5, 5.0), store_cv_results=True, scoring="neg_mean_absolute_error")
    search.fit(data.X, data.y, sample_weight=s)
    for k, alpha in enumerate((0.5, 5.0)):
        influence = InfluenceEstimator(Ridge(alpha)).fit(data.X, data.y, sample_weight=s)
        assert relative(influence.loo_predict(), search.cv_results_[:, k]) < TIGHT


# The ridge with the least leave-one-out error


def grid_of(X, K=None, s=None):
    """Return the documented grid: 49 values around the mean non-zero eigenvalue."""
    K = X @ X.T if K is None else K
    root = np.ones(len(K)) if s is None else np.sqrt(s)
    eigenvalues = np.linalg.eigvalsh(root[:, None] * K * root)
    return GRID.numpy() * eigenvalues[eigenvalues > 1e-10 * eigenvalues.max()].mean()


def brute_force(estimator, X, y, ridges, s=None):
    """Return the weighted leave-one-out squared error of each ridge, by refits."""
    s = np.ones(len(X)) if s is None else s
    errors = []
    for ridge in ridges:
        frozen = freeze(clone(estimator).set_params(alpha=ridge), X, y, s)
        T = frozen.targets(y)
        own = np.stack([frozen.without([row]).fitted_outputs()[row] for row in range(len(X))])
        W = frozen.weights(y, s)
        errors.append((W * (T - own) ** 2).sum())
    return np.array(errors)


def test_the_grid_is_the_documented_one():
    np.testing.assert_allclose(GRID.numpy(), np.logspace(-8, 4, 49))


@pytest.mark.parametrize(
    ("estimator", "data", "weighted"),
    [
        (Ridge(), regression(5, n=25), False),
        (Ridge(fit_intercept=False), regression(6, n=25), True),
        (Ridge(), regression(7, n=20, d=40), True),
        (Ridge(), regression(8, n=25, n_targets=2), False),
        (RidgeClassifier(), three_classes(9, n=24), False),
        (RidgeClassifier(), binary(10, n=24), True),
        (KernelRidge(kernel="rbf", gamma=0.2), regression(11, n=25), False),
        (KernelRidge(kernel="rbf", gamma=0.2), regression(12, n=25), True),
    ],
)
def test_loo_ridge_is_the_best_of_the_grid(estimator, data, weighted):
    s = weights(len(data.X)) + 0.1 if weighted else None
    params = {} if s is None else {"sample_weight": s}
    K = None
    if isinstance(estimator, KernelRidge):
        K = estimator._get_kernel(data.X)
    ridges = grid_of(data.X, K, s)
    errors = brute_force(estimator, data.X, data.y, ridges, s)
    best = ridges[errors.argmin()]
    forms = ("dual",) if K is not None else ("primal", "dual")
    for solver in (*forms, "auto"):
        influence = InfluenceEstimator(estimator, ridge="loo", solver=solver)
        influence.fit(data.X, data.y, **params)
        assert influence.ridge_ == pytest.approx(best, rel=1e-9)
        assert influence.estimator_.alpha == pytest.approx(best, rel=1e-9)
    assert estimator.alpha == 1


def test_loo_ridge_at_the_end_of_a_pipeline():
    data = regression(13)
    pipeline = make_pipeline(StandardScaler(), Ridge())
    influence = InfluenceEstimator(pipeline, ridge="loo").fit(data.X, data.y)
    scaled = StandardScaler().fit_transform(data.X)
    alone = InfluenceEstimator(Ridge(), ridge="loo").fit(scaled, data.y)
    assert influence.ridge_ == pytest.approx(alone.ridge_, rel=1e-12)
    assert pipeline[-1].alpha == 1.0


# Searches over the ridge


@pytest.mark.parametrize(
    ("estimator", "data", "parameter", "of"),
    [
        (Ridge(), regression(14), "alpha", lambda ridge: ridge),
        (KernelRidge(kernel="rbf"), regression(15), "alpha", lambda ridge: ridge),
        (RidgeClassifier(), three_classes(16), "alpha", lambda ridge: ridge),
        (LogisticRegression(max_iter=1000), binary(17), "C", lambda ridge: 1 / ridge),
        (LogisticRegression(max_iter=1000), three_classes(18), "C", lambda ridge: 1 / ridge),
        (LogisticRegression(solver="liblinear"), binary(19), "C", lambda ridge: 1 / ridge),
        (LinearSVC(dual=False), three_classes(20), "C", lambda ridge: 1 / ridge),
    ],
)
def test_search_over_the_ridge_is_the_search_over_the_penalty(estimator, data, parameter, of):
    ridges = [0.01, 0.1, 1.0, 10.0, 100.0]
    ours = GridSearchCV(InfluenceEstimator(estimator), {"ridge": ridges}, cv=4)
    theirs = GridSearchCV(estimator, {parameter: [of(ridge) for ridge in ridges]}, cv=4)
    ours.fit(data.X, data.y)
    theirs.fit(data.X, data.y)
    assert of(ours.best_params_["ridge"]) == pytest.approx(theirs.best_params_[parameter])
    np.testing.assert_allclose(
        ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-12
    )
    np.testing.assert_array_equal(ours.predict(data.X_query), theirs.predict(data.X_query))
    assert ours.best_estimator_.ridge_ == pytest.approx(ours.best_params_["ridge"])


def test_search_over_the_ridge_of_a_pipeline():
    data = binary(21)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    ridges = [0.1, 1.0, 10.0]
    ours = GridSearchCV(InfluenceEstimator(pipeline), {"ridge": ridges}, cv=4)
    theirs = GridSearchCV(
        pipeline, {"logisticregression__C": [1 / ridge for ridge in ridges]}, cv=4
    )
    ours.fit(data.X, data.y)
    theirs.fit(data.X, data.y)
    np.testing.assert_array_equal(
        ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"]
    )
