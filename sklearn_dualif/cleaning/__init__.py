"""Rows of a training set that are probably wrong: found, removed, relabelled or weighed less."""

from ._filter import InfluenceFilter
from ._issues import find_issues
from ._sampler import InfluenceSampler

__all__ = ["InfluenceFilter", "InfluenceSampler", "find_issues"]
