"""Tangent features of training and query rows: products with them and their kernel blocks."""

from ._basis import KernelBasis, NystromDesign, ParameterBasis, TangentDesign
from ._features import KernelFeatures, LinearFeatures, as_tensor
from ._network import Network
from ._tangent import Heads, TangentFeatures

__all__ = [
    "Heads",
    "KernelBasis",
    "KernelFeatures",
    "LinearFeatures",
    "Network",
    "NystromDesign",
    "ParameterBasis",
    "TangentDesign",
    "TangentFeatures",
    "as_tensor",
]
