"""The training objective of a fitted model on given rows, and its optimum."""

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from ..curvature import DualCurvature, PrimalCurvature
from ..exceptions import NotStationaryWarning, SingularCurvatureError
from ..kernels import as_tensor
from ..losses import empirical_fisher
from ._secants import SecantInverse

_MAX_STEPS = 100
_TIGHT = 1e-10
_LOOSE = 1e-6
_ROUNDING = 1e-12
# A factorization is kept wherever steps shrink to this share.
_FAST = 0.1
# No step is searched along that is smaller than this and shrinks so fast.
_CALM = 1e-3


@dataclass(frozen=True)
class TrainingProblem:
    """``sum_i w_i l(y_i, z_i) + ridge ||weights||^2 / 2`` over the rows of ``features``.

    Attributes
    ----------
    model : ModelFunction
    features : LinearFeatures or KernelFeatures
    y : tensor
        Encoded targets.
    weights : (n,) or (n, C) tensor
        Loss weights: sample weight times class weight.
    ridge : (Gs,) tensor
        Of the objective, in sum form.
    shares : (n,) tensor or None
        Ridge that each row takes along when removed.
    form : type
        `PrimalCurvature` or `DualCurvature`.
    fisher : bool
        Whether effects use the empirical Fisher matrix; optima are found with the Hessian.
    sketch_info : dict or None
        What is known of a sketch that was asked for.
    operations : float
        About how many an optimum and all single removals take.
    """

    model: object
    features: object
    y: torch.Tensor
    weights: torch.Tensor
    ridge: torch.Tensor
    shares: torch.Tensor | None
    form: type
    fisher: bool = False
    sketch_info: dict | None = None
    operations: float = math.inf

    @cached_property
    def layout(self):
        """How outputs split into blocks."""
        return self.model.layout

    @property
    def offset(self):
        """Fixed part of the outputs, (C,)."""
        fixed = getattr(self.model, "offset", None)
        return 0.0 if fixed is None else as_tensor(fixed)

    def curvature(self, z, *, ridge=None):
        """Return the inverse Hessian at outputs z (n, C)."""
        return self._curvature(self.expand(z), self.ridge if ridge is None else ridge)

    def step_curvature(self, z, *, single=False):
        """Return the inverse Hessian at outputs z, perhaps in single precision, for steps alone."""
        return self._curvature(self.expand(z), self.ridge, shiftable=False, single=single)

    def effect_curvature(self, z, *, ridge=None):
        """Return the curvature that effects are computed with."""
        if not self.fisher:
            return self.curvature(z, ridge=ridge)
        expansion = self.effect_expansion(self.y, z, self.weights)
        ridge = self.ridge if ridge is None else ridge
        return self._curvature(expansion, ridge.expand(len(expansion.root)))

    def _curvature(self, expansion, ridge, *, shiftable=True, single=False):
        return self.form(
            self.features,
            self.layout,
            self.model.free_jacobian,
            expansion,
            ridge,
            shiftable=shiftable and self.shares is not None,
            single=single,
        )

    def expand(self, z):
        """Return the expansion of the weighted losses at outputs z (n, C)."""
        return self.model.expand(self.y, z, self.weights)

    def effect_expansion(self, y, z, weights):
        """Return the expansion of some rows in which effects are computed."""
        expansion = self.model.expand(y, z, weights)
        return empirical_fisher(expansion, weights) if self.fisher else expansion

    def without(self, rows):
        """Return this problem with the rows' weights and penalty shares gone."""
        weights = self.weights.clone()
        weights[rows] = 0.0
        ridge = self.ridge
        if self.shares is not None:
            ridge = ridge - self.shares[rows].sum()
        return replace(self, weights=weights, ridge=ridge)

    def relabeled(self, rows, y, weights):
        """Return this problem with other targets and weights of some rows."""
        new_y, new_weights = self.y.clone(), self.weights.clone()
        new_y[rows] = y
        new_weights[rows] = weights
        return replace(self, y=new_y, weights=new_weights)

    @cached_property
    def fitted_outputs(self):
        """Outputs (n, C) of the training rows at the fitted parameters."""
        return self.model.outputs(self.features)


def _gradient_norms(problem):
    """Return the norm of the total gradient, and of each row's, at the fitted parameters."""
    model, features = problem.model, problem.features
    gradient = model.loss.weighted_gradient(problem.y, problem.fitted_outputs, problem.weights)
    blocks = problem.layout.to_blocks(gradient)
    free = blocks @ model.free_jacobian
    penalized = blocks @ problem.layout.selector
    per_row = torch.sqrt((penalized**2).sum((0, 2)) * features.diagonal() + (free**2).sum((0, 2)))
    start = model.start()
    if start is None:
        # In the norm of the kernel: the coefficients of the fit against those it should have.
        total = model.dual_residual(features, penalized[..., 0].T, problem.ridge)
        return float(torch.sqrt(total.clamp(min=0.0))), per_row
    n, o = penalized.shape[1:]
    pulled = features.transposed_dot(penalized.transpose(0, 1).reshape(n, -1))
    pulled = pulled.reshape(pulled.shape[0], -1, o).transpose(0, 1).flatten(1)
    total = pulled + problem.ridge[:, None] * start[:, model.free_jacobian.shape[1] :, 0]
    return float(torch.sqrt((total**2).sum() + (free.sum(1) ** 2).sum())), per_row


def stationarity(problem):
    """Return the gradient at the fitted parameters in units of one typical row's."""
    total, per_row = _gradient_norms(problem)
    counted = per_row[per_row > 0]
    if total == 0.0:
        return 0.0
    if len(counted) == 0:
        return float("inf")
    return total / float(counted.median())


class Minimum(NamedTuple):
    """Where a minimisation ended.

    Attributes
    ----------
    problem : TrainingProblem
    state : (G, D, 1) tensor
    z : (n, C) tensor
        Outputs.
    known : Curvature or None
        That at ``z``, if it was factorised on the way.
    converged : bool
    """

    problem: TrainingProblem
    state: torch.Tensor
    z: torch.Tensor
    known: object
    converged: bool

    def curvature(self):
        """Return the curvature at ``z``."""
        if self.known is None:
            return self.problem.curvature(self.z)
        return self.known.refresh(self.problem.expand(self.z))


def minimise(problem, state, z):
    """Run damped Newton steps to the optimum of a problem.

    A factorization serves, with the corrections that the steps themselves give, as long as these
    shrink fast: a step costs little, and the curvature hardly changes near the optimum.

    Parameters
    ----------
    problem : TrainingProblem
        The objective.
    state : (G, D, 1) tensor or None
        Where to start; None takes one undamped step from the outputs alone.
    z : (n, C) tensor
        Outputs at the start.

    Returns
    -------
    Minimum
    """
    quadratic = problem.model.loss.quadratic
    # Where the curvature changes the first is only a guide; later ones are to settle doubts.
    constant = problem.curvature(z) if quadratic else None
    inverse = SecantInverse(constant or problem.step_curvature(z, single=True))
    design = inverse.curvature.design(problem.features)
    fresh = True
    if state is None:
        state, z = _step_from_outputs(problem, inverse.curvature, design, z)
        if not quadratic:
            inverse = SecantInverse(problem.step_curvature(z))
    ridge = problem.ridge[:, None, None]
    previous, size = torch.inf, 0.0
    for _ in range(_MAX_STEPS):
        curvature = inverse.curvature
        output_gradient = problem.model.loss.weighted_gradient(problem.y, z, problem.weights)
        blocks = problem.layout.to_blocks(output_gradient).unsqueeze(-1)
        gradient = curvature.sum_gradients(blocks) + curvature.ridge_gradient(state, ridge)
        step = -inverse.solve(gradient)
        dz = curvature.output_changes(design, step)[:, 0]
        moved = float((dz.abs() / (1.0 + z.abs())).max())
        better = not fresh or curvature.single  # there is a factorization that does better here
        if not moved < torch.inf and not better:
            return Minimum(problem, state, z, constant, False)
        if not moved < torch.inf or not (fresh or _is_worth_keeping(curvature, moved, previous)):
            inverse, fresh = SecantInverse(problem.step_curvature(z)), True
            continue
        at_floor = moved <= _LOOSE and moved > 0.5 * previous
        whole, size = size == 1.0, 1.0
        calm = moved <= _TIGHT or at_floor or (whole and moved < min(_CALM, _FAST * previous))
        if not calm:
            descent = float((inverse.covector * step).sum())
            covector = curvature.dual_vector(curvature.ridge_gradient(step, ridge))
            along, square = float((covector * state).sum()), float((covector * step).sum())
            size = line_search(problem, z, dz, descent, along, square)
        if size == 0.0 and moved > _LOOSE:
            if not better:
                return Minimum(problem, state, z, constant, False)
            inverse, fresh = SecantInverse(problem.step_curvature(z)), True
            continue
        # As steps shrink, this one leaves so much of the way.
        left = moved * moved / previous if whole and moved < min(_LOOSE, previous) else moved
        if size == 0.0 or left <= _ROUNDING or at_floor:
            # Below what the objective can tell, the step itself is the better judge.
            serves = not curvature.single and curvature.shiftable == (problem.shares is not None)
            here = fresh and moved <= _ROUNDING and serves
            return Minimum(problem, state + step, z + dz, curvature if here else constant, True)
        state, z, previous = state + size * step, z + size * dz, moved
        fresh = quadratic
        if size < 1.0 and not quadratic:
            inverse, fresh = SecantInverse(problem.step_curvature(z)), True
        elif moved > _TIGHT:
            inverse.take(step)
    return Minimum(problem, state, z, constant, False)


def _is_worth_keeping(curvature, moved, previous):
    """Tell whether the steps to the optimum cost less than another factorization would."""
    if moved <= max(_FAST * previous, _ROUNDING):
        return True
    if moved > 0.5 * previous:
        return False
    left = math.log(_ROUNDING / moved) / math.log(moved / previous)
    return left < curvature.factor_steps


def _step_from_outputs(problem, curvature, design, z):
    """Return the minimum of the quadratic model at z, which needs the outputs alone."""
    expansion = curvature.expansion
    linear = problem.layout.to_blocks(z - problem.offset).unsqueeze(-1)
    target = expansion.root @ (expansion.root.mT @ linear) - expansion.gradient.unsqueeze(-1)
    state = curvature.solve(curvature.sum_gradients(target))
    return state, curvature.output_changes(design, state)[:, 0] + problem.offset


def line_search(problem, z, dz, slope, along, square):
    """Return the largest tried size of a step, at most 1, that lowers the objective enough.

    Parameters
    ----------
    problem : TrainingProblem
        The objective.
    z, dz : (n, C) tensors
        Outputs, and their change by the step.
    slope : float
        Of the objective along the step.
    along, square : float
        First and second derivative of the ridge term along it.
    """
    loss, y = problem.model.loss, problem.y
    size = loss.largest_step(z, dz)
    while size > 1e-10:
        if loss.in_domain(z + size * dz):
            change = loss.total_change(y, z, size * dz, problem.weights)
            change += size * along + 0.5 * size**2 * square
            if change <= 1e-4 * size * slope:
                return size
        size *= 0.5
    return 0.0


def polish(problem):
    """Return the state and outputs of the objective's optimum near the fitted parameters.

    Returns
    -------
    state, z : tensors
    curvature : Curvature at z
    """
    z = problem.fitted_outputs
    start = problem.model.start() if problem.form is PrimalCurvature else None
    if problem.form is DualCurvature and float(problem.ridge.min()) <= 0:
        raise SingularCurvatureError("The dual form needs a positive ridge.")
    fitted = problem.model.loss.in_domain(z)
    if not fitted:
        raise SingularCurvatureError(
            f"The fitted {type(problem.model.estimator).__name__} gives outputs that its loss "
            "cannot take. Fit it to convergence first."
        )
    if start is not None and problem.model.loss.quadratic and float(problem.ridge.min()) == 0.0:
        # Of many optima, a step from zero ends at that of least norm.
        found = minimise(problem, 0.0 * start, 0.0 * z)
    else:
        found = minimise(problem, start, z)
    if not found.converged and problem.model.loss.in_domain(torch.zeros_like(z)):
        # Wild parameters can be a bad start; a convex objective has an easy one at zero.
        found = minimise(problem, 0.0 * found.state, 0.0 * z)
    if found.converged:
        return found.state, found.z, found.curvature()
    classes = problem.model.targets.classes is not None
    separable = "separable classes without a penalty have none, " if classes else ""
    warnings.warn(
        f"No minimum of the objective of {type(problem.model.estimator).__name__} was found "
        f"({separable}badly scaled features hide it). Effects are those of one step from the "
        "parameters as fitted; scale the features, or give the model a ridge, to make them those "
        "of a refit.",
        NotStationaryWarning,
        stacklevel=2,
    )
    curvature = problem.curvature(z)
    if start is None:
        start, _ = _step_from_outputs(problem, curvature, curvature.design(problem.features), z)
    return start, z, curvature
