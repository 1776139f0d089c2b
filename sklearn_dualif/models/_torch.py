"""Torch modules in a `TorchModel`."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..losses import BinaryLogLoss, HalfSquaredError, SoftmaxLogLoss
from ._base import Penalty
from ._modules import as_inputs, as_rows
from ._network import Decay, NetworkModel
from ._registry import as_model_function
from ._targets import ClassTargets, MultilabelTargets, RegressionTargets
from ._torch_model import TorchModel, weight_decays


@dataclass(frozen=True, kw_only=True)
class TorchNetwork(NetworkModel):
    """A module whose penalty scales with the mean loss that it was trained on."""

    def inputs(self, X):
        return as_inputs(as_rows(self.transform(X)), torch.float64, torch.device("cpu"))

    def write_tensors(self, estimator, tensors):
        parameters = dict(self._module_of(estimator).named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                parameters[name].copy_(torch.as_tensor(value))

    @staticmethod
    def _module_of(estimator):
        return estimator.module

    def _with_identity(self, n_outputs):
        return TorchModel(
            torch.nn.Identity(),
            loss=self.estimator.loss,
            classes=getattr(self.estimator, "classes_", None),
        )

    def _with_outputs(self, n_outputs):
        loss, targets, per_mean = self._trained_on(n_outputs)
        penalty = self.penalty._replace(strength=self.penalty.strength * per_mean)
        return replace(
            self,
            loss=loss,
            targets=targets,
            penalty=penalty,
            n_outputs=n_outputs,
            n_latent=n_outputs,
            loss_unit=per_mean,
        )

    def _trained_on(self, n_outputs):
        """Return loss, targets and how many units of the loss torch's mean over a row stands for.

        Torch's mean squared error and binary cross-entropy are means over the outputs of a row too.
        """
        return _loss_and_targets(self.estimator, n_outputs)


def _loss_and_targets(estimator, n_outputs):
    if estimator.loss == "cross_entropy":
        return SoftmaxLogLoss(), ClassTargets(estimator.classes_, "index", None), 1.0
    if estimator.loss == "binary_cross_entropy":
        if n_outputs > 1:
            return BinaryLogLoss(), MultilabelTargets(n_outputs, "binary"), float(n_outputs)
        return BinaryLogLoss(), ClassTargets(estimator.classes_, "binary", None), 1.0
    if estimator.loss == "mse":
        return HalfSquaredError(n_outputs), RegressionTargets(n_outputs), 0.5 * n_outputs
    return estimator.loss, RegressionTargets(n_outputs), 1.0


@as_model_function.register(TorchModel)
def _(estimator):
    decays = weight_decays(estimator.module, estimator.weight_decay)
    return TorchNetwork(
        estimator=estimator,
        loss=None,
        penalty=Penalty(np.zeros(1)),
        targets=None,
        n_outputs=None,
        n_latent=None,
        module=estimator.module,
        decay=Decay(decays, "weight"),
    )
