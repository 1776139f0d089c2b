"""Regression losses that forgive small or bound large residuals."""

import math

import torch

from ._base import ElementwiseLoss, Expansion, Loss, OutputLayout


class SquaredEpsilonInsensitive(ElementwiseLoss):
    """``l = max(0, |z - y| - epsilon)^2``."""

    def __init__(self, epsilon):
        self.epsilon = epsilon

    def _excess(self, y, z):
        residual = z - y
        return torch.sign(residual) * torch.clamp(residual.abs() - self.epsilon, min=0.0)

    def terms(self, y, z):
        return self._excess(y, z) ** 2

    def change_terms(self, y, z, dz):
        before, after = self._excess(y, z), self._excess(y, z + dz)
        step = torch.where(before * after > 0, dz.expand_as(after), after - before)
        return step * (before + after)

    def gradient(self, y, z):
        return 2.0 * self._excess(y, z)

    def curvature(self, y, z):
        return 2.0 * ((z - y).abs() > self.epsilon).to(z.dtype)

    def coefficient(self, y, z):
        return math.sqrt(2.0) * self._excess(y, z)


class Huber(ElementwiseLoss):
    """``l = r^2 / 2`` for ``|r| <= epsilon``, ``epsilon |r| - epsilon^2 / 2`` beyond."""

    def __init__(self, epsilon):
        self.epsilon = epsilon

    def terms(self, y, z):
        size = (z - y).abs()
        return torch.where(
            size <= self.epsilon, 0.5 * size**2, self.epsilon * (size - 0.5 * self.epsilon)
        )

    def change_terms(self, y, z, dz):
        return self.terms(y, z + dz) - self.terms(y, z)

    def gradient(self, y, z):
        return torch.clamp(z - y, -self.epsilon, self.epsilon)

    def curvature(self, y, z):
        return ((z - y).abs() <= self.epsilon).to(z.dtype)


class ScaledHuber(Loss):
    """``l = s + H((y - m) / s) s`` of the outputs ``(m, s)``, a mean and a scale > 0.

    ``H(t) = t^2`` for ``|t| <= epsilon`` and ``2 epsilon |t| - epsilon^2`` beyond (Owen 2007; the
    objective of HuberRegressor). Jointly convex; the curvature of an inlier has rank one, that of
    an outlier rank zero, and the gradient is not in its range.
    """

    coupling = "coupled"

    def __init__(self, epsilon):
        self.epsilon = epsilon

    def layout(self, n_outputs):
        return OutputLayout(1, torch.eye(2, dtype=torch.float64), torch.tensor([True, False]))

    def in_domain(self, z):
        return super().in_domain(z) and bool((z[..., 1] > 0).all())

    def largest_step(self, z, dz):
        # Near scale 0 all rows are outliers and the curvature is gone: halve it at most.
        shrinking = float((-dz[..., 1] / z[..., 1]).max())
        return 1.0 if shrinking <= 0.5 else 0.5 / shrinking

    def _inlier(self, residual, scale):
        return residual.abs() <= self.epsilon * scale

    def terms(self, y, z):
        residual, scale = y[..., 0] - z[..., 0], z[..., 1]
        inlier = scale + residual**2 / scale
        outlier = scale + self.epsilon * (2.0 * residual.abs() - self.epsilon * scale)
        return torch.where(self._inlier(residual, scale), inlier, outlier).unsqueeze(-1)

    def change_terms(self, y, z, dz):
        residual, scale = y[..., 0] - z[..., 0], z[..., 1]
        shift, growth = dz[..., 0], dz[..., 1]
        new_residual, new_scale = residual - shift, scale + growth
        inside = self._inlier(residual, scale) & self._inlier(new_residual, new_scale)
        quadratic = growth + (-scale * shift * (residual + new_residual) - residual**2 * growth) / (
            scale * new_scale
        )
        general = (self.terms(y, z + dz) - self.terms(y, z))[..., 0]
        return torch.where(inside, quadratic, general).unsqueeze(-1)

    def gradient(self, y, z):
        scale = z[..., 1]
        ratio = torch.clamp((y[..., 0] - z[..., 0]) / scale, -self.epsilon, self.epsilon)
        return torch.stack([-2.0 * ratio, 1.0 - ratio**2], -1)

    def expand(self, y, z, weights):
        residual, scale = y[..., 0] - z[..., 0], z[..., 1]
        size = torch.sqrt(2.0 * weights / scale) * self._inlier(residual, scale)
        root = torch.stack([size, size * residual / scale], -1)
        gradient = weights[:, None] * self.gradient(y, z)
        return Expansion(gradient[None], root[None, :, :, None], None)
