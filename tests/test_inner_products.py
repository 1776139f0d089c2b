"""Hessian-free scores: against gradients row by row, and as the limit of effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import all_cases, case_ids
from helpers import frozen, is_kernel, losses, moved
from network_helpers import case_of, each_network, fit_case
from network_references import dense_jacobian, dense_outputs, loss_pieces
from references import ReferenceModel, dense_pieces, kernel_block
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import UnsupportedOptionError
from sklearn_dualif.influence._inner_product import Snapshot
from sklearn_dualif.models import final_estimator
from sklearn_dualif.sketching import GaussianSketch

# Where a model goes through all its rows, their gradients are rounding alone.
THROUGH_ALL = ("linear-wide", "linear-wide-weights")
LINEAR = [case for case in all_cases() if not is_kernel(case) and case.name not in THROUGH_ALL]
KERNEL = [case for case in all_cases() if is_kernel(case)]


# By their definition


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def as_fitted(case, estimator):
    """Return the reference model at the parameters that scikit-learn fitted."""
    model, plain = frozen(case), final_estimator(estimator)
    coef = np.atleast_2d(plain.coef_).T
    intercept = np.broadcast_to(plain.intercept_, coef.shape[1]).astype(float)
    scale = plain.scale_ if hasattr(plain, "scale_") and model.objective.kind == "huber" else None
    return ReferenceModel(model, np.ones(case.n_rows, bool), coef, intercept, scale)


def metric_gradients(model, X, y, size):
    """Return the gradients (m, p) of the metric's losses, by central differences."""
    moves = 1e-5 * np.eye(size)
    change = [losses(moved(model, m), X, y) - losses(moved(model, -m), X, y) for m in moves]
    return np.stack(change, 1) / 2e-5


@pytest.mark.parametrize("case", LINEAR, ids=case_ids(LINEAR))
def test_scores_of_linear_models_are_products_of_gradients(case):
    influence = InfluenceEstimator(clone(case.estimator), curvature="identity")
    influence.fit(case.X, case.y, **case.fit_params)
    model = as_fitted(case, influence.estimator_)
    pieces = dense_pieces(model)
    own = np.einsum("ncp,nc->np", pieces.J, pieces.r)
    queries = metric_gradients(model, case.X_query, case.y_query, len(pieces.theta))
    expected = queries @ own.T
    tolerance = 1e-5 * np.abs(expected).max()
    scores = influence.influence(case.X_query, case.y_query)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)
    trained = metric_gradients(model, case.X, case.y, len(pieces.theta))
    expected = (trained * own).sum(1)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(influence.self_influence_, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", KERNEL, ids=case_ids(KERNEL))
def test_scores_of_kernel_models_are_products_in_their_hilbert_space(case):
    influence = InfluenceEstimator(clone(case.estimator), curvature="identity")
    influence.fit(case.X, case.y, **case.fit_params)
    model = frozen(case)
    T = model.targets(case.y)
    r = model.weights(case.y, model.sample_weight) * (_predicted(influence, case.X, T) - T)
    T_query = model.targets(case.y_query)
    slope = 2.0 / T.shape[1] * (_predicted(influence, case.X_query, T_query) - T_query)
    plain, rows = model.plain, model.design(case.X_query)
    if isinstance(plain, GaussianProcessRegressor):
        block = plain.kernel_(rows, model.X)
        white = plain.kernel_.diag(model.X) - plain.kernel_(model.X, model.X.copy()).diagonal()
        noise = np.broadcast_to(white + plain.alpha, len(r))
        r *= (noise.mean() / noise)[:, None]
    else:
        block = kernel_block(plain, rows, model.X)
    close(influence.influence(case.X_query, case.y_query), block * (slope @ r.T), 1e-9)


def _predicted(influence, X, T):
    return np.reshape(influence.predict(X), T.shape)


def rows_gradients(case, module=None):
    """Return the gradients of the queries' metric (m, d), and of the rows' training loss (n, d)."""
    module = case.module if module is None else module
    torch_mean = case.n_outputs if case.loss == "binary_cross_entropy" else 1
    parts = []
    for X, y, weights in (
        (case.X_query, case.y_query, np.ones(len(case.y_query))),
        (case.X, case.y, case.weights / torch_mean),
    ):
        _, slopes, _ = loss_pieces(case.loss, dense_outputs(module, X), y, weights)
        parts.append(np.einsum("ncp,nc->np", dense_jacobian(module, X), slopes))
    return parts


@each_network()
def test_scores_of_networks_are_products_of_gradients(name):
    case = case_of(name)
    queries, own = rows_gradients(case)
    scores = fit_case(case, curvature="identity", X_val=case.X_query, y_val=case.y_query)
    expected = queries @ own.T
    close(scores.influence(case.X_query, case.y_query), expected)
    close(scores.influence_, expected.mean(0))
    if case.loss != "binary_cross_entropy" and case.sample_weight is None:
        close(scores.self_influence_, (own**2).sum(1))


@each_network()
def test_normalised_scores_are_cosines(name):
    case = case_of(name)
    queries, own = rows_gradients(case)
    scores = fit_case(case, curvature="identity", normalize=True)
    with np.errstate(invalid="ignore"):
        queries, own = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (queries, own))
    expected = np.nan_to_num(queries @ own.T)  # a row without weight has no gradient
    close(scores.influence(case.X_query, case.y_query), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_scores_do_not_depend_on_how_many_rows_are_held(rows, monkeypatch):
    case = case_of("mlp-tanh")
    whole = fit_case(case, curvature="identity").influence(case.X_query, case.y_query)
    monkeypatch.setattr(
        Snapshot, "batches", lambda self, own: list(gen_batches(len(own.inputs), rows))
    )
    scores = fit_case(case, curvature="identity", X_val=case.X_query, y_val=case.y_query)
    close(scores.influence(case.X_query, case.y_query), whole)
    close(scores.influence_, whole.mean(0))


# As the limit of effects


@pytest.mark.parametrize("name", ["mlp-tanh", "conv2d"])
def test_effects_times_a_large_ridge_become_scores(name):
    case = replace(case_of(name), weight_decay=0.0)
    scores = fit_case(case, curvature="identity").influence(case.X_query, case.y_query)
    gaps = []
    for ridge in (1e4, 1e6):
        effects = fit_case(case, ridge=ridge, order="first")
        found = ridge * effects.influence(case.X_query, case.y_query)
        gaps.append(np.abs(found - scores).max() / np.abs(scores).max())
    assert gaps[1] < 1e-4
    assert gaps[1] < 0.02 * gaps[0]


# Options


def iris(**params):
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(solver="newton-cholesky")
    return InfluenceEstimator(model, curvature="identity", **params), X, y


def test_the_predicted_class_is_that_of_the_fitted_model():
    influence, X, y = iris()
    influence.fit(X, y)
    margins = influence.influence(X[:9], influence.predict(X[:9]), objective="margin")
    close(influence.transform(X[:9]), margins, 1e-14)


def test_weights_count_rows():
    influence, X, y = iris(ridge=1.0)
    weights = np.ones(len(X))
    weights[3] = 2.0
    weighted = influence.fit(X, y, sample_weight=weights).influence(X[:5], y[:5])
    repeated = InfluenceEstimator(LogisticRegression(), curvature="identity")
    repeated = clone(influence).fit(np.r_[X, X[3:4]], np.r_[y, y[3]]).influence(X[:5], y[:5])
    close(weighted[:, 3], repeated[:, 3] + repeated[:, -1], 1e-6)


def test_a_pipeline_and_frames():
    pandas = pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True, as_frame=True)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    influence = InfluenceEstimator(pipeline, curvature="identity").set_output(transform="pandas")
    scores = influence.fit(X, y).transform(X[:4])
    assert isinstance(scores, pandas.DataFrame)
    assert scores.shape == (4, 150)


def test_order_is_not_used():
    influence, X, y = iris()
    scores = influence.fit(X, y).influence(X[:3], y[:3])
    for order in ("first", "exact"):
        close(clone(influence).set_params(order=order).fit(X, y).influence(X[:3], y[:3]), scores)


@pytest.mark.parametrize(
    "ask",
    [
        lambda influence, X: influence.removal_effect([0]),
        lambda influence, X: influence.output_change([0]),
        lambda influence, X: influence.relabel_effect([0], 1),
        lambda influence, X: influence.parameter_change([0]),
        lambda influence, X: influence.unlearn([0]),
        lambda influence, X: influence.explain(X[:2]),
        lambda influence, X: influence.leakage(X[:2]),
        lambda influence, X: influence.loo_predict(),
    ],
)
def test_effects_are_refused(ask):
    influence, X, y = iris()
    with pytest.raises(UnsupportedOptionError, match="scores that rank rows, not effects"):
        ask(influence.fit(X, y), X)


@pytest.mark.parametrize("name", ["leverage_", "effective_dimension_", "loo_loss_"])
def test_attributes_of_effects_are_missing(name):
    influence, X, y = iris()
    assert not hasattr(influence.fit(X, y), name)
    with pytest.raises(AttributeError, match=f"no {name}"):
        getattr(influence, name)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"solver": "dual"}, "solver='auto'"),
        ({"sketch": GaussianSketch(8)}, "sketch=None"),
        ({"curvature": "gauss_newton", "normalize": True}, "normalize=False"),
        ({"curvature": "kfac", "checkpoints": False}, "checkpoints=True"),
        ({"checkpoints": [({}, 0.1)]}, "are of networks"),
    ],
)
def test_options_that_do_not_go_together(params, words):
    influence, X, y = iris()
    with pytest.raises(ValueError, match=words):
        influence.set_params(**params).fit(X, y)


def test_a_damping_is_refused():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(UnsupportedOptionError, match=r"has none\. Use ridge='model'"):
        InfluenceEstimator(LinearRegression(), curvature="identity", ridge=1.0).fit(X, y)


def test_nothing_is_printed_but_what_is_there(capsys):
    influence, X, y = iris(verbose=1)
    influence.fit(X, y)
    assert "identity form, 150 rows" in capsys.readouterr().out
