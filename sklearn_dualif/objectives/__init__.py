"""What is being attributed: functions of a query row's outputs."""

from ._base import Objective, resolve_objective
from ._prediction import Margin, Prediction
from ._training_loss import Loss, TrainingLoss

__all__ = ["Loss", "Margin", "Objective", "Prediction", "TrainingLoss", "resolve_objective"]
