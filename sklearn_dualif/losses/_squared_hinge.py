"""Squared hinge and its linear-tailed variant, for targets -1 and 1."""

import math

import torch

from ._base import ElementwiseLoss


class SquaredHinge(ElementwiseLoss):
    """``l = max(0, 1 - y z)^2``."""

    @staticmethod
    def _slack(y, z):
        return torch.clamp(1.0 - y * z, min=0.0)

    def terms(self, y, z):
        return self._slack(y, z) ** 2

    def change_terms(self, y, z, dz):
        before, after = self._slack(y, z), self._slack(y, z + dz)
        step = torch.where((before > 0) & (after > 0), -y * dz, after - before)
        return step * (before + after)

    def gradient(self, y, z):
        return -2.0 * y * self._slack(y, z)

    def curvature(self, y, z):
        return 2.0 * (y * z < 1.0).to(z.dtype)

    def coefficient(self, y, z):
        return -math.sqrt(2.0) * y * self._slack(y, z)


class ModifiedHuber(ElementwiseLoss):
    """Squared hinge for ``y z >= -1`` and ``-4 y z`` below."""

    def terms(self, y, z):
        margin = y * z
        slack = torch.clamp(1.0 - margin, min=0.0)
        return torch.where(margin >= -1.0, slack**2, -4.0 * margin)

    def change_terms(self, y, z, dz):
        return self.terms(y, z + dz) - self.terms(y, z)

    def gradient(self, y, z):
        return -2.0 * y * torch.clamp(1.0 - y * z, min=0.0, max=2.0)

    def curvature(self, y, z):
        margin = y * z
        return 2.0 * ((margin < 1.0) & (margin >= -1.0)).to(z.dtype)
