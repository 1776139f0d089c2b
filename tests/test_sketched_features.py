"""Sketched features: random projections of a network's derivatives, layer by layer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from helpers import relative, sparse_rows
from network_cases import NETWORK_NAMES
from network_helpers import case_of, each_network, each_sketch, normal, seeded
from network_references import trainable
from torch import nn

from sklearn_dualif.kernels import (
    LinearFeatures,
    LinearNetwork,
    Network,
    TangentFeatures,
    _blocks,
    _lookup,
    _tangent,
)
from sklearn_dualif.sketching import (
    FactorizedSketch,
    GaussianSketch,
    HadamardSketch,
    Layer,
    RademacherSketch,
)
from sklearn_dualif.sketching._factorized import shapes_of


def features_of(module, X, dtype=torch.float64, free=()):
    relative_penalty = {name: 0.0 if name in free else 1.0 for name in trainable(module)}
    network = Network(module, relative_penalty, torch.as_tensor(X), dtype=dtype)
    return TangentFeatures(network, torch.as_tensor(X))


def expected(heads, projection):
    """Return the projections through the dense Jacobian and the dense matrix."""
    eye = torch.eye(projection.n_components, dtype=torch.float64)
    return heads.jacobian().double().numpy() @ projection.transposed(eye).numpy()


@each_sketch
@each_network()
def test_sketches_are_of_the_dense_jacobian(name, sketch):
    case = case_of(name)
    heads = features_of(case.module, case.X).output_heads
    projection = sketch(8, random_state=0).projection(heads.network.n_penalized)
    found = heads.sketched(projection) * projection.scale
    assert relative(found.numpy(), expected(heads, projection)) < 1e-12


WIDE = {
    # Panels of 4096 columns begin and end inside of rows of the weights, and of whole layers.
    "dense": (lambda: nn.Sequential(nn.Linear(97, 61), nn.Tanh(), nn.Linear(61, 3)), (97,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(5000, 2, bias=False)), (5000,)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 20, 3, groups=1),
            nn.ReLU(),
            nn.Conv2d(20, 30, 3),
            nn.Flatten(),
            nn.Linear(30 * 4, 2),
        ),
        (3, 6, 6),
    ),
    "long rows": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(9000, 3), nn.Tanh(), nn.Linear(3, 2)),
        (90, 100),
    ),
}


@each_sketch
@pytest.mark.parametrize("scratch", [2**24, 500])
@pytest.mark.parametrize("name", WIDE)
def test_sketches_of_many_panels(name, scratch, sketch, monkeypatch):
    for blocks in (_blocks, _lookup):
        monkeypatch.setattr(blocks, "_SCRATCH", scratch)
    monkeypatch.setattr(_tangent, "_PANEL_DOUBLES", 10 * scratch)
    build, shape = WIDE[name]
    heads = features_of(seeded(build), normal(7, *shape)).output_heads
    projection = sketch(40, random_state=0).projection(heads.network.n_penalized)
    assert projection.n_panels > 1
    found = heads.sketched(projection) * projection.scale
    assert relative(found.numpy(), expected(heads, projection)) < 1e-12


@each_sketch
def test_sketches_of_embeddings_of_many_panels(sketch):
    module = seeded(
        lambda: nn.Sequential(nn.Embedding(700, 9, padding_idx=0), nn.Flatten(), nn.Linear(36, 2))
    )
    X = np.random.default_rng(0).integers(0, 700, (6, 4))
    X[0, :2] = X[1, 2] = 0
    X[2] = X[2, 0]
    heads = features_of(module, X).output_heads
    projection = sketch(40, random_state=0).projection(heads.network.n_penalized)
    found = heads.sketched(projection) * projection.scale
    assert relative(found.numpy(), expected(heads, projection)) < 1e-12


def factorized_case(name):
    if name in WIDE:
        build, shape = WIDE[name]
        return features_of(seeded(build), normal(7, *shape))
    case = case_of(name)
    return features_of(case.module, case.X)


@pytest.mark.parametrize(
    ("name", "size"),
    [*product(NETWORK_NAMES, (12, 300, 10_000)), *product(WIDE, (12, 300))],
)
def test_factorized_sketches_are_kronecker_products(name, size):
    features = factorized_case(name)
    heads, layers = features.output_heads, features.layers()
    projection = FactorizedSketch(size).for_layers(layers, size, seed=0)
    assert projection.n_components <= max(size, len(layers))
    J = heads.jacobian().numpy()
    found = heads.sketched(projection).numpy()
    for index, (layer, place) in enumerate(zip(layers, projection.places, strict=True)):
        sides = projection.factors(index, heads.jacobian())
        sizes = layer.outputs, layer.inputs
        P_E, P_A = (
            np.eye(size) if side is None else side.numpy()
            for side, size in zip(sides, sizes, strict=True)
        )
        # Explicit gradients as matrices of the layer, and the dense Kronecker product.
        G = J[..., layer.weight]
        G = G.reshape(*G.shape[:2], *(sizes[::-1] if layer.by_inputs else (sizes[0], -1)))
        G = G.swapaxes(2, 3) if layer.by_inputs else G
        if layer.bias is not None:
            G = np.concatenate([G, J[..., layer.bias][..., None]], 3)
        dense = G.reshape(*G.shape[:2], -1) @ np.kron(P_E, P_A).T
        assert np.abs(found[..., place] - dense).max() < 1e-10 * max(1.0, np.abs(dense).max())
    eye = torch.eye(projection.n_components, dtype=torch.float64)
    whole = J @ projection.transposed(eye).numpy()
    assert relative(found, whole) < 1e-12
    assert relative(projection(torch.from_numpy(J[:, 0])).numpy(), whole[:, 0]) < 1e-12


def test_factorized_sketches_of_sparse_rows():
    X = sparse_rows(9, 50, 0.1)
    weights = torch.from_numpy(normal(3, 50))
    network = LinearNetwork(
        weights,
        *(part.double() for part in (torch.zeros(3), torch.eye(3), torch.eye(3), torch.ones(3))),
    )
    features, dense = (TangentFeatures(network, LinearFeatures(rows)) for rows in (X, X.toarray()))
    for size in (20, 1000):
        projection = FactorizedSketch(size).for_layers(dense.layers(), size, seed=0)
        found = features.output_heads.sketched(projection)
        assert relative(found.numpy(), dense.output_heads.sketched(projection).numpy()) < 1e-12
        projection = GaussianSketch(size, random_state=0).projection(150)
        found = features.output_heads.sketched(projection)
        assert relative(found.numpy(), dense.output_heads.sketched(projection).numpy()) < 1e-12
    assert (
        relative(
            features.output_heads.gram(features.output_heads).numpy(),
            dense.output_heads.gram(dense.output_heads).numpy(),
        )
        < 1e-12
    )


@pytest.mark.parametrize(
    ("sizes", "n_components", "expected"),
    [
        ([(20, 30)], 100, [(10, 10)]),
        ([(3, 30)], 30, [(3, 10)]),
        ([(30, 3)], 31, [(10, 3)]),
        ([(3, 4), (50, 60)], 512, [(3, 4), (22, 22)]),
        ([(3, 4), (5, 6)], 10_000, [(3, 4), (5, 6)]),
        ([(40, 1), (50, 60)], 110, [(40, 1), (8, 8)]),
    ],
)
def test_shapes_of_factorized_sketches(sizes, n_components, expected):
    layers = [Layer(*size, slice(0, size[0] * size[1])) for size in sizes]
    assert shapes_of(layers, n_components) == expected


def test_too_few_components_for_all_layers():
    layers = factorized_case("dense").layers()
    with pytest.raises(ValueError, match=r"n_components=1 .* fewer than the 2 layers"):
        FactorizedSketch(1).for_layers(layers, 1, seed=0)


@pytest.mark.parametrize("sketch", [GaussianSketch, RademacherSketch, HadamardSketch])
def test_more_components_add_to_fewer(sketch):
    module = seeded(WIDE["dense"][0])
    heads = features_of(module, normal(5, 97)).output_heads
    d = heads.network.n_penalized
    small, large = (sketch(m, random_state=3).projection(d) for m in (300, 700))
    whole = heads.sketched(large)
    assert relative(heads.sketched(small).numpy(), whole[..., :300].numpy()) < 1e-12
    assert relative(heads.sketched(large, 300).numpy(), whole[..., 300:].numpy()) < 1e-12


@each_sketch
def test_single_precision(sketch):
    X = normal(7, 97)
    double, single = (
        features_of(seeded(WIDE["dense"][0]), X, dtype).output_heads
        for dtype in (torch.float64, torch.float32)
    )
    projection = sketch(200, random_state=0).projection(double.network.n_penalized)
    found = single.sketched(projection)
    assert found.dtype == torch.float32
    assert relative(found.numpy(), double.sketched(projection).numpy()) < 1e-6
