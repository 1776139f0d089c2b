"""Influence of training rows on fitted models, as a refit without them would answer."""

from ._ensemble import InfluenceEnsemble
from ._estimator import InfluenceEstimator

__version__ = "0.1.0"

__all__ = [
    "CheckpointRecorder",
    "InfluenceEnsemble",
    "InfluenceEstimator",
    "TorchModel",
    "__version__",
    "linearize",
]


def __getattr__(name):
    # These need torch, or skorch, whose import takes seconds.
    if name == "CheckpointRecorder":
        from .models._checkpoints import CheckpointRecorder

        return CheckpointRecorder
    if name == "TorchModel":
        from .models import TorchModel

        return TorchModel
    if name == "linearize":
        from .models._linearize import linearize

        return linearize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
