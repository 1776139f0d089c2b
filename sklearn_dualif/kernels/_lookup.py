"""Jacobians by a table of embeddings, whose inputs are indices of its rows."""

import torch
from sklearn.utils import gen_batches

from ..sketching import Layer
from ._blocks import WeightBlock, overlaps

_SCRATCH = 2**24


class LookupBlock(WeightBlock):
    """Derivatives by a table of embeddings; the inputs are indices (n, P).

    Parameters
    ----------
    inputs : (n, P) integer tensor
        Rows of the table; -1 where a position has no derivative (padding).
    scale : float
        Of the table in the parameter vector.
    """

    def __init__(self, inputs, sensitivities, weight, scale):
        super().__init__(inputs, sensitivities, weight, None)
        self.scale = scale

    def _like(self, inputs, sensitivities):
        block = LookupBlock(inputs, sensitivities, self.weight, self.scale)
        block.contracted = self.contracted
        return block

    def placed(self, target):
        """Return the block with the table in another slice."""
        return LookupBlock(self.inputs, self.sensitivities, target, self.scale)

    @property
    def input_width(self):
        """Rows of the table."""
        return (self.weight.stop - self.weight.start) // self.sensitivities.shape[3]

    def _input_work(self):
        return 1

    def _input_products(self, other, rows):
        return self._same(self.inputs[rows].flatten()[:, None], other.inputs.flatten())

    def _own_input_products(self):
        return self._same(self.inputs[:, :, None], self.inputs[:, None])

    def _same(self, left, right):
        same = (left == right) & (left >= 0)
        return same.to(self.sensitivities.dtype).mul_(self.scale**2)

    def _dense_inputs(self):
        hot = torch.nn.functional.one_hot(self.inputs.clamp(min=0), self.input_width)
        hot = hot.to(self.sensitivities.dtype).mul_(self.scale)
        return hot.mul_((self.inputs >= 0)[..., None])

    def _explicit(self):
        # The table is stored by rows (vocabulary, o), a weight by columns.
        ((values, target),) = super()._explicit()
        n, h, _ = values.shape
        width = self.sensitivities.shape[3]
        return [(values.view(n, h, width, -1).transpose(2, 3).flatten(2), target)]

    def layer(self):
        width = self.sensitivities.shape[3]
        return Layer(width, self.input_width, self.weight, by_inputs=True)

    def _projected_inputs(self, columns):
        if columns is None:
            return self._dense_inputs()
        found = columns.T[self.inputs.clamp(min=0)] * self.scale
        return found.mul_((self.inputs >= 0)[..., None])

    def _explicit_squares(self):
        return [(values**2, target) for values, target in self._explicit()]

    def write_columns(self, result, start):
        for own, place in overlaps(self.weight, start, result.shape[2]):
            result[..., place] = self._entries(own)

    def add_projected(self, result, matrix, start):
        n, h = self.sensitivities.shape[:2]
        for own, place in overlaps(self.weight, start, matrix.shape[1]):
            for rows in gen_batches(n, max(1, _SCRATCH // (h * matrix.shape[1]))):
                result[rows] += self.take(rows)._entries(own) @ matrix[:, place].T

    def _entries(self, own):
        """Return the derivatives (n, h, w) by a run of entries of the table."""
        n, h, positions, width = self.sensitivities.shape
        first, last = own.start // width, -(-own.stop // width)
        result = self.sensitivities.new_zeros(n, last - first, h, width)
        rows, places = torch.nonzero((self.inputs >= first) & (self.inputs < last), as_tuple=True)
        values = self.sensitivities[rows, :, places] * self.scale
        result.index_put_((rows, self.inputs[rows, places] - first), values, accumulate=True)
        flat = result.transpose(1, 2).flatten(2)
        return flat[..., own.start - first * width : own.stop - first * width]

    def add_parts(self, result, totals):
        result[self.weight] += totals.mT.flatten(1).T

    def matrices(self, direction, width):
        return direction[self.weight].T.reshape(direction.shape[1], -1, width).mT
