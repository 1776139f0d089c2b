"""The oracles for networks themselves: against torch, finite differences and each other."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from network_cases import NETWORK_NAMES, network_case, network_cases
from network_references import (
    decay_diagonal,
    dense_jacobian,
    dense_outputs,
    finite_difference_jacobian,
    linearise,
    loss_effects,
    loss_pieces,
    loss_values,
    output_changes,
    parameter_vector,
    target_matrix,
    trainable,
    write_parameters,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import log_loss, mean_squared_error
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional as F  # noqa: N812

each_network = pytest.mark.parametrize("name", NETWORK_NAMES)
each_loss = pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
QUADRATIC = [name for name in NETWORK_NAMES if "mse" in name]
SOME = ["linear-free-bias", "mlp-weights", "mlp-free-biases", "mlp-multilabel", "mlp-mse-multi"]
GROUP = [1, 4, 9]


@cache
def linearised(name):
    """Return the linearisation of a case, with its optimum."""
    network = linearise(network_case(name))
    return network, network.optimum()


def at_optimum(name):
    """Return the dense reference of a case at the optimum of its linearisation."""
    network, optimum = linearised(name)
    return network.reference(optimum)


def torch_loss(loss, z, y):
    """Return the losses of rows (n,) as torch computes them."""
    if loss == "cross_entropy":
        return F.cross_entropy(z, torch.as_tensor(y), reduction="none")
    targets = torch.as_tensor(np.reshape(y, z.shape), dtype=torch.float64)
    if loss == "mse":
        return F.mse_loss(z, targets, reduction="none").mean(1)
    return F.binary_cross_entropy_with_logits(z, targets, reduction="none").sum(1)


def random_targets(loss, n, n_outputs, rng):
    """Return targets of random outputs."""
    if loss == "cross_entropy":
        return rng.integers(0, n_outputs, n)
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, (n, n_outputs))
    return rng.standard_normal((n, n_outputs))


def padding_rows(module):
    """Mark the parameters (d,) which are embeddings of padding, which torch does not train."""
    marks = {name: np.zeros(p.shape, dtype=bool) for name, p in trainable(module).items()}
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            marks[f"{name}.weight"][part.padding_idx] = True
    return np.concatenate([mark.ravel() for mark in marks.values()])


# The zoo


def test_names_are_unique_and_find_their_case():
    assert [case.name for case in network_cases()] == list(NETWORK_NAMES)


@each_network
def test_cases_are_small_and_in_double_precision(name):
    case = network_case(name)
    z = dense_outputs(case.module, case.X)
    assert z.shape == (case.n_rows, case.n_outputs) and z.dtype == np.float64
    assert dense_outputs(case.module, case.X_query).shape == (len(case.y_query), case.n_outputs)
    assert all(t.dtype == torch.float64 for t in case.module.parameters())
    assert case.X.dtype in (np.float64, np.int64)
    assert len(parameter_vector(case.module)) <= 150
    assert not any(part.training for part in case.module.modules())


@each_network
def test_cases_are_built_anew_and_alike(name):
    first, second = network_case(name), network_case(name)
    assert first.module is not second.module
    assert_array_equal(parameter_vector(first.module), parameter_vector(second.module))
    assert_array_equal(first.X, second.X)


def test_building_leaves_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    network_cases()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert_array_equal(np.random.get_state()[1], numpy_state)


def test_a_glob_is_needed_for_each_parameter():
    module = network_case("mlp-tanh").module
    with pytest.raises(ValueError, match="unpack"):
        decay_diagonal(module, {"*.weight": 0.1})
    with pytest.raises(ValueError, match="unpack"):
        decay_diagonal(module, {"*": 0.1, "*.bias": 0.0})


def test_globs_decay_their_parameters_only():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    decay = decay_diagonal(module, {"*.weight": 0.5, "*.bias": 0.0})
    assert_array_equal(decay, [0.5] * 6 + [0.0] * 3 + [0.5] * 3 + [0.0])


# Outputs and Jacobians


@each_network
def test_jacobian_is_the_finite_difference(name):
    case = network_case(name)
    trained = ~padding_rows(case.module)
    J = dense_jacobian(case.module, case.X)
    difference = finite_difference_jacobian(case.module, case.X)
    assert_allclose(J[..., trained], difference[..., trained], atol=2e-9)
    assert np.all(J[..., ~trained] == 0.0)


# torch's functional_call breaks a module that holds one layer at two places (pytorch#164759), and
# vmap warns about the fused attention.
@pytest.mark.parametrize(
    "name", [n for n in NETWORK_NAMES if n not in ("shared-layer", "attention", "transformer")]
)
def test_jacobian_is_that_of_jacrev(name):
    case = network_case(name)
    X = torch.as_tensor(case.X)

    def outputs(parameters):
        return torch.func.functional_call(case.module, parameters, (X,))

    parameters = {name: p.detach() for name, p in trainable(case.module).items()}
    parts = torch.func.jacrev(outputs)(parameters).values()
    expected = torch.cat([part.flatten(2) for part in parts], dim=2)
    assert_allclose(dense_jacobian(case.module, case.X), expected, rtol=1e-12, atol=1e-14)


def test_one_layer_at_two_places_is_one_layer_called_twice():
    called, shared = network_case("called-twice"), network_case("shared-layer")
    assert_array_equal(parameter_vector(called.module), parameter_vector(shared.module))
    assert_array_equal(
        dense_jacobian(called.module, called.X), dense_jacobian(shared.module, called.X)
    )


@each_network
def test_outputs_elsewhere_leave_the_module_where_it_was(name):
    case = network_case(name)
    theta, z = parameter_vector(case.module), dense_outputs(case.module, case.X)
    moved = dense_outputs(case.module, case.X, 1.1 * theta)
    assert np.all(np.any(moved != z, axis=1))
    assert_array_equal(parameter_vector(case.module), theta)
    write_parameters(case.module, 1.1 * theta)
    assert_array_equal(dense_outputs(case.module, case.X), moved)


def test_a_training_module_is_evaluated_and_trains_on():
    case = network_case("batch-norm-1d")
    z, J = dense_outputs(case.module, case.X), dense_jacobian(case.module, case.X)
    case.module.train()
    case.module[0].eval()
    modes = [part.training for part in case.module.modules()]
    assert_array_equal(dense_outputs(case.module, case.X), z)
    assert_array_equal(dense_jacobian(case.module, case.X), J)
    assert [part.training for part in case.module.modules()] == modes


def test_untrained_parameters_have_no_column():
    case = network_case("frozen-layer")
    full = network_case("mlp-tanh")
    assert_array_equal(
        dense_jacobian(case.module, case.X), dense_jacobian(full.module, case.X)[..., 25:]
    )


# Losses


@each_loss
@pytest.mark.parametrize("n_outputs", [1, 2, 4])
def test_pieces_are_the_derivatives_of_torch_losses(loss, n_outputs):
    rng = np.random.default_rng(0)
    z, weights = 3.0 * rng.standard_normal((6, n_outputs)), rng.uniform(0.0, 2.0, 6)
    y = random_targets(loss, 6, n_outputs, rng)
    value, r, Lam = loss_pieces(loss, z, y, weights)
    for i in range(len(z)):

        def row(output, i=i):
            return weights[i] * torch_loss(loss, output[None], y[[i]])[0]

        output = torch.as_tensor(z[i])
        assert_allclose(value[i], row(output), rtol=1e-13, atol=1e-15)
        assert_allclose(r[i], torch.func.grad(row)(output), rtol=1e-12, atol=1e-14)
        assert_allclose(Lam[i], hessian(row, output), rtol=1e-12, atol=1e-14)


@each_loss
def test_pieces_are_finite_differences_of_each_other(loss):
    rng = np.random.default_rng(1)
    z, y = rng.standard_normal((6, 3)), random_targets(loss, 6, 3, rng)
    ones, step = np.ones(6), 1e-6
    _, r, Lam = loss_pieces(loss, z, y, ones)
    for c, move in enumerate(step * np.eye(3)):
        up, down = loss_pieces(loss, z + move, y, ones), loss_pieces(loss, z - move, y, ones)
        assert_allclose(r[:, c], (up[0] - down[0]) / (2 * step), atol=1e-9)
        assert_allclose(Lam[:, :, c], (up[1] - down[1]) / (2 * step), atol=1e-9)


@each_loss
def test_values_stay_finite_far_out(loss):
    rng = np.random.default_rng(2)
    z, y = 1e3 * rng.standard_normal((6, 3)), random_targets(loss, 6, 3, rng)
    for piece in loss_pieces(loss, z, y, np.ones(6)):
        assert np.all(np.isfinite(piece))


def test_values_are_the_metrics_of_scikit_learn():
    rng = np.random.default_rng(3)
    z = rng.standard_normal((6, 3))
    y = random_targets("cross_entropy", 6, 3, rng)
    p = torch.softmax(torch.as_tensor(z), 1).numpy()
    assert_allclose(loss_values("cross_entropy", z, y).mean(), log_loss(y, p, labels=[0, 1, 2]))
    y = random_targets("binary_cross_entropy", 6, 3, rng)
    p = torch.sigmoid(torch.as_tensor(z)).numpy()
    columns = [log_loss(y[:, c], p[:, c], labels=[0, 1]) for c in range(3)]
    assert_allclose(loss_values("binary_cross_entropy", z, y).mean(), sum(columns))
    y = random_targets("mse", 6, 3, rng)
    assert_allclose(loss_values("mse", z, y).mean(), mean_squared_error(y, z))


@each_loss
def test_loss_effects_of_stacked_changes_are_those_of_each(loss):
    rng = np.random.default_rng(4)
    z, dz = rng.standard_normal((5, 3)), rng.standard_normal((2, 5, 3))
    y = random_targets(loss, 5, 3, rng)
    effects = loss_effects(loss, z, y, dz)
    for effect, change in zip(effects, dz, strict=True):
        expected = loss_values(loss, z + change, y) - loss_values(loss, z, y)
        assert_array_equal(effect, expected)


# Objectives


@each_network
def test_gradient_is_that_of_the_mean_loss_with_weight_decay(name):
    case = network_case(name)
    weights = torch.as_tensor(case.weights)
    decay = torch.as_tensor(decay_diagonal(case.module, case.weight_decay))
    losses = torch_loss(case.loss, case.module(torch.as_tensor(case.X)), case.y)
    theta = torch.cat([p.ravel() for p in trainable(case.module).values()])
    objective = (weights * losses).sum() / weights.sum() + 0.5 * (decay * theta**2).sum()
    objective.backward()
    gradient = torch.cat([p.grad.ravel() for p in trainable(case.module).values()])
    assert_allclose(
        linearise(case).reference().gradient, weights.sum() * gradient, rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("name", ["linear-softmax", "linear-free-bias", "linear-mse"])
def test_hessian_of_a_linear_network_is_that_of_its_objective(name):
    case = network_case(name)
    network = linearise(case)
    X = torch.as_tensor(case.X)

    def objective(theta):
        W = theta[: -case.n_outputs].reshape(case.n_outputs, -1)
        z = X @ W.T + theta[-case.n_outputs :]
        penalty = 0.5 * (torch.as_tensor(network.R) * theta**2).sum()
        return torch_loss(case.loss, z, case.y).sum() + penalty

    expected = hessian(objective, torch.as_tensor(network.theta))
    assert_allclose(network.reference().hessian, expected, rtol=1e-12, atol=1e-13)


# Optima of the linearisation


@each_network
def test_optimum_has_no_gradient(name):
    reference = at_optimum(name)
    scale = np.max(np.sum(np.abs(np.einsum("ncd,nc->nd", reference.J, reference.r)), axis=0))
    assert np.max(np.abs(reference.gradient)) < 1e-12 * max(scale, 1.0)


@pytest.mark.parametrize("name", QUADRATIC)
def test_optimum_of_squared_errors_is_a_least_squares_solution(name):
    network, optimum = linearised(name)
    n, C, d = network.J.shape
    root = np.sqrt(2.0 * network.weights / C)[:, None]
    T = target_matrix(network.loss, network.y, C)
    rest = root * (T - network.z + network.J @ network.theta)
    rows = np.vstack([(root[..., None] * network.J).reshape(n * C, d), np.diag(network.R**0.5)])
    expected = np.linalg.lstsq(rows, np.append(rest, np.zeros(d)), rcond=None)[0]
    assert_allclose(optimum, expected, rtol=1e-9, atol=1e-10)


def test_optimum_leaves_redundant_directions_alone():
    network, optimum = linearised("linear-free-bias")
    assert_allclose(np.sum((optimum - network.theta)[-3:]), 0.0, atol=1e-12)


# Steps


@pytest.mark.parametrize("penalty_scales", [True, False])
@pytest.mark.parametrize("name", QUADRATIC)
def test_newton_step_is_exact_for_squared_errors(name, penalty_scales):
    network = linearise(network_case(name), penalty_scales)
    reference = network.reference(network.optimum())
    for rows in ([0], [5], GROUP):
        assert_allclose(reference.newton(rows), network.removal(rows), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("penalty_scales", [True, False])
@pytest.mark.parametrize("name", SOME)
def test_first_order_step_is_the_slope_of_the_optimum_in_the_weights(name, penalty_scales):
    network = linearise(network_case(name), penalty_scales)
    step = 1e-4
    moved = np.zeros(len(network.J))
    moved[GROUP] = step
    weights = network.weights
    less, more = (
        network.reweighted(weights * (1.0 + sign * moved)).optimum() for sign in (-1.0, 1.0)
    )
    reference = network.reference(network.optimum())
    assert_allclose(
        reference.first_order(GROUP), (less - more) / (2.0 * step), rtol=1e-5, atol=1e-6
    )


@each_network
def test_steps_solve_their_equations(name):
    reference = at_optimum(name)
    gradient = np.einsum("ncd,nc->d", reference.J[GROUP], reference.r[GROUP])
    gradient += reference.share(GROUP) * reference.R * reference.theta
    assert_allclose(reference.hessian @ reference.first_order(GROUP), gradient, atol=1e-10)
    J, Lam = (np.delete(A, GROUP, axis=0) for A in (reference.J, reference.Lam))
    kept = np.einsum("ncp,nce,neq->pq", J, Lam, J)
    kept += (1.0 - reference.share(GROUP)) * np.diag(reference.R)
    assert_allclose(kept @ reference.newton(GROUP), gradient, atol=1e-10)


def test_newton_is_nearer_to_the_exact_removal_than_first_order():
    network, _ = linearised("mlp-multilabel")
    reference = at_optimum("mlp-multilabel")
    exact = np.stack([network.removal([row]) for row in range(len(network.J))])
    errors = {
        step: np.abs(reference.leave_one_out(step) - exact).max()
        for step in ("first_order", "newton")
    }
    assert errors["newton"] < 0.5 * errors["first_order"]


def test_the_share_of_the_penalty_is_that_of_the_weight():
    case = network_case("mlp-weights")
    scaling, fixed = linearise(case).reference(), linearise(case, False).reference()
    assert scaling.share([0]) == 0.0
    assert scaling.share([2]) == 2.0 / case.weights.sum()
    assert scaling.share(range(case.n_rows)) == 1.0
    assert fixed.share(GROUP) == 0.0


def test_a_row_without_weight_leaves_nothing_behind():
    network, _ = linearised("mlp-weights")
    reference = at_optimum("mlp-weights")
    for step in (reference.first_order([0]), reference.newton([0]), network.removal([0])):
        assert_array_equal(step, 0.0)


# Leverages


@each_network
def test_leverages_add_up_to_the_effective_dimension(name):
    reference = at_optimum(name)
    leverages = reference.leverages()
    assert np.all(leverages > -1e-12) and np.all(leverages < reference.J.shape[1] + 1e-12)
    assert_allclose(leverages.sum(), reference.effective_dimension(), rtol=1e-10)


def test_effective_dimension_without_a_penalty_is_the_number_of_parameters():
    reference = at_optimum("linear-mse")
    assert_allclose(reference.effective_dimension(), 5.0, rtol=1e-12)


@pytest.mark.parametrize("name", QUADRATIC)
def test_leverage_is_the_slope_of_fitted_outputs_in_the_targets(name):
    network, optimum = linearised(name)
    leverages = at_optimum(name).leverages()
    row, C = 3, network.J.shape[1]
    slopes = 0.0
    for c in range(C):
        y = target_matrix("mse", network.y, C)
        y[row, c] += 1.0
        moved = replace(network, y=y).optimum()
        slopes += output_changes(network.J[[row]], moved - optimum)[0, c]
    assert_allclose(leverages[row], slopes, rtol=1e-9)


def test_output_changes_of_a_linear_network_are_exact():
    case = network_case("linear-softmax")
    theta, moved = parameter_vector(case.module), linearised("linear-softmax")[1]
    dz = output_changes(dense_jacobian(case.module, case.X_query), moved - theta)
    expected = dense_outputs(case.module, case.X_query, moved)
    assert_allclose(dense_outputs(case.module, case.X_query) + dz, expected, rtol=1e-12)
