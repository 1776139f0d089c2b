"""Whether the numbers are true, and how many of them the rows determine."""

from ._datamodeling import LinearDatamodelingScore, linear_datamodeling_score
from ._detection import DetectionCurve, detection_curve
from ._effective_dimension import EffectiveDimension, effective_dimension
from ._leave_one_out import LeaveOneOutEffects, leave_one_out_effects
from ._removal_curve import RemovalCurve, removal_curve
from ._removal_fidelity import RemovalFidelity, removal_fidelity
from ._verdict import Validation, validate

__all__ = [
    "DetectionCurve",
    "EffectiveDimension",
    "LeaveOneOutEffects",
    "LinearDatamodelingScore",
    "RemovalCurve",
    "RemovalFidelity",
    "Validation",
    "detection_curve",
    "effective_dimension",
    "leave_one_out_effects",
    "linear_datamodeling_score",
    "removal_curve",
    "removal_fidelity",
    "validate",
]
