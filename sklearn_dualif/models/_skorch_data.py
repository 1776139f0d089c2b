"""What skorch's nets are given, and what their predictions say to the caller.

A net's labels may be any, as they are encoded before its ``fit`` and its predictions decoded
after; a net in ``estimator_`` or from ``unlearn`` speaks skorch's own codes. Rows take the float
type of the module where nothing stands between the caller and the net. In a Pipeline the last step
before the net has to give that type itself, and ``y`` of a regression the shape of the outputs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from ..exceptions import UnsupportedOptionError
from ._conversion import Conversion
from ._modules import as_inputs, as_rows, module_outputs, precision
from ._registry import conversion
from ._skorch import as_columns, criterion_of, plain
from ._targets import ClassTargets


@dataclass(frozen=True, kw_only=True)
class _NetConversion(Conversion):
    """Rows in the module's precision.

    Attributes
    ----------
    dtype : torch.dtype
        Of floats.
    converts_rows : bool
        Whether the net gets its rows from the caller.
    """

    dtype: torch.dtype
    converts_rows: bool

    def rows(self, X):
        if not self.converts_rows:
            return X
        return as_inputs(as_rows(X), self.dtype, torch.device("cpu")).numpy()

    def _as_floats(self, values):
        return torch.as_tensor(np.asarray(values)).to(self.dtype).numpy()


@dataclass(frozen=True, kw_only=True)
class _NumberConversion(_NetConversion):
    """Numbers, which a net gives as a column and a caller may give without.

    Attributes
    ----------
    flat : bool
        Whether the caller's targets have one dimension.
    column : bool
        Whether those of the net have two in that case.
    """

    flat: bool
    column: bool

    def targets(self, y):
        if y is None:
            return None
        y = self._as_floats(y)
        return y[:, None] if self.column and y.ndim == 1 else y

    def predictions(self, values):
        return values[:, 0] if self.flat and values.ndim == 2 else values


@dataclass(frozen=True, kw_only=True)
class _LabelConversion(_NetConversion):
    """Labels, which a net knows by their number.

    Attributes
    ----------
    labels : (n_classes,) array or None
        In the order of the outputs; None: the labels are the numbers.
    as_floats : bool
        Whether the criterion takes the numbers as floats.
    """

    labels: np.ndarray | None
    as_floats: bool

    def targets(self, y):
        if y is None:
            return None
        if self.labels is None:
            codes = column_or_1d(y, warn=True)
        else:
            codes = ClassTargets(self.labels, "index", None).index(y)
        return self._as_floats(codes) if self.as_floats else np.asarray(codes, dtype=np.int64)

    def predictions(self, values):
        return values if self.labels is None else self.labels[np.asarray(values, dtype=np.intp)]

    def labelled(self, targets):
        if self.labels is None:
            return targets
        if len(self.labels) != len(targets.classes):
            raise ValueError(_miscounted(self.labels, len(targets.classes)))
        return targets._replace(classes=self.labels)


@conversion.register(NeuralNetClassifier)
@conversion.register(NeuralNetBinaryClassifier)
@conversion.register(NeuralNetRegressor)
def _(net, X, y, frozen):
    options = {"dtype": torch.get_default_dtype(), "converts_rows": X is not None}
    n_outputs, column = None, False
    if X is not None:
        module = _module_before_fit(net, frozen)
        options["dtype"] = precision(module)[0] or options["dtype"]
        with_columns = _Columns(module)
        n_outputs = module_outputs(with_columns, as_rows(X)[:1]).shape[1]
        column = not with_columns.were_flat
    if isinstance(net, NeuralNetRegressor):
        return _NumberConversion(flat=np.ndim(y) == 1, column=column, **options)
    binary = isinstance(net, NeuralNetBinaryClassifier)
    labels = _labels_of(net, y, 2 if binary else n_outputs)
    result = _LabelConversion(labels=labels, as_floats=binary, **options)
    if not binary:
        _check_ignored(net, y, result.targets(y))
    return result


def _module_before_fit(net, frozen):
    if frozen:
        check_is_fitted(net)
        return plain(net.module_)
    with torch.random.fork_rng([]):
        return net.initialized_instance(net.module, net.get_params_for("module"))


class _Columns(nn.Module):
    """A module whose outputs (n,) become (n, 1), and which tells whether they did."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.were_flat = False

    def forward(self, inputs):
        outputs = self.module(inputs)
        columns = as_columns(outputs)
        self.were_flat = columns is not outputs
        return columns


def _labels_of(net, y, n_classes):
    """Return the label of each output, or None where the labels are the outputs' numbers.

    Parameters
    ----------
    net : NeuralNetClassifier or NeuralNetBinaryClassifier
        Its ``classes`` name the outputs, where they are given.
    y : array-like, (n,)
        Labels of the training rows.
    n_classes : int or None
        None where it is not known before the fit.
    """
    labels = np.unique(column_or_1d(y, warn=True))
    named = getattr(net, "classes", None)
    if named is not None and len(named) and set(labels.tolist()) <= set(named):
        return np.asarray(named)
    numbers = labels.dtype.kind in "iu" and labels[0] >= 0
    if numbers and labels[-1] < (len(labels) if n_classes is None else n_classes):
        return None
    if n_classes is not None and len(labels) != n_classes:
        raise ValueError(_miscounted(labels, n_classes))
    return labels


def _miscounted(labels, n_classes):
    shown = ", ".join(map(repr, labels[:5].tolist())) + (", ..." if len(labels) > 5 else "")
    return (
        f"y has the {len(labels)} label(s) {shown}, but the net tells {n_classes} classes apart. "
        f"Pass labels of all of them, integers from 0 to {n_classes - 1}, or classes=[the label of "
        "each output] to NeuralNetClassifier."
    )


def _check_ignored(net, y, codes):
    ignored = criterion_of(net).ignore_index
    given = np.asarray(y)
    if (given.dtype.kind in "iu" and (given == ignored).any()) or (codes == ignored).any():
        raise UnsupportedOptionError(
            f"y has rows of class {ignored}, which the criterion ignores "
            f"(ignore_index={ignored}). Drop these rows, or set another criterion__ignore_index."
        )
