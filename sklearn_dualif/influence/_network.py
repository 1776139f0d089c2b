"""Networks: linearised at their fitted parameters, and never moved from there."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import gen_batches

from ..curvature import KernelDual, NystromCurvature, RowJacobians, TangentCurvature
from ..exceptions import (
    InfluenceWarning,
    MemoryLimitError,
    NotStationaryWarning,
    UnsupportedOptionError,
)
from ..kernels import KernelBasis, ParameterBasis, TangentDesign
from ..linalg import pivoted_cholesky
from ..losses import empirical_fisher
from ._engine import InfluenceEngine
from ._low_rank import LowRankTangent
from ._problem import TrainingProblem, minimise

_DAMPING = 0.01
_LOOSE = 1e-3
_NOT_STATIONARY = 0.1
_LEFT_OUT = 1e-11
_DESIGN_DOUBLES = 2**28
_TILE_DOUBLES = 2**17
_LARGEST_DIRECT = 4000
_KEPT_DOUBLES = 2**26
# States whose parameters are formed at once.
_LIFTED = 8


class Accuracy(NamedTuple):
    """How far a low-rank form goes: relative error, bytes, the source of its pivots, its ridge."""

    tol: float
    memory_limit: int
    random_state: np.random.RandomState
    ridge: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkProblem(TrainingProblem):
    """The objective of a network's linearisation.

    Attributes
    ----------
    centered : bool
        Whether the ridge is about the fitted parameters (a damping), not about zero.
    accuracy : Accuracy
        Of the low-rank form.
    curvature_type : type
        Of the inverse in explicit coordinates.
    """

    curvature_type = TangentCurvature

    centered: bool = False
    accuracy: Accuracy

    @property
    def model_ridge(self):
        """Ridge of the objective."""
        return self.ridge

    @cached_property
    def expansion(self):
        """Expansion at the fitted outputs in which effects are computed."""
        return self.effect_expansion(self.y, self.fitted_outputs, self.weights)

    @cached_property
    def tangent(self):
        """Explicit Jacobians of the training rows in some coordinates of the parameters."""
        if self.form == "iterative":
            return self.low_rank.doubled
        if self.form == "primal":
            return TangentDesign(ParameterBasis(self.model.network), self.features, "primal")
        heads = self.features.output_heads.mixed(self.expansion.root[0])
        factor = pivoted_cholesky(heads.gram(heads), _LEFT_OUT * float(self.ridge[0]))
        penalized, _ = self.model.network.parameters()
        basis = KernelBasis(heads.picked(factor.pivots), factor.corner, penalized)
        return TangentDesign(basis, self.features, "dual")

    @cached_property
    def low_rank(self):
        """The kernel to the rank that the accuracy asks for."""
        return LowRankTangent(self, *self.accuracy)

    def _curvature(self, expansion, ridge, *, shiftable=True, single=False):
        return self.curvature_type(
            self.tangent,
            self.layout,
            self.model.free_jacobian,
            expansion,
            ridge,
            shiftable=shiftable and self.shares is not None,
        )

    @cached_property
    def start(self):
        """The fitted parameters as a state, from the center of the ridge."""
        design = self.low_rank.design if self.form == "iterative" else self.tangent
        start = design.start()
        return torch.zeros_like(start) if self.centered else start

    def without(self, rows):
        return self._with_tangent(super().without(rows))

    def relabeled(self, rows, y, weights):
        return self._with_tangent(super().relabeled(rows, y, weights))

    def _with_tangent(self, problem):
        """Let an edited problem use the coordinates of this one."""
        shared = "low_rank" if self.form == "iterative" else "tangent"
        problem.__dict__[shared] = getattr(self, shared)
        return problem

    def nystrom(self, expansion, ridge=None, design=None):
        """Return the curvature that knows of what the coordinates leave out."""
        return NystromCurvature(
            self.low_rank.design.reweighted(expansion.root[0]) if design is None else design,
            self.layout,
            self.model.free_jacobian,
            expansion,
            self.ridge if ridge is None else ridge,
            shiftable=self.shares is not None,
        )


def build_network_problem(
    model,
    X,
    y,
    sample_weight,
    solver,
    accuracy,
    damping=None,
    *,
    fisher=False,
    sketched=None,
    approximate=None,
):
    """Return the `NetworkProblem` of a prepared network on rows; see `build_problem`.

    ``sketched(problem, damping)`` returns both in the coordinates of a sketch. ``approximate`` is
    a kind of problem that has a form of its own instead of the exact ones.
    """
    features = model.features(X)
    if sketched is not None or approximate is not None:
        # The exact forms need all rows' derivatives again.
        features.keep_within(_KEPT_DOUBLES)
    targets = model.targets.encode(y)
    weights = model.targets.weigh(y, sample_weight)
    ridge = model.penalty.ridge(weights, 1)
    shares = model.penalty.shares(weights)
    z = model.outputs(features)
    expansion = model.expand(targets, z, weights)
    root = (empirical_fisher(expansion, weights) if fisher else expansion).root[0]
    eigenvalue = _mean_eigenvalue(features, root)
    centered = float(ridge[0]) == 0.0 and not model.is_native
    if centered:
        ridge = torch.full_like(ridge, _own_damping(model, eigenvalue, damping))
        damping = None
    _warn_if_loose(model, float(ridge[0]) if damping is None else damping, eigenvalue)
    damping = None if damping is None else torch.full_like(ridge, damping)
    forms = _Forms(model, features, root.shape[2], accuracy.memory_limit)
    form = None
    if approximate is not None:
        form = "primal"
    elif sketched is None:
        form = forms.chosen(solver)
    problem = (approximate or NetworkProblem)(
        model=model,
        features=features,
        y=targets,
        weights=weights,
        ridge=ridge,
        shares=shares,
        form=form,
        fisher=fisher,
        centered=centered,
        accuracy=accuracy._replace(ridge=ridge if damping is None else damping),
    )
    if sketched is None:
        return problem, damping
    problem, damping = sketched(replace(problem, sketch_info={"exact": forms.cheapest}), damping)
    if problem.form is None and not model.is_native:
        problem = replace(problem, form=forms.chosen(solver))
    return problem, damping


def _mean_eigenvalue(features, root):
    """Return the mean eigenvalue of the root-weighted kernel."""
    blocks = root.mT @ features.own_kernel.double().cpu() @ root
    return float(blocks.diagonal(dim1=1, dim2=2).mean())


def _warn_if_loose(model, ridge, eigenvalue):
    """Warn of a ridge that lets single rows move the network beyond its linearisation."""
    if model.network.is_linear or ridge >= _LOOSE * eigenvalue:
        return
    way = model.relative_move
    way = "" if way is None else f" Training moved it by {way:.2g} of its initial parameters."
    warnings.warn(
        f"The ridge {ridge:.3g} of {type(model.estimator).__name__} is {ridge / eigenvalue:.1g} of "
        "its kernel's mean eigenvalue: so small that single rows move the network further than "
        f"any linearisation holds.{way} Train it with a larger weight decay (alpha), or set a "
        "larger ridge=, chosen by comparing with refits.",
        InfluenceWarning,
        stacklevel=2,
    )


def _own_damping(model, eigenvalue, damping):
    """Return the ridge of a network without weight decay, and say so if it was not given."""
    if damping is not None:
        return damping
    ridge = _DAMPING * eigenvalue
    warnings.warn(
        f"{type(model.estimator).__name__} was trained without weight decay on the parameters that "
        f"may move, so its optimum does not say how far they go. A damping of {ridge:.3g} (0.01 of "
        "the kernel's mean eigenvalue) about the fitted parameters is used; set ridge=, and choose "
        "it by comparing with refits.",
        InfluenceWarning,
        stacklevel=2,
    )
    return ridge


class _Forms:
    """The exact forms of a network's problem, by counted work and bytes."""

    def __init__(self, model, features, rank_per_row, memory_limit):
        n, d = features.shape
        free, outputs = model.network.n_free, model.n_latent
        self.name, self.n_rows = type(model.estimator).__name__, n
        self.memory_limit, self.is_native = memory_limit, model.is_native
        self.sizes = {"primal": d + free, "dual": n * rank_per_row + free}
        per_size = {"primal": n * outputs + 5.0 * self.sizes["primal"]}
        per_size["dual"] = 4.0 * self.sizes["dual"]
        self.bytes = {name: 8.0 * size * per_size[name] for name, size in self.sizes.items()}

    @property
    def cheapest(self):
        """Solver, size and bytes of what ``solver="auto"`` would take; bytes None if unknown."""
        name = min(self.sizes, key=self.sizes.get)
        large = self.sizes[name] > _LARGEST_DIRECT or self.bytes[name] > self.memory_limit
        if large and not self.is_native:
            return {"solver": "iterative", "size": self.sizes[name], "bytes": None}
        return {"solver": name, "size": self.sizes[name], "bytes": int(self.bytes[name])}

    def chosen(self, solver):
        """Return the name of the form that a solver stands for."""
        if solver == "iterative" or (
            solver == "auto" and min(self.sizes.values()) > _LARGEST_DIRECT
        ):
            return "iterative"
        names = list(self.sizes) if solver == "auto" else [solver]
        fitting = [name for name in names if self.bytes[name] <= self.memory_limit]
        if not fitting:
            name = min(names, key=self.bytes.get)
            raise MemoryLimitError(
                f"The {name} form of {self.name} has {self.sizes[name]} coordinates for "
                f"{self.n_rows} rows and needs about {self.bytes[name] / 1e9:.3g} GB; memory_limit "
                f"allows {self.memory_limit / 1e9:.3g} GB. Use solver='iterative', raise "
                "memory_limit, use fewer rows, or let fewer parameters move (parameters=[...])."
            )
        # Of equal sizes the primal form saves the kernel.
        return min(fitting, key=self.sizes.get)


class NetworkEngine(InfluenceEngine):
    """Everything that can be asked of a network on its training rows.

    Effects are those of the network's linearisation at its fitted parameters. "exact" compares
    optima of the linearisation, which differ from the fitted parameters where training stopped
    early.
    """

    moves_to_optimum = False

    def _factorize(self, damping):
        problem = self.problem
        if problem.form == "primal":
            return problem.effect_curvature(self.z, ridge=damping)
        self._check_gradients_vanish()
        penalized, _ = self.model.network.parameters()
        ridge, shares = problem.ridge, problem.shares
        if problem.centered:
            penalized = torch.zeros_like(penalized)
        if damping is not None:
            # The curvature's share is of the damping; the gradient's stays the model's own.
            ratio = float(damping[0] / ridge[0])
            ridge, penalized = damping, penalized / ratio
            shares = None if shares is None else ratio * shares
        return KernelDual(problem.features, problem.expansion, float(ridge[0]), shares, penalized)

    def _check_gradients_vanish(self):
        """Raise for a loss whose gradients the kernel's heads do not span."""
        if self.problem.expansion.coefficient is None:
            raise UnsupportedOptionError(
                f"solver={self.problem.form!r} needs a loss whose gradient vanishes with its "
                f"curvature; that of {type(self.model.loss).__name__} does not. Use "
                "solver='primal'."
            )

    def _anchor_at(self, damping):
        if self.problem.form != "dual":
            super()._anchor_at(damping)

    def _fitted_state(self):
        if self.problem.form != "dual":
            return self.problem.start
        size = self.curvature.n_free + self.curvature.width + 1
        return torch.zeros(1, size, 1, dtype=torch.float64)

    def _exact_is_newton(self):
        return False

    def _removals(self, order):
        if isinstance(self.curvature, RowJacobians):
            return self._first_removals if order == "first" else self._newton_removals
        return super()._removals(order)

    @cached_property
    def _first_removals(self):
        return self._orders.get("first") or self.curvature.first_order_removals()

    @cached_property
    def _newton_removals(self):
        return self._orders.get("newton") or self.curvature.leave_one_out(measured=False)

    @cached_property
    def _optimum(self):
        problem = self.problem
        found = minimise(problem, problem.start, self.z)
        if not found.converged:
            raise self._no_optimum()
        curvature = found.curvature()
        curvature.anchor(found.state, problem.shares)
        return found.state, found.z, curvature

    @staticmethod
    def _no_optimum():
        return ValueError(
            "order='exact' found no optimum of the network's linearisation (parameters without a "
            "penalty, such as the intercepts of an MLP, may separate the classes by themselves). "
            "Use order='newton', or penalise all parameters."
        )

    @cached_property
    def _optimum_removals(self):
        return self._optimum[2].leave_one_out(measured=False)

    def _no_change(self, order):
        return torch.zeros_like(self.problem.start if order == "exact" else self.state)

    def _curvature_for(self, order):
        return self._optimum[2] if order == "exact" else self.curvature

    @property
    def solver_info(self):
        """What the solver knows of itself."""
        return {"size": self.curvature.n_free + self.curvature.width}

    def _stream(self, features, y, objective, order):
        """Yield (queries, columns, effects) of some queries and single removals at a time."""
        linear = order == "first" or objective.linear
        for queries in self._query_batches(features, 1 if linear else self.z.shape[1]):
            part = features.take(queries)
            z = self.model.outputs(part)
            targets = None if y is None else y[queries]
            root = objective.gradient(z, targets).unsqueeze(-1) if linear else None
            for rows, dz in self._head_changes(self._query_heads(part, root), order):
                columns = slice(int(rows[0]), int(rows[-1]) + 1)
                effects = dz[..., 0] if linear else self._evaluated(objective, z, dz, targets)
                yield queries, columns, effects

    def query_outputs(self, features, order):
        return self.model.outputs(features)

    def _query_batches(self, features, n_heads):
        """Return slices of queries whose Jacobians, of so many heads, are in memory at once."""
        n, size = features.shape[0], self._design_width * n_heads
        return gen_batches(n, max(1, min(n, self.batch_size or n, _DESIGN_DOUBLES // size)))

    def _changes_of_all(self, features, order):
        n, n_heads = features.shape[0], self.z.shape[1]
        needed, limit = 8.0 * n * n_heads * self._design_width, self.problem.accuracy.memory_limit
        if needed > limit:
            raise MemoryLimitError(
                f"An objective of all {n} queries at once needs about {needed / 1e9:.3g} GB for "
                f"their Jacobians; memory_limit allows {limit / 1e9:.3g} GB. Raise memory_limit, "
                "pass fewer queries, or use order='first'."
            )
        parts = [
            self._head_changes(self._query_heads(features.take(queries), None), order)
            for queries in self._query_batches(features, n_heads)
        ]
        for blocks in zip(*parts, strict=True):
            yield blocks[0][0], torch.cat([dz for _, dz in blocks])

    def _query_heads(self, features, root):
        """Return the derivatives of combinations of query rows' outputs."""
        return features.heads(root)

    @property
    def _design_width(self):
        """Numbers that a head of a query takes."""
        return self.curvature.n_free + self.curvature.width

    def _head_changes(self, heads, order):
        """Yield (rows, changes (t, b, h)) of heads (t, h) under single removals."""
        curvature = self._curvature_for(order)
        design = curvature.design_of(heads)
        if order == "first" and isinstance(curvature, RowJacobians):
            for rows, effects in curvature.first_order_changes(design):
                yield rows, effects.unsqueeze(-1)
            return
        for rows, states in self._removal_states(order):
            yield rows, curvature.output_changes(design, states)

    @staticmethod
    def _evaluated(objective, z, dz, y):
        """Return the objective's changes, a few rows at a time that fit a processor cache."""
        step = max(1, _TILE_DOUBLES // dz[0].numel())
        parts = [
            objective.change(z[rows], dz[rows].contiguous(), None if y is None else y[rows])
            for rows in gen_batches(len(z), step)
        ]
        return torch.cat(parts)

    def _stationarity(self):
        problem, network = self.problem, self.model.network
        gradient = problem.model.loss.weighted_gradient(problem.y, self.z, problem.weights)
        free = problem.features.free_jacobian.double().cpu()
        free = torch.einsum("ncf,nc->nf", free, gradient)
        blocks = problem.features.own_kernel.double().cpu()
        squares = torch.einsum("nc,ncd,nd->n", gradient, blocks, gradient).clamp(min=0.0)
        norms = torch.sqrt(squares + (free**2).sum(1))
        total = problem.features.pull(gradient[..., None])[:, 0].double().cpu()
        if not problem.centered:
            total = total + problem.model_ridge * network.parameters()[0].double().cpu()
        size = float(torch.sqrt((total**2).sum() + (free.sum(0) ** 2).sum()))
        return self._in_typical_rows(size, norms)

    @staticmethod
    def _in_typical_rows(size, norms):
        """Return the size of a gradient in units of the typical row's, of norms (n,)."""
        counted = norms[norms > 0]
        return size / float(counted.median()) if len(counted) else 0.0

    def _warn_if_far(self, frozen):
        if self.stationarity > _NOT_STATIONARY:
            warnings.warn(
                f"The fitted {type(self.model.estimator).__name__} is not at an optimum of its "
                f"objective on these rows (stationarity_ = {self.stationarity:.3g} typical rows' "
                "gradients; above 0.1 matters). Train it longer or with a larger weight decay, and "
                "pass the rows that it was trained on; effects on a network that is still moving "
                "rank rows better than they size them.",
                NotStationaryWarning,
                stacklevel=2,
            )

    def _moved_outputs(self, states, features, order):
        # Through the network, which costs less than the kernel of the rows.
        z = self.model.outputs(features)
        dz = torch.empty(len(z), states.shape[2], z.shape[1], dtype=torch.float64)
        for columns in gen_batches(states.shape[2], _LIFTED):
            penalized, free = self._lifted(states[..., columns], order)
            for rows in gen_batches(len(z), features.batch_rows):
                heads = features.take(rows).heads()
                moved = heads.push(penalized.to(heads.network.device)).double().cpu()
                moved = moved + heads.free_jacobian.double().cpu() @ free
                dz[rows, columns] = moved.transpose(1, 2)
        return z, dz

    def parameters_of(self, state, order):
        return self.model.flatten(*self._lifted(state, order))[:, 0].double().numpy()

    def _lifted(self, states, order):
        """Return the penalised (d, m) and the free parameters (f, m) of states."""
        if self.problem.form == "dual" and order != "exact":
            return self.curvature.lift(states)
        free = self.model.network.n_free
        return self._lift(states[0, free:], order), states[0, :free]

    def _lift(self, coordinates, order):
        """Return penalised parameters from the coordinates of states."""
        return self.problem.tangent.basis.lift(coordinates)
