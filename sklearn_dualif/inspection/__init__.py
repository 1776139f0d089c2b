"""Displays. Matplotlib is imported when something is first drawn."""

from ._effective_dimension import EffectiveDimensionDisplay

__all__ = ["EffectiveDimensionDisplay"]
