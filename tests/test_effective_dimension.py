"""The effective dimension over ridges: exact, from a sketch, and drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import relative
from network_helpers import case_of, each_network, not_at_the_optimum, oracle, torch_model
from scipy import sparse
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import InfluenceWarning, UnsupportedModelError
from sklearn_dualif.inspection import EffectiveDimensionDisplay
from sklearn_dualif.metrics import effective_dimension
from sklearn_dualif.sketching import GaussianSketch, SketchedSpectrum, SparseSketch

X_DIGITS, Y_DIGITS = load_digits(return_X_y=True)
X_DIGITS = X_DIGITS / 16.0
X_DIABETES, Y_DIABETES = load_diabetes(return_X_y=True)
TIGHT = {"tol": 1e-10, "max_iter": 10_000}
MODELS = {
    "multinomial": (LogisticRegression(**TIGHT), X_DIGITS[:300], Y_DIGITS[:300]),
    "wide": (LogisticRegression(**TIGHT), X_DIGITS[:40], Y_DIGITS[:40] > 4),
    "sparse": (LogisticRegression(**TIGHT), sparse.csr_array(X_DIGITS[:40]), Y_DIGITS[:40]),
    "ridge": (Ridge(0.1), X_DIABETES, Y_DIABETES),
    "two targets": (Ridge(0.1), X_DIABETES, np.c_[Y_DIABETES, Y_DIABETES**2]),
    "no penalty": (LinearRegression(), X_DIABETES, Y_DIABETES),
    "poisson": (PoissonRegressor(alpha=0.1, tol=1e-9), X_DIABETES, np.round(Y_DIABETES / 50.0)),
    "kernel": (KernelRidge(alpha=0.1, kernel="rbf"), X_DIABETES, Y_DIABETES),
    "kernel, two targets": (
        KernelRidge(alpha=0.1, kernel="rbf"),
        X_DIABETES,
        np.c_[Y_DIABETES, Y_DIABETES**2],
    ),
    "process": (GaussianProcessRegressor(alpha=0.3, optimizer=None), X_DIABETES, Y_DIABETES),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_sum_of_the_leverages(name):
    model, X, y = MODELS[name]
    for ridge in (0.02, 1.0):
        frozen = FrozenEstimator(model.fit(X, y))
        expected = InfluenceEstimator(frozen, ridge=ridge).fit(X, y).effective_dimension_
        found = effective_dimension(frozen, X, y, ridge)
        assert found.dimension[0] == pytest.approx(expected, rel=1e-6)
        assert found.method == "exact"
        assert found.std[0] == 0.0
    own = effective_dimension(model, X, y).model_ridge
    np.testing.assert_allclose(own, InfluenceEstimator(model).fit(X, y).ridge_)


@each_network("linear-mse")
def test_networks_agree_with_the_dense_trace(name):
    case, reference = case_of(name), oracle(name).reference
    # The oracle counts whole squares.
    model = torch_model(case)
    with not_at_the_optimum():
        ridge = InfluenceEstimator(model).fit(case.X, case.y, **_weights(case)).ridge_
        found = effective_dimension(model, case.X, case.y, ridge, fit_params=_weights(case))
    assert found.dimension[0] == pytest.approx(reference.effective_dimension(), rel=1e-8)
    assert found.model_ridge == pytest.approx(ridge)


def _weights(case):
    return {} if case.sample_weight is None else {"sample_weight": case.sample_weight}


def test_weights_count():
    model, X, y = MODELS["ridge"]
    weight = np.arange(len(y)) % 3
    found = effective_dimension(model, X, y, 0.1, fit_params={"sample_weight": weight})
    expected = effective_dimension(model, np.repeat(X, weight, 0), np.repeat(y, weight), 0.1)
    np.testing.assert_allclose(found.dimension, expected.dimension, rtol=1e-10)


@pytest.mark.parametrize("sketch", [GaussianSketch, SparseSketch])
@pytest.mark.parametrize("name", ["multinomial", "network"])
def test_sketches_estimate_it_with_its_spread(name, sketch, digits):
    model, X, y = digits[:3] if name == "network" else MODELS[name]
    ridges = np.array([0.3, 1.0, 10.0])
    exact = effective_dimension(model, X, y, ridges)
    found = [
        effective_dimension(model, X, y, ridges, sketch=sketch(random_state=seed))
        for seed in range(8)
    ]
    assert {each.method for each in found} == {"sketch"}
    scores = np.array([(each.dimension - exact.dimension) / each.std for each in found])
    assert np.abs(scores).max() < 4.0
    assert 0.4 < np.sqrt(np.mean(scores**2)) < 1.8
    for each in found:
        np.testing.assert_allclose(each.dimension, exact.dimension, rtol=0.05)


def test_the_spread_is_that_of_many_sketches():
    values = 10.0 * np.exp(-np.arange(150) / 15.0)
    generator = np.random.default_rng(0)
    found, predicted = [], []
    for _ in range(150):
        rows = generator.standard_normal((150, 150)) * np.sqrt(values)[:, None] / np.sqrt(150)
        spectrum = SketchedSpectrum(np.linalg.eigvalsh(rows @ rows.T), 150)
        sketched = spectrum.sketched_ridge(0.05)
        found.append(spectrum.dimension(sketched))
        predicted.append(spectrum.deviation(sketched))
    assert np.mean(predicted) == pytest.approx(np.std(found), rel=0.15)
    assert np.mean(found) == pytest.approx((values / (values + 0.05)).sum(), abs=0.2)


def test_a_small_sketch_cannot_tell(digits):
    model, X, y = digits[:3]
    with pytest.warns(InfluenceWarning, match="n_components=60 cannot tell.*below"):
        found = effective_dimension(
            model, X, y, [0.01, 0.9, 10.0], sketch=GaussianSketch(60, random_state=0)
        )
    assert np.isnan(found.dimension).tolist() == [True, True, False]
    assert found.n_components == 60


def test_options_of_an_influence_estimator_are_used(digits):
    model, X, y = digits[:3]
    for options in ({"parameters": "2.*"}, {"curvature": "empirical_fisher"}, {"dtype": "float32"}):
        influence = InfluenceEstimator(model, ridge=2.0, **options)
        expected = influence.fit(X, y).effective_dimension_
        found = effective_dimension(InfluenceEstimator(model, **options), X, y, 2.0)
        assert found.dimension[0] == pytest.approx(expected, rel=1e-4)
    sketched = effective_dimension(
        InfluenceEstimator(model, sketch=GaussianSketch(300, random_state=0)), X, y, 2.0
    )
    assert sketched.n_components == 300


def test_the_caller_s_estimator_is_not_fitted(digits):
    model, X, y = MODELS["ridge"]
    influence = InfluenceEstimator(model, sketch=GaussianSketch(300, random_state=0))
    before = set(vars(influence))
    effective_dimension(influence, X, y)
    assert set(vars(influence)) == before
    state = torch.get_rng_state()
    effective_dimension(*digits[:3], 1.0, sketch=GaussianSketch(300, random_state=0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("ridge", [0.0, -1.0, np.nan, np.inf, [], [[1.0]], [1.0, -2.0]])
def test_ridges_that_cannot_be(ridge):
    with pytest.raises(ValueError, match="is not allowed: give positive, finite numbers"):
        effective_dimension(Ridge(), X_DIABETES, Y_DIABETES, ridge)


def test_models_that_cannot_be_wrapped():
    with pytest.raises(UnsupportedModelError, match="RandomForestClassifier"):
        effective_dimension(RandomForestClassifier(), X_DIGITS, Y_DIGITS, 1.0)


def test_what_is_not_a_sketch():
    with pytest.raises(ValueError, match="sketch=64 is not a sketch"):
        effective_dimension(Ridge(), X_DIABETES, Y_DIABETES, 1.0, sketch=64)


def test_rows_without_a_target():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        effective_dimension(Ridge(), X_DIABETES, Y_DIABETES[1:], 1.0)


# The picture


def test_the_display_draws_the_curve():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    model, X, y = MODELS["multinomial"]
    display = EffectiveDimensionDisplay.from_estimator(model, X, y, n_components=[64, 256])
    found = effective_dimension(model, X, y)
    np.testing.assert_allclose(display.line_.get_ydata(), found.dimension)
    np.testing.assert_allclose(display.line_.get_xdata(), found.ridge)
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["exact", "m = 64", "m = 256", "the model's ridge"]
    assert display.band_ is None
    assert display.figure_ is display.ax_.figure
    np.testing.assert_allclose(display.frame()["effective_dimension"], found.dimension)
    _, ax = plt.subplots()
    sketched = EffectiveDimensionDisplay.from_estimator(
        model, X, y, [1.0, 10.0], sketch=GaussianSketch(300, random_state=0), ax=ax
    )
    assert sketched.ax_ is ax
    assert sketched.band_ is not None
    plt.close("all")


def test_relative_agreement_of_sketch_and_curve():
    model, X, y = MODELS["multinomial"]
    exact = effective_dimension(model, X, y)
    found = effective_dimension(model, X, y, sketch=GaussianSketch(2000, random_state=0))
    assert relative(found.dimension, exact.dimension) < 0.01
