"""A linear model as a network of one layer, for what is written for networks."""

import torch

from ._blocks import DenseBlock, WeightBlock

_BATCH_DOUBLES = 2**12


class SparseWeightBlock(WeightBlock):
    """Derivatives by a weight matrix whose inputs are sparse.

    Parameters
    ----------
    inputs : LinearFeatures
        Of n rows with i columns.
    sensitivities : (n, h, 1, o) tensor
        Of the outputs.
    weight : slice
        Of the parameter vector.
    """

    def _like(self, inputs, sensitivities):
        return SparseWeightBlock(inputs, sensitivities, self.weight, None)

    @property
    def doubles(self):
        """Numbers held."""
        return 2 * self.inputs.matrix.nnz + self.sensitivities.numel()

    @property
    def input_width(self):
        """Columns of the weight matrix."""
        return self.inputs.shape[1]

    def _projected_inputs(self, columns):
        if columns is None:
            return self.inputs.dense()[:, None]
        return self.inputs.dot(columns.T.contiguous())[:, None]

    def _input_products(self, other, rows):
        return self.inputs.take(rows).gram(other.inputs)

    def _own_input_products(self):
        return self.inputs.diagonal()[:, None, None]

    def _input_part(self, rows, ins):
        return _Sparse(self.inputs.matrix[rows][:, ins])

    def _part(self, outs, ins):
        dense = torch.from_numpy(self.inputs.matrix[:, ins].toarray())
        sensitivities = self.sensitivities[:, :, 0, outs]
        return (sensitivities[..., None] * dense[:, None, None]).flatten(2)

    def add_pulled(self, result, weights):
        """Add ``sum_ik J_ik w_ik`` for weights (n, h, m) to ``result`` (d, m)."""
        combined = weights.to(self.sensitivities).mT @ self.sensitivities[:, :, 0]
        m, width = combined.shape[1:]
        total = self.inputs.transposed_dot(combined.flatten(1))
        result[self.weight] += total.view(-1, m, width).permute(2, 0, 1).flatten(0, 1)

    def add_pushed(self, result, direction):
        """Add ``J v`` for directions (d, m) to ``result`` (n, h, m)."""
        n, h, _, width = self.sensitivities.shape
        matrices = direction[self.weight].view(width, -1, direction.shape[1])
        moved = self.inputs.dot(matrices.transpose(0, 1).flatten(1).contiguous())
        result += self.sensitivities[:, :, 0] @ moved.view(n, width, -1)

    @staticmethod
    def concatenated(blocks):
        """Return one block of the rows of several."""
        first = blocks[0]
        rows = first.inputs.stacked([block.inputs for block in blocks])
        return first._like(rows, torch.cat([block.sensitivities for block in blocks]))


class _Sparse:
    """A scipy matrix whose product with a tensor is one."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __matmul__(self, columns):
        return torch.from_numpy(self.matrix @ columns.contiguous().numpy())


class LinearNetwork:
    """A linear model in the terms of `Network`.

    Parameters
    ----------
    weights : (o, d) tensor
        Of the penalised features.
    shifts : (f,) tensor
        Free parameters.
    weight_outputs : (C, o) tensor
        Derivatives of the outputs by ``x . w`` of each row of the weights.
    shift_outputs : (C, f) tensor
        Derivatives of the outputs by the free parameters.
    scales : (o,) tensor
        Of the weights in the parameter vector, where their penalties differ.
    """

    is_linear = True
    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, weights, shifts, weight_outputs, shift_outputs, scales):
        self.weights, self.shifts, self.scales = weights, shifts, scales
        self._sensitivities = (weight_outputs * scales)[None, :, None]
        self._free = shift_outputs[None]
        self._outward = weight_outputs
        self.n_outputs = len(weight_outputs)
        self.n_penalized, self.n_free = weights.numel(), len(shifts)

    @property
    def doubles_per_row(self):
        """Numbers held of each row; few rows' are never worth a batch of their own."""
        return _BATCH_DOUBLES

    @staticmethod
    def to_device(inputs):
        """Return rows as they are."""
        return inputs

    def parameters(self):
        """Return the penalised and the free parameters, as vectors."""
        return (self.weights / self.scales[:, None]).flatten(), self.shifts

    def outputs(self, inputs):
        """Return the outputs (n, C)."""
        moved = inputs.dot(self.weights.T.contiguous())
        return moved @ self._outward.T + self._free[0] @ self.shifts

    def derivatives(self, inputs, root=None):
        """Return the penalised and the free blocks of rows.

        Their heads are the outputs, or with a root (n, C, q) its combinations ``root^T z``.
        """
        n, target = len(inputs), slice(0, self.n_penalized)
        sensitivities = self._sensitivities.expand(n, -1, -1, -1)
        if inputs.is_sparse:
            block = SparseWeightBlock(inputs, sensitivities, target, None)
        else:
            block = WeightBlock(inputs.matrix[:, None], sensitivities, target, None)
        free = DenseBlock(self._free.expand(n, -1, -1), slice(0, self.n_free))
        if root is not None:
            block, free = block.mixed(root), free.mixed(root)
        return [block], [free] if self.n_free else []
