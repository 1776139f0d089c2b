"""Half squared error of one or more outputs."""

import torch

from ._base import ElementwiseLoss


class HalfSquaredError(ElementwiseLoss):
    """``l = (z - y)^2 / 2`` summed over outputs; the metric is the squared error's mean over them.

    Parameters
    ----------
    n_outputs : int
        Number of outputs that the metric averages over.
    shared : bool
        Whether all outputs have one penalty and so share one factorization.
    """

    quadratic = True

    def __init__(self, n_outputs=1, *, shared=True):
        self.coupling = "shared" if shared else "separable"
        self.metric_scale = 2.0 / n_outputs

    def terms(self, y, z):
        return 0.5 * (z - y) ** 2

    def change_terms(self, y, z, dz):
        return (0.5 * dz).add_(z - y).mul_(dz)

    def change(self, y, z, dz):
        # dz (dz + 2 (z - y)) in two passes: this is what a whole matrix of effects costs.
        terms = (dz + 2.0 * (z - y)).mul_(dz)
        change = terms.squeeze(-1) if terms.shape[-1] == 1 else terms.sum(-1)
        scale = 0.5 * self.metric_scale
        return change if scale == 1.0 else change.mul_(scale)

    def gradient(self, y, z):
        return z - y

    def curvature(self, y, z):
        return torch.ones_like(z)

    def coefficient(self, y, z):
        return z - y
