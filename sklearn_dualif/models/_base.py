"""A fitted model as a function of its parameters: outputs, loss and penalty."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import validate_data

from ..kernels import KernelFeatures, LinearFeatures, as_tensor
from ..losses import couple, coupled_layout


class Penalty(NamedTuple):
    """``ridge ||weights||^2 / 2`` with ``ridge = strength`` times what it scales with.

    Attributes
    ----------
    strength : (G,) or (1,) array
        One value for all outputs, or one for each.
    scales_with : {"nothing", "weight", "rows"}
        A penalty on the mean loss grows with the total weight, or the number of rows, of the total
        objective; a removed row takes its share along.
    """

    strength: np.ndarray
    scales_with: str = "nothing"

    def ridge(self, weights, n_factors):
        """Return the sum-form ridge of each factorised block for these sample weights."""
        scale = {"nothing": 1.0, "weight": float(weights.sum()), "rows": float(len(weights))}
        ridge = self.strength * scale[self.scales_with]
        return as_tensor(np.broadcast_to(ridge, n_factors))

    def shares(self, weights):
        """Return the ridge that each row takes along, (n,), or None."""
        if self.scales_with == "nothing" or not np.any(self.strength):
            return None
        by_weight = self.scales_with == "weight"
        per_row = np.asarray(weights) if by_weight else np.ones(len(weights))
        # A row with all the weight would take the whole ridge along: the limit of almost all.
        per_row = np.minimum(per_row, (1.0 - 1e-8) * per_row.sum())
        return as_tensor(float(np.ravel(self.strength)[0]) * per_row)


@dataclass(frozen=True, kw_only=True)
class ModelFunction(ABC):
    """What a fitted estimator computes, and the objective that its fit minimised.

    Attributes
    ----------
    estimator : object
        The fitted scikit-learn estimator at the end of all wrappers; read, never written.
    loss : Loss
        Per-row loss of the outputs.
    penalty : Penalty
        Of the feature weights; free parameters have none.
    targets : Targets
        How ``y`` becomes what the loss compares outputs with, and class weights.
    n_outputs : int
        Outputs that a caller sees.
    n_latent : int
        Outputs of the loss: one more than seen for a model with a scale of its own.
    transformers : tuple
        Fitted pipelines applied to X first.
    """

    estimator: object
    loss: object
    penalty: Penalty
    targets: object
    n_outputs: int
    n_latent: int
    transformers: tuple = field(default=())

    # How many units of `loss` the loss of a row stands for in the training.
    loss_unit = 1.0

    def after(self, transformer):
        """Return this model behind one more fitted transformer."""
        return replace(self, transformers=(transformer, *self.transformers))

    def transform(self, X):
        """Return what the final estimator is given for X."""
        for transformer in self.transformers:
            X = transformer.transform(X)
        return X

    @cached_property
    def layout(self):
        """How the latent outputs split into blocks."""
        return self.loss.layout(self.n_latent)

    @property
    def n_factors(self):
        """Number of blocks with a curvature of their own."""
        return self.n_outputs if self.loss.coupling == "separable" else 1

    def expand(self, y, z, weights):
        """Return the expansion of the weighted losses at outputs z (n, n_latent), in `layout`."""
        return self.loss.expand(y, z, weights)

    def prepared(self, X, **options):
        """Return this model ready for rows like X."""
        return self

    def times_trained(self, X, y):
        """Return how often an epoch of the fit used each row, (n,), or None: all once.

        Parameters
        ----------
        X, y : array-like
            Training rows and targets as the outermost estimator's ``fit`` took them.
        """
        return None

    def from_outputs(self, method, outputs):
        """Return what ``estimator.method`` says for outputs (n, n_outputs) of its own."""
        return getattr(self._with_identity(outputs.shape[1]), method)(np.asarray(outputs))

    @abstractmethod
    def _with_identity(self, n_outputs):
        """Return a copy of the estimator whose outputs are its inputs."""

    @abstractmethod
    def features(self, X):
        """Return the tangent features of rows as the outermost estimator takes them."""

    @abstractmethod
    def outputs(self, features):
        """Return the latent outputs (n, n_latent) at the fitted parameters."""

    @property
    @abstractmethod
    def free_jacobian(self):
        """Jacobian (k, f) of a row's block coordinates by the free parameters, orthonormal."""

    @abstractmethod
    def start(self):
        """Return the fitted parameters as a primal state, or None where there is no primal."""

    @abstractmethod
    def flatten(self, weights, free):
        """Return parameters (n_parameters, m) from (G, D, k_p, m) weights and (G, f, m) free."""

    @abstractmethod
    def fitted_parameters(self):
        """Return the parameters as fitted, (n_parameters,), in the order of `flatten`."""

    @abstractmethod
    def parameter_names(self, n_rows):
        """Return the names of the parameters, in the order of `flatten`."""

    @abstractmethod
    def write(self, estimator, parameters, removed, training, weights):
        """Put parameters (n_parameters,) into a copy of the estimator.

        Parameters
        ----------
        estimator : object
            The copy, changed in place.
        parameters : (n_parameters,) array
            In the order of `parameter_names`.
        removed : (n,) bool array
            Rows that are gone.
        training : LinearFeatures or KernelFeatures
            The training rows.
        weights : (n,) array
            Their loss weights.
        """


class CoupledOutputs:
    """What models share whose outputs have one curvature, that of a `network`."""

    @property
    def layout(self):
        """Outputs share parameters: one block of all of them."""
        return coupled_layout(self.n_latent)

    @property
    def n_factors(self):
        """All outputs have one curvature."""
        return 1

    def expand(self, y, z, weights):
        """Return the expansion of the weighted losses at outputs z (n, n_latent), in `layout`."""
        return couple(self.loss.expand(y, z, weights), self.loss.layout(self.n_latent))

    @property
    def free_jacobian(self):
        """Zeros: each row has a Jacobian of its own."""
        return torch.zeros(self.n_latent, self.network.n_free, dtype=torch.float64)

    def start(self):
        """Return None: states have coordinates that the rows decide."""
        return None


@dataclass(frozen=True, kw_only=True)
class LinearModel(ModelFunction):
    """Outputs ``X coef^T + intercept`` (and a scale, for a robust regression).

    Attributes
    ----------
    coef : (n_outputs, d) array
    intercept : (n_outputs,) array
    fit_intercept : bool
    intercept_constant : float or None
        The intercept is the penalised weight of a constant feature of this value; None: free.
    scale : float or None
        Fitted scale, a free parameter of the second latent output.
    """

    coef: np.ndarray
    intercept: np.ndarray
    fit_intercept: bool
    intercept_constant: float | None = None
    scale: float | None = None

    def features(self, X):
        estimator = self.estimator
        X = validate_data(
            estimator,
            self.transform(X),
            reset=False,
            accept_sparse="csr",
            dtype=np.float64,
        )
        return LinearFeatures(X, self.intercept_constant)

    @property
    def _weights(self):
        """Feature weights of the latent outputs, (n_latent, d + constant)."""
        weights = np.zeros((self.n_latent, self.coef.shape[1]))
        weights[: self.n_outputs] = self.coef
        if self.intercept_constant is None:
            return as_tensor(weights)
        column = np.zeros(self.n_latent)
        column[: self.n_outputs] = self.intercept / self.intercept_constant
        return as_tensor(np.column_stack([weights, column]))

    @property
    def _shifts(self):
        """Contribution of the free parameters to the latent outputs, (n_latent,)."""
        shifts = np.zeros(self.n_latent)
        if self.fit_intercept and self.intercept_constant is None:
            shifts[: self.n_outputs] = self.intercept
        if self.scale is not None:
            shifts[-1] = self.scale
        return as_tensor(shifts)

    def outputs(self, features):
        return features.dot(self._weights.T.contiguous()) + self._shifts

    @cached_property
    def free_jacobian(self):
        k = self.layout.n_coordinates
        eye = torch.eye(k, dtype=torch.float64)
        free_intercept = self.fit_intercept and self.intercept_constant is None
        if self.scale is not None:
            return eye if free_intercept else eye[:, 1:]
        return eye if free_intercept else eye[:, :0]

    def start(self):
        layout = self.layout
        shape = (layout.n_blocks, layout.basis.shape[0], -1)
        to_weights = (layout.basis @ layout.selector).T
        weights = (to_weights @ self._weights.reshape(shape)).mT.flatten(1)
        free = self._shifts.reshape(shape[:2]) @ (layout.basis @ self.free_jacobian)
        return torch.cat([free, weights], 1)[..., None]

    def fitted_parameters(self):
        start, n_free = self.start(), self.free_jacobian.shape[1]
        outputs = self.layout.selector.shape[1]
        weights = start[:, n_free:].reshape(len(start), -1, outputs, 1)
        return self.flatten(weights, start[:, :n_free])[:, 0].numpy()

    def flatten(self, weights, free):
        layout, m = self.layout, weights.shape[-1]
        outward = layout.basis @ layout.selector
        coef = torch.einsum("co,gdom->gcdm", outward, weights).flatten(0, 1)[: self.n_outputs]
        shifts = (layout.basis @ self.free_jacobian) @ free
        shifts = shifts.reshape(self.n_latent, m)
        parts = []
        if self.intercept_constant is not None:
            parts = [coef[:, :-1].reshape(-1, m), coef[:, -1] * self.intercept_constant]
        else:
            parts = [coef.reshape(-1, m)]
            if self.fit_intercept:
                parts.append(shifts[: self.n_outputs])
        if self.scale is not None:
            parts.append(shifts[-1:])
        return torch.cat(parts)

    def parameter_names(self, n_rows):
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is None:
            names = range(self.coef.shape[1])
        outputs = range(self.n_outputs)
        if self.n_outputs == 1:
            result = [f"coef_[{name}]" for name in names]
            intercepts = ["intercept_"]
        else:
            result = [f"coef_[{k}, {name}]" for k in outputs for name in names]
            intercepts = [f"intercept_[{k}]" for k in outputs]
        if self.fit_intercept:
            result += intercepts
        if self.scale is not None:
            result.append("scale_")
        return result

    def write(self, estimator, parameters, removed, training, weights):
        size = self.coef.size
        estimator.coef_ = _shaped(parameters[:size], estimator.coef_)
        if self.fit_intercept:
            rest = parameters[size : size + self.n_outputs]
            estimator.intercept_ = _shaped(rest, estimator.intercept_)
        if self.scale is not None:
            estimator.scale_ = float(parameters[-1])

    def _with_identity(self, n_outputs):
        estimator = _shallow_copy(self.estimator)
        estimator.coef_ = np.eye(n_outputs).reshape(
            (n_outputs,) if np.ndim(estimator.coef_) == 1 else (n_outputs, n_outputs)
        )
        estimator.intercept_ = np.zeros_like(estimator.intercept_, dtype=np.float64)
        estimator.n_features_in_ = n_outputs
        return estimator


@dataclass(frozen=True, kw_only=True)
class KernelModel(ModelFunction):
    """Outputs ``k(X, training rows) dual_coef + offset``.

    Attributes
    ----------
    kernel : callable
        ``kernel(rows, others)`` returns their block, without any noise on its diagonal.
    fitted_rows : array
        The rows that ``dual_coef`` belongs to.
    dual_coef : (n, n_outputs) array
    offset : (n_outputs,) array
        Fixed mean of the outputs.
    """

    kernel: object
    fitted_rows: np.ndarray
    dual_coef: np.ndarray
    offset: np.ndarray

    def features(self, X):
        return KernelFeatures(self._validate(self.transform(X)), self.kernel)

    def _validate(self, X):
        return validate_data(
            self.estimator, X, reset=False, accept_sparse=("csr", "csc"), dtype=np.float64
        )

    def _is_fitted_on(self, features):
        rows = features.rows
        same = rows is self.fitted_rows or (
            isinstance(rows, np.ndarray) and np.array_equal(rows, self.fitted_rows)
        )
        return same

    def outputs(self, features):
        same = self._is_fitted_on(features)
        block = features.gram(features) if same else features.block(self.fitted_rows)
        return block @ as_tensor(self.dual_coef) + as_tensor(self.offset)

    def dual_residual(self, features, gradient, ridge):
        """Return the squared kernel norm of the objective's gradient at the fitted coefficients.

        Parameters
        ----------
        features : KernelFeatures
            The n training rows.
        gradient : (n, n_outputs) tensor
            Weighted gradient of the losses.
        ridge : (Gs,) tensor
            Of the objective.
        """
        shrunk = ridge * as_tensor(self.dual_coef)
        if self._is_fitted_on(features):
            total = gradient + shrunk
            return (total * (features.gram(features) @ total)).sum()
        fitted = KernelFeatures(self.fitted_rows, self.kernel)
        own = (gradient * (features.gram(features) @ gradient)).sum()
        cross = (gradient * (features.gram(fitted) @ shrunk)).sum()
        return own + 2.0 * cross + (shrunk * (fitted.gram(fitted) @ shrunk)).sum()

    @property
    def free_jacobian(self):
        return torch.zeros(1, 0, dtype=torch.float64)

    def start(self):
        return None

    def fitted_parameters(self):
        return self.dual_coef.ravel()

    def flatten(self, weights, free):
        return weights[:, :, 0].permute(1, 0, 2).reshape(-1, weights.shape[-1])

    def parameter_names(self, n_rows):
        if self.n_outputs == 1:
            return [f"dual_coef_[{i}]" for i in range(n_rows)]
        return [f"dual_coef_[{i}, {k}]" for i in range(n_rows) for k in range(self.n_outputs)]


def _shaped(values, like):
    """Return values in the shape and dtype of an attribute, a float for a plain number."""
    if np.ndim(like) == 0:
        return float(values[0])
    return np.array(values, dtype=np.asarray(like).dtype).reshape(np.shape(like))


def _shallow_copy(estimator):
    copied = object.__new__(type(estimator))
    copied.__dict__.update(estimator.__dict__)
    copied.__dict__.pop("feature_names_in_", None)
    return copied
