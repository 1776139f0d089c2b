r"""Jacobians of some parameters, in the factored form that their layer allows.

A block holds the derivatives of ``h`` *heads* of ``n`` rows (outputs, or combinations of outputs)
by the parameters of one layer. Where a layer multiplies its inputs by a weight matrix, the
derivative of head ``k`` of row ``i`` is

.. math:: \sum_p e_{ikp} \otimes a_{ip},

with the inputs ``a`` (n, P, i) and the sensitivities ``e`` (n, h, P, o) of its outputs at each of P
positions (pixels, tokens; one in a plain dense layer). Kernels of two sets of heads never need the
product itself:

.. math:: k_{ik,jl} = \sum_{p,r} (a_{ip} \cdot a_{jr})\,(e_{ikp} \cdot e_{jlr}) .

Everything is exact. Blocks know the slices of the parameter vector that they belong to.
"""

import torch
from sklearn.utils import gen_batches

from ..sketching import Layer

_SCRATCH = 2**24


def overlaps(target, start, size):
    """Yield the parts of a slice, and of ``size`` parameters from ``start`` on, that they share."""
    first, last = max(target.start, start), min(target.stop, start + size)
    if first < last:
        yield slice(first - target.start, last - target.start), slice(first - start, last - start)


class DenseBlock:
    """Explicit derivatives (n, h, p) by the parameters ``target``, a slice."""

    def __init__(self, values, target):
        self.values = values
        self.target = target

    @property
    def doubles(self):
        """Numbers held."""
        return self.values.numel()

    def mixed(self, root):
        """Return the block of the heads ``root^T J``, root (n, C, q)."""
        return DenseBlock(root.to(self.values).mT @ self.values, self.target)

    def prepared(self):
        """Return blocks of the same derivatives in the form in which kernels cost least."""
        return [self]

    def explicit(self):
        """Return explicit blocks of the same derivatives."""
        return [self]

    def take(self, rows):
        """Return the block of some rows."""
        return DenseBlock(self.values[rows], self.target)

    def picked(self, rows, heads):
        """Return the block of single heads of some rows, (m, 1, p)."""
        return DenseBlock(self.values[rows, heads][:, None], self.target)

    def add_gram(self, result, other):
        """Add the kernel with another block of the same layer to ``result`` (n h, n' h')."""
        result.addmm_(self.values.flatten(0, 1), other.values.flatten(0, 1).T)

    def add_diagonal(self, result):
        """Add each row's kernel with itself to ``result`` (n, h, h)."""
        result += self.values @ self.values.mT

    def write_jacobian(self, result):
        """Write the derivatives into ``result`` (n, h, d)."""
        result[:, :, self.target] = self.values

    def write_squares(self, result):
        """Write the sums over heads of squared derivatives into ``result`` (n, d)."""
        result[:, self.target] = (self.values**2).sum(1)

    def add_pulled(self, result, weights):
        """Add ``sum_ik J_ik w_ik`` for weights (n, h, m) to ``result`` (d, m)."""
        flat = self.values.flatten(0, 1)
        result[self.target] += flat.T @ weights.flatten(0, 1).to(flat)

    def add_pushed(self, result, direction):
        """Add ``J v`` for directions (d, m) to ``result`` (n, h, m)."""
        result += self.values @ direction[self.target].to(self.values)

    def placed(self, target):
        """Return the block with its parameters in another slice."""
        return DenseBlock(self.values, target)

    def layer(self):
        """Return the shape of the parameters: a column."""
        return Layer(self.values.shape[2], 1, self.target)

    def matrices(self, rows, layer, bias):
        """Return the derivatives (b, h, o, i) of some rows by a layer's weight, and by its bias."""
        values = self.values[rows]
        if layer.by_inputs:
            return values.unflatten(2, (layer.inputs, layer.outputs)).mT
        values = values.unflatten(2, (layer.outputs, -1))
        return values if bias is None else torch.cat([values, bias.values[rows, ..., None]], 3)

    def add_pushed_own(self, result, directions):
        """Add ``J_i v_i`` for a direction of each row, (d, n), to ``result`` (n, h)."""
        own = directions[self.target].T.unsqueeze(2).to(self.values)
        result += (self.values @ own)[..., 0]

    def write_columns(self, result, start):
        """Write derivatives by parameters from ``start`` on into ``result`` (n, h, w)."""
        for own, place in overlaps(self.target, start, result.shape[2]):
            result[..., place] = self.values[..., own]

    def add_projected(self, result, matrix, start):
        """Add ``J P^T`` to ``result`` (n, h, m), P (m, w) of the parameters from ``start`` on."""
        for own, place in overlaps(self.target, start, matrix.shape[1]):
            result += self.values[..., own] @ matrix[:, place].T

    @staticmethod
    def concatenated(blocks):
        """Return one block of the rows of several."""
        return DenseBlock(torch.cat([block.values for block in blocks]), blocks[0].target)


class WeightBlock:
    """Derivatives by a weight matrix (o, i), and by a bias (o,) where the inputs end in a constant.

    Parameters
    ----------
    inputs : (n, P, i) tensor
        With one more column for a bias.
    sensitivities : (n, h, P, o) tensor
    weight, bias : slice or None
        Of the parameter vector; None for a part that is not there.

    Attributes
    ----------
    contracted : bool
        Whether kernels contract positions; else derivatives are made explicit first. The same for
        all rows of a layer, however long they are.
    """

    contracted = True

    def __init__(self, inputs, sensitivities, weight, bias):
        self.inputs = inputs
        self.sensitivities = sensitivities
        self.weight = weight
        self.bias = bias

    def _like(self, inputs, sensitivities):
        block = WeightBlock(inputs, sensitivities, self.weight, self.bias)
        block.contracted = self.contracted
        return block

    @property
    def doubles(self):
        """Numbers held."""
        return self.inputs.numel() + self.sensitivities.numel()

    @property
    def input_width(self):
        """Columns of the weight matrix, the bias included."""
        return self.inputs.shape[2]

    def mixed(self, root):
        """Return the block of the heads ``root^T J``, root (n, C, q)."""
        n, heads, positions, width = self.sensitivities.shape
        flat = self.sensitivities.reshape(n, heads, -1)
        mixed = root.to(flat).mT @ flat
        return self._like(self.inputs, mixed.view(n, -1, positions, width))

    def prepared(self):
        """Return explicit derivatives where those make kernels cheaper than the positions do."""
        return [self] if self.contracted else self.explicit()

    def explicit(self):
        """Return explicit blocks of the same derivatives."""
        return [DenseBlock(*part) for part in self._explicit()]

    def rotated(self, outputs, inputs, place):
        """Return the derivatives by the coordinates ``outputs^T W inputs``, a slice ``place``.

        The bias is the last column of the weight matrix W.
        """
        return WeightBlock(*self.factors(outputs.T, inputs.T), place, None)

    def cheaper_contracted(self):
        """Tell whether contracting positions costs less than explicit derivatives."""
        _, heads, positions, width = self.sensitivities.shape
        if positions == 1:
            return True
        explicit = heads**2 * width * self.input_width
        # Products over pairs of positions are bound by memory: an entry costs several operations.
        return explicit > positions**2 * (self._input_work() + heads**2 * (width + 8))

    def _input_work(self):
        """How many products an entry of the kernel of the inputs takes."""
        return self.input_width

    def take(self, rows):
        """Return the block of some rows."""
        return self._like(self.inputs[rows], self.sensitivities[rows])

    def picked(self, rows, heads):
        """Return the block of single heads of some rows."""
        return self._like(self.inputs[rows], self.sensitivities[rows, heads][:, None])

    def add_gram(self, result, other):
        """Add the kernel with another block of the same layer to ``result`` (n h, n' h')."""
        n, h, positions, width = self.sensitivities.shape
        m, k, others, _ = other.sensitivities.shape
        right = other.sensitivities.flatten(0, 2)
        step = max(1, _SCRATCH // (h * positions * m * k * others))
        scratch = None
        for start in range(0, n, step):
            rows = slice(start, min(n, start + step))
            left = self.sensitivities[rows].flatten(0, 2)
            if scratch is None:
                scratch = left.new_empty(len(left), len(right))
            products = torch.mm(left, right.T, out=scratch[: len(left)])
            inputs = self._input_products(other, rows)
            target = result[start * h : rows.stop * h]
            if positions == others == 1:
                inputs = inputs.view(-1, 1, m)
                if k > 1:
                    inputs = inputs.repeat_interleave(k, 2)
                target.view(-1, h, m * k).addcmul_(products.view(-1, h, m * k), inputs)
                continue
            products = products.view(-1, h, positions, m, k, others)
            products *= inputs.view(-1, 1, positions, m, 1, others)
            target += products.sum((2, 5)).view(len(target), -1)

    def _input_products(self, other, rows):
        """Return the kernel of the inputs of ``rows`` with another block's, (b P, m P')."""
        return self.inputs[rows].flatten(0, 1) @ other.inputs.flatten(0, 1).T

    def add_diagonal(self, result):
        """Add each row's kernel with itself to ``result`` (n, h, h)."""
        n, h, positions, width = self.sensitivities.shape
        step = max(1, _SCRATCH // (h * positions) ** 2)
        for start in range(0, n, step):
            rows = slice(start, min(n, start + step))
            block = self.take(rows)
            left = block.sensitivities.flatten(1, 2)
            products = (left @ left.mT).view(-1, h, positions, h, positions)
            products *= block._own_input_products().view(-1, 1, positions, 1, positions)
            result[rows] += products.sum((2, 4))

    def _own_input_products(self):
        return self.inputs @ self.inputs.mT

    def _explicit(self):
        """Return the derivatives (n, h, p) and the slices that they belong to."""
        n, h, positions, width = self.sensitivities.shape
        flat = self.sensitivities.permute(0, 1, 3, 2).reshape(n, h * width, positions)
        inputs, parts = self._dense_inputs(), []
        if self.weight is not None:
            wide = (self.weight.stop - self.weight.start) // width
            parts.append(((flat @ inputs[..., :wide]).view(n, h, -1), self.weight))
        if self.bias is not None:
            parts.append(((flat @ inputs[..., -1:]).view(n, h, -1), self.bias))
        return parts

    def _dense_inputs(self):
        return self.inputs

    def write_jacobian(self, result):
        """Write the derivatives into ``result`` (n, h, d)."""
        for values, target in self._explicit():
            result[:, :, target] = values

    def write_squares(self, result):
        """Write the sums over heads of squared derivatives into ``result`` (n, d)."""
        for values, target in self._explicit_squares():
            result[:, target] = values.sum(1)

    def _explicit_squares(self):
        """Return squares (n, h, p), or their sums (n, 1, p), and the slices that they belong to."""
        if self.sensitivities.shape[2] > 1:
            return [(values**2, target) for values, target in self._explicit()]
        # Of one position the squares have factors themselves.
        sensitivities = (self.sensitivities**2).sum(1, keepdim=True)
        return WeightBlock(self.inputs**2, sensitivities, self.weight, self.bias)._explicit()

    def add_pulled(self, result, weights):
        """Add ``sum_ik J_ik w_ik`` for weights (n, h, m) to ``result`` (d, m)."""
        n, h, positions, width = self.sensitivities.shape
        flat = self.sensitivities.reshape(n, h, positions * width)
        combined = weights.to(flat).mT @ flat
        combined = combined.view(n, -1, positions, width).transpose(1, 2)
        combined = combined.reshape(n * positions, -1)
        total = combined.T @ self._dense_inputs().flatten(0, 1)
        self.add_parts(result, total.view(-1, width, total.shape[1]))

    def add_parts(self, result, totals):
        """Add gradients (m, o, i) by the weight, and by the bias in the last column."""
        if self.weight is not None:
            wide = (self.weight.stop - self.weight.start) // totals.shape[1]
            result[self.weight] += totals[:, :, :wide].flatten(1).T
        if self.bias is not None:
            result[self.bias] += totals[:, :, -1].T

    def add_pushed(self, result, direction):
        """Add ``J v`` for directions (d, m) to ``result`` (n, h, m)."""
        n, h, positions, width = self.sensitivities.shape
        matrices = self.matrices(direction.to(self.sensitivities), width).flatten(0, 1).T
        for rows in gen_batches(n, max(1, _SCRATCH // (positions * matrices.shape[1]))):
            part = self.take(rows)
            moved = part._dense_inputs().flatten(0, 1) @ matrices
            moved = moved.view(-1, positions, direction.shape[1], width).transpose(1, 2)
            moved = moved.reshape(len(part.inputs), -1, positions * width)
            result[rows] += part.sensitivities.reshape(-1, h, positions * width) @ moved.mT

    def add_pushed_own(self, result, directions):
        """Add ``J_i v_i`` for a direction of each row, (d, n), to ``result`` (n, h)."""
        n, h, positions, width = self.sensitivities.shape
        matrices = self.matrices(directions.to(self.sensitivities), width)
        moved = (self._dense_inputs() @ matrices.mT).reshape(n, -1, 1)
        result += (self.sensitivities.reshape(n, h, -1) @ moved)[..., 0]

    def matrices(self, direction, width):
        """Return directions (d, m) as matrices (m, o, i), the bias in the last column."""
        parts = []
        if self.weight is not None:
            parts.append(direction[self.weight].T.reshape(direction.shape[1], width, -1))
        if self.bias is not None:
            parts.append(direction[self.bias].T[:, :, None])
        return torch.cat(parts, 2)

    def layer(self):
        """Return the shape of the parameters."""
        return Layer(self.sensitivities.shape[3], self.input_width, self.weight, self.bias)

    def factorized(self, rows, columns):
        """Return ``P_E G P_A^T`` (n, h, m_E m_A) of the derivatives G; None for an identity."""
        inputs, sensitivities = self.factors(rows, columns)
        return (sensitivities.mT @ inputs[:, None]).flatten(2)

    def factors(self, rows, columns):
        """Return inputs ``P_A a`` (n, P, m_A) and sensitivities ``P_E e`` (n, h, P, m_E)."""
        sensitivities = self.sensitivities
        if rows is not None:
            sensitivities = sensitivities @ rows.T.to(sensitivities)
        columns = None if columns is None else columns.to(sensitivities)
        return self._projected_inputs(columns), sensitivities

    def _projected_inputs(self, columns):
        """Return the inputs times ``P_A^T``, (n, P, m_A); None for an identity."""
        return self.inputs if columns is None else self.inputs @ columns.T

    def write_columns(self, result, start):
        """Write derivatives by parameters from ``start`` on into ``result`` (n, h, w)."""
        for outs, ins, place in self._segments(start, result.shape[2]):
            result[..., place] = self._part(outs, ins)
        self._each_bias(start, result.shape[2], lambda place, part: result[..., place].copy_(part))

    def add_projected(self, result, matrix, start):
        """Add ``J P^T`` to ``result`` (n, h, m), P (m, w) of the parameters from ``start`` on."""
        n, h, positions, _ = self.sensitivities.shape
        m = len(matrix)
        for outs, ins, place in self._segments(start, matrix.shape[1]):
            wide = outs.stop - outs.start
            part = matrix[:, place]
            if positions >= h:
                for rows in gen_batches(n, max(1, _SCRATCH // (h * part.shape[1]))):
                    values = self.take(rows)._part(outs, ins).flatten(0, 1)
                    result[rows].view(-1, m).addmm_(values, part.T)
                continue
            # Through the inputs first, which all heads share.
            part = part.reshape(m, wide, -1).permute(2, 1, 0).flatten(1)
            for rows in gen_batches(n, max(1, _SCRATCH // (positions * wide * m))):
                moved = self._input_part(rows, ins) @ part
                moved = moved.view(-1, positions * wide, m)
                sensitivities = self.sensitivities[rows, ..., outs].flatten(2)
                result[rows].baddbmm_(sensitivities, moved)
        self._each_bias(
            start,
            matrix.shape[1],
            lambda place, part: result.add_(part @ matrix[:, place].T),
        )

    def _segments(self, start, size):
        """Yield outputs, inputs and places of runs of the weight among ``size`` parameters."""
        if self.weight is None:
            return
        wide = self._weight_width
        for own, place in overlaps(self.weight, start, size):
            position = own.start
            while position < own.stop:
                row, column = divmod(position, wide)
                whole = 1 if column else max(1, (own.stop - position) // wide)
                stop = min(own.stop, (row + whole) * wide)
                ins = slice(column, column + (stop - position)) if whole == 1 else slice(0, wide)
                begin = place.start + position - own.start
                yield slice(row, row + whole), ins, slice(begin, begin + stop - position)
                position = stop

    @property
    def _weight_width(self):
        """Inputs of the weight, the bias left out."""
        return (self.weight.stop - self.weight.start) // self.sensitivities.shape[3]

    def _input_part(self, rows, ins):
        """Return some columns of the inputs of rows, (b P, w)."""
        return self.inputs[rows, :, ins].flatten(0, 1)

    def _part(self, outs, ins):
        """Return the derivatives (n, h, w) by a rectangle of the weight."""
        n, h, positions, _ = self.sensitivities.shape
        sensitivities = self.sensitivities[..., outs].permute(0, 1, 3, 2).reshape(n, -1, positions)
        return (sensitivities @ self.inputs[..., ins]).view(n, h, -1)

    def _each_bias(self, start, size, use):
        """Call ``use(place, derivatives)`` of the bias among ``size`` parameters."""
        if self.bias is None:
            return
        for own, place in overlaps(self.bias, start, size):
            use(
                place,
                torch.einsum("nhpo,np->nho", self.sensitivities[..., own], self.inputs[..., -1]),
            )

    @staticmethod
    def concatenated(blocks):
        """Return one block of the rows of several."""
        return blocks[0]._like(
            torch.cat([block.inputs for block in blocks]),
            torch.cat([block.sensitivities for block in blocks]),
        )
