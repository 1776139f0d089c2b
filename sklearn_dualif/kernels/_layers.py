"""How each kind of layer's parameters enter its output.

A handler is called with a layer, its input and the sensitivities (n, h, ...) of its output, shaped
as the output behind the rows and heads. It returns the layer's derivatives as `Part` s.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Part(NamedTuple):
    """Derivatives by one or two parameters of a layer.

    Attributes
    ----------
    kind : {"matrix", "table", "dense"}
        Inputs times sensitivities of a weight matrix, of an embedding, or explicit derivatives.
    inputs : (n, P, i) tensor, (n, P) indices or None
    sensitivities : (n, h, P, o) tensor, or for "dense" the derivatives (n, h, p)
    weight, bias : str or None
        Names of the parameters in the layer.
    rows : (int, int) or None
        Those rows of the weight (entries of the bias) that the part is about; None: all.
    """

    kind: str
    inputs: torch.Tensor | None
    sensitivities: torch.Tensor
    weight: str | None
    bias: str | None = None
    rows: tuple | None = None

    def to(self, dtype):
        """Return the same derivatives in another precision."""
        inputs = self.inputs
        if inputs is not None and inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return self._replace(inputs=inputs, sensitivities=self.sensitivities.to(dtype))


def _linear(layer, x, e):
    n, h = e.shape[:2]
    inputs = x.reshape(n, -1, layer.in_features)
    sensitivities = e.reshape(n, h, -1, layer.out_features)
    bias = None if layer.bias is None else "bias"
    return [Part("matrix", inputs, sensitivities, "weight", bias)]


def _convolution(layer, x, e):
    """A convolution multiplies every patch of its input by one weight matrix a group."""
    n, h = e.shape[:2]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ):
        windows = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)
        x = windows[..., ::dilation]
    groups, dims = layer.groups, len(layer.kernel_size)
    # (n, in, *positions, *kernel) to (n, groups, positions, in / groups x kernel)
    x = x.unflatten(1, (groups, -1))
    x = x.permute(0, 1, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    x = x.flatten(2, 1 + dims).flatten(3)
    e = e.reshape(n, h, groups, layer.out_channels // groups, -1).mT
    bias = None if layer.bias is None else "bias"
    width = layer.out_channels // groups
    return [
        Part("matrix", x[:, g], e[:, :, g], "weight", bias, (g * width, (g + 1) * width))
        for g in range(groups)
    ]


def _embedding(layer, x, e):
    n, h = e.shape[:2]
    tokens = x.reshape(n, -1)
    if layer.padding_idx is not None:
        tokens = torch.where(tokens == layer.padding_idx, -1, tokens)
    return [Part("table", tokens, e.reshape(n, h, -1, layer.embedding_dim), "weight")]


def _layer_norm(layer, x, e):
    normed = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return _scale_and_shift(layer, normed, e, len(layer.normalized_shape))


def _rms_norm(layer, x, e):
    normed = functional.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    return _scale_and_shift(layer, normed, e, len(layer.normalized_shape))


def _scale_and_shift(layer, normed, e, dims):
    """Trailing ``dims`` dimensions have a scale and a shift of their own."""
    n, h = e.shape[:2]
    width = normed[0].numel() // max(1, normed.shape[1:-dims].numel())
    e = e.reshape(n, h, -1, width)
    parts = [Part("dense", None, (e * normed.reshape(n, 1, -1, width)).sum(2), "weight")]
    if getattr(layer, "bias", None) is not None:
        parts.append(Part("dense", None, e.sum(2), "bias"))
    return parts


def _group_norm(layer, x, e):
    normed = functional.group_norm(x, layer.num_groups, eps=layer.eps)
    return _channels(normed, e)


def _batch_norm(layer, x, e):
    normed = functional.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
    return _channels(normed, e)


def _channels(normed, e):
    """Every channel, dimension 1 of a row, has a scale and a shift."""
    n, h, width = e.shape[:3]
    e = e.reshape(n, h, width, -1)
    scale = (e * normed.reshape(n, 1, width, -1)).sum(3)
    return [Part("dense", None, scale, "weight"), Part("dense", None, e.sum(3), "bias")]


HANDLERS = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}
