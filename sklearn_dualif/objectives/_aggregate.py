"""One number for all query rows that is a function of weighted sums over them."""

from abc import abstractmethod

import torch

from ._bound import BoundObjective


class WeightedAggregate(BoundObjective):
    r"""``F(s)`` of the sums ``s = W^T r``, for one number ``r`` a row.

    With weights ``W`` (t, g) the changes of the sums are those of the rows' numbers, which need
    not be held for all query rows at once:

    .. math:: \Delta F = F(s + W^\top \Delta r) - F(s), \qquad
              \nabla_z F = (W \nabla_s F) \odot \nabla_z r .

    Parameters
    ----------
    rows : BoundObjective
        ``r``, with a ``value(z, y)``.

    Attributes
    ----------
    weights : (t, g) tensor
        Known once `prepare` has seen the query rows.
    """

    aggregate = True

    def __init__(self, rows):
        super().__init__(rows.model)
        self.rows = rows
        self.weights = None

    @abstractmethod
    def row_weights(self, n_rows, y):
        """Return the weights (t, g) of query rows."""

    @abstractmethod
    def combine(self, sums):
        """Return F of sums (g, m), (m,); differentiable."""

    def prepare(self, features, y):
        self.weights = self.row_weights(features.shape[0], y)

    def sums(self, z, y):
        """Return the sums (g,) at outputs z."""
        return self.weights.T @ self.rows.value(z, y)

    def value(self, z, y):
        return self.combine(self.sums(z, y).unsqueeze(1))[0]

    def change_of(self, sums, moves):
        """Return the changes (m,) of F when sums (g,) change by moves (g, m)."""
        sums = sums.unsqueeze(1)
        return self.combine(sums + moves) - self.combine(sums)

    def change(self, z, dz, y):
        return self.change_of(self.sums(z, y), self.weights.T @ self.rows.change(z, dz, y))

    def gradient(self, z, y):
        with torch.enable_grad():
            sums = self.sums(z, y).unsqueeze(1).requires_grad_()
            (slope,) = torch.autograd.grad(self.combine(sums).sum(), sums)
        return (self.weights @ slope) * self.rows.gradient(z, y)
