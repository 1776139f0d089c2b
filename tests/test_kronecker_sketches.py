"""The curvature by layers of layers that are projected at random."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import relative
from kronecker_references import Naive, assert_as_dense
from network_helpers import (
    case_of,
    digits_network,
    each_network,
    fit_case,
    normal,
    oracle,
    perceptron_problem,
    seeded,
)
from network_references import dense_jacobian
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import InfluenceWarning, MemoryLimitError, UnsupportedOptionError
from sklearn_dualif.kernels import _kronecker as kernels_kronecker
from sklearn_dualif.sketching import (
    FactorizedSketch,
    FactorizedSpectrum,
    KroneckerSpectrum,
    Layer,
)

approximate_orders = pytest.mark.parametrize("order", ["first", "newton"])
few_components = pytest.mark.filterwarnings("ignore:n_components=")


@pytest.fixture(scope="module")
def digits():
    return digits_network()


def kfac(model, size=None, **options):
    """Return an `InfluenceEstimator` with the curvature by layers, of a sketch of some size."""
    debias = options.pop("debias", True)
    seed = options.pop("seed", 0)
    sketch = None if size is None else FactorizedSketch(size, debias=debias, random_state=seed)
    return InfluenceEstimator(model, curvature="kfac", sketch=sketch, **options)


# The dense matrix, by its definition


def factors_of(problem, R):
    """Return ``P_E`` and ``P_A`` of layers that are projected, by their first parameter."""
    projection, penalized = problem.projection, np.flatnonzero(R > 0.0)
    like, factors = torch.zeros(0, dtype=torch.float64), {}
    for index, layer in enumerate(projection.layers):
        pair = projection.factors(index, like)
        if any(part is not None for part in pair):
            sizes = layer.outputs, layer.inputs
            factors[penalized[layer.weight.start]] = [
                np.eye(size) if part is None else part.numpy()
                for size, part in zip(sizes, pair, strict=True)
            ]
    return factors


def assert_as_projected(name, size, order, largest_dense=np.inf, **options):
    """Check effects of a case of the zoo through a sketch against explicit projections."""
    case, dense = case_of(name), oracle(name)
    sketch = FactorizedSketch(size, random_state=1, **options)
    found = fit_case(case, curvature="kfac", sketch=sketch, order=order)
    expected = Naive(
        case.module,
        case.X,
        dense.network,
        largest_dense=largest_dense,
        factors=factors_of(found._engine.problem, dense.network.R),
        sketched=found.sketch_info_["sketched_ridge"] / found.ridge_,
    )
    assert_as_dense(found, case, dense, expected, order)
    return found, expected


@few_components
@approximate_orders
@each_network("linear-mse", "conv2d-circular")
def test_effects_are_those_of_the_projected_matrix(name, order):
    size = int((oracle(name).network.R > 0).sum())
    found, expected = assert_as_projected(name, max(24, size // 3), order)
    assert found.solver_ == "kfac"
    assert found.solver_info_["size"] == len(expected.P)


@few_components
@pytest.mark.parametrize("name", ["mlp-tanh", "conv2d", "mlp-free-biases", "layer-norm"])
def test_plain_sketches_keep_the_ridge(name):
    found, _ = assert_as_projected(name, 30, "newton", debias=False)
    assert found.sketch_info_["sketched_ridge"] == found.ridge_


@few_components
@approximate_orders
@pytest.mark.parametrize("name", ["lstm", "embedding-padding", "raw-parameter", "tied-weight"])
def test_large_tensors_without_factors(name, order, monkeypatch):
    monkeypatch.setattr(kernels_kronecker, "LARGEST_DENSE", 4)
    assert_as_projected(name, 24, order, largest_dense=4)


@approximate_orders
@pytest.mark.parametrize("name", ["mlp-tanh", "conv2d", "layer-norm", "embedding", "lstm"])
def test_as_many_components_as_parameters_change_nothing(name, order):
    case = case_of(name)
    size = int((oracle(name).network.R > 0).sum())
    answers = []
    for sketch in (None, FactorizedSketch(size, random_state=0)):
        found = fit_case(case, curvature="kfac", sketch=sketch, order=order)
        answers.append(
            [
                found.influence(case.X_query, case.y_query),
                found.removal_effect([1, 5], case.X_query, case.y_query),
                found.parameter_change([3]),
                found.self_influence_,
                found.leverage_,
                found.effective_dimension_,
            ]
        )
    for exact, same in zip(*answers, strict=True):
        assert relative(same, exact) < 1e-10
    info = found.sketch_info_
    assert info["n_components"] == size
    assert info["sketched_ridge"] == found.ridge_
    assert not info["too_small"]


def test_parameter_changes_move_outputs_as_they_should(digits):
    model, X, y, X_query, _ = digits
    found = kfac(model, 500).fit(X, y)
    change = dense_jacobian(model.module, X_query) @ found.parameter_change([3, 4, 5])
    assert relative(change, found.output_change([3, 4, 5], X_query)) < 1e-10


# The ridge

LAYERS = [
    Layer(20, 30, slice(0, 600)),
    Layer(4, 50, slice(600, 800)),
    Layer(60, 5, slice(800, 1100)),
    Layer(80, 1, slice(1100, 1180)),
    Layer(7, 1, slice(1180, 1187)),
]


def random_spectrum(size):
    """Return a projection of the layers, and eigenvalues that fall like real ones."""
    rng = np.random.default_rng(0)
    projection = FactorizedSketch(size).for_layers(LAYERS, size, 0)
    sides = [[np.sort(rng.exponential(size=m) ** 3) for m in shape] for shape in projection.shapes]
    return projection, np.concatenate([np.outer(*pair).ravel() for pair in sides])


def shifts(values, ridge):
    """Return t (k,) with the mean of 1 / (v + t) over each row of values the inverse ridge."""
    least = values.min(1)
    low, high = -least, ridge - least
    for _ in range(60):
        middle = (low + high) / 2.0
        large = (1.0 / (values + middle[:, None])).mean(1) > 1.0 / ridge
        low, high = np.where(large, middle, low), np.where(large, high, middle)
    return high


def dimension_by_alternation(grid, full, ridge):
    """Return the effective dimension of a layer at the ridge that its equations ask for."""
    gamma, theta = np.zeros((grid.shape[0], 1)), np.zeros(grid.shape[1])
    for _ in range(300):
        if grid.shape[1] < full[1]:
            gamma = shifts(grid + theta, ridge)[:, None]
        if grid.shape[0] < full[0]:
            theta = shifts((grid + gamma).T, ridge)
    return float((grid / (grid + np.maximum(gamma + theta, -ridge))).sum())


def test_the_separable_ridge_solves_its_equations():
    projection, eigenvalues = random_spectrum(150)
    spectrum, ridge = KroneckerSpectrum(eigenvalues, projection), 3.0
    expected = []
    for layer, shape, place in zip(
        projection.layers, projection.shapes, projection.places, strict=True
    ):
        grid, full = eigenvalues[place].reshape(shape), (layer.outputs, layer.inputs)
        if shape == full:
            expected.append((grid / (grid + ridge)).sum())
        else:
            expected.append(dimension_by_alternation(grid, full, ridge))
    assert spectrum.dimension(ridge) == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize("ridge", [0.3, 3.0, 30.0])
def test_the_spectrum_is_that_of_the_matrix_itself(ridge):
    projection, eigenvalues = random_spectrum(400)
    spectrum = KroneckerSpectrum(eigenvalues, projection)
    whole = FactorizedSpectrum(np.diag(eigenvalues), projection)
    sketched = whole.sketched_ridge(ridge)
    assert spectrum.dimension(ridge) == pytest.approx(whole.dimension(sketched), rel=1e-6)
    own = spectrum.sketched_ridge(ridge)
    projected = [index for index, layer in enumerate(LAYERS) if layer.size > 80]
    assert own < ridge
    rest = sum(
        (eigenvalues[projection.places[k]] / (eigenvalues[projection.places[k]] + ridge)).sum()
        for k in range(len(LAYERS))
        if k not in projected
    )
    seen = np.concatenate([eigenvalues[projection.places[k]] for k in projected])
    assert (seen / (seen + own)).sum() + rest == pytest.approx(spectrum.dimension(ridge), rel=1e-9)


def test_a_spectrum_tells_sides_that_are_too_short():
    projection = FactorizedSketch(900).for_layers([Layer(200, 200, slice(0, 40_000))], 900, 0)
    sizes = np.full((30, 30), 1e-3)
    assert KroneckerSpectrum(sizes.ravel(), projection).missing(1.0) == 0
    # Three directions of the sensitivities, each with all directions of the inputs.
    sizes[:3] = 1e3
    spectrum = KroneckerSpectrum(sizes.ravel(), projection)
    assert spectrum.dimension(1.0) < 200
    assert spectrum.missing(1.0) == 3 * 900
    assert spectrum.sketched_ridge(1.0) < 1.0
    # No ridge gives a matrix a larger dimension than its rank.
    sizes[3:] = 0.0
    assert KroneckerSpectrum(sizes.ravel(), projection).sketched_ridge(1.0) is None
    # In other places of the same number, sides would do.
    sizes[:], sizes[:9, :10] = 1e-3, 1e3
    assert KroneckerSpectrum(sizes.ravel(), projection).missing(1.0) == 0


def self_influence_ratios(model, X, y, size, seeds, **options):
    """Return mean self-influence through sketches in units of that of all parameters."""
    exact = kfac(model, order="first").fit(X, y).self_influence_
    return np.array(
        [
            (
                kfac(model, size, seed=seed, order="first", **options).fit(X, y).self_influence_
                / exact
            ).mean()
            for seed in range(seeds)
        ]
    )


# Of 123 dimensions. The standard deviation of a ratio is about .1, that of the mean .04.
@few_components
@pytest.mark.parametrize("size", [240, 400, 800])
def test_self_influence_is_nearly_unbiased(digits, size):
    model, X, y, _, _ = digits
    ratios = self_influence_ratios(model, X, y, size, 8)
    plain = self_influence_ratios(model, X, y, size, 4, debias=False)
    assert 0.9 < ratios.mean() < 1.15
    assert plain.mean() < 0.9
    assert abs(np.log(ratios.mean())) < 0.5 * abs(np.log(plain.mean()))


def test_the_dimension_is_told_by_the_sketch(digits):
    model, X, y, _, _ = digits
    exact = kfac(model).fit(X, y).effective_dimension_
    found = [kfac(model, 500, seed=seed).fit(X, y) for seed in range(4)]
    infos = [each.sketch_info_ for each in found]
    told = [info["effective_dimension"] for info in infos]
    assert np.mean(told) == pytest.approx(exact, rel=0.1)
    # Leverages are those of the sketch with its own ridge, which was chosen to agree.
    np.testing.assert_allclose([each.effective_dimension_ for each in found], told, rtol=1e-9)
    assert all(info["sketched_ridge"] < 0.9 and not info["too_small"] for info in infos)


@approximate_orders
def test_effects_converge(digits, order):
    model, X, y, X_query, y_query = digits
    exact = kfac(model, order=order).fit(X, y).influence(X_query, y_query)
    errors = []
    for size in (400, 1000, 1600):
        fits = [kfac(model, size, seed=seed, order=order).fit(X, y) for seed in range(3)]
        found = [each.influence(X_query, y_query) for each in fits]
        errors.append(np.mean([relative(each, exact) for each in found]))
    assert errors[0] > errors[1] > 1.2 * errors[2]
    assert errors[2] < 0.2


# Sizes


def test_what_is_reported(digits):
    model, X, y, _, _ = digits
    found = kfac(model, 600).fit(X, y)
    info = found.sketch_info_
    assert info["n_components"] == 592
    assert info["components_per_dimension"] == 592 / info["effective_dimension"]
    assert np.isnan(info["error"])
    assert info["exact"]["solver"] == "kfac"
    assert info["exact"]["size"] == 1810
    whole = InfluenceEstimator(model, sketch=FactorizedSketch(600, random_state=0)).fit(X, y)
    assert info.keys() == whole.sketch_info_.keys()
    assert found.solver_ == "kfac"
    assert found.solver_info_ == {"size": 592, "layers": 2, "dense": 0, "diagonal": 0}
    assert found.ridge_ == whole.ridge_
    assert found.stationarity_ == pytest.approx(whole.stationarity_, rel=1e-6)


def test_a_sketch_that_is_too_small_says_what_would_do(digits):
    model, X, y, _, _ = digits
    with pytest.warns(InfluenceWarning, match=r"n_components=98 is fewer.*in one of") as caught:
        found = kfac(model, 100).fit(X, y)
    info = found.sketch_info_
    assert info["too_small"]
    assert info["sketched_ridge"] == found.ridge_
    (message,) = (str(w.message) for w in caught)
    size = int(message.split("Use n_components=")[1].split()[0])
    assert size > 140
    assert not kfac(model, 2 * size).fit(X, y).sketch_info_["too_small"]


@pytest.mark.filterwarnings("ignore:The ridge 1e-06")
def test_a_sketch_that_would_do_may_be_too_large(digits):
    model, X, y, _, _ = digits
    with pytest.warns(InfluenceWarning, match="Leave sketch=None, as no smaller"):
        kfac(model, 1500, ridge=1e-6).fit(X, y)


def wide_network():
    """Return a network with more inputs than a matrix between them has room for, and rows."""
    module = seeded(lambda: nn.Sequential(nn.Linear(20_000, 6), nn.Tanh(), nn.Linear(6, 2)))
    model = TorchModel(module, loss="mse", weight_decay=0.1)
    return model, normal(12, 20_000) / 100.0, normal(12, 2, seed=1)


@pytest.mark.filterwarnings("ignore:The fitted TorchModel is not at an optimum")
def test_wide_layers_fit():
    model, X, y = wide_network()
    with pytest.raises(MemoryLimitError, match=r"about 9\.6. GB.*Give sketch=FactorizedSketch"):
        kfac(model, memory_limit="100MB").fit(X, y)
    found = kfac(model, 300, memory_limit="100MB").fit(X, y)
    assert np.isfinite(found.influence(X[:3], y[:3])).all()
    assert found.sketch_info_["exact"]["bytes"] > 9e9
    assert found.parameter_change([1]).shape == (found.n_parameters_,)
    with pytest.raises(MemoryLimitError, match=r"allows 0.001 GB\. Lower n_components"):
        kfac(model, 300, memory_limit="1MB").fit(X, y)


def test_each_layer_needs_a_component(digits):
    model, X, y, _, _ = digits
    with pytest.raises(ValueError, match=r"n_components=1 .*fewer than the 2 layers.*Raise it"):
        kfac(model, 1).fit(X, y)


# With everything else


def test_damping_of_a_frozen_network(digits):
    model, X, y, X_query, y_query = digits
    exact, found = (kfac(model, size, ridge=5.0).fit(X, y) for size in (None, 1000))
    assert found.ridge_ == exact.ridge_ == 5.0
    assert 0.9 < found.sketch_info_["sketched_ridge"] < 5.0
    assert found.effective_dimension_ == pytest.approx(exact.effective_dimension_, rel=0.1)
    pairs = [each.influence(X_query, y_query) for each in (found, exact)]
    assert relative(*pairs) < 0.35


def test_without_any_ridge(digits):
    model, X, y, X_query, y_query = digits
    with (
        pytest.warns(InfluenceWarning, match="The ridge 0 of TorchModel"),
        pytest.warns(InfluenceWarning, match="n_components=396 is fewer"),
    ):
        found = kfac(model, 400, ridge=0.0).fit(X, y)
    assert found.sketch_info_["too_small"]
    assert np.isfinite(found.influence(X_query, y_query)).all()


def test_single_precision(digits):
    model, X, y, X_query, y_query = digits
    effects = [
        kfac(model, 400, dtype=dtype).fit(X, y).influence(X_query, y_query)
        for dtype in ("float32", "float64")
    ]
    assert relative(*effects) < 1e-3


def test_numbers_do_not_depend_on_batches(digits):
    model, X, y, X_query, y_query = digits
    effects = [
        kfac(model, 400, batch_size=size).fit(X, y).influence(X_query, y_query)
        for size in (None, 3)
    ]
    assert relative(*effects) < 1e-12


def test_leakage_is_not_known(digits):
    model, X, y, X_query, _ = digits
    found = kfac(model, 400).fit(X, y)
    with pytest.raises(UnsupportedOptionError, match=r"leakage is not known.*random_state"):
        found.leakage(X_query)
    assert kfac(model).fit(X, y).leakage(X_query).max() == 0.0


def test_pickles_and_clones(digits):
    model, X, y, X_query, y_query = digits
    found = kfac(model, 400).fit(X, y)
    effects = found.influence(X_query, y_query)
    copied = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(copied.influence(X_query, y_query), effects)
    again = clone(found).fit(X, y)
    np.testing.assert_array_equal(again.influence(X_query, y_query), effects)


@few_components
@pytest.mark.filterwarnings("ignore:The fitted MLPClassifier")
def test_sizes_are_searched():
    model, X, y, _, _ = perceptron_problem("multiclass")
    influence = kfac(model.set_params(max_iter=300), 12)
    search = GridSearchCV(influence, {"sketch__n_components": [12, 20]}, cv=2).fit(X, y)
    size = search.best_params_["sketch__n_components"]
    assert search.best_estimator_.sketch_info_["n_components"] <= size
