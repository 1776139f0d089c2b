"""The interface of an objective."""

from abc import ABC, abstractmethod

_NAMES = ("loss", "prediction", "margin")


class Objective(ABC):
    """A number for each query row, a function of its outputs.

    Parameters
    ----------
    model : ModelFunction
        Gives the loss and says which outputs are seen.
    """

    requires_y = False
    linear = False
    aggregate = False

    def __init__(self, model):
        self.model = model

    @abstractmethod
    def change(self, z, dz, y):
        """Return the change when outputs z (t, C) become z + dz (t, m, C): (t, m)."""

    @abstractmethod
    def gradient(self, z, y):
        """Return the derivative with respect to the outputs, (t, C)."""


def resolve_objective(objective, model):
    """Return the `Objective` that a name, or an object with ``bind(model)``, stands for."""
    from ._prediction import Margin, Prediction
    from ._training_loss import TrainingLoss

    if hasattr(objective, "bind"):
        return objective.bind(model)
    named = {"loss": TrainingLoss, "prediction": Prediction, "margin": Margin}
    if not isinstance(objective, str) or objective not in named:
        raise ValueError(
            f"objective={objective!r} is not known. Choose one of {', '.join(map(repr, _NAMES))}, "
            "or sklearn_dualif.objectives.Loss(linear=True)."
        )
    return named[objective](model)
