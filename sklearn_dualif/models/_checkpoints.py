"""Parameters of a network at several moments of its training."""

from __future__ import annotations

import copy
import json
import tempfile
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from skorch.callbacks import Callback
from torch import nn

from ..exceptions import UnsupportedOptionError
from ._network import NetworkModel
from ._registry import as_model_function

_RATES = "learning_rates"


class Checkpoint(NamedTuple):
    """A network at one moment of its training.

    Attributes
    ----------
    state : dict of str to tensor, or Path
        State of the module, or the file that it is in.
    rates : float or dict of str to float
        Learning rate of the steps from there, or that of each parameter; one that is not named
        does not move.
    """

    state: dict | Path
    rates: float | dict

    def module(self, module):
        """Return a copy of a module in this state."""
        state = self.state
        if isinstance(state, Path):
            state = _read(state)[0]
        copied = copy.deepcopy(module)
        try:
            copied.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"A checkpoint does not fit {type(module).__name__}: {error}. Give states of the "
                "same architecture, as module.state_dict() returns them."
            ) from error
        return copied

    def rate(self, name):
        """Return the learning rate of a parameter."""
        return self.rates.get(name, 0.0) if isinstance(self.rates, dict) else self.rates


class CheckpointRecorder(Callback):
    r"""Keeps a network's parameters and learning rates while it is trained.

    `InfluenceEstimator` with ``curvature="identity"`` adds up its scores over them (TracIn):
    :math:`\sum_k \eta_k \langle v_k, g_k \rangle`.

    A callback of a skorch net; for other networks call `record` after an epoch.

    Parameters
    ----------
    every : int, default=1
        Keep the parameters after every so many epochs. Not used if ``epochs`` are given.
    epochs : sequence of int or None, default=None
        Epochs after which to keep them, from 1 on.
    folder : path or None, default=None
        Folder for the parameters, which is made if need be, in files of safetensors. Each training
        writes into a new folder inside of it. None: memory.

    Attributes
    ----------
    checkpoints_ : list of Checkpoint
        What was kept, in order.
    folder_ : Path
        Where this training's files are; with a ``folder``.

    Notes
    -----
    A learning rate is that of the optimizer's parameter group when the epoch has ended. What an
    optimizer does beside (momentum, the scales of Adam) is not part of the sum.

    References
    ----------
    .. [1] G. Pruthi, F. Liu, S. Kale and M. Sundararajan, "Estimating Training Data Influence by
       Tracing Gradient Descent", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.frozen import FrozenEstimator
    >>> from sklearn.neural_network import MLPClassifier
    >>> from sklearn_dualif import CheckpointRecorder, InfluenceEstimator
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier(solver="sgd", learning_rate_init=0.1, random_state=0)
    >>> recorder = CheckpointRecorder()
    >>> for epoch in range(3):
    ...     recorder.record(model.partial_fit(X, y, classes=[0, 1, 2]))
    >>> tracin = InfluenceEstimator(
    ...     FrozenEstimator(model), curvature="identity", checkpoints=recorder
    ... ).fit(X, y)
    >>> tracin.solver_info_["checkpoints"]
    3
    """

    def __init__(self, every=1, *, epochs=None, folder=None):
        self.every = every
        self.epochs = epochs
        self.folder = folder

    def __sklearn_clone__(self):
        # What was kept is what others take as a parameter; a training forgets it at its start.
        copied = copy.copy(self)
        if hasattr(self, "checkpoints_"):
            copied.checkpoints_ = list(self.checkpoints_)
        return copied

    def initialize(self):
        """Check the parameters and forget what was kept.

        Returns
        -------
        self : CheckpointRecorder
        """
        _check_count("every", self.every)
        for epoch in self.epochs or ():
            _check_count("epochs", epoch)
        self.checkpoints_ = []
        if self.folder is not None:
            _safetensors()
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            self.folder_ = Path(tempfile.mkdtemp(prefix="training-", dir=self.folder))
        return self

    def on_epoch_end(self, net, **kwargs):
        """Keep the parameters of a skorch net, if the epoch is one of those wanted."""
        epoch = len(net.history)
        wanted = epoch % self.every == 0 if self.epochs is None else epoch in self.epochs
        if wanted:
            self.record(net)

    def record(self, model, learning_rate=None):
        """Keep the parameters that a network has now.

        Parameters
        ----------
        model : estimator or torch.nn.Module
            A skorch net, a multilayer perceptron of scikit-learn, a `TorchModel` or a module.
        learning_rate : float or None, default=None
            None: that of the net's optimizer, or of the perceptron ("sgd": the current one,
            "adam": ``learning_rate_init``).

        Raises
        ------
        ValueError
            If the learning rate is not given and not known.
        """
        if not hasattr(self, "checkpoints_"):
            self.initialize()
        module = model if isinstance(model, nn.Module) else _module_of(model)
        rates = _rates_of(model) if learning_rate is None else learning_rate
        _check_rates(rates)
        state = {name: v.detach().cpu().clone() for name, v in module.state_dict().items()}
        if self.folder is not None:
            path = self.folder_ / f"{len(self.checkpoints_) + 1:05d}.safetensors"
            state = _write(path, state, rates)
        self.checkpoints_.append(Checkpoint(state, rates))


def as_checkpoints(given):
    """Return the list of `Checkpoint` s that a recorder, its folder or a list of pairs means."""
    if isinstance(given, str | PathLike):
        return _in_folder(Path(given))
    if isinstance(given, CheckpointRecorder):
        kept = getattr(given, "checkpoints_", [])
        if not kept:
            raise ValueError(
                "The CheckpointRecorder has kept no checkpoints: train with it (one of its epochs "
                "must be reached), or call its record(model). Or use checkpoints=False."
            )
        return kept
    try:
        pairs = [(state, rates) for state, rates in given]
    except (TypeError, ValueError):
        pairs = []
    if not pairs:
        raise ValueError(
            f"checkpoints={given!r} is no list of pairs (state_dict, learning rate). Give at least "
            "one such pair, a CheckpointRecorder or the folder that one wrote."
        )
    checkpoints = []
    for state, rates in pairs:
        if isinstance(state, nn.Module):
            state = state.state_dict()
        if not isinstance(state, dict | Path):
            raise ValueError(
                f"A checkpoint has a {type(state).__name__} for its parameters. Give a state_dict, "
                "as module.state_dict() returns it."
            )
        _check_rates(rates)
        checkpoints.append(Checkpoint(state, rates))
    return checkpoints


def own_checkpoints(model):
    """Return the checkpoints that the estimator of a `NetworkModel` has with it, or None."""
    given = getattr(model.estimator, "checkpoints", None)
    if given is not None:
        return as_checkpoints(given)
    callbacks = getattr(model.estimator, "callbacks_", [])
    recorders = [part for _, part in callbacks if isinstance(part, CheckpointRecorder)]
    return as_checkpoints(recorders[0]) if recorders else None


def _in_folder(folder):
    """Return the checkpoints in the files of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} has no checkpoints. Give the folder of one training, the folder_ of a "
            "CheckpointRecorder."
        )
    checkpoints = [Checkpoint(path, _read(path)[1]) for path in files]
    for checkpoint in checkpoints:
        if checkpoint.rates is None:
            raise ValueError(
                f"{checkpoint.state} has no learning rate, so that no CheckpointRecorder wrote it. "
                "Give pairs (state_dict, learning rate) instead."
            )
    return checkpoints


def _module_of(estimator):
    if hasattr(estimator, "module_"):
        return getattr(estimator.module_, "_orig_mod", estimator.module_)
    model = as_model_function(estimator)
    if not isinstance(model, NetworkModel):
        raise UnsupportedOptionError(
            f"{type(estimator).__name__} is no network, and has no checkpoints. Record a network."
        )
    return model.module


def _rates_of(model):
    """Return the learning rates that a model is trained with now."""
    optimizer = getattr(model, "optimizer_", None)
    if optimizer is not None:
        rates = {
            id(parameter): float(group["lr"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        named = {name: rates.get(id(v), 0.0) for name, v in _module_of(model).named_parameters()}
        values = set(named.values())
        return values.pop() if len(values) == 1 else named
    own = getattr(model, "_optimizer", None)
    if own is not None and hasattr(own, "learning_rate_init"):
        sgd = getattr(model, "solver", None) == "sgd"
        return float(own.learning_rate if sgd else own.learning_rate_init)
    raise ValueError(
        f"The learning rate of {type(model).__name__} is not known. Give record(model, "
        "learning_rate=...)."
    )


def _check_count(name, value):
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be whole numbers of at least 1.")


def _check_rates(rates):
    for value in rates.values() if isinstance(rates, dict) else [rates]:
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (number and np.isfinite(value) and value >= 0):
            raise ValueError(
                f"The learning rate {value!r} of a checkpoint must be a finite number >= 0."
            )


# Files -------------------------------------------------------------------------------------------


def _safetensors():
    try:
        import safetensors.torch as files
    except ImportError as error:
        raise ImportError(
            "CheckpointRecorder(folder=...) writes files with safetensors, which is not installed: "
            "pip install safetensors. Or keep checkpoints in memory with folder=None."
        ) from error
    return files


def _write(path, state, rates):
    whole = {name: value.contiguous() for name, value in state.items()}
    _safetensors().save_file(whole, path, metadata={_RATES: json.dumps(rates)})
    return path


def _read(path):
    """Return the state and the learning rates that a file holds."""
    _safetensors()
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        rates = (file.metadata() or {}).get(_RATES)
    return state, None if rates is None else json.loads(rates)
