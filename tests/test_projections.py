"""Random projections: their entries, and what their spectrum says of the matrix behind them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import relative
from hypothesis import given
from hypothesis import strategies as st
from network_helpers import each_sketch, matrix_of, normal
from scipy.linalg import hadamard
from scipy.optimize import brentq

from sklearn_dualif.sketching import (
    FactorizedSketch,
    FactorizedSpectrum,
    GaussianSketch,
    HadamardSketch,
    Layer,
    RademacherSketch,
    SketchedSpectrum,
    SparseSketch,
)


@each_sketch
@pytest.mark.parametrize("d", [5, 64, 4096, 9001])
def test_projections_are_products_with_a_matrix(sketch, d):
    projection = sketch(5, random_state=0).projection(d) if d == 5 else None
    projection = projection or sketch(60, random_state=0).projection(d)
    rows = normal(3, d)
    assert relative(projection(torch.from_numpy(rows)).numpy(), rows @ matrix_of(projection).T) < (
        1e-12
    )


@each_sketch
def test_projections_keep_lengths_on_average(sketch):
    d, rows = 100, torch.from_numpy(normal(1, 100))
    sizes = [
        float((sketch(30, random_state=seed).projection(d)(rows) ** 2).sum()) for seed in range(300)
    ]
    assert np.mean(sizes) == pytest.approx(float((rows**2).sum()), rel=0.04)


def test_entries():
    P = matrix_of(GaussianSketch(300, random_state=0).projection(5000)) * np.sqrt(300)
    assert abs(P.mean()) < 5e-3
    assert P.var() == pytest.approx(1.0, abs=5e-3)
    assert (P**4).mean() == pytest.approx(3.0, abs=0.03)
    P = matrix_of(RademacherSketch(300, random_state=0).projection(5000)) * np.sqrt(300)
    np.testing.assert_allclose(np.abs(P), 1.0, rtol=1e-6)
    assert abs(P.mean()) < 5e-3
    P = matrix_of(SparseSketch(300, n_nonzeros=3, random_state=0).projection(5000)) * np.sqrt(3)
    np.testing.assert_allclose(P[P != 0], np.sign(P[P != 0]), rtol=1e-12)
    # One in each third of the rows.
    np.testing.assert_array_equal((P != 0).reshape(3, 100, -1).sum(1), 1)


def test_hadamard_rows_are_rows_of_the_matrix():
    P = matrix_of(HadamardSketch(40, random_state=0).projection(100)) * np.sqrt(40)
    H = hadamard(128)[:, :100]
    signs = P / np.where(P[0] > 0, 1.0, -1.0)  # unknown signs of columns cancel in products
    products = np.round(P @ P.T)
    found = {tuple(row) for row in np.round(signs * signs[0]).astype(int).tolist()}
    known = [{tuple(row) for row in (H * H[first]).tolist()} for first in range(128)]
    assert any(found <= rows for rows in known)
    np.testing.assert_array_equal(products.diagonal(), 100)


@each_sketch
@given(data=st.data())
def test_numbers_depend_on_the_random_state_alone(sketch, data):
    d = data.draw(st.integers(1, 9000))
    m = data.draw(st.integers(4, 40))
    m = min(m, d) if sketch is HadamardSketch else m
    seed = data.draw(st.integers(0, 100))
    one = sketch(m, random_state=seed).projection(d)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        other = pickle.loads(pickle.dumps(sketch(m, random_state=seed).projection(d)))
        again = matrix_of(other)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(matrix_of(one), again)
    assert not np.array_equal(matrix_of(sketch(m, random_state=seed + 1).projection(d)), again) or (
        d == 1
    )


@each_sketch
def test_the_precision_changes_no_entry(sketch):
    projection = sketch(40, random_state=0).projection(6000)
    eye = torch.eye(40)
    single = projection.transposed(eye).numpy().T
    np.testing.assert_allclose(single, matrix_of(projection), rtol=1e-6)


# Theory


def decaying(n=120, d=300, decay=15.0, seed=0):
    """Return rows (n, d) whose squared singular values decay, and those values."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (n, d))
    values = 10.0 * np.exp(-np.arange(n) / decay)
    return (left * np.sqrt(values)) @ right.T, values


def naive_sketched_ridge(F, P, ridge, ambient=None):
    """Return the root of MATH's equation from the dense sketched matrix."""
    values = np.linalg.eigvalsh(P @ F @ P.T).clip(0.0)
    m = len(P)

    def seen(x):
        dimension = np.sum(values / (values + x))
        others = 1.0 if ambient is None else 1.0 - dimension / ambient
        return x * others / (1.0 - dimension / m)

    return brentq(lambda x: seen(x) - ridge, 1e-9 * ridge, ridge, xtol=1e-16, rtol=1e-12)


@each_sketch
def test_the_debiased_ridge_solves_its_equation(sketch):
    J, _ = decaying()
    projection = sketch(200, random_state=0).projection(300)
    P = matrix_of(projection)
    spectrum = SketchedSpectrum(np.linalg.eigvalsh(P @ J.T @ J @ P.T), 200, projection.ambient)
    expected = naive_sketched_ridge(J.T @ J, P, 0.05, 512 if sketch is HadamardSketch else None)
    assert spectrum.sketched_ridge(0.05) == pytest.approx(expected, rel=1e-8)


def dimensions(values, ridge):
    shares = values / (values + ridge)
    return shares.sum(), (shares**2).sum()


@each_sketch
@pytest.mark.parametrize("per_dimension", [1.5, 3.0])
def test_debiased_sketches_are_unbiased_and_know_their_dimension(sketch, per_dimension):
    J, values = decaying()
    ridge, trials = 0.05, 60
    first, second = dimensions(values, ridge)
    m = int(np.ceil(per_dimension * first))
    exact = J @ np.linalg.solve(J.T @ J + ridge * np.eye(300), J.T)
    ratios, plain, found, covered = [], [], [], 0
    for seed in range(trials):
        projection = sketch(m, random_state=seed).projection(300)
        rows = projection(torch.from_numpy(J)).numpy()
        spectrum = SketchedSpectrum(np.linalg.eigvalsh(rows @ rows.T), m, projection.ambient)
        sketched = spectrum.sketched_ridge(ridge)
        for answers, x in ((ratios, sketched), (plain, ridge)):
            inverse = rows @ np.linalg.solve(rows.T @ rows + x * np.eye(m), rows.T)
            answers.append(np.trace(inverse) / first)
        found.append(spectrum.dimensions(sketched))
        inverse = rows @ np.linalg.solve(rows.T @ rows + sketched * np.eye(m), rows.T)
        # J = V diag(values)^(1/2) U': rows of V stand for gradients of length 1 in F^+.
        worst = np.abs(np.linalg.eigvalsh(inverse - exact)).max()
        covered += worst <= spectrum.error(sketched)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)
    assert np.mean(plain) < 0.97
    np.testing.assert_allclose(np.mean(found, 0), [first, second], rtol=0.03)
    np.testing.assert_allclose(np.array(found)[:, 0], first, rtol=0.05)
    assert covered >= 0.95 * trials


def test_one_non_zero_a_column_is_biased():
    J, values = decaying()
    first, _ = dimensions(values, 0.05)
    m, ratios = int(1.5 * first), []
    for seed in range(40):
        projection = SparseSketch(m, n_nonzeros=1, random_state=seed).projection(300)
        rows = projection(torch.from_numpy(J)).numpy()
        spectrum = SketchedSpectrum(np.linalg.eigvalsh(rows @ rows.T), m)
        sketched = spectrum.sketched_ridge(0.05)
        inverse = rows @ np.linalg.solve(rows.T @ rows + sketched * np.eye(m), rows.T)
        ratios.append(np.trace(inverse) / first)
    assert np.mean(ratios) < 1.0


def test_a_sketch_below_the_dimension_has_no_unbiased_ridge():
    J, values = decaying()
    P = matrix_of(GaussianSketch(40, random_state=0).projection(300))
    spectrum = SketchedSpectrum(np.linalg.eigvalsh(P @ J.T @ J @ P.T), 40)
    assert spectrum.least_ridge > 0.05
    assert spectrum.sketched_ridge(0.05) is None
    assert spectrum.sketched_ridge(2.0 * spectrum.least_ridge) > 0.0
    assert spectrum.ridge(1e-9) == pytest.approx(spectrum.least_ridge, rel=1e-6)


@pytest.mark.parametrize("error", [0.05, 0.2, 0.5])
def test_the_error_asks_for_components_and_they_give_it(error):
    J, _ = decaying()
    rows = GaussianSketch(250, random_state=0).projection(300)(torch.from_numpy(J)).numpy()
    spectrum = SketchedSpectrum(np.linalg.eigvalsh(rows @ rows.T), 250)
    sketched = spectrum.sketched_ridge(0.05)
    m = spectrum.components_for(error, sketched)
    # The same matrix, from a sketch of that size and of one less.
    large, small = (
        SketchedSpectrum(np.linalg.eigvalsh(rows @ rows.T), size) for size in (m, m - 1)
    )
    for each, comparison in ((large, np.less_equal), (small, np.greater)):
        each.dimensions = lambda ridge: spectrum.dimensions(sketched)
        assert comparison(each.error(sketched), error)


def test_a_projection_of_no_known_size():
    with pytest.raises(ValueError, match="n_components='auto' of GaussianSketch is decided on"):
        GaussianSketch().projection(100)


# Factorised sketches


def test_a_factorized_spectrum_of_one_side_is_that_of_independent_rows():
    J, values = decaying()
    projection = FactorizedSketch(120).for_layers([Layer(1, 300, slice(0, 300))], 120, seed=0)
    assert projection.shapes == [(1, 120)]
    rows = projection(torch.from_numpy(J)).numpy()
    factorized = FactorizedSpectrum(rows.T @ rows, projection)
    independent = SketchedSpectrum(np.linalg.eigvalsh(rows.T @ rows), 120)
    for ridge in (0.05, 1.0):
        sketched = factorized.sketched_ridge(ridge)
        assert sketched == pytest.approx(independent.sketched_ridge(ridge), rel=1e-5)
        np.testing.assert_allclose(
            factorized.dimensions(sketched), independent.dimensions(sketched), rtol=1e-4
        )
        assert factorized.ridge(sketched) == ridge


def test_a_factorized_spectrum_of_identities_is_the_matrix_s_own():
    J, values = decaying(n=20, d=60)
    layers = [Layer(6, 10, slice(0, 60))]
    projection = FactorizedSketch(60).for_layers(layers, 60, seed=0)
    spectrum = FactorizedSpectrum(J.T @ J, projection)
    assert spectrum.sketched_ridge(0.05) == pytest.approx(0.05)
    np.testing.assert_allclose(spectrum.dimensions(0.05), dimensions(values, 0.05), rtol=1e-8)
