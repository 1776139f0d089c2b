"""Dropout that is drawn once: the same units are missing whatever the row."""

import copy

import torch
from torch import nn

from ..exceptions import UnsupportedOptionError
from ._modules import as_inputs, evaluating, precision

# The first drops single entries, the others whole channels.
_KNOWN = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class _FixedMask:
    """A forward hook that multiplies what a dropout layer returns by a fixed mask.

    A hook, since some layers skip those inside of them that have none.
    """

    def __init__(self, mask, shape):
        self.mask = mask
        self.shape = shape

    def __call__(self, layer, inputs, outputs):
        if outputs.shape[1:] != self.shape:
            raise ValueError(
                f"A dropout layer has units of shape {tuple(outputs.shape[1:])} for these rows, "
                f"and its mask was drawn for {tuple(self.shape)}. Pass rows of one shape, or use "
                "another kind of ensemble."
            )
        return outputs * self.mask.to(outputs)


def with_fixed_masks(module, inputs, seed):
    """Return a copy of a module whose dropout layers keep some units for good.

    A unit is dropped with the layer's rate p, and what is kept is divided by 1 - p.

    Parameters
    ----------
    module : torch.nn.Module
        Read, never written.
    inputs : tensor, (n, ...)
        Rows; the first shows what the units are.
    seed : int
        Decides the masks, of which none drops all units.

    Raises
    ------
    UnsupportedOptionError
        If the module runs through no dropout layer with a rate between 0 and 1.
    """
    masked = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    shapes = _shapes(masked, inputs[:1])
    for layer, shape in shapes.items():
        layer.register_forward_hook(_FixedMask(_draw(layer, shape, generator), shape))
    if not shapes:
        raise UnsupportedOptionError(
            f"{type(module).__name__} has no dropout to draw masks from: no Dropout, Dropout1d, "
            "Dropout2d or Dropout3d of torch.nn with a rate between 0 and 1 is run, and no "
            "perceptron's hidden units. Use kind='seed', 'bootstrap' or 'checkpoint'."
        )
    return masked


def _shapes(module, inputs):
    """Return the shape of a row's units at each dropout layer that is run, in their order."""
    shapes = {}

    def note(layer, given, outputs):
        shapes.setdefault(layer, outputs.shape[1:])

    layers = [part for part in module.modules() if type(part) in _KNOWN and 0 < part.p < 1]
    handles = [layer.register_forward_hook(note) for layer in layers]
    dtype, device = precision(module)
    with torch.no_grad(), torch.random.fork_rng([]), evaluating(module):
        module(as_inputs(inputs, dtype, device))
    for handle in handles:
        handle.remove()
    return shapes


def _draw(layer, shape, generator):
    """Return the mask of a layer, to be multiplied with units of a shape."""
    if not isinstance(layer, nn.Dropout):
        shape = (shape[0], *[1] * (len(shape) - 1))
    draws = torch.rand(shape, generator=generator, dtype=torch.float64)
    kept = draws >= min(layer.p, float(draws.max()))
    return kept.double() / (1.0 - layer.p)
