"""What is being attributed: functions of the outputs of query rows."""

from ._base import Objective
from ._prediction import Margin, Prediction
from ._resolve import as_objective, resolve_objective
from ._training_loss import Loss, TrainingLoss

__all__ = [
    "Loss",
    "Margin",
    "Objective",
    "Prediction",
    "TrainingLoss",
    "as_objective",
    "resolve_objective",
]
