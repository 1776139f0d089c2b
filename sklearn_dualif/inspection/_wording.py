"""What an effect is on, and what its sign means, in words for axes and headings."""

import re
from typing import NamedTuple

from ..objectives import (
    AdversarialLoss,
    AverageLoss,
    Loss,
    Margin,
    Objective,
    Prediction,
    as_objective,
)


class Target(NamedTuple):
    """What effects are on.

    Attributes
    ----------
    name : str
        Such as "held-out loss".
    is_loss : bool
        Whether less of it is better, so that rows help or hurt.
    """

    name: str
    is_loss: bool

    @property
    def raises(self):
        """What a positive effect says."""
        return f"removing it raises the {self.name}{': it helps' if self.is_loss else ''}"

    @property
    def lowers(self):
        """What a negative effect says."""
        return f"removing it lowers the {self.name}{': it hurts' if self.is_loss else ''}"


def target_of(objective, rows="held-out"):
    """Return the `Target` of an objective.

    Parameters
    ----------
    objective : str, Objective or callable
        As in `InfluenceEstimator`.
    rows : str
        Whose objective it is: "held-out", "training", or "" where that is not known.
    """
    objective = as_objective(objective)
    prefix = f"{rows} " if rows else ""
    if isinstance(objective, (Loss, AverageLoss, AdversarialLoss)):
        kind = "adversarial loss" if isinstance(objective, AdversarialLoss) else "loss"
        return Target(f"{prefix}{kind}", True)
    if isinstance(objective, Prediction):
        return Target(f"{prefix}prediction", False)
    if isinstance(objective, Margin):
        return Target(f"{prefix}margin", False)
    name = type(objective).__name__
    if name == "FunctionObjective" or type(objective) is Objective:
        return Target(f"{prefix}objective", False)
    return Target(prefix + re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower(), False)
