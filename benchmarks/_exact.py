r"""The effects of removal on a network's linearisation, in float64, written out layer by layer.

What the contenders' scores are compared with; nothing here is shared with the package. With
:math:`n` rows, ridge :math:`\rho = n \lambda` and the roots :math:`S_i S_i^\top = \Lambda_i`,
:math:`S_i c_i = r_i` of the softmax cross-entropy in its C − 1 coordinates,

.. math:: M = \rho I + S^\top K S, \qquad
          \delta\theta_i = H^{-1} (J_i^\top r_i + \lambda \theta)

is the first-order removal of row i with its share of the weight decay, and a Newton step solves
with :math:`H - J_i^\top \Lambda_i J_i - \lambda I` instead of H.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from _recipes import DECAY, kept
from scipy.linalg import lapack
from torch import nn

_PANEL = 2**25


class Heads(NamedTuple):
    """Derivatives of combinations of outputs: one entry a layer with parameters.

    A dense layer has inputs (n, i), a one appended, and sensitivities (n, h, o); a convolution has
    None and its explicit derivatives (n, h, p).
    """

    layers: list
    rows: int
    each: int


def capture(module, X):
    """Return outputs (n, C) and the `Heads` of all outputs of a sequential module."""
    known, x = [], X
    for layer in module:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            inputs, x = x.detach(), layer(x)
            x = x if x.requires_grad else x.detach().requires_grad_()
            known.append((layer, inputs, x))
        else:
            x = layer(x)
    nodes = [node for _, _, node in known]
    gradients = [
        torch.autograd.grad(x[:, k].sum(), nodes, retain_graph=True) for k in range(x.shape[1])
    ]
    layers = []
    for (layer, inputs, _), *parts in zip(known, *gradients, strict=True):
        sensitivities = torch.stack(parts, 1)
        ones = inputs.new_ones(len(inputs), 1)
        if isinstance(layer, nn.Linear):
            layers.append((torch.cat([inputs, ones], 1), sensitivities))
            continue
        patches = nn.functional.unfold(
            inputs, layer.kernel_size, padding=layer.padding, stride=layer.stride
        )
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
        explicit = sensitivities.flatten(3) @ patches.mT[:, None]
        layers.append((None, explicit.flatten(2)))
    return x.detach(), Heads(layers, *x.shape)


def mixed(heads, root):
    """Return the heads ``root^T z`` for root (n, C, h)."""
    layers = [(inputs, root.mT @ values) for inputs, values in heads.layers]
    return Heads(layers, heads.rows, root.shape[2])


def taken(heads, rows):
    layers = [(None if a is None else a[rows], values[rows]) for a, values in heads.layers]
    return Heads(layers, len(layers[0][1]), heads.each)


def kernel(left, right):
    """Return the tangent kernel (n h, n' h') of two sets of heads."""
    total = 0.0
    for (a, e), (b, f) in zip(left.layers, right.layers, strict=True):
        product = e.flatten(0, 1) @ f.flatten(0, 1).T
        if a is not None:
            shaped = product.view(left.rows, left.each, right.rows, right.each)
            shaped *= (a @ b.T)[:, None, :, None]
        total = total + product
    return total


def pushed(heads, module):
    """Return ``J theta`` (n, h) of the module's own parameters."""
    total = 0.0
    known = [layer for layer in module if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer, (a, e) in zip(known, heads.layers, strict=True):
        weight = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).detach()
        if a is None:
            total = total + e @ weight.flatten()
        else:
            total = total + torch.einsum("nho,no->nh", e, a @ weight.T)
    return total


def softmax_root(z, y):
    """Return p (n, C), the roots S (n, C, C − 1) and c (n, C − 1)."""
    p = torch.softmax(z, 1)
    root = p.sqrt()
    # An orthonormal basis of what is orthogonal to the root of p.
    frame = torch.cat([root[:, :, None], torch.eye(z.shape[1]).expand(len(z), -1, -1)], 2)
    basis = torch.linalg.qr(frame)[0][:, :, 1:]
    curvature = torch.diag_embed(root) - p[:, :, None] * root[:, None]
    own = root.clone()
    rows = torch.arange(len(y))
    own[rows, y] -= 1 / root[rows, y]
    return p, curvature @ basis, (basis.mT @ own[:, :, None])[..., 0]


class _Factor:
    """Cholesky factor of ``ridge I + S^T K S``, in the one matrix that there is."""

    def __init__(self, heads, ridge):
        n, h = heads.rows, heads.each
        size = n * h
        # Fortran order, so that LAPACK works in place; symmetric, so that nothing else changes.
        self.matrix = torch.empty(size, size)
        step = max(1, _PANEL // (h * size))
        for start in range(0, n, step):
            rows = slice(start, min(n, start + step))
            others = slice(0, rows.stop)
            panel = kernel(taken(heads, rows), taken(heads, others))
            self.matrix[start * h : rows.stop * h, : rows.stop * h] = panel
        self.matrix.diagonal().add_(ridge)
        # The lower triangle by rows is the upper one by columns.
        _, failed = lapack.dpotrf(self.matrix.numpy().T, lower=0, overwrite_a=1, clean=0)
        if failed:
            raise RuntimeError(f"The kernel matrix is not positive definite: dpotrf gave {failed}.")

    def solve(self, columns):
        solution, _ = lapack.dpotrs(self.matrix.numpy().T, columns.numpy(), lower=0)
        return torch.from_numpy(np.ascontiguousarray(solution))

    def diagonal_blocks(self, each):
        """Return the diagonal blocks (n, each, each) of the inverse, which takes the factor."""
        lapack.dpotri(self.matrix.numpy().T, lower=0, overwrite_c=1)
        # Rows are LAPACK's columns: its upper triangle is the lower one here.
        blocks = [block[:, :each] for block in self._diagonal(each)]
        lower = torch.stack(blocks).tril()
        return lower + lower.mT - torch.diag_embed(lower.diagonal(dim1=1, dim2=2))

    def _diagonal(self, each):
        for start in range(0, len(self.matrix), each):
            rows = slice(start, start + each)
            yield self.matrix[rows, rows]


def exact_effects(recipe):
    """Return the effects (n_test, n_train) by name, "first" and "newton".

    The effects are on the log loss of the test rows. Kept on disk, for they take minutes.
    """
    return kept(f"{recipe.name}-exact-first-newton", lambda: _effects(recipe))


def _effects(recipe):
    module = recipe.module()  # trained in float32, before the default changes
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        module = module.double()
        (X, y), (X_test, y_test) = (
            (torch.from_numpy(rows).double(), torch.from_numpy(labels))
            for rows, labels in (recipe.train, recipe.test)
        )
        return _effects_of(module, X, y, X_test, y_test)
    finally:
        torch.set_default_dtype(before)


def _effects_of(module, X, y, X_test, y_test):
    n = len(y)
    ridge = DECAY * n
    z, heads = capture(module, X)
    p, root, c = softmax_root(z, y)
    heads = mixed(heads, root)
    moved = pushed(heads, module).flatten()[:, None]  # S^T J theta
    z_test, test_heads = capture(module, X_test)
    slope = torch.softmax(z_test, 1)
    slope[torch.arange(len(y_test)), y_test] -= 1.0

    factor = _Factor(heads, ridge)
    target = mixed(test_heads, slope[:, :, None])
    solved = factor.solve(kernel(heads, target))  # (n h, t)
    effects = torch.einsum("nh,nht->tn", c, solved.view(n, heads.each, -1))
    share = pushed(target, module)[:, 0] - (solved.T @ moved)[:, 0]
    first = (effects + DECAY / ridge * share[:, None]).numpy()
    del factor
    newton = _newton(module, heads, c, moved, test_heads, z_test, y_test).numpy()
    return {"first": first, "newton": newton}


def _newton(module, heads, c, moved, test_heads, z_test, y_test):
    n, h = heads.rows, heads.each
    ridge = DECAY * (n - 1)
    factor = _Factor(heads, ridge)
    across = kernel(heads, test_heads)  # (n h, t C)
    solved, pull = factor.solve(across), factor.solve(moved)
    inverse = ridge * factor.diagonal_blocks(h)  # I − h
    own = (c - (inverse @ c[:, :, None])[..., 0]) + DECAY * pull.view(n, h)
    coefficients = c + torch.linalg.solve(inverse, own)
    pulled = DECAY / ridge * (pushed(test_heads, module).flatten() - (solved.T @ moved)[:, 0])
    t, classes = z_test.shape
    effects = torch.empty(t, n)
    before = nn.functional.cross_entropy(z_test, y_test, reduction="none")
    for row in range(t):
        columns = slice(row * classes, (row + 1) * classes)
        dz = torch.einsum("nh,nhk->nk", coefficients, solved[:, columns].view(n, h, classes))
        z = z_test[row] + dz + pulled[columns]
        effects[row] = nn.functional.cross_entropy(z, y_test[row].expand(n), reduction="none")
        effects[row] -= before[row]
    return effects
