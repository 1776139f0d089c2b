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
from ._blocks import DenseBlock, WeightBlock
from ._layers import HANDLERS
from ._lookup import LookupBlock

_CHECKED_ROWS = 4
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
        Of derivatives and of what is computed from them. The module itself runs in double
        precision, except where its own code asks for single.
    device : torch.device, str or None
        None: the processor.
    """

    def __init__(self, module, penalties, inputs, *, readout=None, dtype, device=None):
        self.dtype, self.device = dtype, torch.device(device or "cpu")
        self.readout = readout
        self.penalties = dict(penalties)
        try:
            private = copy.deepcopy(module)
        except (RuntimeError, TypeError) as error:
            raise UnsupportedModelError(
                f"{type(module).__name__} cannot be copied ({error}). Keep only parameters and "
                "buffers on the module: no results of a forward pass, no locks or files."
            ) from error
        self.module = private.to(device=self.device).eval().requires_grad_(False)
        for layer in self.module.modules():
            if isinstance(layer, torch.nn.Embedding | torch.nn.EmbeddingBag):
                layer.sparse = False
        self._paths = self._parameter_paths()
        self.places, self.n_penalized, self.n_free = self._place_parameters()
        self.layers = self._known_layers()
        self._batched = True
        self._contracted = None
        checked = torch.linspace(0, len(inputs) - 1, min(_CHECKED_ROWS, len(inputs))).long()
        checked = self.to_device(inputs[checked])
        self._set_precision(checked)
        self._check(checked)

    def _parameter_paths(self):
        """Return all paths of each parameter, one for each module that holds it."""
        names = {id(value): name for name, value in self.module.named_parameters()}
        paths = {name: [] for name in names.values()}
        for prefix, layer in self.module.named_modules():
            for name, value in layer.named_parameters(recurse=False, remove_duplicate=False):
                paths[names[id(value)]].append(f"{prefix}.{name}" if prefix else name)
        return paths

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
        return torch.as_tensor(inputs).to(device=self.device)

    def _set_precision(self, inputs):
        """Choose the precision in which the module runs.

        Derivatives jump where a ReLU's input is 0, and optima are drawn to such points: what
        single precision rounds away there would change effects by more than all that follows.
        """
        self._precision = torch.float64
        try:
            self.module.to(torch.float64)
            with torch.no_grad():
                self._call(inputs)
        except (RuntimeError, TypeError):  # TypeError: devices without double precision
            self._precision = torch.float32
            self.module.to(torch.float32)
        self._tolerance = max(_TOLERANCE[self._precision], _TOLERANCE[self.dtype])

    def parameters(self):
        """Return the penalised (d,) and the free (f,) parameters."""
        values = dict(self.module.named_parameters())
        vectors = {
            True: torch.zeros(self.n_free, dtype=torch.float64, device=self.device),
            False: torch.zeros(self.n_penalized, dtype=torch.float64, device=self.device),
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

    def input_gradients(self, inputs, slopes):
        """Return the derivatives of ``<slopes, outputs>`` of each row by its inputs.

        Parameters
        ----------
        inputs : (n, ...) tensor
            Floats.
        slopes : (n, C) tensor
            Weights of the outputs.
        """
        inputs, parts = self.to_device(inputs), []
        for rows in gen_batches(len(inputs), _BATCH_ROWS):
            with torch.enable_grad():
                leaf = inputs[rows].detach().clone().requires_grad_()
                z = self._call(leaf)
            parts += torch.autograd.grad(z, leaf, slopes[rows].to(z))
        return torch.cat(parts)

    def _call(self, inputs, parameters=None):
        """Return the outputs, at other values of some parameters where given."""
        if inputs.is_floating_point():
            inputs = inputs.to(self._precision)
        with torch.random.fork_rng(devices=[]):
            if parameters is None:
                outputs = self.module(inputs)
            else:
                # By path, since ties are resolved wrongly where one layer stands at two places.
                values = {
                    path: value for name, value in parameters.items() for path in self._paths[name]
                }
                outputs = functional_call(self.module, values, (inputs,), tie_weights=False)
        return outputs if self.readout is None else self.readout(outputs)

    def derivatives(self, inputs, root=None):
        """Return the penalised and the free blocks of rows.

        Their heads are the outputs, or with a root (n, C, q) its combinations ``root^T z``.
        """
        z, records = self._forward(inputs)
        # A node stands for the rows of the batch: the sum over rows gives each row its own.
        heads = z.sum(0) if root is None else (z.unsqueeze(2) * root.to(z)).sum((0, 1))
        sensitivities = _gradients(heads, [node for _, node in records], 1) if records else []
        penalized, free = [], []
        for (names, layer), (x, _), e in zip(self.layers, records, sensitivities, strict=True):
            for part in HANDLERS[type(layer)](layer, x, e):
                self._add_blocks(part.to(self.dtype), names, penalized, free)
        for name, values in self._explicit(inputs).items():
            place = self.places[name]
            values = values.reshape(*values.shape[:2], -1) * place.scale
            block = DenseBlock(values.to(self.dtype), place.target)
            block = block if root is None else block.mixed(root)
            (free if place.free else penalized).append(block)
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
            def record(layer, args, kwargs, output):
                x = args[0] if args else next(iter(kwargs.values()))
                node = output if output.requires_grad else output.detach().requires_grad_()
                calls[index].append((x.detach(), node))
                return node.clone()  # what follows may write in place

            return record

        handles = [
            layer.register_forward_hook(recorder(index), with_kwargs=True)
            for index, (_, layer) in enumerate(self.layers)
        ]
        try:
            with torch.enable_grad():
                z = self._call(inputs)
        finally:
            for handle in handles:
                handle.remove()
        unusual = [
            index
            for index, made in enumerate(calls)
            if len(made) != 1 or any(len(part) != len(inputs) for part in made[0])
        ]
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
                block.contracted = self._contracted is None or weight.target in self._contracted
                lists[weight.free].append(block)
            return
        if weight is not None:
            inputs = part.inputs if weight.scale == 1.0 else part.inputs * weight.scale
            joint = bias is not None and bias.free == weight.free
            if joint:
                inputs = torch.nn.functional.pad(inputs, (0, 1), value=bias.scale)
            target = bias.target if joint else None
            block = WeightBlock(inputs, part.sensitivities, weight.target, target)
            block.contracted = self._contracted is None or weight.target in self._contracted
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
        if not self._alone_as_together(inputs[:1], z.detach()[:1]):
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
        self.is_linear = self._is_linear(inputs, z.detach())

    def _is_linear(self, inputs, z):
        """Tell whether outputs move by the derivatives under a large change of the parameters."""
        generator = torch.Generator().manual_seed(1)
        current, moved, change = dict(self.module.named_parameters()), {}, torch.zeros_like(z)
        directions = {
            False: torch.zeros(self.n_penalized, 1, dtype=self.dtype, device=self.device),
            True: torch.zeros(self.n_free, 1, dtype=self.dtype, device=self.device),
        }
        for name, place in self.places.items():
            value = current[name]
            step = torch.randn(value.shape, generator=generator).to(value) * (1.0 + value.abs())
            moved[name] = value + step
            directions[place.free][place.target, 0] = step.flatten() / place.scale
        for blocks, free in zip(self.derivatives(inputs), (False, True), strict=True):
            for block in blocks:
                block.add_pushed(change.unsqueeze(-1), directions[free])
        gap = (self._call(inputs, moved) - z - change).abs().max()
        return bool(gap <= 100 * self._tolerance * change.abs().max())

    def _alone_as_together(self, inputs, together):
        """Tell whether a row by itself has the outputs that it has among others."""
        try:
            alone = self._call(inputs).detach()
        except ValueError:  # a normalisation over the batch finds nothing to normalise
            return False
        return torch.allclose(alone, together, rtol=1e-4, atol=1e-6 * float(alone.abs().max()))

    def _differing(self, inputs, weights, expected):
        """Return the names whose derivatives, summed with weights, are not the expected ones."""
        penalized, free = self.derivatives(inputs)
        self._contracted = [
            block.weight
            for block in penalized
            if isinstance(block, WeightBlock) and block.cheaper_contracted()
        ]
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
            if not float(gap) <= self._tolerance * max(scale, 1e-30):
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
