"""Tangent features of training and query rows: products with them and their kernel blocks."""

from ._features import KernelFeatures, LinearFeatures, as_tensor

__all__ = ["KernelFeatures", "LinearFeatures", "as_tensor"]
