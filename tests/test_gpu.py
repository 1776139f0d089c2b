"""Networks on a GPU give the numbers that they give on the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_cases import network_case
from network_helpers import torch_model

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.sketching import (
    FactorizedSketch,
    GaussianSketch,
    HadamardSketch,
    SparseSketch,
)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:The fitted TorchModel is not at an optimum"),
]


@pytest.mark.parametrize("solver", ["primal", "dual", "iterative"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-3)])
@pytest.mark.parametrize("name", ["mlp-relu", "conv2d-groups", "embedding", "mlp-mse-free-biases"])
def test_a_gpu_agrees_with_the_processor(name, dtype, tolerance, solver):
    case = network_case(name)
    answers = []
    for device in (None, "cuda"):
        influence = InfluenceEstimator(
            torch_model(case), solver=solver, dtype=dtype, device=device, tol=1e-6, random_state=0
        ).fit(case.X, case.y)
        answers.append(
            [
                influence.influence(case.X_query, case.y_query),
                influence.influence(case.X_query, case.y_query, order="first"),
                influence.removal_effect([1, 2, 3], case.X_query, case.y_query, order="exact"),
                influence.parameter_change([4]),
                influence.self_influence_,
                influence.leverage_,
            ]
        )
    for found, expected in zip(*answers, strict=True):
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("sketch", [GaussianSketch, SparseSketch, HadamardSketch, FactorizedSketch])
@pytest.mark.parametrize("name", ["mlp-relu", "conv2d-groups", "embedding", "mlp-mse-free-biases"])
@pytest.mark.filterwarnings("ignore:n_components=")
def test_sketches_on_a_gpu_agree_with_those_on_the_processor(name, sketch):
    _agree(network_case(name), sketch=sketch(40, random_state=0))


@pytest.mark.parametrize("name", ["mlp-relu", "conv2d-groups", "embedding", "mlp-mse-free-biases"])
def test_the_curvature_by_layers_on_a_gpu_agrees_with_that_on_the_processor(name):
    _agree(network_case(name), curvature="kfac")


@pytest.mark.parametrize("name", ["mlp-relu", "conv2d-groups", "embedding", "mlp-mse-free-biases"])
@pytest.mark.filterwarnings("ignore:n_components=")
def test_sketched_layers_on_a_gpu_agree_with_those_on_the_processor(name):
    _agree(network_case(name), curvature="kfac", sketch=FactorizedSketch(30, random_state=0))


def _agree(case, **options):
    answers = []
    for device in (None, "cuda"):
        influence = InfluenceEstimator(torch_model(case), device=device, **options)
        influence.fit(case.X, case.y)
        answers.append(
            [
                influence.influence(case.X_query, case.y_query),
                influence.influence(case.X_query, case.y_query, order="first"),
                influence.removal_effect([1, 2, 3], case.X_query, case.y_query),
                influence.self_influence_,
            ]
        )
    for found, expected in zip(*answers, strict=True):
        assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)
