"""Objectives known by their values alone: differentiated automatically, changed by evaluation."""

import torch
from torch.func import vmap

from ..models import plain_targets
from ._bound import BoundObjective


def slopes(function, outputs, y):
    """Return the derivative of a function's sum by the outputs.

    Parameters
    ----------
    function : callable
        ``function(outputs, y)`` returns a tensor.
    outputs : (n, C) tensor
        Where the derivative is taken.
    y : tensor or None
        Targets.

    Returns
    -------
    (n, C) tensor
    """
    with torch.enable_grad():
        leaf = outputs.detach().clone().requires_grad_()
        total = torch.as_tensor(function(leaf, y)).sum()
        if not total.requires_grad:
            raise ValueError(
                "The objective has no derivative by the outputs, which order='first' and means "
                "over the training rows need. Compute it from them in torch operations, without "
                "numpy(), item(), detach() or argmax(), or give it a gradient(outputs, y)."
            )
        return torch.autograd.grad(total, leaf)[0]


class EvaluatedObjective(BoundObjective):
    """An `Objective` with a value of its own, for one model.

    Parameters
    ----------
    model : ModelFunction
    objective : Objective
        Its ``aggregate`` may be None: what its values look like then decides.
    """

    takes_y = True

    def __init__(self, model, objective):
        super().__init__(model)
        self.objective = objective
        self.requires_y = objective.requires_y
        self.aggregate = objective.aggregate

    def prepare(self, features, y):
        z = self.model.outputs(features)
        if self.aggregate is None:
            self.aggregate = torch.as_tensor(self._raw(z, y)).ndim == 0
        self.value(z, y)

    def change(self, z, dz, y):
        before = self.value(z, y)
        if self.aggregate:
            return self._totals(z, dz, y) - before
        t, m, _ = dz.shape
        moved = (z.unsqueeze(1) + dz).flatten(0, 1)
        repeated = None if y is None else y.repeat_interleave(m, 0)
        return self.value(moved, repeated).view(t, m) - before.unsqueeze(1)

    def _totals(self, z, dz, y):
        """Return the values (m,) at each of the changed outputs."""

        def total(step):
            return torch.as_tensor(self._raw(z + step, y))

        try:
            totals = vmap(total, 1)(dz)
        except RuntimeError:  # an operation or a decision that cannot be taken for all at once
            totals = torch.stack([total(step) for step in dz.unbind(1)])
        return self._finite(totals)

    def gradient(self, z, y):
        seen = self.model.n_outputs
        given = self.objective.gradient(z[:, :seen], self._plain(y))
        given = torch.as_tensor(given).detach().to(z)
        if given.shape != (len(z), seen):
            raise ValueError(
                f"The gradient of {self._name} has shape {tuple(given.shape)} for {len(z)} rows "
                f"with {seen} outputs. Return {(len(z), seen)}."
            )
        return torch.nn.functional.pad(self._finite(given), (0, z.shape[1] - seen))

    def _plain(self, y):
        return None if y is None else plain_targets(self.model.targets, y)

    def _raw(self, z, y):
        with torch.no_grad():
            return self.objective.value(z[:, : self.model.n_outputs], self._plain(y))

    def value(self, z, y):
        values = self._raw(z, y)
        expected = () if self.aggregate else (len(z),)
        if not torch.is_tensor(values) or tuple(values.shape) != expected:
            got = f"shape {tuple(values.shape)}" if torch.is_tensor(values) else type(values)
            rule = "one number without dimensions" if self.aggregate else "one number a row"
            raise ValueError(
                f"{self._name} returned {got} for {len(z)} rows; it must be a tensor of {rule}, "
                f"shape {expected}. One that returns a number for all rows has aggregate = True, "
                "or is a plain function."
            )
        return self._finite(values)

    def _finite(self, values):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"{self._name} gives values or derivatives that are NaN or infinite. Write it so "
                "that it is finite at all outputs, with logsigmoid for log(sigmoid), say."
            )
        return values.to(torch.float64)

    @property
    def _name(self):
        given = getattr(self.objective, "function", self.objective)
        return f"The objective {getattr(given, '__name__', type(given).__name__)}"
