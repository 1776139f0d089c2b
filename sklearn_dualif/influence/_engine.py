"""Answers about a trained model: one factorization, then a solve for every question."""

import warnings
from functools import cached_property

import numpy as np
import torch
from sklearn.utils import gen_batches

from ..curvature import DualCurvature
from ..exceptions import InfluenceWarning, NotStationaryWarning
from ..models import class_codes
from ._aggregate import LinearForm, evaluated_effects, total_effects, weighted_effects
from ._exact import leave_one_out_states, relabel_exactly, remove_exactly
from ._problem import polish, stationarity

_TILE_DOUBLES = 2**17
_TILE_ROWS = 64
_KEPT_DOUBLES = 2**23
_FAR = 0.1


class InfluenceEngine:
    """Everything that can be asked of one model on its training rows.

    Parameters
    ----------
    problem : TrainingProblem
        The model's objective on the training rows.
    damping : tensor or None
        Ridge of the curvature where it is not the objective's own.
    order : {"newton", "first", "exact"}
        Default order.
    batch_size : int or None
        Query rows at a time.
    """

    moves_to_optimum = True
    gives_effects = True

    def __init__(self, problem, *, damping, order, batch_size, frozen):
        self.problem = problem
        self.model = problem.model
        self.order = order
        self.batch_size = batch_size
        # A damped curvature belongs to no optimum: the parameters are taken as fitted.
        self.damped = damping is not None
        self.as_fitted = self.damped or not self.moves_to_optimum
        if not self.as_fitted:
            self.state, self.z, self.curvature = polish(problem)
            if problem.fisher:
                self.curvature = problem.effect_curvature(self.z)
        else:
            self.z = problem.fitted_outputs
            self.curvature = self._factorize(damping)
            self.state = self._fitted_state()
        self.stationarity = self._stationarity()
        self._anchor_at(damping)
        self._orders = {}
        self._exact = None
        if not self.damped:
            self._warn_if_far(frozen)

    def _factorize(self, damping):
        return self.problem.effect_curvature(self.z, ridge=damping)

    def _anchor_at(self, damping):
        self.curvature.anchor(*self._anchor(damping))

    def _stationarity(self):
        return stationarity(self.problem)

    def _start(self):
        return self.model.start()

    def _fitted_state(self):
        start = self._start()
        if start is None or isinstance(self.curvature, DualCurvature):
            gradient = self.curvature.expansion.gradient
            representer = -gradient.unsqueeze(-1) / self.curvature.ridge[:, None, None, None]
            start = self.curvature.sum_gradients(representer)
            start[:, : self.curvature.n_free] = 0.0
        return start

    def _anchor(self, damping):
        """Return the parameters and penalty shares that removals refer to.

        A damped curvature loses the row's part of the damping, while the gradient still loses its
        part of the model's own penalty: the product of share and parameters stays the model's.
        """
        shares = self.problem.shares
        if damping is None or shares is None:
            return self.state, shares
        ratio = float(damping[0] / self.problem.ridge[0])
        if ratio == 0.0:
            return self.state, None
        if isinstance(self.curvature, DualCurvature):
            return self.state, ratio * shares
        return self.state / ratio, ratio * shares

    def _warn_if_far(self, frozen):
        moved = self.z - self.problem.fitted_outputs
        moved = self.problem.layout.to_blocks(moved).unsqueeze(-1)
        root = self.curvature.expansion.root
        distance = float(((root.mT @ moved) ** 2).sum())
        typical = float(self.leave_one_out(self.order).spread.sum())
        level = self.problem.layout.to_blocks(self.z).unsqueeze(-1)
        noise = 1e-12 * float(((root.mT @ level) ** 2).sum())
        if distance > _FAR * typical + noise:
            name = type(self.model.estimator).__name__
            remedy = (
                "Was it trained on other rows, weights or targets? Pass the ones that it was "
                "trained on"
                if frozen
                else "Lower its tol, raise its max_iter or scale the features"
            )
            warnings.warn(
                f"The fitted {name} is not at the optimum of its objective on these rows, but "
                f"further off than effects of rows are large (stationarity_ = "
                f"{self.stationarity:.3g} typical rows' gradients). {remedy}. Effects are those of "
                "the optimum, not of the model as fitted.",
                NotStationaryWarning,
                stacklevel=2,
            )

    @property
    def form(self):
        """Name of the form that was chosen."""
        return self.curvature.name

    @property
    def ridge(self):
        """Ridge that the curvature stands for."""
        return self.curvature.ridge

    @property
    def sketch_info(self):
        """What is known of the sketch, or None."""
        return self.problem.sketch_info

    def leakage(self, features, y, objective):
        """Return the error that a sketch adds to queries' scores, (t,): none here."""
        n_scores = 1 if objective.aggregate else features.shape[0]
        return torch.zeros(n_scores, dtype=torch.float64)

    @property
    def solver_info(self):
        """What the solver knows of itself."""
        size = self.curvature.n_free
        return {"size": size + self.curvature.width * self.problem.layout.selector.shape[1]}

    # Single removals ---------------------------------------------------------------------------

    def leave_one_out(self, order):
        """Return the `LeaveOneOut` of an order's own coefficients ("exact" starts at Newton's)."""
        key = "first" if order == "first" else "newton"
        if key not in self._orders:
            self._orders[key] = self.curvature.leave_one_out(first_order=key == "first")
        return self._orders[key]

    def _removals(self, order):
        """Return a `LeaveOneOut` with at least what states of removals take."""
        return self.leave_one_out(order)

    @cached_property
    def own(self):
        """Each row's own output change when it is removed, (n, C)."""
        order = self.order
        result = self.leave_one_out(order)
        if order != "exact" or self._exact_is_newton():
            return self.problem.layout.to_outputs(result.own)
        return self._exact_own()

    def _exact_own(self):
        own, curvature = torch.empty_like(self.z), self._optimum[2]
        for rows, states in self._exact_states():
            own[rows] = self.problem.layout.to_outputs(curvature.own_outputs(rows, states))
        return own

    def _exact_is_newton(self):
        return self.model.loss.quadratic

    @property
    def _optimum(self):
        """What exact removals start from: state, outputs and curvature."""
        return self.state, self.z, self.curvature

    @property
    def _optimum_removals(self):
        """Newton's removals at the optimum."""
        return self.leave_one_out("newton")

    def _no_change(self, order):
        return torch.zeros_like(self.state)

    def _curvature_for(self, order):
        """Return the curvature whose states the effects of an order are."""
        return self.curvature

    def _exact_states(self):
        """Yield (rows, states) of all exact removals; kept where that takes little memory."""
        if self._exact is not None:
            yield from self._exact
            return
        blocks = []
        small = self._optimum[0].numel() * self.curvature.n_rows <= _KEPT_DOUBLES
        for block in leave_one_out_states(self.problem, *self._optimum, self._optimum_removals):
            if small:
                blocks.append(block)
            yield block
        if small:
            self._exact = blocks

    def _removal_states(self, order):
        """Yield (rows, states) of all single removals, a block of columns at a time."""
        if order == "exact" and not self._exact_is_newton():
            yield from self._exact_states()
            return
        result = self._removals(order)
        for rows in torch.arange(self.curvature.n_rows).split(self.curvature.columns_per_block()):
            yield rows, self.curvature.removal_states(rows, result, first_order=order == "first")

    def self_influence(self, objective):
        """Return the effect of each row's removal on its own objective, (n,)."""
        if self.order == "first":
            slope = objective.gradient(self.z, self.problem.y)
            return (slope * self.own).sum(-1)
        return objective.change(self.z, self.own.unsqueeze(1), self.problem.y)[:, 0]

    def leverage(self):
        """Return the trace of each row's hat matrix block, (n,)."""
        return self.leave_one_out(self.order).leverage

    def loo_outputs(self):
        """Return what the model without each row would output for it, (n, C)."""
        return self.z + self.own

    def training_influence(self, objective):
        """Return each row's effect on the mean objective over the training rows, linear in it."""
        slope = objective.gradient(self.z, self.problem.y)
        slope = slope if objective.aggregate else slope / len(self.z)
        blocks = self.problem.layout.to_blocks(slope).unsqueeze(-1)
        first, removals = self.order == "first", self._removals(self.order)
        return self.curvature.training_scores(blocks, removals, first_order=first)

    # Queries -----------------------------------------------------------------------------------

    def outputs(self, features, order):
        """Return the outputs of query rows (t, C), and what maps states to their changes."""
        design = self._curvature_for(order).design(features)
        if self.as_fitted:
            return self.model.outputs(features), design
        return self.curvature.output_changes(design, self.state)[:, 0] + self.problem.offset, design

    def tiles(self, n_queries, n_columns):
        """Yield slices of queries and of columns whose output changes fit a processor cache."""
        size = _TILE_DOUBLES // self.z.shape[1]
        tall = min(n_queries, _TILE_ROWS if self.batch_size is None else self.batch_size)
        wide = max(1, min(n_columns, size // max(1, tall)))
        tall = max(1, min(tall, size // wide))
        for columns in gen_batches(n_columns, wide):
            for queries in gen_batches(n_queries, tall):
                yield queries, columns

    def influence(self, features, y, objective, order):
        """Return the effect of each single removal on each query's objective, (t, n).

        Of an aggregate, on the one of all queries, (1, n).
        """
        if objective.aggregate:
            return self._aggregate_influence(features, y, objective, order).unsqueeze(0)
        result = torch.empty(features.shape[0], self.curvature.n_rows, dtype=torch.float64)
        for queries, columns, values in self._stream(features, y, objective, order):
            result[queries, columns] = values
        return result

    def mean_influence(self, features, y, objective, order):
        """Return the effect of each single removal on the mean objective of queries, (n,)."""
        if objective.aggregate:
            return self._aggregate_influence(features, y, objective, order)
        result = torch.zeros(self.curvature.n_rows, dtype=torch.float64)
        for _, columns, values in self._stream(features, y, objective, order):
            result[columns] += values.sum(0)
        return result / features.shape[0]

    def _aggregate_influence(self, features, y, objective, order):
        """Return the effect of each single removal on an aggregate of all queries, (n,)."""
        z, n = self.query_outputs(features, order), self.curvature.n_rows
        if order == "first" or objective.linear:
            return self.linear_influence(features, objective.gradient(z, y), order)
        if objective.rows is not None:
            tiles = self._stream(features, y, objective.rows, order)
            return weighted_effects(objective, z, y, tiles, n)
        return evaluated_effects(objective, z, y, self._changes_of_all(features, order), n)

    def linear_influence(self, features, slopes, order):
        """Return the effect (n,) of each single removal on ``sum(slopes * z)``, slopes (t, C)."""
        tiles = self._stream(features, slopes, LinearForm(), order)
        return total_effects(tiles, self.curvature.n_rows)

    def query_outputs(self, features, order):
        """Return the outputs of query rows, (t, C)."""
        return self.outputs(features, order)[0]

    def _changes_of_all(self, features, order):
        """Yield (rows, changes (t, b, C) of all queries' outputs) of some single removals."""
        z, design = self.outputs(features, order)
        curvature, width = self._curvature_for(order), max(1, _KEPT_DOUBLES // z.numel())
        for rows, states in self._removal_states(order):
            for columns in gen_batches(len(rows), width):
                yield rows[columns], curvature.output_changes(design, states[..., columns])

    def _stream(self, features, y, objective, order):
        """Yield (queries, columns, effects) of a tile of all single removals at a time."""
        z, design = self.outputs(features, order)
        curvature = self._curvature_for(order)
        for rows, states in self._removal_states(order):
            first = int(rows[0])
            for queries, columns in self.tiles(features.shape[0], len(rows)):
                part = design[queries] if torch.is_tensor(design) else design.take(queries)
                dz = curvature.output_changes(part, states[..., columns])
                targets = None if y is None else y[queries]
                values = self._effect(objective, order, z[queries], dz, targets)
                yield queries, slice(first + columns.start, first + columns.stop), values

    @staticmethod
    def _effect(objective, order, z, dz, y):
        if order == "first" or objective.linear:
            effects = (dz @ objective.gradient(z, y).unsqueeze(-1))[..., 0]
            return effects.sum(0, keepdim=True) if objective.aggregate else effects
        effects = objective.change(z, dz, y)
        return effects.unsqueeze(0) if objective.aggregate else effects

    # Groups ------------------------------------------------------------------------------------

    def removal_state(self, rows, order):
        """Return the state change of removing rows together, (G, D, 1)."""
        if not len(rows):
            return self._no_change(order)
        weighted = self.problem.weights.reshape(len(self.z), -1).sum(1) > 0
        kept = weighted.clone()
        kept[rows] = False
        if not bool(kept.any()):
            raise ValueError(
                "Removing these rows leaves none with a positive weight, and so no model. Keep at "
                "least one such row."
            )
        codes = self._class_codes(self.problem.y)
        if codes is not None:
            self._check_classes_stay(codes[rows[weighted[rows]]], codes[kept], "Removing", order)
        if order == "exact":
            return self._removed_exactly(rows)
        return self.curvature.remove(rows, first_order=order == "first")

    def _removed_exactly(self, rows):
        return remove_exactly(self.problem, *self._optimum, rows)

    def _class_codes(self, y):
        """Return the class index of each row, or None for targets that are not classes."""
        return None if self.model.targets.classes is None else class_codes(y)

    def _check_classes_stay(self, before, after, action, order):
        """Warn, or raise for an exact order, if a class loses its last row with weight."""
        lost = set(before.tolist()) - set(after.tolist())
        if not lost:
            return
        label = np.asarray(self.model.targets.classes).tolist()[min(lost)]
        message = f"{action} these rows takes the last row of class {label!r}"
        if order == "exact" and not self.model.loss.quadratic:
            raise ValueError(
                f"{message}, and no refit keeps a class without rows. Keep one of its rows, or "
                "use order='newton' for the first step towards it."
            )
        warnings.warn(
            f"{message}; the effect is that of the model that still has the class.",
            InfluenceWarning,
            stacklevel=4,
        )

    def relabel_state(self, rows, y_new, weights_new, order):
        """Return the state change of giving rows other targets (and their class weights)."""
        if not len(rows):
            return self._no_change(order)
        problem = self.problem
        codes = self._class_codes(problem.y)
        if codes is not None:
            kept = problem.weights.reshape(len(self.z), -1).sum(1) > 0
            kept[rows] = False
            after = torch.cat([codes[kept], self._class_codes(y_new)])
            self._check_classes_stay(codes[rows], after, "Relabelling", order)
        if order == "exact" and not self._exact_is_newton():
            return self._relabeled_exactly(rows, y_new, weights_new)
        first_order = order == "first"
        return self._edit(self.curvature, self.z, rows, y_new, weights_new, first_order=first_order)

    def _relabeled_exactly(self, rows, y_new, weights_new):
        state, z, curvature = self._optimum
        edited = self.problem.relabeled(rows, y_new, weights_new)
        start = self._edit(curvature, z, rows, y_new, weights_new, first_order=False)
        return relabel_exactly(edited, state, z, curvature, start)

    def _edit(self, curvature, z, rows, y_new, weights_new, *, first_order):
        """Return the state change of one step after rows got other targets and weights."""
        gradient, change = self.target_change(z, rows, y_new, weights_new)
        return curvature.edit(rows, gradient, None if first_order else change)

    def target_change(self, z, rows, y_new, weights_new):
        """Return how rows' gradients (G, b, k) and curvatures (Gs, b, k, k) change with targets.

        The curvatures' change is None where there is none.
        """
        problem = self.problem
        before = problem.effect_expansion(problem.y[rows], z[rows], problem.weights[rows])
        after = problem.effect_expansion(y_new, z[rows], weights_new)
        change = after.root @ after.root.mT - before.root @ before.root.mT
        return after.gradient - before.gradient, change if bool(change.any()) else None

    def state_effect(self, state, features, y, objective, order):
        """Return the effect of a state change on each query's objective, (t,) or (1,)."""
        return self.state_effects(state, features, y, objective, order)[:, 0]

    def state_effects(self, states, features, y, objective, order):
        """Return the effects of state changes (G, D, m) on each query's objective, (t, m).

        Of an aggregate, on the one of all queries, (1, m).
        """
        z, dz = self._moved_outputs(states, features, order)
        return self._effect(objective, order, z, dz, y)

    def _moved_outputs(self, states, features, order):
        """Return the outputs of query rows (t, C), and their changes (t, m, C)."""
        z, design = self.outputs(features, order)
        return z, self._curvature_for(order).output_changes(design, states)

    def response_change(self, state, features, order):
        """Return the change of the outputs that a caller sees, (t, n_outputs)."""
        z, dz = self._moved_outputs(state, features, order)
        dz, loss = dz[:, 0], self.model.loss
        if order == "first":
            shown = loss.response_slope(z) * dz
        else:
            shown = loss.response_change(z, dz)
        return shown[:, : self.model.n_outputs]

    def parameters_of(self, state, order):
        """Return the model's parameters that a state stands for, (n_parameters,)."""
        weights = self.curvature.weights_of(state)
        if isinstance(self.curvature, DualCurvature) and self.model.start() is not None:
            blocks, n, o, m = weights.shape
            flat = weights.transpose(0, 1).reshape(n, -1)
            moved = self.problem.features.transposed_dot(flat)
            weights = moved.reshape(-1, blocks, o, m).transpose(0, 1)
        free = state[:, : self.curvature.n_free]
        return self.model.flatten(weights, free)[:, 0].numpy()

    def write(self, estimator, state, removed, order):
        """Put the parameters at a state change into a copy of the final estimator."""
        fitted = self.model.fitted_parameters
        start = fitted() if self.as_fitted else self.parameters_of(self.state, order)
        parameters = start + self.parameters_of(state, order)
        weights = np.asarray(self.problem.weights)
        self.model.write(estimator, parameters, removed, self.problem.features, weights)
