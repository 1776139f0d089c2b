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
        growth = (-sign * dz).expm1_().mul_(torch.sigmoid(-sign * z))
        # log1p keeps the digits of small changes, the difference of two losses those of large ones.
        low, high = torch.aminmax(growth)
        if float(low) >= -0.5 and float(high) < torch.inf:
            return growth.log1p_()
        near = (growth >= -0.5) & (growth < torch.inf)
        change = logsigmoid(sign * z) - logsigmoid(sign * (z + dz))
        return torch.where(near, torch.log1p(growth.clamp(min=-0.5)), change)

    def gradient(self, y, z):
        sign = self._sign(y)
        return -sign * torch.sigmoid(-sign * z)

    def curvature(self, y, z):
        return torch.exp(logsigmoid(z) + logsigmoid(-z))

    def coefficient(self, y, z):
        sign = self._sign(y)
        return -sign * torch.exp(-0.5 * sign * z)
