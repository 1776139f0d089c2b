"""The curvature by layers as dense matrices, built from its definition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from helpers import relative
from network_helpers import case_of, oracle
from network_references import trainable
from torch import nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


@dataclass
class Layer:
    """A weight matrix: its columns (o, i) of the parameters, inputs (n, P, i) and sensitivities."""

    columns: np.ndarray
    inputs: np.ndarray
    sensitivities: np.ndarray  # (n, C, P, o)
    is_table: bool


def patches(layer, x):
    """Return the inputs (n, groups, P, i) that a layer multiplies by its weight matrices."""
    if isinstance(layer, nn.Embedding):
        hot = nn.functional.one_hot(x, layer.num_embeddings).double()
        padding = -1 if layer.padding_idx is None else layer.padding_idx
        return (hot * (x != padding)[..., None]).reshape(len(x), 1, -1, layer.num_embeddings)
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
    if isinstance(layer, nn.Linear | nn.Embedding):
        return values.reshape(len(values), 1, -1, values.shape[-1])
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
        is_table = isinstance(layer, nn.Embedding)
        columns = columns.T if is_table else columns
        if R[start] == 0.0:
            continue
        (x, out) = made[0]
        e = [
            torch.autograd.grad(z[:, c].sum(), out, retain_graph=True)[0] for c in range(z.shape[1])
        ]
        e = torch.stack([positions_of(layer, part) for part in e], 1).numpy()
        a = patches(layer, x.detach()).numpy()
        bias = places.get(id(getattr(layer, "bias", None)))
        if bias is not None and R[bias] > 0.0:
            columns = np.c_[columns, bias + np.arange(n_out)]
            a = np.concatenate([a, np.ones((*a.shape[:-1], 1))], -1)
        groups = a.shape[1]
        for g, own in enumerate(np.split(columns, groups)):
            layers.append(Layer(own, a[:, g], e[:, :, g], is_table))
    return layers


class Naive:
    """The matrix of a linearised network by its definition, and steps of the parameters.

    All in units in which every penalised parameter has the same ridge.

    Parameters
    ----------
    largest_dense : int
        Tensors without factors have a dense matrix up to this size.
    factors : dict
        ``P_E`` and ``P_A`` of tensors that are projected, by their first parameter.
    sketched : float
        Ridge of what is projected, in units of the others'.
    """

    def __init__(self, module, X, network, largest_dense=np.inf, factors=(), sketched=1.0):
        self.net, R = network, network.R
        self.factors, self.sketched = dict(factors), sketched
        self.scale = np.sqrt(R.max() / np.where(R > 0.0, R, R.max()))
        self.reference = network.reference()
        self.r, self.Lam = self.reference.r, self.reference.Lam
        self.P, self.ridge = np.zeros((0, len(R))), np.zeros(0)
        self.bases, self.dense = [], []
        free = np.flatnonzero(R == 0.0)
        if len(free):
            self._add(free, np.eye(len(free)))
            self.ridge[:] = 0.0
        left = set(np.flatnonzero(R > 0.0))
        for layer in layers_of(module, X, R):
            columns = layer.columns.ravel()
            sides = tuple(P.shape[1] for P in self.factors.get(columns[0], ()))
            if layer.is_table and sides != layer.columns.shape:
                continue
            P_E, P_A = self.factors.get(columns[0], map(np.eye, layer.columns.shape))
            a = (layer.inputs * self.scale[layer.columns[0]]) @ P_A.T
            e = layer.sensitivities @ P_E.T
            A = np.einsum("n,npi,npj->ij", network.weights, a, a)
            E = np.einsum("ncpo,nce,nepq->oq", e, self.Lam, e)
            Q = np.kron(np.linalg.eigh(E)[1], np.linalg.eigh(A)[1])
            self._add(columns, np.kron(P_E, P_A), Q)
            left -= set(columns)
        start = 0
        for parameter in trainable(module).values():
            columns = np.arange(start, start + parameter.numel())
            start = columns[-1] + 1
            if columns[0] not in left:
                continue
            if columns[0] in self.factors:
                self._add(columns, self.factors[columns[0]][0])
            else:
                eye = np.eye(len(columns))
                self._add(columns, eye, eye if len(columns) > largest_dense else None)
        self.J = network.J * self.scale @ self.P.T

    def _add(self, columns, P, Q=None):
        """Add coordinates of some parameters, with a diagonal matrix in the basis Q or a dense one.

        They stand for ``P^T`` times themselves.
        """
        own = len(self.P) + np.arange(len(P))
        self.P = np.vstack([self.P, np.zeros((len(P), self.P.shape[1]))])
        self.P[np.ix_(own, columns)] = P
        ridge = self.net.R.max() * (self.sketched if columns[0] in self.factors else 1.0)
        self.ridge = np.append(self.ridge, np.full(len(P), ridge))
        if Q is None:
            self.dense.append(own)
        else:
            self.bases.append((own, Q))

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
        share = self.reference.share(rows)
        pull = np.where(self.net.R > 0.0, self.net.R.max(), 0.0) * self.net.theta / self.scale
        gradient = np.einsum("ncd,nc->d", self.J[rows], self.r[rows])
        gradient += share * (self.P @ pull)
        kept = np.arange(len(self.J))
        ridge = self.ridge
        if order == "newton":
            kept, ridge = np.setdiff1d(kept, rows), (1.0 - share) * ridge
        H = self.matrix(kept) + np.diag(ridge)
        state = np.linalg.pinv(H, rcond=1e-12, hermitian=True) @ gradient
        return self.scale * (self.P.T @ state)

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


def assert_as_dense(found, case, dense, expected, order):
    """Check what an `InfluenceEstimator` says of a case against the steps of `Naive`."""
    steps = expected.single_steps(order)
    effects = found.influence(case.X_query, case.y_query)
    assert relative(effects, dense.effects(steps, order).T) < 1e-8
    own = dense.effects(steps, order, training=True).diagonal()
    assert relative(found.self_influence_, own) < 1e-8
    assert relative(found.leverage_, expected.leverages()) < 1e-8
    mean = [
        found.influence_,
        dense.effects(steps, "first", training=True).mean(-1),
    ]
    assert relative(*mean) < 1e-8
    group = [0, 2, 4, 9]
    step = expected.step(group, order)
    removal = found.removal_effect(group, case.X_query, case.y_query)
    assert relative(removal, dense.effects(step, order)) < 1e-8
    assert relative(found.parameter_change(group), step) < 1e-8
