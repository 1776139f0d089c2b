r"""Coordinates of a network's parameters in which its curvature is taken as diagonal.

A layer that multiplies inputs ``a`` (the bias as one more constant) by a weight matrix ``W`` has
the derivative ``G = sum_p s_p a_p^T`` for sensitivities ``s`` at positions p. Its Kronecker factors
over rows i of weight ``w_i`` and heads k are

.. math::

    A = \sum_{i,p} w_i\, a_{ip} a_{ip}^\top, \qquad E = \sum_{i,k,p} s_{ikp} s_{ikp}^\top,

and its coordinates those of ``Q_E^T W Q_A``, with eigenvectors ``Q_E`` of E and ``Q_A`` of A: the
derivative by them has factors ``Q_E^T s`` and ``Q_A^T a``. Other parameters get the eigenvectors of
their own Gauss-Newton matrix where it is small, and stay as they are where it is not.

With a projection ``P_E \otimes P_A`` of the layer, the same is done with ``P_E s`` and ``P_A a``,
so that no matrix is larger than the projected sides. Embeddings that are projected have factors
too, and of other parameters that are, the matrix of what their projection leaves is diagonalised.
"""

from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ..linalg import column_gram
from ._blocks import DenseBlock, WeightBlock
from ._lookup import LookupBlock
from ._tangent import Heads

LARGEST_DENSE = 2000
"""Parameters without Kronecker factors that are taken as one dense matrix, at most."""


class _Rotation:
    """Eigenvectors of a Gram matrix that is summed up over rows, of what a projection leaves.

    Parameters
    ----------
    size : int
        Coordinates.
    full : int
        What they are coordinates of.

    Attributes
    ----------
    factor : (size, full) tensor or None
        The projection, until it is settled; None for an identity.
    matrix : (full, size) tensor
        From coordinates, once it is settled.
    """

    def __init__(self, size, full):
        self.size, self.full = size, full
        self.factor = None

    @property
    def doubles(self):
        """Numbers that the matrices take while they are decomposed."""
        return 3 * self.size**2 + (2 * self.size * self.full if self.size < self.full else 0)

    @cached_property
    def _gram(self):
        return torch.zeros(self.size, self.size, dtype=torch.float64)

    def add(self, values):
        """Add the Gram matrix of projected values (..., size)."""
        self._gram.add_(column_gram(values.flatten(0, -2)))

    def settle(self, device):
        """Replace the sums by their eigenvectors."""
        vectors = torch.linalg.eigh(self._gram)[1].to(device)
        self.matrix = vectors if self.factor is None else self.factor.T @ vectors
        del self._gram
        self.factor = None

    def of(self, values):
        """Return values (..., full) in the coordinates of the eigenvectors."""
        return values @ self.matrix.to(values)


class _Matrix:
    """Coordinates of a weight matrix, and of the bias in its last column."""

    kind, dense = "matrix", False

    def __init__(self, layer, shape, place):
        self.layer, self.place = layer, place
        self.outputs = _Rotation(shape[0], layer.outputs)
        self.inputs = _Rotation(shape[1], layer.inputs)

    @property
    def doubles(self):
        return self.outputs.doubles + self.inputs.doubles

    def project(self, rows, columns):
        self.outputs.factor, self.inputs.factor = rows, columns

    def add(self, block, root_weights):
        inputs, sensitivities = block.factors(self.outputs.factor, self.inputs.factor)
        self.inputs.add(inputs * root_weights[:, None, None].to(inputs))
        self.outputs.add(sensitivities)

    def settle(self, device):
        self.inputs.settle(device)
        self.outputs.settle(device)

    def rotated(self, block):
        return block.rotated(self.outputs.matrix, self.inputs.matrix, self.place)

    def write_lifted(self, result, coordinates):
        matrices = coordinates[self.place].T.unflatten(1, (self.outputs.size, self.inputs.size))
        matrices = self.outputs.matrix @ matrices @ self.inputs.matrix.T
        self.layer.write(result.T, matrices)

    def write_projected(self, result, parameters):
        matrices = self.layer.matrices(parameters.T)
        matrices = self.outputs.matrix.T @ matrices @ self.inputs.matrix
        result[self.place] = matrices.flatten(1).T


class _Dense(_Rotation):
    """Coordinates of parameters whose matrix is diagonalised."""

    kind, dense = "dense", True

    def __init__(self, layer, shape, place):
        self.layer, self.place = layer, place
        super().__init__(shape[0] * shape[1], layer.size)

    def project(self, rows, columns):
        self.factor = rows

    def add(self, block, root_weights):
        (block,) = block.explicit()
        values = block.values
        super().add(values if self.factor is None else values @ self.factor.T.to(values))

    def rotated(self, block):
        (block,) = block.explicit()
        return DenseBlock(self.of(block.values), self.place)

    def write_lifted(self, result, coordinates):
        result[self.layer.weight] = self.matrix @ coordinates[self.place]

    def write_projected(self, result, parameters):
        result[self.place] = self.matrix.T @ parameters[self.layer.weight]


class _Plain:
    """Parameters that are their own coordinates."""

    kind, dense, doubles = "diagonal", False, 0

    def __init__(self, layer, place):
        self.layer, self.place = layer, place

    def project(self, rows, columns):
        pass

    def add(self, block, root_weights):
        pass

    def settle(self, device):
        pass

    def rotated(self, block):
        return block.placed(self.place)

    def write_lifted(self, result, coordinates):
        result[self.layer.weight] = coordinates[self.place]

    def write_projected(self, result, parameters):
        result[self.place] = parameters[self.layer.weight]


def _coordinates_of(block, shape, start):
    """Return unsettled coordinates from ``start`` on for the parameters of a block.

    ``shape`` is that of their projection, or None.
    """
    layer = block.layer()
    full = layer.outputs, layer.inputs
    shape = full if shape is None else shape
    place = slice(start, start + shape[0] * shape[1])
    table = isinstance(block, LookupBlock)
    if isinstance(block, WeightBlock) and not (table and shape == full):
        return _Matrix(layer, shape, place)
    if shape != full or layer.size <= LARGEST_DENSE:
        return _Dense(layer, shape, place)
    return _Plain(layer, place)


class KroneckerBasis:
    """Eigenbases of a network's layers, one after the other.

    Parameters
    ----------
    heads : Heads
        Of any rows, not prepared: they tell the layers.
    projection : FactorizedProjection or None
        Of the layers; None: all of them as they are.
    """

    def __init__(self, heads, projection=None):
        self.network, self.projection = heads.network, projection
        shapes = [None] * len(heads.blocks) if projection is None else projection.shapes
        self.parts, self.size = [], 0
        for block, shape in zip(heads.blocks, shapes, strict=True):
            self.parts.append(_coordinates_of(block, shape, self.size))
            self.size = self.parts[-1].place.stop
        self.free = _Rotation(self.network.n_free, self.network.n_free)

    @property
    def doubles(self):
        """Numbers that the matrices take while they are decomposed."""
        return self.free.doubles + sum(part.doubles for part in self.parts)

    @property
    def dense(self):
        """Slices of the penalised coordinates that have a matrix of their own."""
        return [part.place for part in self.parts if part.dense]

    @property
    def projected(self):
        """Slices of the penalised coordinates that have fewer numbers than their parameters."""
        places = [(part.place, part.layer.size) for part in self.parts]
        return [place for place, size in places if place.stop - place.start < size]

    def counts(self):
        """Return how many layers have factors, and how many other parameters which form."""
        sizes = {"layers": sum(part.kind == "matrix" for part in self.parts)}
        for kind in ("dense", "diagonal"):
            sizes[kind] = sum(part.layer.size for part in self.parts if part.kind == kind)
        sizes["dense"] += self.network.n_free
        return sizes

    def settled(self, features, root, weights):
        """Return this basis with the eigenvectors of the factors over some rows.

        Parameters
        ----------
        features : TangentFeatures
            The rows.
        root : (n, C, q) tensor
            Of the losses' curvature: the heads are ``root^T z``.
        weights : (n,) tensor
            What a row counts in the factors of inputs.
        """
        if self.projection is not None:
            like = torch.zeros(0, dtype=torch.float64, device=self.network.device)
            for index, part in enumerate(self.parts):
                part.project(*self.projection.factors(index, like))
        for rows in gen_batches(features.shape[0], features.batch_rows):
            heads = features.take(rows).heads(root[rows], prepared=False)
            root_weights = weights[rows].sqrt()
            for part, block in zip(self.parts, heads.blocks, strict=True):
                part.add(block, root_weights)
            if self.free.size:
                self.free.add(heads.free_jacobian)
        for part in (*self.parts, self.free):
            part.settle(self.network.device)
        return self

    def rotated(self, heads):
        """Return heads, not prepared, by the coordinates instead of the parameters."""
        pairs = zip(self.parts, heads.blocks, strict=True)
        blocks = [part.rotated(block) for part, block in pairs]
        free = []
        if self.free.size:
            values = self.free.of(heads.free_jacobian)
            free.append(DenseBlock(values, slice(0, self.free.size)))
        return Heads(blocks, free, heads.shape, self.network, self.size)

    def dense_values(self, heads):
        """Return the derivatives (n, h, p) by each of `dense`, heads `rotated`."""
        pairs = zip(self.parts, heads.blocks, strict=True)
        return [block.values for part, block in pairs if part.dense]

    def project(self, penalized):
        """Return the coordinates (D,) of parameters (d,)."""
        penalized = penalized.to(torch.float64)[:, None]
        result = penalized.new_empty(self.size, 1)
        for part in self.parts:
            part.write_projected(result, penalized)
        return result[:, 0]

    def lift(self, coordinates):
        """Return the parameters (d, m) that coordinates (D, m) stand for."""
        coordinates = coordinates.to(self.network.device)
        result = coordinates.new_zeros(self.network.n_penalized, coordinates.shape[1])
        for part in self.parts:
            part.write_lifted(result, coordinates)
        return result.cpu()


class KroneckerDesign:
    """Jacobians of rows in a `KroneckerBasis`: free parameters first; computed when asked for.

    Parameters
    ----------
    basis : KroneckerBasis
    features : TangentFeatures
        The training rows.
    """

    name = "kfac"

    def __init__(self, basis, features):
        self.basis, self.features = basis, features

    @property
    def shape(self):
        """Number of training rows and of penalised coordinates."""
        return self.features.shape[0], self.basis.size

    def heads(self, rows):
        """Return the derivatives of training rows' outputs by the coordinates."""
        return self.basis.rotated(self.features.take(rows).heads(prepared=False))

    @staticmethod
    def jacobian(heads):
        """Return the Jacobians (b, h, f + D) of heads by the coordinates."""
        free = heads.free_jacobian
        result = free.new_zeros(*heads.shape, free.shape[2] + heads.size)
        result[..., : free.shape[2]] = free
        heads.write_jacobian(result[..., free.shape[2] :])
        return result

    @staticmethod
    def squares(heads):
        """Return the sums over heads of their squares, (b, f + D)."""
        free = (heads.free_jacobian**2).sum(1)
        result = free.new_zeros(len(free), free.shape[1] + heads.size)
        result[:, : free.shape[1]] = free
        heads.write_squares(result[:, free.shape[1] :])
        return result

    @property
    def dense(self):
        """Slices of the coordinates (f + D) that have a matrix of their own."""
        free = self.basis.network.n_free
        slices = [slice(free + part.start, free + part.stop) for part in self.basis.dense]
        return [slice(0, free), *slices] if free else slices

    def dense_values(self, heads):
        """Return the derivatives (b, h, p) by each of `dense`."""
        values = self.basis.dense_values(heads)
        return [heads.free_jacobian, *values] if self.basis.network.n_free else values

    def design(self, features):
        """Return the Jacobians (t, C, f + D) of rows."""
        return self.design_of(features.heads(prepared=False))

    def design_of(self, heads):
        """Return the Jacobians (t, h, f + D) of heads of rows, not prepared."""
        return self.jacobian(self.basis.rotated(heads))

    def start(self):
        """Return the fitted parameters as a state, (1, f + D, 1)."""
        penalized, free = self.basis.network.parameters()
        free = self.basis.free.of(free)
        return torch.cat([free, self.basis.project(penalized)])[None, :, None].cpu()

    def lift(self, states):
        """Return the penalised (d, m) and the free parameters (f, m) of states (f + D, m)."""
        free = self.basis.network.n_free
        moved = self.basis.free.matrix @ states[:free].to(self.basis.free.matrix)
        return self.basis.lift(states[free:]), moved.cpu()
