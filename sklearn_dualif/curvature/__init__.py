"""The inverse Hessian of the training objective, in parameters (primal) or in rows (dual)."""

from ._base import Curvature, LeaveOneOut
from ._dual import DualCurvature
from ._kernel_dual import KernelDual
from ._kronecker import KroneckerCurvature
from ._primal import PrimalCurvature
from ._row_jacobians import RowJacobians
from ._sketched_kronecker import SketchedKroneckerCurvature
from ._tangent import NystromCurvature, TangentCurvature

__all__ = [
    "Curvature",
    "DualCurvature",
    "KernelDual",
    "KroneckerCurvature",
    "LeaveOneOut",
    "NystromCurvature",
    "PrimalCurvature",
    "RowJacobians",
    "SketchedKroneckerCurvature",
    "TangentCurvature",
]
