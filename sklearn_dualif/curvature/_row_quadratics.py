"""Quadratic forms of many rows' Jacobians with one inverse Hessian."""

import torch


class RowQuadratics:
    """``J_i H^{-1} J_i^T`` of rows whose outputs are linear in dense features.

    Each pair of outputs is a quadratic form in the features, the same for all rows.

    Parameters
    ----------
    inverse : (P, P) tensor
        ``H^{-1}``, for features that ``center`` is subtracted from.
    center : (d,) tensor
    selector : (k, o) tensor
        Block coordinates of the penalised outputs.
    free : (k, f) tensor
        Jacobian with respect to the free parameters, which come first.
    """

    def __init__(self, inverse, center, selector, free):
        d, (k, o), f = len(center), selector.shape, free.shape[1]
        self._center, self._selector = center, selector
        self._free = free @ inverse[:f, :f] @ free.T
        mixed = inverse[f:, :f].reshape(d, o, f) @ free.T
        self._mixed = (selector @ mixed).reshape(d, k * k)
        self._first, self._second = torch.tril_indices(o, o)
        forms = inverse[f:, f:].view(d, o, d, o)[:, self._first, :, self._second]
        self._forms = 0.5 * (forms + forms.mT)

    def __call__(self, features):
        """Return the forms (b, k, k) of the rows of some `LinearFeatures`."""
        values = features.quadratic_forms(self._forms, self._center)
        n, o = len(values), self._selector.shape[1]
        result = values.new_empty(n, o, o)
        result[:, self._first, self._second] = values
        result[:, self._second, self._first] = values
        result = self._selector @ result @ self._selector.T
        mixed = (features.dense() - self._center) @ self._mixed
        mixed = mixed.view(n, *self._free.shape)
        return result.add_(mixed).add_(mixed.mT).add_(self._free)
