"""Tangent features of training and query rows: products with them and their kernel blocks."""

from ._basis import KernelBasis, NystromDesign, ParameterBasis, SketchBasis, TangentDesign
from ._features import KernelFeatures, LinearFeatures, as_tensor
from ._gradients import HeadGradients, KernelGradients
from ._kronecker import KroneckerBasis, KroneckerDesign
from ._linear_network import LinearNetwork
from ._network import Network
from ._tangent import Heads, TangentFeatures

__all__ = [
    "HeadGradients",
    "Heads",
    "KernelBasis",
    "KernelFeatures",
    "KernelGradients",
    "KroneckerBasis",
    "KroneckerDesign",
    "LinearFeatures",
    "LinearNetwork",
    "Network",
    "NystromDesign",
    "ParameterBasis",
    "SketchBasis",
    "TangentDesign",
    "TangentFeatures",
    "as_tensor",
]
