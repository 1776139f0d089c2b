"""What is being attributed: functions of the outputs of query rows."""

from ._adversarial import AdversarialLoss
from ._average_loss import AverageLoss
from ._base import Objective
from ._fairness import DemographicParity, EqualizedOdds, EqualOpportunity
from ._prediction import Margin, Prediction
from ._resolve import as_objective, resolve_objective
from ._training_loss import Loss, TrainingLoss

__all__ = [
    "AdversarialLoss",
    "AverageLoss",
    "DemographicParity",
    "EqualOpportunity",
    "EqualizedOdds",
    "Loss",
    "Margin",
    "Objective",
    "Prediction",
    "TrainingLoss",
    "as_objective",
    "resolve_objective",
]
