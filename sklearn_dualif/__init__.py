"""Influence of training rows on fitted models, as a refit without them would answer."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._ensemble import InfluenceEnsemble
    from ._estimator import InfluenceEstimator
    from .models import TorchModel
    from .models._checkpoints import CheckpointRecorder
    from .models._linearize import linearize

__version__ = "0.1.0"

__all__ = [
    "CheckpointRecorder",
    "InfluenceEnsemble",
    "InfluenceEstimator",
    "TorchModel",
    "__version__",
    "linearize",
]

# Imported when first asked for: torch, skorch and scikit-learn take seconds, and the command
# line's --help waits for none of them.
_HOMES = {
    "CheckpointRecorder": ".models._checkpoints",
    "InfluenceEnsemble": "._ensemble",
    "InfluenceEstimator": "._estimator",
    "TorchModel": ".models",
    "linearize": ".models._linearize",
}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOMES})
