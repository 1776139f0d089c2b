"""Sketched features: random projections of a network's derivatives, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import relative
from network_helpers import case_of, each_network, normal, seeded
from network_references import trainable
from torch import nn

from sklearn_dualif.kernels import Network, TangentFeatures, _blocks, _tangent
from sklearn_dualif.sketching import (
    GaussianSketch,
    HadamardSketch,
    RademacherSketch,
    SparseSketch,
)

SKETCHES = {
    "gaussian": GaussianSketch,
    "rademacher": RademacherSketch,
    "sparse": SparseSketch,
    "hadamard": HadamardSketch,
}
each_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES)


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
    monkeypatch.setattr(_blocks, "_SCRATCH", scratch)
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
