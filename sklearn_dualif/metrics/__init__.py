"""Whether the numbers are true, and how many of them the rows determine."""

from ._effective_dimension import EffectiveDimension, effective_dimension
from ._leave_one_out import LeaveOneOutEffects, leave_one_out_effects
from ._removal_fidelity import RemovalFidelity, removal_fidelity

__all__ = [
    "EffectiveDimension",
    "LeaveOneOutEffects",
    "RemovalFidelity",
    "effective_dimension",
    "leave_one_out_effects",
    "removal_fidelity",
]
