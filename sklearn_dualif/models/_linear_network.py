"""Linear models seen as networks: one kernel for all outputs, parameters taken as fitted."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch

from ..exceptions import UnsupportedOptionError
from ..kernels import LinearNetwork, TangentFeatures, as_tensor
from ._base import CoupledOutputs, LinearModel, Penalty


@dataclass(frozen=True, kw_only=True)
class LinearNetworkModel(CoupledOutputs, LinearModel):
    """A `LinearModel` with the interface of a `NetworkModel`.

    Attributes
    ----------
    relative : (n_outputs,) array
        Penalty of each output, over the largest.
    is_native : bool
        Whether there are exact forms that do without a network.
    """

    relative: np.ndarray

    is_native = True
    relative_move = None

    @classmethod
    def of(cls, model):
        """Return a linear model in this form."""
        strengths = np.broadcast_to(model.penalty.strength, model.n_outputs)
        if strengths.any() and not strengths.all():
            raise UnsupportedOptionError(
                f"Some outputs of {type(model.estimator).__name__} have a ridge and some have "
                "none, which a sketch cannot mix. Give all outputs a ridge, or use sketch=None."
            )
        largest = strengths.max(keepdims=True)
        values = {field.name: getattr(model, field.name) for field in fields(LinearModel)}
        values["penalty"] = Penalty(largest, model.penalty.scales_with)
        return cls(**values, relative=strengths / largest if largest > 0 else 1.0 + strengths)

    @classmethod
    def weighing_alike(cls, model):
        """Return a linear model in which all parameters count alike, as if penalised alike."""
        constant = 1.0 if model.fit_intercept else None
        return cls.of(replace(model, penalty=Penalty(np.ones(1)), intercept_constant=constant))

    def ridges(self, ridge):
        """Return the ridge of each output from that of the largest penalty."""
        return ridge * as_tensor(self.relative)

    @cached_property
    def network(self):
        """The model as a layer."""
        moving = []
        if self.fit_intercept and self.intercept_constant is None:
            moving += range(self.n_outputs)
        if self.scale is not None:
            moving.append(self.n_latent - 1)
        seen = torch.eye(self.n_latent, dtype=torch.float64)
        return LinearNetwork(
            self._weights[: self.n_outputs],
            self._shifts[moving],
            seen[:, : self.n_outputs],
            seen[:, moving],
            as_tensor(self.relative**-0.5),
        )

    def features(self, X):
        return TangentFeatures(self.network, super().features(X))

    def outputs(self, features):
        return features.outputs

    def fitted_parameters(self):
        penalized, free = self.network.parameters()
        return self.flatten(penalized[:, None], free[:, None])[:, 0].numpy()

    def flatten(self, weights, free):
        coef = weights.view(self.n_outputs, -1, weights.shape[1])
        coef = coef * self.network.scales[:, None, None]
        if self.intercept_constant is None:
            return torch.cat([coef.flatten(0, 1), free])
        constant = coef[:, -1] * self.intercept_constant
        return torch.cat([coef[:, :-1].flatten(0, 1), constant, free])
