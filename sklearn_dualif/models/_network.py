"""Networks: what they compute, in the form in which their parameters may move."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import torch

from ..exceptions import UnsupportedOptionError
from ..kernels import Network, TangentFeatures
from ._base import CoupledOutputs, ModelFunction, Penalty
from ._linearize import LinearizedModule


class Decay(NamedTuple):
    """L2 penalty of each parameter tensor: ``strength ||theta||^2 / 2``, 0 for free ones.

    Attributes
    ----------
    strengths : dict of str to float
        In the units of the total loss, or of one row's where they scale with the weight. A
        parameter that is not named cannot move.
    scales_with : {"nothing", "weight"}
        See `Penalty`.
    """

    strengths: dict
    scales_with: str = "nothing"


@dataclass(frozen=True, kw_only=True)
class NetworkModel(CoupledOutputs, ModelFunction):
    """A network around some parameters, linearised at its fitted ones.

    Attributes
    ----------
    module : torch.nn.Module
        Computes the outputs before the inverse link; read, never written.
    decay : Decay
    readout : callable or None
        Applied to what the module returns.
    network : Network or None
        The private copy that derivatives are taken of; made by `prepared`.
    loss_unit : float
        How many units of `loss` the loss of a row stands for in the training.
    is_native : bool
        Whether there are exact forms that do without a network.
    """

    module: torch.nn.Module
    decay: Decay | None = None
    readout: object = None
    network: Network | None = None
    loss_unit: float = 1.0

    is_native = False

    def prepared(self, X, *, parameters=None, dtype="float64", device=None):
        """Return this model with the network that rows like X go through.

        Parameters
        ----------
        X : array-like
            Training rows, as the outermost estimator takes them.
        parameters : list of str or None
            Glob patterns of the parameters that may move; None: all trainable ones.
        dtype, device : str or None
            Of all computations on the network.
        """
        names = self._chosen(parameters)
        strengths = [self.decay.strengths[name] for name in names]
        largest = max(strengths)
        relative = [value / largest if largest > 0 else 1.0 for value in strengths]
        network = Network(
            self.module,
            dict(zip(names, relative, strict=True)),
            self.inputs(X),
            readout=self.readout,
            dtype=getattr(torch, dtype),
            device=device,
        )
        penalty = Penalty(np.array([largest]), self.decay.scales_with)
        return replace(self, network=network, penalty=penalty)._with_outputs(network.n_outputs)

    def weighing_alike(self, inputs, *, module=None, rate=None):
        """Return this prepared model with a network whose kernel is ``sum_j rate_j J_j J_j^T``.

        Parameters
        ----------
        inputs : tensor
            Some rows as the module takes them.
        module : torch.nn.Module or None
            In another state; None: as fitted.
        rate : callable or None
            ``rate(name)`` of a parameter; those of rate 0 do not move. None: all are 1.
        """
        module = self.module if module is None else module
        rates = {name: 1.0 if rate is None else rate(name) for name in self.network.places}
        network = Network(
            module,
            {name: 1.0 / value for name, value in rates.items() if value > 0},
            inputs,
            readout=self.readout,
            dtype=self.network.dtype,
            device=self.network.device,
        )
        return replace(self, module=module, network=network)

    def with_dropout(self, rate):
        """Return the module with dropout layers; ``rate`` is for models that have none."""
        return self.module

    def ridges(self, ridge):
        """Return the ridge of each output: all have the same."""
        return ridge

    def _with_outputs(self, n_outputs):
        """Return this model with what depends on the number of outputs."""
        return self

    def _chosen(self, patterns):
        trainable = [
            name
            for name, p in self.module.named_parameters()
            if p.requires_grad and name in self.decay.strengths
        ]
        if not trainable:
            raise UnsupportedOptionError(
                f"{type(self.estimator).__name__} has no trainable parameters: all have "
                "requires_grad=False. Set it to True on those that may move."
            )
        if patterns is None:
            return trainable
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = [name for name in trainable if any(fnmatchcase(name, p) for p in patterns)]
        unused = [p for p in patterns if not any(fnmatchcase(name, p) for name in trainable)]
        if unused or not chosen:
            raise UnsupportedOptionError(
                f"parameters={patterns!r} matches no trainable parameter"
                f"{f' by {unused[0]!r}' if unused else ''}. The parameters are "
                f"{', '.join(trainable)}."
            )
        return chosen

    @abstractmethod
    def inputs(self, X):
        """Return rows as the module takes them."""

    @abstractmethod
    def write_tensors(self, estimator, tensors):
        """Put arrays by parameter name into a copy of the estimator."""

    def features(self, X):
        return TangentFeatures(self.network, self.inputs(X))

    def outputs(self, features):
        return features.outputs.to(torch.float64).cpu()

    def fitted_parameters(self):
        parameters = dict(self.network.module.named_parameters())
        parts = [parameters[name].flatten().double() for name in self.network.places]
        return torch.cat(parts).cpu().numpy()

    def initial_tensors(self):
        """Return the parameters that training started from by name; None if not known."""
        known = isinstance(self.module, LinearizedModule)
        return self.module.expansion_point() if known else None

    @property
    def relative_move(self):
        """Length of the way from the initial parameters over theirs, or None."""
        start = self.initial_tensors()
        if start is None:
            return None
        start = [start[name].flatten().double().cpu() for name in self.network.places]
        start = torch.cat(start).numpy()
        size = np.linalg.norm(start)
        return float(np.linalg.norm(self.fitted_parameters() - start) / size) if size > 0 else None

    def flatten(self, weights, free):
        return self.network.unscaled(weights, free).cpu()

    def parameter_names(self, n_rows):
        parameters = dict(self.module.named_parameters())
        shapes = {name: tuple(parameters[name].shape) for name in self.network.places}
        return ParameterNames(shapes, self.label)

    @staticmethod
    def label(name, index):
        """Return the name of one entry of a parameter tensor."""
        return f"{name}[{', '.join(map(str, index))}]" if index else name

    def write(self, estimator, parameters, removed, training, weights):
        tensors, start = {}, 0
        for name in self.network.places:
            value = dict(self.module.named_parameters())[name]
            stop = start + value.numel()
            tensors[name] = np.asarray(parameters[start:stop]).reshape(value.shape)
            start = stop
        self.write_tensors(estimator, tensors)


class ParameterNames(Sequence):
    """Names of single parameters, ``"0.weight[3, 1]"``, written when read."""

    def __init__(self, shapes, label):
        self._shapes = shapes
        self._label = label
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self._ends = np.cumsum(sizes)

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        position = range(len(self))[position]
        tensor = int(np.searchsorted(self._ends, position, side="right"))
        name, shape = list(self._shapes.items())[tensor]
        start = self._ends[tensor - 1] if tensor else 0
        index = np.unravel_index(position - start, shape) if shape else ()
        return self._label(name, index)

    def __repr__(self):
        tensors = ", ".join(f"{name} {shape}" for name, shape in self._shapes.items())
        return f"ParameterNames({tensors})"
