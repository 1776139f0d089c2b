"""Rows of which the model takes numbers, that may be moved: outputs, and derivatives by them."""

from functools import singledispatch

import torch

from ..exceptions import UnsupportedOptionError
from ..kernels import LinearFeatures, TangentFeatures, as_tensor
from ._base import LinearModel
from ._linear_network import LinearNetworkModel
from ._network import NetworkModel


class LinearRows:
    """Rows of a linear model.

    Parameters
    ----------
    model : LinearModel
    rows : LinearFeatures
    wrap : callable
        From the `LinearFeatures` of moved rows to the features that the model's engine takes.

    Attributes
    ----------
    values : (n, d) tensor
        In the units of what the final estimator takes.
    """

    def __init__(self, model, rows, wrap):
        if rows.is_sparse:
            raise UnsupportedOptionError(
                f"Rows of {type(model.estimator).__name__} are sparse, and to move them would "
                "change every feature. Pass dense rows, or make them dense in the pipeline."
            )
        self.model = model
        self.wrap = wrap
        self.values = rows.matrix[:, : model.coef.shape[1]]

    def features(self, values):
        """Return the tangent features of rows at other values."""
        return self.wrap(LinearFeatures(values, self.model.intercept_constant))

    def outputs(self, values):
        """Return the outputs (n, C) there."""
        return self.model.outputs(self.features(values))

    def gradient(self, values, slopes):
        """Return the derivatives of ``<slopes, outputs>`` by the values of each row."""
        return slopes[:, : self.model.n_outputs] @ as_tensor(self.model.coef)


class NetworkRows:
    """Rows of a network; see `LinearRows`."""

    def __init__(self, model, features):
        if not features.inputs.is_floating_point():
            raise UnsupportedOptionError(
                f"Rows of {type(model.estimator).__name__} are {features.inputs.dtype}, such as "
                "token ids, which cannot be moved by fractions. Give the network floats."
            )
        self.network = model.network
        self.values = features.inputs

    def features(self, values):
        """Return the tangent features of rows at other values."""
        return TangentFeatures(self.network, values)

    def outputs(self, values):
        """Return the outputs (n, C) there."""
        return self.network.outputs(values).to(torch.float64).cpu()

    def gradient(self, values, slopes):
        """Return the derivatives of ``<slopes, outputs>`` by the values of each row."""
        return self.network.input_gradients(values, slopes)


@singledispatch
def movable_rows(model, features):
    """Return rows of a model as `LinearRows` or `NetworkRows`.

    Parameters
    ----------
    model : ModelFunction
        What takes them.
    features : LinearFeatures, KernelFeatures or TangentFeatures
        Of the rows.
    """
    raise UnsupportedOptionError(
        f"{type(model.estimator).__name__} knows its rows through a kernel, whose derivatives by "
        "them are not known. Rows of linear models and networks can be moved."
    )


@movable_rows.register
def _(model: LinearModel, features):
    return LinearRows(model, features, lambda rows: rows)


@movable_rows.register
def _(model: LinearNetworkModel, features):
    return LinearRows(model, features.inputs, lambda rows: TangentFeatures(model.network, rows))


@movable_rows.register
def _(model: NetworkModel, features):
    return NetworkRows(model, features)
