"""Displays, and a report. Matplotlib is imported when something is first drawn."""

from ._effective_dimension import EffectiveDimensionDisplay
from ._fidelity import FidelityDisplay
from ._influence import InfluenceDisplay
from ._neighbors import NeighborsDisplay
from ._removal_curve import RemovalCurveDisplay
from ._report import report
from ._self_influence import SelfInfluenceDisplay

__all__ = [
    "EffectiveDimensionDisplay",
    "FidelityDisplay",
    "InfluenceDisplay",
    "NeighborsDisplay",
    "RemovalCurveDisplay",
    "SelfInfluenceDisplay",
    "report",
]
