"""A network's outputs and their derivatives by its parameters, row by row.

Layers whose algebra is known (see `_layers`) give their derivatives in factored form, from their
inputs and the sensitivities of their outputs; all other parameters are differentiated explicitly.
Which is which is not taken on trust: on the first rows, the factored derivatives are compared with
automatic differentiation, and a parameter for which they differ (it is used once more elsewhere,
say) is differentiated explicitly too.
"""

import copy
import warnings
from collections import Counter
from typing import NamedTuple

import torch
from sklearn.utils import gen_batches
from torch.func import functional_call, jacrev, vmap

from ..exceptions import UnsupportedModelError
from ._blocks import DenseBlock, LookupBlock, WeightBlock
from ._layers import HANDLERS

_CHECKED_ROWS = 3
_BATCH_ROWS = 512
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class _Place(NamedTuple):
    """Where a parameter stands: in the penalised or the free vector, and its scale there."""

    free: bool
    target: slice
    scale: float


class Network:
    """A private copy of a module, with the parameters that may move.

    Penalised parameters are counted in units in which all of them have the same ridge: a
    parameter times the square root of its penalty.

    Parameters
    ----------
    module : torch.nn.Module
        Copied; the caller's object is never touched.
    penalties : dict of str to float
        Penalty of each parameter that may move, relative to the largest; 0: free.
    inputs : tensor
        Some rows, on which outputs and derivatives are checked.
    readout : callable or None
        From what the module returns to the outputs (n, C).
    dtype : torch.dtype
        Of all computations.
    device : torch.device, str or None
        None: the processor.
    """

    def __init__(self, module, penalties, inputs, *, readout=None, dtype, device=None):
        self.dtype, self.device = dtype, torch.device(device or "cpu")
        self.readout = readout
        self.penalties = dict(penalties)
        try:
            private = copy.deepcopy(module)
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"{type(module).__name__} cannot be copied ({error}). Keep only parameters and "
                "buffers, no results of a forward pass, on the module."
            ) from error
        self.module = private.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        self.places, self.n_penalized, self.n_free = self._place_parameters()
        self.layers = self._known_layers()
        self._batched = True
        self._check(self.to_device(inputs[:_CHECKED_ROWS]))

    def _place_parameters(self):
        parameters, counts, places = dict(self.module.named_parameters()), Counter(), {}
        for name, penalty in self.penalties.items():
            free = penalty == 0
            start = counts[free]
            counts[free] += parameters[name].numel()
            places[name] = _Place(free, slice(start, counts[free]), 1.0 if free else penalty**-0.5)
        return places, counts[False], counts[True]

    def to_device(self, inputs):
        """Return rows as the module takes them."""
        inputs = torch.as_tensor(inputs)
        kind = self.dtype if inputs.is_floating_point() else inputs.dtype
        return inputs.to(device=self.device, dtype=kind)

    def parameters(self):
        """Return the penalised (d,) and the free (f,) parameters."""
        values = dict(self.module.named_parameters())
        vectors = {
            True: torch.zeros(self.n_free, dtype=self.dtype, device=self.device),
            False: torch.zeros(self.n_penalized, dtype=self.dtype, device=self.device),
        }
        for name, place in self.places.items():
            vectors[place.free][place.target] = values[name].flatten() / place.scale
        return vectors[False], vectors[True]

    def unscaled(self, penalized, free):
        """Return changes of the parameters (n_parameters, m) in the module's own units."""
        vectors = {True: free, False: penalized}
        parts = [vectors[p.free][p.target] * p.scale for p in self.places.values()]
        return torch.cat(parts)

    def outputs(self, inputs):
        """Return the outputs (n, C)."""
        inputs = self.to_device(inputs)
        with torch.no_grad():
            parts = [self._call(inputs[rows]) for rows in gen_batches(len(inputs), _BATCH_ROWS)]
        return torch.cat(parts)

    def _call(self, inputs, parameters=None):
        """Return the outputs, at other values of some parameters where given."""
        outputs = (
            self.module(inputs)
            if parameters is None
            else functional_call(self.module, parameters, (inputs,))
        )
        return outputs if self.readout is None else self.readout(outputs)

    def derivatives(self, inputs):
        """Return the penalised and the free blocks of rows, heads the outputs."""
        z, records = self._forward(inputs)
        # A node stands for the rows of the batch: the sum over rows gives each row its own.
        sensitivities = _gradients(z.sum(0), [node for _, node in records], 1) if records else []
        penalized, free = [], []
        for (names, layer), (x, _), e in zip(self.layers, records, sensitivities, strict=True):
            for part in HANDLERS[type(layer)](layer, x, e):
                self._add_blocks(part, names, penalized, free)
        for name, values in self._explicit(inputs).items():
            place = self.places[name]
            (free if place.free else penalized).append(
                DenseBlock(values.flatten(2) * place.scale, place.target)
            )
        return penalized, free

    # Known layers ------------------------------------------------------------------------------

    def _known_layers(self):
        """Return (names, layer) of layers that have a handler and their parameters to themselves.

        ``names`` are the layer's own names of its parameters and those in the module.
        """
        uses = Counter(
            id(value) for _, value in self.module.named_parameters(remove_duplicate=False)
        )
        layers = []
        for prefix, layer in self.module.named_modules():
            own = dict(layer.named_parameters(recurse=False))
            if type(layer) not in HANDLERS or "weight" not in own:
                continue
            if any(uses[id(value)] > 1 for value in own.values()):
                continue
            names = {name: f"{prefix}.{name}" if prefix else name for name in own}
            if any(name in self.places for name in names.values()):
                layers.append((names, layer))
        return layers

    def _forward(self, inputs):
        """Return the outputs, and of each known layer its input and the node of its output."""
        calls = [[] for _ in self.layers]

        def recorder(index):
            def record(layer, args, output):
                node = output if output.requires_grad else output.detach().requires_grad_()
                calls[index].append((args[0].detach(), node))
                return node.clone()  # what follows may write in place

            return record

        handles = [
            layer.register_forward_hook(recorder(index))
            for index, (_, layer) in enumerate(self.layers)
        ]
        try:
            with torch.enable_grad():
                z = self._call(inputs)
        finally:
            for handle in handles:
                handle.remove()
        unusual = [index for index, made in enumerate(calls) if len(made) != 1]
        if unusual:
            self.layers = [pair for index, pair in enumerate(self.layers) if index not in unusual]
            return self._forward(inputs)
        return z, [made[0] for made in calls]

    def _add_blocks(self, part, names, penalized, free):
        """Append the blocks of a part to those of penalised and of free parameters."""
        weight = self._part_place(names, part.weight, part.rows)
        bias = self._part_place(names, part.bias, part.rows)
        lists = {False: penalized, True: free}
        if part.kind == "dense":
            if weight is not None:
                block = DenseBlock(part.sensitivities * weight.scale, weight.target)
                lists[weight.free].append(block)
            return
        if part.kind == "table":
            if weight is not None:
                block = LookupBlock(part.inputs, part.sensitivities, weight.target, weight.scale)
                lists[weight.free].append(block)
            return
        if weight is not None:
            inputs = part.inputs if weight.scale == 1.0 else part.inputs * weight.scale
            joint = bias is not None and bias.free == weight.free
            if joint:
                inputs = torch.nn.functional.pad(inputs, (0, 1), value=bias.scale)
            target = bias.target if joint else None
            block = WeightBlock(inputs, part.sensitivities, weight.target, target)
            lists[weight.free].append(block)
            if joint:
                return
        if bias is not None:
            lists[bias.free].append(DenseBlock(part.sensitivities.sum(2) * bias.scale, bias.target))

    def _part_place(self, names, name, rows):
        """Return the place of those rows of a layer's parameter; None where it cannot move."""
        place = self.places.get(names.get(name))
        if place is None or rows is None:
            return place
        value = dict(self.module.named_parameters())[names[name]]
        width = value.numel() // len(value)
        start = place.target.start
        return place._replace(target=slice(start + rows[0] * width, start + rows[1] * width))

    # All others --------------------------------------------------------------------------------

    def _explicit_names(self):
        known = {name for names, _ in self.layers for name in names.values()}
        return [name for name in self.places if name not in known]

    def _explicit(self, inputs):
        """Return the derivatives (n, C, *shape) by each parameter without a known layer."""
        names = self._explicit_names()
        if not names:
            return {}
        parameters = dict(self.module.named_parameters())
        chosen = {name: parameters[name].detach() for name in names}
        if self._batched:

            def row_outputs(values, row):
                return self._call(row[None], values)[0]

            with warnings.catch_warnings():
                # An operation that vmap can only repeat row by row is slow, not wrong.
                warnings.filterwarnings("ignore", ".*batching rule", UserWarning)
                try:
                    return vmap(jacrev(row_outputs), (None, 0), chunk_size=64)(chosen, inputs)
                except (RuntimeError, NotImplementedError, ValueError):
                    self._batched = False  # an operation that vmap does not know
        return self._row_by_row(chosen, inputs)

    def _row_by_row(self, chosen, inputs):
        leaves = {name: value.clone().requires_grad_() for name, value in chosen.items()}
        rows = {name: [] for name in leaves}
        for row in inputs:
            with torch.enable_grad():
                z = self._call(row[None], leaves)[0]
            for values, own in zip(
                rows.values(), _gradients(z, list(leaves.values()), 0), strict=True
            ):
                values.append(own)
        return {name: torch.stack(values) for name, values in rows.items()}

    # Checks ------------------------------------------------------------------------------------

    def _check(self, inputs):
        """Compare all derivatives of some rows with automatic differentiation."""
        module, name = self.module, type(self.module).__name__
        leaves = {
            key: value.detach().clone().requires_grad_()
            for key, value in module.named_parameters()
            if key in self.places
        }
        with torch.enable_grad():
            z = self._call(inputs, leaves)
        _check_outputs(z, len(inputs), name)
        self.n_outputs = z.shape[1]
        together, alone = z.detach()[:1], self._call(inputs[:1])
        if not torch.allclose(alone, together, rtol=1e-4, atol=1e-6 * float(alone.abs().max())):
            raise UnsupportedModelError(
                f"The outputs that {name} gives for a row change with the rows beside it (a batch "
                "normalisation without running statistics, say). Use layers that treat each row "
                "by itself in eval mode."
            )
        weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
        if not z.requires_grad:
            raise UnsupportedModelError(
                f"None of the chosen parameters of {name} changes its outputs. Choose others."
            )
        total = torch.autograd.grad(
            z, list(leaves.values()), weights, allow_unused=True, materialize_grads=True
        )
        expected = {key: value.detach() for key, value in zip(leaves, total, strict=True)}
        wrong = self._differing(inputs, weights, expected)
        if wrong:
            self.layers = [pair for pair in self.layers if wrong.isdisjoint(pair[0].values())]
            wrong = self._differing(inputs, weights, expected)
        if wrong:
            raise UnsupportedModelError(
                f"The derivatives of {name} by {sorted(wrong)} differ between one row and several "
                "at once. Use layers that treat each row by itself in eval mode."
            )

    def _differing(self, inputs, weights, expected):
        """Return the names whose derivatives, summed with weights, are not the expected ones."""
        penalized, free = self.derivatives(inputs)
        held = sum(block.doubles for block in [*penalized, *free])
        self.doubles_per_row = max(1, held // len(inputs))
        sums = {
            False: torch.zeros(self.n_penalized, 1, dtype=self.dtype, device=self.device),
            True: torch.zeros(self.n_free, 1, dtype=self.dtype, device=self.device),
        }
        for blocks, is_free in ((penalized, False), (free, True)):
            for block in blocks:
                block.add_pulled(sums[is_free], weights[..., None])
        scale = max(float(value.abs().max()) for value in expected.values())
        wrong = set()
        for name, place in self.places.items():
            found = sums[place.free][place.target, 0] / place.scale
            gap = (found - expected[name].flatten()).abs().max()
            if not float(gap) <= _TOLERANCE[self.dtype] * max(scale, 1e-30):
                wrong.add(name)
        return wrong


def _gradients(values, nodes, axis):
    """Return the derivatives of scalars by each node, stacked along an axis of the node's shape.

    A node that the values do not depend on gets zeros.
    """
    rows = [
        torch.autograd.grad(
            value, nodes, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for value in values
    ]
    return [torch.stack(parts, axis) for parts in zip(*rows, strict=True)]


def _check_outputs(z, n, name):
    if not torch.is_tensor(z):
        raise UnsupportedModelError(
            f"{name}.forward returned a {type(z).__name__}; it must return one tensor (n, "
            "n_outputs). Wrap it in a module that returns the logits or predictions alone."
        )
    if z.ndim != 2 or len(z) != n:
        raise UnsupportedModelError(
            f"{name}.forward returned shape {tuple(z.shape)} for {n} rows; it must be ({n}, "
            "n_outputs). Reshape the result, with one column for a single output."
        )
    if not bool(torch.isfinite(z).all()):
        raise ValueError(
            f"{name} gives outputs that are NaN or infinite. Check its parameters and scale the "
            "inputs."
        )
