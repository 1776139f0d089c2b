"""Half deviances of the Tweedie family with log link."""

import torch

from ._base import ElementwiseLoss


class HalfTweedieDeviance(ElementwiseLoss):
    """Half the unit deviance of power ``1 <= p <= 2`` at the mean ``mu = exp(z)``.

    Poisson is p = 1, Gamma p = 2. Convex in z for these powers alone. With
    ``a = mu^(1 - p)`` and ``b = mu^(2 - p)``: gradient ``b - y a``, curvature
    ``(p - 1) y a + (2 - p) b``.
    """

    metric_scale = 2.0

    def __init__(self, power):
        self.power = power

    def _moments(self, y, z):
        return y * torch.exp((1.0 - self.power) * z), torch.exp((2.0 - self.power) * z)

    def terms(self, y, z):
        p = self.power
        if p == 1.0:
            return torch.special.xlogy(y, y) - y * z - y + torch.exp(z)
        if p == 2.0:
            return z - torch.log(y) + y * torch.exp(-z) - 1.0
        first, second = self._moments(y, z)
        return y ** (2.0 - p) / ((1.0 - p) * (2.0 - p)) - first / (1.0 - p) + second / (2.0 - p)

    def change_terms(self, y, z, dz):
        p = self.power
        first, second = self._moments(y, z)
        if p == 1.0:
            return second * torch.expm1(dz) - y * dz
        if p == 2.0:
            return dz + first * torch.expm1(-dz)
        return second * torch.expm1((2.0 - p) * dz) / (2.0 - p) - first * torch.expm1(
            (1.0 - p) * dz
        ) / (1.0 - p)

    def gradient(self, y, z):
        first, second = self._moments(y, z)
        return second - first

    def curvature(self, y, z):
        first, second = self._moments(y, z)
        return (self.power - 1.0) * first + (2.0 - self.power) * second

    def coefficient(self, y, z):
        return self.gradient(y, z) / torch.sqrt(self.curvature(y, z))

    def response_change(self, z, dz):
        return torch.exp(z) * torch.expm1(dz)

    def response_slope(self, z):
        return torch.exp(z)
