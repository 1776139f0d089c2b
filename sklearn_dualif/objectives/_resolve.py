"""From what users type to the objective of a model."""

from ._base import FunctionObjective, Objective
from ._prediction import Margin, Prediction
from ._training_loss import Loss

_NAMED = {"loss": Loss, "prediction": Prediction, "margin": Margin}


def as_objective(objective):
    """Return the `Objective` that a name, a function or an objective itself stands for."""
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str) and objective in _NAMED:
        return _NAMED[objective]()
    if isinstance(objective, type) and issubclass(objective, Objective):
        remedy = f"Pass an instance, {objective.__name__}(...), not the class"
    elif callable(objective) and not isinstance(objective, type):
        return FunctionObjective(objective)
    else:
        remedy = "See sklearn_dualif.objectives for others"
    raise ValueError(
        f"objective={objective!r} is not known. Choose one of {', '.join(map(repr, _NAMED))}, an "
        f"Objective, or a function of outputs and targets. {remedy}."
    )


def resolve_objective(objective, model):
    """Return the `BoundObjective` of a name, a function or an `Objective` for a model."""
    return as_objective(objective).bind(model)
