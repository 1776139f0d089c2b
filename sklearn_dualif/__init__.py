"""Influence of training rows on fitted models, as a refit without them would answer."""

from ._estimator import InfluenceEstimator

__version__ = "0.1.0"

__all__ = ["InfluenceEstimator", "__version__"]
