"""Gaps between groups in the rates of a class, of predictions or of their probabilities."""

from typing import NamedTuple

import torch

from ..models import class_codes
from ._aggregate import WeightedAggregate
from ._bound import BoundObjective
from ._groups import Groups

_CALLED = {
    "all": "at all",
    "favorable": "of the favourable class",
    "others": "of another class than the favourable one",
}


class GapRule(NamedTuple):
    """Which rates of groups are compared, and how.

    Attributes
    ----------
    groups : Groups
    conditions : tuple of {"all", "favorable", "others"}
        By their label, the rows that each rate is a mean over.
    reference : int or None
        Group that the others are compared with. None: the gap is the largest rate less the
        smallest. Else it is that of the other group less that of the reference; with several
        others, of the one that is furthest from it.
    agg : {"worst_case", "mean"}
        Which of the gaps of several conditions counts: the largest by size, or their mean.
    """

    groups: Groups
    conditions: tuple
    reference: int | None = None
    agg: str = "worst_case"

    def weights(self, positive):
        """Return weights (n, k g) whose sums are the rates of k conditions and g groups.

        Parameters
        ----------
        positive : (n,) bool tensor or None
            Rows whose label is the favourable one.
        """
        everyone = torch.ones(len(self.groups.codes), dtype=torch.bool)
        kept = {"all": everyone, "favorable": positive}
        kept["others"] = None if positive is None else ~positive
        parts = [self.groups.means(kept[name], _CALLED[name]) for name in self.conditions]
        return torch.cat(parts, 1)

    def combine(self, rates):
        """Return the gap (m,) of rates (k g, m)."""
        rates = rates.view(len(self.conditions), len(self.groups.labels), -1)
        if self.reference is None:
            gaps = rates.amax(1) - rates.amin(1)
        else:
            own = rates[:, self.reference, None]
            others = torch.cat([rates[:, : self.reference], rates[:, self.reference + 1 :]], 1)
            gaps = _furthest(others - own, 1)
        return _furthest(gaps, 0) if self.agg == "worst_case" else gaps.mean(0)


def _furthest(gaps, axis):
    place = gaps.abs().argmax(axis, keepdim=True)
    return torch.take_along_dim(gaps, place, axis).squeeze(axis)


class ClassProbability(BoundObjective):
    """How probable the model makes a class.

    Parameters
    ----------
    model : ModelFunction
    probability : callable
        From outputs (..., n_outputs) to probabilities (...,).
    """

    def __init__(self, model, probability):
        super().__init__(model)
        self.probability = probability

    def value(self, z, y):
        """Return the probability of each row, (t,)."""
        return self.probability(z)

    def change(self, z, dz, y):
        before = self.probability(z).unsqueeze(1)
        return self.probability(z.unsqueeze(1) + dz).sub_(before)

    def gradient(self, z, y):
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            return torch.autograd.grad(self.probability(leaf).sum(), leaf)[0]


class RateGap(WeightedAggregate):
    """A gap in expected rates, the means of predicted probabilities.

    Parameters
    ----------
    rows : ClassProbability
        Of the favourable class.
    rule : GapRule
    favorable : int
        Position of the favourable class.
    """

    def __init__(self, rows, rule, favorable):
        super().__init__(rows)
        self.rule = rule
        self.favorable = favorable
        self.requires_y = rule.conditions != ("all",)
        self.n_rows = len(rule.groups.codes)

    def row_weights(self, n_rows, y):
        self.rule.groups.check_length(n_rows, "sensitive_features")
        return self.rule.weights(class_codes(y) == self.favorable if self.requires_y else None)

    def combine(self, sums):
        return self.rule.combine(sums)
