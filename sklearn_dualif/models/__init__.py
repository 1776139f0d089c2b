"""What a fitted estimator computes, which loss it minimised and with which penalty."""

from . import _kernel, _linear  # noqa: F401 - registers the models
from ._base import KernelModel, LinearModel, ModelFunction, Penalty
from ._registry import as_model_function, check_supported, ridge_parameters
from ._wrappers import final_estimator, final_fit_params, is_frozen, tunable_estimator

__all__ = [
    "KernelModel",
    "LinearModel",
    "ModelFunction",
    "Penalty",
    "as_model_function",
    "check_supported",
    "final_estimator",
    "final_fit_params",
    "is_frozen",
    "ridge_parameters",
    "tunable_estimator",
]
