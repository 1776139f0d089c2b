"""Binary log loss of one output, or of several one-versus-rest outputs."""

import torch
from torch.nn.functional import logsigmoid

from ._base import ElementwiseLoss


class BinaryLogLoss(ElementwiseLoss):
    """``l = log(1 + exp(-m))``, with the margin ``m = z`` for ``y = 1`` and ``-z`` for ``y = 0``.

    With ``p = sigmoid(z)``: gradient ``p - y`` and curvature ``p (1 - p)``, whose quotient
    ``-exp(-m / 2)`` (times the sign of y) is formed directly, so that confident rows keep all
    their digits.
    """

    @staticmethod
    def _sign(y):
        return 2.0 * y - 1.0

    def terms(self, y, z):
        return -logsigmoid(self._sign(y) * z)

    def change_terms(self, y, z, dz):
        sign = self._sign(y)
        step = -sign * dz
        # log1p keeps the digits of small changes, the difference of two losses those of large ones.
        growth = torch.sigmoid(-sign * z) * torch.expm1(step.clamp(max=1.0))
        near = (step <= 1.0) & (growth >= -0.5)
        if bool(near.all()):
            return torch.log1p(growth)
        far = logsigmoid(sign * z) - logsigmoid(sign * (z + dz))
        return torch.where(near, torch.log1p(growth.clamp(min=-0.5)), far)

    def gradient(self, y, z):
        sign = self._sign(y)
        return -sign * torch.sigmoid(-sign * z)

    def curvature(self, y, z):
        return torch.exp(logsigmoid(z) + logsigmoid(-z))

    def coefficient(self, y, z):
        sign = self._sign(y)
        return -sign * torch.exp(-0.5 * sign * z)
