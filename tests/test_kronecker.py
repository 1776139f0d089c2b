"""Curvature taken layer by layer: against dense matrices built from their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pytest
import torch
from helpers import relative
from network_helpers import (
    case_of,
    each_network,
    fit_case,
    oracle,
)
from network_references import LinearisedNetwork, trainable
from torch import nn

from sklearn_dualif.kernels import _kronecker

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
approximate_orders = pytest.mark.parametrize("order", ["first", "newton"])


# The dense matrix, by its definition


@dataclass
class Layer:
    """A weight matrix: its columns (o, i) of the parameters, inputs (n, P, i) and sensitivities."""

    columns: np.ndarray
    inputs: np.ndarray
    sensitivities: np.ndarray  # (n, C, P, o)


def patches(layer, x):
    """Return the inputs (n, groups, P, i) that a layer multiplies by its weight matrices."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), 1, -1, layer.in_features)
    width, shape = layer.in_channels // layer.groups, layer.kernel_size
    size = width * int(np.prod(shape))
    # A convolution of the same kind whose output channels are the entries of the patch.
    probe = type(layer)(
        width,
        size,
        shape,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        padding_mode=layer.padding_mode,
        bias=False,
    ).double()
    with torch.no_grad():
        probe.weight.copy_(torch.eye(size, dtype=torch.float64).reshape(size, width, *shape))
        groups = [probe(part).flatten(2).mT for part in x.split(width, 1)]
    return torch.stack(groups, 1)


def positions_of(layer, values):
    """Return values shaped as a layer's output as (n, groups, P, o / groups)."""
    if isinstance(layer, nn.Linear):
        return values.reshape(len(values), 1, -1, layer.out_features)
    return values.reshape(len(values), layer.groups, layer.out_channels // layer.groups, -1).mT


def layers_of(module, X, R):
    """Return the `Layer` s with a penalised weight matrix that are called once."""
    named = dict(module.named_parameters(remove_duplicate=False))
    owners = [id(p) for p in named.values()]
    starts = np.cumsum([0, *(p.numel() for p in trainable(module).values())])
    places = dict(zip(map(id, trainable(module).values()), starts, strict=False))
    calls = {layer: [] for layer in module.modules() if type(layer) in LAYERS}
    handles = [
        layer.register_forward_hook(lambda own, args, out: calls[own].append((args[0], out)))
        for layer in calls
    ]
    z = module(torch.as_tensor(X))
    for handle in handles:
        handle.remove()
    layers = []
    for layer, made in calls.items():
        shared = any(owners.count(id(p)) > 1 for p in layer.parameters())
        if len(made) != 1 or shared or id(layer.weight) not in places:
            continue
        start, n_out = places[id(layer.weight)], len(layer.weight)
        columns = start + np.arange(layer.weight.numel()).reshape(n_out, -1)
        if R[start] == 0.0:
            continue
        (x, out) = made[0]
        e = [
            torch.autograd.grad(z[:, c].sum(), out, retain_graph=True)[0] for c in range(z.shape[1])
        ]
        e = torch.stack([positions_of(layer, part) for part in e], 1).numpy()
        a = patches(layer, x.detach()).numpy()
        bias = places.get(id(layer.bias)) if layer.bias is not None else None
        if bias is not None and R[bias] > 0.0:
            columns = np.c_[columns, bias + np.arange(n_out)]
            a = np.concatenate([a, np.ones((*a.shape[:-1], 1))], -1)
        groups = a.shape[1]
        for g, own in enumerate(np.split(columns, groups)):
            layers.append(Layer(own, a[:, g], e[:, :, g]))
    return layers


class Naive:
    """The matrix of a linearised network by its definition, and steps of the parameters.

    All in units in which every penalised parameter has the same ridge.
    """

    def __init__(self, module, X, network, largest_dense=np.inf):
        self.net = network
        R = network.R
        self.free = np.flatnonzero(R == 0.0)
        self.scale = np.sqrt(R.max() / np.where(R > 0.0, R, R.max()))
        self.J = network.J * self.scale
        _, self.r, self.Lam = (
            network.reference().weights,
            network.reference().r,
            network.reference().Lam,
        )
        self.ridge = np.where(R > 0.0, R.max(), 0.0)
        self.bases = []
        left = set(np.flatnonzero(R > 0.0))
        for layer in layers_of(module, X, R):
            a = layer.inputs * self.scale[layer.columns[0]]
            A = np.einsum("n,npi,npj->ij", network.weights, a, a)
            E = np.einsum("ncpo,nce,nepq->oq", layer.sensitivities, self.Lam, layer.sensitivities)
            Q = np.kron(np.linalg.eigh(E)[1], np.linalg.eigh(A)[1])
            self.bases.append((layer.columns.ravel(), Q))
            left -= set(layer.columns.ravel())
        start, self.dense = 0, [self.free] if len(self.free) else []
        for parameter in trainable(module).values():
            columns = np.arange(start, start + parameter.numel())
            start = columns[-1] + 1
            if columns[0] not in left:
                continue
            if len(columns) > largest_dense:
                self.bases.append((columns, np.eye(len(columns))))
            else:
                self.dense.append(columns)

    def matrix(self, kept):
        """Return the approximation of sum_i J' Lam J over some rows."""
        J, Lam = self.J[kept], self.Lam[kept]
        H = np.zeros((J.shape[2], J.shape[2]))
        for columns in self.dense:
            own = J[:, :, columns]
            H[np.ix_(columns, columns)] = np.einsum("ncp,nce,neq->pq", own, Lam, own)
        for columns, Q in self.bases:
            values = np.zeros(len(columns))
            for own, curvature in zip(J[:, :, columns] @ Q, Lam, strict=True):
                values += np.einsum("cp,ce,ep->p", own, curvature, own)
            H[np.ix_(columns, columns)] = (Q * values) @ Q.T
        return H

    def step(self, rows, order):
        """Return the change of the parameters (d,) without rows."""
        rows = np.asarray(rows)
        share = self.net.reference().share(rows)
        theta = self.net.theta / self.scale
        gradient = np.einsum("ncd,nc->d", self.J[rows], self.r[rows])
        gradient += share * self.ridge * theta
        kept = np.arange(len(self.J))
        ridge = self.ridge
        if order == "newton":
            kept, ridge = np.setdiff1d(kept, rows), (1.0 - share) * ridge
        H = self.matrix(kept) + np.diag(ridge)
        return self.scale * (np.linalg.pinv(H, rcond=1e-12, hermitian=True) @ gradient)

    def single_steps(self, order):
        return np.stack([self.step([row], order) for row in range(len(self.J))])

    def leverages(self):
        """Return tr(Lam_i J_i H^+ J_i') for each row."""
        H = self.matrix(np.arange(len(self.J))) + np.diag(self.ridge)
        inverse = np.linalg.pinv(H, rcond=1e-12, hermitian=True)
        return np.einsum("nce,ncp,pq,neq->n", self.Lam, self.J, inverse, self.J, optimize=True)


@cache
def naive(name):
    case = case_of(name)
    return Naive(case.module, case.X, oracle(name).network)


@approximate_orders
@each_network("linear-mse", "conv2d-circular")
def test_effects_are_those_of_the_dense_matrix(name, order):
    case, dense, expected = case_of(name), oracle(name), naive(name)
    found = fit_case(case, curvature="kfac", order=order)
    assert found.solver_ == "kfac"
    steps = expected.single_steps(order)
    effects = found.influence(case.X_query, case.y_query)
    assert relative(effects, dense.effects(steps, order).T) < 1e-8
    own = dense.effects(steps, order, training=True).diagonal()
    assert relative(found.self_influence_, own) < 1e-8
    assert relative(found.leverage_, expected.leverages()) < 1e-8
    group = [0, 2, 4, 9]
    step = expected.step(group, order)
    removal = found.removal_effect(group, case.X_query, case.y_query)
    assert relative(removal, dense.effects(step, order)) < 1e-8
    assert relative(found.parameter_change(group), step) < 1e-8
