r"""Hessian-free scores: inner products of gradients, with nothing between them.

A training row's score for a query is :math:`\langle v, g_i \rangle`, with ``v`` the gradient of the
query's objective and ``g_i`` that of the row's weighted loss in the training: what the first-order
effect of the row's removal, times the ridge, goes to as the ridge grows. Over checkpoints of the
training it is :math:`\sum_k \eta_k \langle v_k, g_{k,i} \rangle` with learning rates ``eta``
[1]_, which enter as scales of the parameters. It says nothing about how far a refit would move.

References
----------
.. [1] G. Pruthi, F. Liu, S. Kale and M. Sundararajan, "Estimating Training Data Influence by
   Tracing Gradient Descent", NeurIPS 2020.
.. [2] Z. Yang, H. Yue, J. Chen and H. Liu, "Revisit, Extend, and Enhance Hessian-Free Influence
   Functions", TMLR 2026, arXiv:2405.17490.
"""

import operator
from dataclasses import dataclass
from functools import cached_property, reduce
from types import SimpleNamespace

import torch
from sklearn.utils import gen_batches

from ..exceptions import UnsupportedOptionError
from ..kernels import HeadGradients, KernelFeatures, KernelGradients, TangentFeatures
from ..models import LinearModel, LinearNetworkModel, NetworkModel

_HELD_DOUBLES = 2**24


@dataclass(frozen=True)
class Snapshot:
    """A model at some parameters: where gradients are taken."""

    model: object

    def rows(self, features):
        """Return the features of rows at these parameters."""
        if isinstance(features, KernelFeatures):
            return features
        return TangentFeatures(self.model.network, features.inputs)

    def outputs(self, rows):
        """Return the outputs (n, C) of `rows`."""
        return self.model.outputs(rows)

    @staticmethod
    def gradients(rows, slopes, *, prepared=False):
        """Return the gradients of ``slopes_i . z_i``, slopes (n, C), of `rows`.

        ``prepared`` for inner products of many with many.
        """
        if isinstance(rows, KernelFeatures):
            return KernelGradients(rows, slopes)
        return HeadGradients(rows.heads(slopes.unsqueeze(2), prepared=prepared))

    @staticmethod
    def batches(rows):
        """Return slices of rows whose gradients are held at once."""
        n = rows.shape[0]
        if isinstance(rows, KernelFeatures):
            return [slice(0, n)]
        return list(gen_batches(n, max(1, _HELD_DOUBLES // rows.network.doubles_per_row)))

    @staticmethod
    def squares(rows, left, right):
        """Return ``<J_i^T left_i, J_i^T right_i>`` (n,) of slopes (n, C)."""
        if isinstance(rows, KernelFeatures):
            return rows.diagonal() * (left * right).sum(1)
        heads = rows.heads(torch.stack([left, right], 2))
        free = heads.free_jacobian
        products = heads.diagonal_blocks()[:, 0, 1] + (free[:, 0] * free[:, 1]).sum(1)
        return products.double().cpu()


def snapshots_of(model, features, checkpoints):
    """Return the `Snapshot` s that scores are added up over.

    Parameters
    ----------
    model : ModelFunction
        As fitted, and prepared.
    features : TangentFeatures or KernelFeatures
        The training rows.
    checkpoints : list of Checkpoint or None
        None: the fitted parameters alone.
    """
    if not isinstance(model, NetworkModel):
        return [Snapshot(model)]
    if checkpoints is None:
        return [Snapshot(model.weighing_alike(features.inputs))]
    moving = [p for p in checkpoints if any(p.rate(name) > 0 for name in model.network.places)]
    if not moving:
        raise ValueError(
            "The learning rate is 0 at every checkpoint, which leaves no score. Give rates above "
            "0, or use checkpoints=False."
        )
    return [
        Snapshot(
            model.weighing_alike(
                features.inputs, module=point.module(model.module), rate=point.rate
            )
        )
        for point in moving
    ]


def build_scores(model, X, y, sample_weight, *, checkpoints=None, normalize=False):
    """Return the `InnerProductEngine` of a fitted model on rows.

    Parameters
    ----------
    model : ModelFunction
        As fitted, and prepared.
    X, y : array-like
        As the outermost estimator takes them.
    sample_weight : (n,) array
        Weights that it was fitted with.
    checkpoints, normalize
        See `InnerProductEngine`.
    """
    if isinstance(model, LinearModel):
        model = LinearNetworkModel.weighing_alike(model)
    return InnerProductEngine(
        model,
        model.features(X),
        model.targets.encode(y),
        model.targets.weigh(y, sample_weight),
        checkpoints=checkpoints,
        normalize=normalize,
    )


class InnerProductEngine:
    """Scores of training rows by inner products of gradients.

    Parameters
    ----------
    model : ModelFunction
        As fitted, and prepared.
    features : TangentFeatures or KernelFeatures
        The training rows.
    y, weights : tensors
        Their encoded targets and loss weights.
    checkpoints : list of Checkpoint or None
        See `snapshots_of`.
    normalize : bool
        Whether scores are cosines: of the gradients at all checkpoints side by side.
    """

    form = "identity"
    gives_effects = False
    order = None
    sketch_info = None
    stationarity = None

    def __init__(self, model, features, y, weights, *, checkpoints=None, normalize=False):
        self.model = model
        self.problem = SimpleNamespace(model=model, features=features, y=y)
        self.weights = weights
        self.normalize = normalize
        self.snapshots = snapshots_of(model, features, checkpoints)
        self.n_checkpoints = 0 if checkpoints is None else len(self.snapshots)

    @property
    def ridge(self):
        """Ridge of the model's objective; scores have none."""
        return self.model.penalty.ridge(self.weights, self.model.n_factors)

    @property
    def solver_info(self):
        """How many checkpoints scores are added up over."""
        return {"checkpoints": self.n_checkpoints}

    def _training(self, snapshot):
        """Return the training rows at a snapshot, and the slopes (n, C) of their losses."""
        rows = snapshot.rows(self.problem.features)
        z = snapshot.outputs(rows)
        slopes = self.model.loss.weighted_gradient(self.problem.y, z, self.weights)
        return rows, slopes / self.model.loss_unit

    @cached_property
    def _lengths(self):
        """Lengths of the rows' gradients over all snapshots, (n,)."""
        total = 0.0
        for snapshot in self.snapshots:
            rows, slopes = self._training(snapshot)
            total = total + _squares(snapshot, rows, slopes, slopes)
        return total.clamp(min=0.0).sqrt()

    def influence(self, features, y, objective, order):
        """Return the scores (t, n) of training rows; (1, n) for an aggregate objective."""
        if objective.aggregate:
            return self._summed(features, y, objective)[None]
        objective, y = objective.held(features, y)
        result = torch.zeros(features.shape[0], len(self.weights), dtype=torch.float64)
        lengths = torch.zeros(features.shape[0], dtype=torch.float64)
        for snapshot in self.snapshots:
            queries = snapshot.rows(features)
            slopes = objective.gradient(snapshot.outputs(queries), y)
            rows, own = self._training(snapshot)
            parts = snapshot.batches(queries)
            for trained in snapshot.batches(rows):
                right = snapshot.gradients(rows.take(trained), own[trained], prepared=True)
                for part in parts:
                    left = snapshot.gradients(queries.take(part), slopes[part], prepared=True)
                    result[part, trained] += left.inner(right)
            if self.normalize:
                lengths += _squares(snapshot, queries, slopes, slopes)
        return self._scaled(result, lengths.clamp(min=0.0).sqrt()[:, None])

    def mean_influence(self, features, y, objective, order):
        """Return the scores (n,) for the mean objective of queries."""
        objective, y = objective.held(features, y)
        return self._summed(features, y, objective)

    def training_influence(self, objective):
        """Return the scores (n,) for the mean objective of the training rows."""
        return self.mean_influence(self.problem.features, self.problem.y, objective, None)

    def _summed(self, features, y, objective):
        """Return the scores (n,) for an aggregate, or the mean over rows, of an objective."""
        result, square = torch.zeros(len(self.weights), dtype=torch.float64), 0.0
        for snapshot in self.snapshots:
            queries = snapshot.rows(features)
            slopes = objective.gradient(snapshot.outputs(queries), y)
            if not objective.aggregate:
                slopes = slopes / len(slopes)
            total = _total(snapshot, queries, slopes)
            rows, own = self._training(snapshot)
            for trained in snapshot.batches(rows):
                part = snapshot.gradients(rows.take(trained), own[trained])
                result[trained] += part.along(total)
            if self.normalize:
                square += total.square()
        return self._scaled(result, max(square, 0.0) ** 0.5)

    def _scaled(self, scores, lengths):
        """Return scores as cosines, where they are to be; 0 where a gradient vanishes."""
        if not self.normalize:
            return scores
        products = lengths * self._lengths
        return torch.where(products > 0, scores / products, 0.0)

    def self_influence(self, objective):
        """Return the scores (n,) of the training rows for themselves."""
        total = torch.zeros(len(self.weights), dtype=torch.float64)
        for snapshot in self.snapshots:
            rows, own = self._training(snapshot)
            slopes = objective.gradient(snapshot.outputs(rows), self.problem.y)
            total += _squares(snapshot, rows, slopes, own)
        return total

    def no_effects(self, *args):
        """Raise: a score does not say what would change."""
        raise UnsupportedOptionError(
            "curvature='identity' gives scores that rank rows, not effects of their removal: only "
            "influence, influence_, self_influence_ and transform are there. Use "
            "curvature='gauss_newton' for effects."
        )

    removal_state = relabel_state = leakage = loo_outputs = no_effects


def _squares(snapshot, rows, left, right):
    """Return `Snapshot.squares` of all rows, a batch at a time."""
    parts = [
        snapshot.squares(rows.take(part), left[part], right[part])
        for part in snapshot.batches(rows)
    ]
    return torch.cat(parts)


def _total(snapshot, rows, slopes):
    """Return the sum of the gradients of rows."""
    parts = (
        snapshot.gradients(rows.take(part), slopes[part]).total() for part in snapshot.batches(rows)
    )
    return reduce(operator.add, parts)
