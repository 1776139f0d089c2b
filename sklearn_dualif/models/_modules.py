"""Torch modules as they were trained: their rows, and their outputs without a trace."""

from contextlib import contextmanager

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import gen_batches
from torch import nn
from torch.func import functional_call

from ..exceptions import UnsupportedModelError

BATCH_ROWS = 1024
"""Rows that a module is run on at once."""


def module_outputs(module, inputs):
    """Return a module's outputs of rows in eval mode, and leave the module as it was.

    Parameters
    ----------
    module : torch.nn.Module
        Its training flags are set while it runs, on each of its parts, and then set back. A
        forward that writes to buffers or draws random numbers leaves no trace.
    inputs : array-like or tensor, (n, ...)
        Rows, in batches of 1024 brought to the module's precision and device.

    Returns
    -------
    (n, C) tensor
        Finite, on the module's device, without gradients.

    Raises
    ------
    UnsupportedModelError
        A `TypeError`, if ``module`` is no trained module or gives no tensor.
    ValueError
        If the module can't process the rows, or the outputs have another shape or are not finite.
    """
    check_module(module)
    rows = as_rows(inputs)
    dtype, device = precision(module)
    cuda = [device] if device.type == "cuda" else []
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    parts = []
    with torch.no_grad(), torch.random.fork_rng(cuda), evaluating(module):
        for batch in gen_batches(len(rows), BATCH_ROWS):
            given = as_inputs(rows[batch], dtype, device)
            try:
                outputs = functional_call(module, buffers, (given,))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError) as error:
                raise ValueError(
                    f"{type(module).__name__} can't process inputs of shape {tuple(given.shape)} "
                    f"and {given.dtype}: {error}. Pass X in the shape that forward takes, with "
                    "floats for numbers and integers for tokens."
                ) from error
            _check_outputs(outputs, len(given), batch.start, type(module).__name__)
            parts.append(outputs)
    return torch.cat(parts)


def as_rows(X):
    """Return X (n, ...) as a tensor, or an array of numbers, that may share its memory.

    Parameters
    ----------
    X : array-like, DataFrame or tensor
        (n, ...)

    Returns
    -------
    array or tensor

    Raises
    ------
    TypeError
        If X is sparse.
    ValueError
        If X is not numeric, or has no rows.
    """
    if sparse.issparse(X):
        raise TypeError("X is a sparse matrix, which a module can't take. Pass X.toarray().")
    rows = X.detach() if isinstance(X, torch.Tensor) else np.asarray(X)
    if rows.ndim == 0 or len(rows) == 0:
        raise ValueError(
            f"X must be an array or a tensor with one entry a row, and at least one row; got "
            f"{type(X).__name__} of shape {tuple(rows.shape)}."
        )
    remedy = "Encode it as numbers first, for instance with sklearn.preprocessing.OrdinalEncoder."
    if rows.dtype == object:  # a DataFrame of mixed columns
        try:
            return rows.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"X has values that are not numbers: {error}. {remedy}") from error
    real = not rows.is_complex() if isinstance(rows, torch.Tensor) else rows.dtype.kind in "fiub"
    if not real:
        raise ValueError(f"X has values of type {rows.dtype}, not real numbers. {remedy}")
    return rows


def as_inputs(rows, dtype, device):
    """Return a copy of rows as a module takes them.

    Parameters
    ----------
    rows : array or tensor, (n, ...)
        From `as_rows`.
    dtype : torch.dtype or None
        Of floats and booleans; None: their own. Integers become 64-bit integers.
    device : torch.device
        Where the module is.

    Returns
    -------
    (n, ...) tensor
    """
    if isinstance(rows, np.ndarray):
        native = rows.dtype.newbyteorder("=")
        kind = np.int64 if native.kind in "iu" else native
        rows = torch.from_numpy(rows.astype(kind, order="C"))
    if not rows.is_floating_point() and rows.dtype != torch.bool:
        dtype = torch.int64
    return rows.to(device=device, dtype=dtype, copy=True)


@contextmanager
def evaluating(module):
    """Put each part of a module in eval mode, and back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def precision(module):
    """Return the dtype that float inputs take, None for their own, and the device."""
    tensors = [*module.parameters(), *module.buffers()]
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    device = tensors[0].device if tensors else torch.device("cpu")
    return next(floating, None), device


def check_module(module):
    """Raise `UnsupportedModelError` unless module is one that can be used at other parameters."""
    if not isinstance(module, nn.Module):
        given = module if isinstance(module, type) else type(module)
        remedy = (
            "Make an instance and train it."
            if isinstance(module, type)
            else "Pass the trained module itself (for a skorch net, net.module_)."
        )
        raise UnsupportedModelError(
            f"module must be an instance of torch.nn.Module; got {given.__name__}. {remedy}"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"module is a {type(module).__name__}, whose parameters can't be replaced in a call. "
            "Pass the torch.nn.Module that it was compiled from."
        )
    for name, parameter in module.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UnsupportedModelError(
                f"The parameter {name!r} of {type(module).__name__} has no shape yet. Run the "
                "module on some rows and train it first."
            )


def _check_outputs(outputs, n_rows, first_row, name):
    """Raise unless outputs are a finite floating tensor (n_rows, C)."""
    if not isinstance(outputs, torch.Tensor):
        raise UnsupportedModelError(
            f"forward of {name} returned a {type(outputs).__name__}, but outputs must be one "
            "tensor (n, n_outputs). Wrap the module in one whose forward returns the logits alone."
        )
    shape = tuple(outputs.shape)
    rule = f"forward of {name} returned shape {shape} for {n_rows} row(s)"
    if outputs.ndim == 1:
        raise ValueError(
            f"{rule}, but outputs must be (n, n_outputs). Return (n, 1) for a single output, for "
            "instance with unsqueeze(1)."
        )
    if outputs.ndim != 2 or shape[0] != n_rows or shape[1] == 0:
        raise ValueError(
            f"{rule}, but outputs must be (n, n_outputs). Wrap the module in one that returns one "
            "row of outputs for each row of X."
        )
    if not outputs.is_floating_point():
        raise ValueError(
            f"forward of {name} returned {outputs.dtype}, but outputs must be floats. Return "
            "logits or numbers, not labels."
        )
    finite = torch.isfinite(outputs).all(1)
    if not finite.all():
        wrong = int((~finite).nonzero()[0])
        value = float(outputs[wrong][~torch.isfinite(outputs[wrong])][0])
        raise ValueError(
            f"forward of {name} returned {value} for row {first_row + wrong}, but outputs must be "
            "finite. Check that row of X and the module's parameters for NaN and infinity."
        )
