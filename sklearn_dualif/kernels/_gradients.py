"""Gradients of one function of each row's outputs by the parameters, and their inner products."""

from typing import NamedTuple

import torch


class GradientSum(NamedTuple):
    """A sum of gradients, (d, 1) by the penalised parameters and (f, 1) by the free ones."""

    penalized: torch.Tensor
    free: torch.Tensor

    def __add__(self, other):
        return GradientSum(self.penalized + other.penalized, self.free + other.free)

    def square(self):
        """Return the squared length."""
        return float((self.penalized**2).sum() + (self.free**2).sum())


class HeadGradients:
    """Gradients in the factored form of their layers.

    Parameters
    ----------
    heads : Heads
        One of each row.
    """

    def __init__(self, heads):
        self.heads = heads

    def inner(self, other):
        """Return the inner products (n, n') with the gradients of other rows."""
        free = self.heads.free_jacobian[:, 0] @ other.heads.free_jacobian[:, 0].T
        return (self.heads.gram(other.heads) + free).double().cpu()

    def total(self):
        """Return the sum over rows, for `along`."""
        ones = torch.ones(*self.heads.shape, 1, dtype=torch.float64)
        return GradientSum(self.heads.pull(ones), self.heads.free_jacobian.sum(0).T)

    def along(self, total):
        """Return the inner products (n,) with one gradient, a `total`."""
        products = self.heads.push(total.penalized) + self.heads.free_jacobian @ total.free
        return products[:, 0, 0].double().cpu()


class KernelGradients:
    """Gradients of rows that are known through a kernel: functions of its Hilbert space.

    Parameters
    ----------
    features : KernelFeatures
        The n rows.
    slopes : (n, C) tensor
        Derivatives by their outputs.
    """

    def __init__(self, features, slopes):
        self.features, self.slopes = features, slopes

    def inner(self, other):
        """Return the inner products (n, n') with the gradients of other rows."""
        return self.features.gram(other.features) * (self.slopes @ other.slopes.T)

    def total(self):
        """Return the sum over rows, for `along`: as its parts."""
        return self

    def along(self, total):
        """Return the inner products (n,) with one gradient, a `total`."""
        return ((self.features.gram(total.features) @ total.slopes) * self.slopes).sum(1)

    def square(self):
        """Return the squared length of the sum."""
        return float(self.along(self).sum())
