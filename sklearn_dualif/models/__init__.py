"""What a fitted estimator computes, which loss it minimised and with which penalty."""

from . import _kernel, _linear, _mlp, _torch  # noqa: F401 - registers the models
from ._base import KernelModel, LinearModel, ModelFunction, Penalty
from ._dropout import with_fixed_masks
from ._linear_network import LinearNetworkModel
from ._movable import movable_rows
from ._network import NetworkModel
from ._registry import (
    as_model_function,
    check_supported,
    mean_loss_weight,
    ridge_parameters,
    trained_at_random,
)
from ._targets import class_codes, plain_targets
from ._torch_model import TorchModel
from ._variants import NetworkVariant
from ._wrappers import (
    conversion_of,
    final_estimator,
    final_fit_name,
    final_fit_params,
    is_frozen,
    tunable_estimator,
)

__all__ = [
    "KernelModel",
    "LinearModel",
    "LinearNetworkModel",
    "ModelFunction",
    "NetworkModel",
    "NetworkVariant",
    "Penalty",
    "TorchModel",
    "as_model_function",
    "check_supported",
    "class_codes",
    "conversion_of",
    "final_estimator",
    "final_fit_name",
    "final_fit_params",
    "is_frozen",
    "mean_loss_weight",
    "movable_rows",
    "plain_targets",
    "ridge_parameters",
    "trained_at_random",
    "tunable_estimator",
    "with_fixed_masks",
]
