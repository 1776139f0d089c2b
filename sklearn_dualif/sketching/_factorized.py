r"""Factorised projections: one for a layer's inputs and one for its output sensitivities.

The derivative by a weight matrix (o, i) is a sum of products ``e a^T`` over positions. With
``P_E`` (m_E, o) and ``P_A`` (m_A, i) its projection by ``P_E \otimes P_A`` is that of the products
``(P_E e)(P_A a)^T``, so that the derivative itself is never formed. Those of all layers stand side
by side.
"""

from typing import NamedTuple

import numpy as np
import torch

from ._base import Projection, Sketch


class Layer(NamedTuple):
    """A matrix of parameters.

    Attributes
    ----------
    outputs, inputs : int
        Its shape, the bias included as one more input.
    weight : slice
        Of the parameter vector.
    bias : slice or None
        Of the last input.
    by_inputs : bool
        Whether the weight is stored with its inputs first.
    """

    outputs: int
    inputs: int
    weight: slice
    bias: slice | None = None
    by_inputs: bool = False

    @property
    def size(self):
        """Number of parameters."""
        return self.outputs * self.inputs

    def matrices(self, vectors):
        """Return vectors (n, d) of all parameters as matrices (n, o, i) of these."""
        values = vectors[:, self.weight]
        if self.by_inputs:
            return values.reshape(len(values), self.inputs, self.outputs).mT
        values = values.reshape(len(values), self.outputs, -1)
        if self.bias is None:
            return values
        return torch.cat([values, vectors[:, self.bias, None]], 2)

    def write(self, vectors, matrices):
        """Write matrices (n, o, i) into vectors (n, d)."""
        wide = self.inputs - (self.bias is not None)
        values = matrices.mT if self.by_inputs else matrices[..., :wide]
        vectors[:, self.weight] = values.flatten(1)
        if self.bias is not None:
            vectors[:, self.bias] = matrices[..., -1]


class FactorizedProjection(Projection):
    """``P_E`` and ``P_A`` of each layer; where a side is short, the identity.

    Parameters
    ----------
    layers : list of Layer
    n_components : int
        At most so many in all.
    seed : int
        Decides every number.

    Attributes
    ----------
    shapes : list of (int, int)
        ``m_E`` and ``m_A`` of each layer.
    """

    factorized = True
    scale = 1.0

    def __init__(self, layers, n_components, seed):
        self.layers = layers
        self.shapes = shapes_of(layers, n_components)
        sizes = [first * second for first, second in self.shapes]
        super().__init__(sum(sizes), sum(layer.size for layer in layers), seed)
        ends = np.cumsum([0, *sizes]).tolist()
        self.places = [slice(*ends[k : k + 2]) for k in range(len(sizes))]

    def factors(self, index, like):
        """Return ``P_E`` and ``P_A`` of a layer; None for an identity."""
        key = index, like.dtype, like.device
        if key not in self._kept:
            layer, shape = self.layers[index], self.shapes[index]
            self._kept[key] = [
                None if size == full else self._factor(index, side, size, full, like)
                for side, (size, full) in enumerate(
                    zip(shape, (layer.outputs, layer.inputs), strict=True)
                )
            ]
        return self._kept[key]

    def _factor(self, index, side, size, full, like):
        entries = self.generator(index, side).standard_normal((size, full), dtype=np.float32)
        return torch.from_numpy(entries).to(like) * size**-0.5

    def __call__(self, values):
        parts = []
        for index, layer in enumerate(self.layers):
            rows, columns = self.factors(index, values)
            matrices = layer.matrices(values)
            matrices = matrices if rows is None else rows @ matrices
            matrices = matrices if columns is None else matrices @ columns.T
            parts.append(matrices.flatten(1))
        return torch.cat(parts, 1)

    def transposed(self, values):
        result = values.new_zeros(values.shape[1], self.n_features)
        for index, (layer, place) in enumerate(zip(self.layers, self.places, strict=True)):
            rows, columns = self.factors(index, values)
            matrices = values[place].T.unflatten(1, self.shapes[index])
            matrices = matrices if rows is None else rows.T @ matrices
            matrices = matrices if columns is None else matrices @ columns
            layer.write(result, matrices)
        return result.T


def shapes_of(layers, n_components):
    """Return ``m_E`` and ``m_A`` of each layer: equal shares, and no more than a layer has.

    What short layers leave is shared by the others.
    """
    shares, left = {}, n_components
    for done, index in enumerate(sorted(range(len(layers)), key=lambda k: layers[k].size)):
        shares[index] = min(layers[index].size, max(1, left // (len(layers) - done)))
        left -= shares[index]
    return [_shape(layer, shares[index]) for index, layer in enumerate(layers)]


def _shape(layer, size):
    """Return the squarest shape of at most so many components that a layer has room for."""
    side = max(1, int(size**0.5))
    if layer.outputs <= side:
        return layer.outputs, min(layer.inputs, size // layer.outputs)
    if layer.inputs <= side:
        return min(layer.outputs, size // layer.inputs), layer.inputs
    return side, size // side if size // side <= layer.inputs else layer.inputs


class FactorizedSketch(Sketch):
    r"""Projections of each layer's inputs and of its output sensitivities.

    The cheapest sketch of a large network: a layer's derivatives are never formed, and the random
    numbers are as few as its inputs and outputs. Its rows are not independent, so that it needs
    more components than `GaussianSketch` for the same accuracy. The one sketch that goes with
    ``curvature="kfac"``, whose layers it makes as narrow as its sides.

    Parameters
    ----------
    n_components, eps, debias, store, random_state
        See `GaussianSketch`. ``n_components`` is the most that all layers have together, in equal
        shares; the shares are rounded down to products of two whole numbers. Parameters outside of
        weight matrices (those of a normalisation, say) are one column. With ``curvature="kfac"`` a
        number, and no ``store``.
    """

    def _projection(self, n_components, n_features, seed):
        vector = Layer(n_features, 1, slice(0, n_features))
        return FactorizedProjection([vector], n_components, seed)

    def for_layers(self, layers, n_components, seed):
        if n_components < len(layers):
            raise ValueError(
                f"n_components={n_components} of a FactorizedSketch is fewer than the "
                f"{len(layers)} layers, each of which needs one. Raise it, or use GaussianSketch."
            )
        return FactorizedProjection(layers, n_components, seed)
