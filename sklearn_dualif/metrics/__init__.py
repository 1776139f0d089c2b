"""Whether the numbers are true, and how many of them the rows determine."""

from ._effective_dimension import EffectiveDimension, effective_dimension
from ._removal_fidelity import RemovalFidelity, removal_fidelity

__all__ = ["EffectiveDimension", "RemovalFidelity", "effective_dimension", "removal_fidelity"]
