"""Tangent features of a network's rows: everything that is asked of their Jacobian."""

from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ._blocks import DenseBlock

_BATCH_DOUBLES = 2**25
_PANEL_DOUBLES = 2**23


class Heads:
    """Derivatives of ``h`` combinations of each row's outputs, by layers.

    Parameters
    ----------
    blocks, free : list of block
        Of the penalised and of the free parameters.
    shape : (n, h)
    network : Network
    size : int or None
        How many penalised parameters, or coordinates of them, there are; None: the network's.
    """

    def __init__(self, blocks, free, shape, network, size=None):
        self.blocks = blocks
        self.shape = shape
        self.network = network
        self.size = network.n_penalized if size is None else size
        self._free = free

    @property
    def free_jacobian(self):
        """Derivatives (n, h, f) by the free parameters."""
        result = self._zeros(*self.shape, self.network.n_free)
        for block in self._free:
            block.write_jacobian(result)
        return result

    def jacobian(self):
        """Return the derivatives (n, h, d) by the penalised parameters."""
        result = self._zeros(*self.shape, self.size)
        self.write_jacobian(result)
        return result

    def write_jacobian(self, result):
        """Write the derivatives by the penalised parameters into ``result`` (n, h, d)."""
        for block in self.blocks:
            block.write_jacobian(result)

    def write_squares(self, result):
        """Write their squares, summed over heads, into ``result`` (n, d)."""
        for block in self.blocks:
            block.write_squares(result)

    def _zeros(self, *shape):
        return torch.zeros(shape, dtype=self.network.dtype, device=self.network.device)

    def gram(self, other):
        """Return the kernel (n h, n' h') of the penalised parameters with other heads."""
        n, h = self.shape
        result = self._zeros(n * h, other.shape[0] * other.shape[1])
        for mine, theirs in zip(self.blocks, other.blocks, strict=True):
            mine.add_gram(result, theirs)
        return result

    def diagonal_blocks(self):
        """Return each row's kernel with itself, (n, h, h)."""
        n, h = self.shape
        result = self._zeros(n, h, h)
        for block in self.blocks:
            block.add_diagonal(result)
        return result

    def mixed(self, root):
        """Return the heads ``root^T J``, root (n, h, q)."""
        blocks = [part for block in self.blocks for part in block.mixed(root).prepared()]
        free = [block.mixed(root) for block in self._free]
        return Heads(blocks, free, (self.shape[0], root.shape[2]), self.network, self.size)

    def picked(self, positions):
        """Return single heads of some rows as rows of one head; positions ``row h + head``."""
        rows, heads = positions // self.shape[1], positions % self.shape[1]
        blocks = [block.picked(rows, heads) for block in self.blocks]
        return Heads(blocks, [], (len(positions), 1), self.network, self.size)

    def sketched(self, projection, first=0):
        """Return ``J P^T`` (n, h, m) of the penalised parameters, rows of P from ``first`` on.

        Not scaled: see `Projection.scale`.
        """
        n, h = self.shape
        like = self._zeros(0)
        if projection.factorized:
            return self._factorized(projection, like)
        result = projection.zeros(n, h, first, like)
        for index in range(projection.n_panels):
            start, stop = projection.columns(index)
            panel = projection.panel(index, first, like)
            if projection.dense:
                for block in self.blocks:
                    block.add_projected(result, panel.matrix, start)
                continue
            for rows in gen_batches(n, max(1, _PANEL_DOUBLES // (h * (stop - start)))):
                values = self._zeros(rows.stop - rows.start, h, stop - start)
                for block in self.blocks:
                    block.take(rows).write_columns(values, start)
                panel.add(result[rows], values)
        return result

    def _factorized(self, projection, like):
        n, h = self.shape
        result = self._zeros(n, h, projection.n_components)
        whole = {b.target.start: b for b in self.blocks if isinstance(b, DenseBlock)}
        factored = {b.weight.start: b for b in self.blocks if not isinstance(b, DenseBlock)}
        for index, (layer, place) in enumerate(
            zip(projection.layers, projection.places, strict=True)
        ):
            rows, columns = projection.factors(index, like)
            start = layer.weight.start
            if start in factored:
                result[..., place] = factored[start].factorized(rows, columns)
                continue
            bias = None if layer.bias is None else whole[layer.bias.start]
            # Derivatives that were made explicit.
            for part in gen_batches(n, max(1, _PANEL_DOUBLES // (h * layer.size))):
                matrices = whole[start].matrices(part, layer, bias)
                matrices = matrices if rows is None else rows @ matrices
                matrices = matrices if columns is None else matrices @ columns.T
                result[part, :, place] = matrices.flatten(2)
        return result

    def pull(self, weights):
        """Return ``sum_ik J_ik w_ik`` (d, m) over the penalised parameters, weights (n, h, m)."""
        result = self._zeros(self.size, weights.shape[2])
        for block in self.blocks:
            block.add_pulled(result, weights)
        return result

    def push(self, directions):
        """Return ``J v`` (n, h, m) for directions (d, m) of the penalised parameters."""
        result = self._zeros(*self.shape, directions.shape[1])
        for block in self.blocks:
            block.add_pushed(result, directions)
        return result

    def push_own(self, directions):
        """Return ``J_i v_i`` (n, h) for a direction of each row, (d, n)."""
        result = self._zeros(*self.shape)
        for block in self.blocks:
            block.add_pushed_own(result, directions)
        return result


class TangentFeatures:
    """Rows of a network; their outputs and derivatives are computed when asked for.

    Parameters
    ----------
    network : Network
    inputs : tensor
        Rows as the module takes them.

    Attributes
    ----------
    is_kept : bool
        Whether derivatives stay in memory once they were asked for; else they are computed anew,
        a batch of rows at a time.
    """

    def __init__(self, network, inputs):
        self.network = network
        self.inputs = network.to_device(inputs)
        self.is_kept = True

    @property
    def shape(self):
        """Number of rows and of penalised parameters."""
        return len(self.inputs), self.network.n_penalized

    @cached_property
    def outputs(self):
        """Outputs (n, C)."""
        return self.network.outputs(self.inputs)

    @cached_property
    def output_heads(self):
        """Derivatives of the outputs, kept; see `heads`."""
        return self.heads()

    @cached_property
    def own_kernel(self):
        """Each row's kernel with itself, (n, C, C)."""
        return torch.cat([heads.diagonal_blocks() for _, heads in self.parts()])

    @cached_property
    def free_jacobian(self):
        """Derivatives (n, C, f) of the outputs by the free parameters."""
        return torch.cat([heads.free_jacobian for _, heads in self.parts()])

    def pull(self, weights):
        """Return ``sum_ik J_ik w_ik`` (d, m) of the outputs, weights (n, C, m)."""
        return sum(heads.pull(weights[rows]) for rows, heads in self.parts())

    def parts(self, size=None):
        """Yield (rows, derivatives of their outputs): all at once, or where they are not kept."""
        if self.is_kept:
            yield slice(0, len(self.inputs)), self.output_heads
            return
        for rows in gen_batches(len(self.inputs), size or self.batch_rows):
            yield rows, self.take(rows).heads()

    def keep_within(self, doubles):
        """Keep derivatives in memory only where they are at most so many numbers."""
        self.is_kept = len(self.inputs) * self.network.doubles_per_row <= doubles

    def layers(self):
        """Return the `Layer` s of the penalised parameters."""
        penalized, _ = self.network.derivatives(self.inputs[:1])
        return [block.layer() for block in penalized]

    def take(self, rows):
        """Return the features of some rows."""
        return TangentFeatures(self.network, self.inputs[rows])

    def heads(self, root=None, *, prepared=True):
        """Return the derivatives of the outputs, or of ``root^T z`` for root (n, C, q).

        ``prepared`` for kernels, which may take a layer's factors apart.
        """
        batches = []
        for rows in gen_batches(len(self.inputs), self.batch_rows):
            own = None if root is None else root[rows]
            penalized, free = self.network.derivatives(self.inputs[rows], own)
            if prepared:
                penalized = [part for block in penalized for part in block.prepared()]
            batches.append((penalized, free))
        joined = [
            [type(parts[0]).concatenated(parts) for parts in zip(*lists, strict=True)]
            for lists in zip(*batches, strict=True)
        ]
        n_heads = self.outputs.shape[1] if root is None else root.shape[2]
        return Heads(*joined, (len(self.inputs), n_heads), self.network)

    @property
    def batch_rows(self):
        """How many rows are differentiated at once, so that little memory is held."""
        elements = self.network.doubles_per_row
        return max(1, min(len(self.inputs), _BATCH_DOUBLES // elements))
