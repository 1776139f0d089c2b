"""Newton steps by a factorization that is kept while the curvature changes.

Two gradients tell what the curvature between them does to the step that was taken. The formula of
Broyden, Fletcher, Goldfarb and Shanno corrects the kept inverse accordingly, by the two loops of
J. Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35, 1980.
"""

from typing import NamedTuple

import torch


class _Pair(NamedTuple):
    """A step and the change of the gradient along it.

    Attributes
    ----------
    step, change : (G, D, 1) tensors
    covector : (G, D, 1) tensor
        The `dual_vector` of the change.
    product : (G, 1, 1) tensor
        Of step and change.
    """

    step: torch.Tensor
    change: torch.Tensor
    covector: torch.Tensor
    product: torch.Tensor


class SecantInverse:
    """The inverse Hessian of a factorised curvature, corrected by the steps taken since.

    Parameters
    ----------
    curvature : Curvature
        At the point where the first gradient is.
    """

    def __init__(self, curvature):
        self.curvature = curvature
        self.covector = None
        self._gradient = None
        self._step = None
        self._pairs = []

    def solve(self, gradient):
        """Return the inverse Hessian times the gradient (G, D, 1); `covector` is its dual."""
        covector = self.curvature.dual_vector(gradient)
        if self._step is not None:
            self._learn(gradient - self._gradient, covector - self.covector)
        self._gradient, self.covector = gradient, covector
        shares = []
        for pair in reversed(self._pairs):
            share = _product(pair.step, covector) / pair.product
            gradient, covector = gradient - share * pair.change, covector - share * pair.covector
            shares.append(share)
        solution = self.curvature.solve(gradient)
        for pair, share in zip(self._pairs, reversed(shares), strict=True):
            share = share - _product(pair.covector, solution) / pair.product
            solution = solution + share * pair.step
        return solution

    def take(self, step):
        """Note the step (G, D, 1) from the last gradient to the next."""
        self._step = step

    def _learn(self, change, covector):
        product = _product(self._step, covector)
        if bool((product > 0.0).all()):
            self._pairs.append(_Pair(self._step, change, covector, product))
        self._step = None


def _product(first, second):
    return (first * second).sum(1, keepdim=True)
