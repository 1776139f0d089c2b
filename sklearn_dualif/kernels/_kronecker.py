r"""Coordinates of a network's parameters in which its curvature is taken as diagonal.

A layer that multiplies inputs ``a`` (the bias as one more constant) by a weight matrix ``W`` has
the derivative ``G = sum_p s_p a_p^T`` for sensitivities ``s`` at positions p. Its Kronecker factors
over rows i of weight ``w_i`` and heads k are

.. math::

    A = \sum_{i,p} w_i\, a_{ip} a_{ip}^\top, \qquad E = \sum_{i,k,p} s_{ikp} s_{ikp}^\top,

and its coordinates those of ``Q_E^T W Q_A``, with eigenvectors ``Q_E`` of E and ``Q_A`` of A: the
derivative by them has factors ``Q_E^T s`` and ``Q_A^T a``. Other parameters get the eigenvectors of
their own Gauss-Newton matrix where it is small, and stay as they are where it is not.
"""

from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ..linalg import column_gram
from ._blocks import DenseBlock, LookupBlock, WeightBlock
from ._tangent import Heads

LARGEST_DENSE = 2000
"""Parameters without Kronecker factors that are taken as one dense matrix, at most."""


class _Rotation:
    """Eigenvectors of a Gram matrix that is summed up over rows."""

    def __init__(self, size):
        self.size = size

    @cached_property
    def _gram(self):
        return torch.zeros(self.size, self.size, dtype=torch.float64)

    def add(self, values):
        """Add the Gram matrix of values (..., size)."""
        self._gram.add_(column_gram(values.flatten(0, -2)))

    def settle(self, device):
        """Replace the sums by their eigenvectors, `matrix` (size, size)."""
        self.matrix = torch.linalg.eigh(self._gram)[1].to(device)
        del self._gram

    def of(self, values):
        """Return values (..., size) in the coordinates of the eigenvectors."""
        return values @ self.matrix.to(values)


class _Matrix:
    """Coordinates of a weight matrix, and of the bias in its last column."""

    kind, dense = "matrix", False

    def __init__(self, block):
        self._place = block.take(slice(0, 0))
        self.inputs = _Rotation(block.inputs.shape[2])
        self.outputs = _Rotation(block.sensitivities.shape[3])
        self.doubles = 3 * (self.inputs.size**2 + self.outputs.size**2)

    def add(self, block, root_weights):
        self.inputs.add(block.inputs * root_weights[:, None, None].to(block.inputs))
        self.outputs.add(block.sensitivities)

    def settle(self, device):
        self.inputs.settle(device)
        self.outputs.settle(device)

    def rotated(self, block):
        return block.rotated(self.inputs.matrix, self.outputs.matrix)

    def add_lifted(self, result, coordinates):
        self._add(result, coordinates, self.outputs.matrix, self.inputs.matrix)

    def add_projected(self, result, parameters):
        self._add(result, parameters, self.outputs.matrix.T, self.inputs.matrix.T)

    def _add(self, result, vectors, outputs, inputs):
        matrices = self._place.matrices(vectors, self.outputs.size)
        self._place.add_parts(result, outputs @ matrices @ inputs.T)


class _Dense(_Rotation):
    """Coordinates of parameters whose matrix is small enough to be diagonalised."""

    kind, dense = "dense", True

    def __init__(self, block):
        self.target = _target(block)
        super().__init__(self.target.stop - self.target.start)
        self.doubles = 3 * self.size**2

    def add(self, block, root_weights):
        (block,) = block.explicit()
        super().add(block.values)

    def rotated(self, block):
        (block,) = block.explicit()
        return DenseBlock(self.of(block.values), self.target)

    def add_lifted(self, result, coordinates):
        result[self.target] += self.matrix @ coordinates[self.target]

    def add_projected(self, result, parameters):
        result[self.target] += self.matrix.T @ parameters[self.target]


class _Plain:
    """Parameters that are their own coordinates."""

    kind, dense, doubles = "diagonal", False, 0

    def __init__(self, block):
        self.target = _target(block)

    def add(self, block, root_weights):
        pass

    def settle(self, device):
        pass

    def rotated(self, block):
        return block

    def add_lifted(self, result, coordinates):
        result[self.target] += coordinates[self.target]

    add_projected = add_lifted


def _target(block):
    return block.weight if isinstance(block, WeightBlock) else block.target


def _coordinates_of(block):
    """Return unsettled coordinates for the parameters of a block."""
    if isinstance(block, WeightBlock) and not isinstance(block, LookupBlock):
        return _Matrix(block)
    target = _target(block)
    return (_Dense if target.stop - target.start <= LARGEST_DENSE else _Plain)(block)


class KroneckerBasis:
    """Eigenbases of a network's layers.

    Parameters
    ----------
    heads : Heads
        Of any rows, not prepared: they tell the layers.
    """

    def __init__(self, heads):
        self.network = heads.network
        self.parts = [_coordinates_of(block) for block in heads.blocks]
        self.free = _Rotation(self.network.n_free)

    @property
    def size(self):
        """Number of penalised coordinates."""
        return self.network.n_penalized

    @property
    def doubles(self):
        """Numbers that the matrices take while they are decomposed."""
        return 3 * self.network.n_free**2 + sum(part.doubles for part in self.parts)

    @property
    def dense(self):
        """Slices of the penalised coordinates that have a matrix of their own."""
        return [part.target for part in self.parts if part.dense]

    def counts(self):
        """Return how many layers have factors, and how many other parameters which form."""
        sizes = {"layers": sum(part.kind == "matrix" for part in self.parts)}
        for kind in ("dense", "diagonal"):
            targets = [part.target for part in self.parts if part.kind == kind]
            sizes[kind] = sum(target.stop - target.start for target in targets)
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
        return Heads(blocks, free, heads.shape, self.network)

    def dense_values(self, heads):
        """Return the derivatives (n, h, p) by each of `dense`, heads `rotated`."""
        pairs = zip(self.parts, heads.blocks, strict=True)
        return [block.values for part, block in pairs if part.dense]

    def project(self, penalized):
        """Return the coordinates (d,) of parameters (d,)."""
        penalized = penalized.to(torch.float64)[:, None]
        result = torch.zeros_like(penalized)
        for part in self.parts:
            part.add_projected(result, penalized)
        return result[:, 0]

    def lift(self, coordinates):
        """Return the parameters (d, m) of coordinates (d, m)."""
        coordinates = coordinates.to(self.network.device)
        result = torch.zeros_like(coordinates)
        for part in self.parts:
            part.add_lifted(result, coordinates)
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
        """Return the Jacobians (b, h, f + d) of heads by the coordinates."""
        free = heads.free_jacobian
        result = free.new_zeros(*heads.shape, free.shape[2] + heads.network.n_penalized)
        result[..., : free.shape[2]] = free
        heads.write_jacobian(result[..., free.shape[2] :])
        return result

    @staticmethod
    def squares(heads):
        """Return the sums over heads of their squares, (b, f + d)."""
        free = (heads.free_jacobian**2).sum(1)
        result = free.new_zeros(len(free), free.shape[1] + heads.network.n_penalized)
        result[:, : free.shape[1]] = free
        heads.write_squares(result[:, free.shape[1] :])
        return result

    @property
    def dense(self):
        """Slices of the coordinates (f + d) that have a matrix of their own."""
        free = self.basis.network.n_free
        slices = [slice(free + part.start, free + part.stop) for part in self.basis.dense]
        return [slice(0, free), *slices] if free else slices

    def dense_values(self, heads):
        """Return the derivatives (b, h, p) by each of `dense`."""
        values = self.basis.dense_values(heads)
        return [heads.free_jacobian, *values] if self.basis.network.n_free else values

    def design(self, features):
        """Return the Jacobians (t, C, f + d) of rows."""
        return self.design_of(features.heads(prepared=False))

    def design_of(self, heads):
        """Return the Jacobians (t, h, f + d) of heads of rows, not prepared."""
        return self.jacobian(self.basis.rotated(heads))

    def start(self):
        """Return the fitted parameters as a state, (1, f + d, 1)."""
        penalized, free = self.basis.network.parameters()
        free = self.basis.free.of(free)
        return torch.cat([free, self.basis.project(penalized)])[None, :, None].cpu()

    def lift(self, states):
        """Return the penalised (d, m) and the free parameters (f, m) of states (f + d, m)."""
        free = self.basis.network.n_free
        moved = self.basis.free.matrix @ states[:free].to(self.basis.free.matrix)
        return self.basis.lift(states[free:]), moved.cpu()
