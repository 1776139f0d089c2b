"""From a fitted model and its rows to the engine that answers: which form, which ridge."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state

from ..curvature import DualCurvature, PrimalCurvature
from ..exceptions import MemoryLimitError, UnsupportedOptionError
from ..linalg import threads_for
from ..models import LinearModel, LinearNetworkModel, NetworkModel
from ._engine import InfluenceEngine
from ._kronecker import KroneckerEngine, KroneckerProblem
from ._low_rank_engine import LowRankEngine
from ._network import Accuracy, NetworkEngine, NetworkProblem, build_network_problem
from ._problem import TrainingProblem
from ._sketched import SketchedEngine, SketchedProblem, sketched_problem
from ._sketched_kronecker import SketchedKroneckerEngine, SketchedKroneckerProblem

# Passes over the features that a search for the optimum and a look at all rows take.
_PASSES = 100.0


class _Cost(NamedTuple):
    form: type
    size: int
    flops: float
    bytes: float


def build_problem(
    model,
    X,
    y,
    sample_weight,
    solver,
    memory_limit,
    damping=None,
    *,
    fisher=False,
    tol=1e-3,
    random_state=None,
    sketch=None,
    report=None,
    kfac=False,
):
    """Return the `TrainingProblem` of a fitted model on rows, in the cheaper form that fits.

    Parameters
    ----------
    model : ModelFunction
        The fitted model.
    X, y : array-like
        As the outermost estimator takes them.
    sample_weight : (n,) array
        Weights that it was fitted with.
    solver : {"auto", "primal", "dual"}
        Which form to use.
    memory_limit : int
        Bytes.
    damping : float or None
        Ridge that replaces the model's own in the curvature.
    fisher : bool
        Whether effects use the empirical Fisher matrix.
    tol : float
        Relative error of a low-rank form.
    random_state : int, RandomState instance or None
        Of its pivots.
    sketch : Sketch or None
        Random projection of the features.
    report : callable or None
        Called with a line on how far the writing of its store is.
    kfac : bool
        Whether the curvature of a network is taken layer by layer.
    """
    network = isinstance(model, NetworkModel)
    sketch_info = None
    if network or sketch is not None:
        accuracy = Accuracy(tol, memory_limit, check_random_state(random_state))
        problem, new_damping = build_network_problem(
            model if network else as_network(model),
            X,
            y,
            sample_weight,
            solver,
            accuracy,
            damping,
            fisher=fisher,
            **_special_form(kfac, sketch, solver, report),
        )
        if network or isinstance(problem, SketchedProblem):
            return problem, new_damping
        sketch_info = problem.sketch_info
    features = model.features(X)
    targets = model.targets.encode(y)
    weights = model.targets.weigh(y, sample_weight)
    ridge = model.penalty.ridge(sample_weight, model.n_factors)
    shares = model.penalty.shares(sample_weight)
    curvature_ridge = ridge if damping is None else torch.full_like(ridge, damping)
    cost = choose_form(model, features, curvature_ridge, solver, memory_limit)
    problem = TrainingProblem(
        model,
        features,
        targets,
        weights,
        ridge,
        shares,
        cost.form,
        fisher=fisher,
        sketch_info=sketch_info,
        operations=cost.flops + _PASSES * len(weights) * (cost.size + model.n_outputs),
    )
    return problem, None if damping is None else curvature_ridge


def _special_form(kfac, sketch, solver, report):
    """Return what `build_network_problem` takes instead of an exact form."""
    if kfac and sketch is None:
        return {"approximate": KroneckerProblem}
    if kfac:
        return {"approximate": partial(SketchedKroneckerProblem, sketch=sketch)}
    if sketch is None:
        return {}
    return {"sketched": partial(sketched_problem, sketch, solver, report)}


def as_network(model):
    """Return a linear model in the form of a network, which sketches need."""
    if isinstance(model, LinearModel):
        return LinearNetworkModel.of(model)
    raise UnsupportedOptionError(
        f"{type(model.estimator).__name__} has one parameter a row, so that its exact form is "
        "never larger than a sketch of it. Use sketch=None."
    )


def build_engine(problem, damping, *, order, batch_size, frozen):
    """Return the `InfluenceEngine` of a problem."""
    engine = InfluenceEngine
    if isinstance(problem, SketchedProblem):
        engine = SketchedEngine
    elif isinstance(problem, SketchedKroneckerProblem):
        engine = SketchedKroneckerEngine
    elif isinstance(problem, KroneckerProblem):
        engine = KroneckerEngine
    elif isinstance(problem, NetworkProblem):
        engine = LowRankEngine if problem.form == "iterative" else NetworkEngine
    # Behind a fit, that is; nothing disturbs torch when a frozen model comes.
    with threads_for(math.inf if frozen else problem.operations):
        return engine(problem, damping=damping, order=order, batch_size=batch_size, frozen=frozen)


def choose_form(model, features, ridge, solver, memory_limit):
    """Return the `_Cost` of the form of least counted work within ``memory_limit``."""
    name = type(model.estimator).__name__
    if solver == "iterative":
        raise UnsupportedOptionError(
            f"solver='iterative' is for networks; choose 'auto', 'primal' or 'dual' for {name}."
        )
    n, d = features.shape
    has_primal, has_dual = np.isfinite(d), bool((ridge > 0).all())
    if solver == "primal" and not has_primal:
        raise UnsupportedOptionError(
            f"solver='primal' needs parameters, and those of {name} are one coefficient a row. "
            "Use solver='dual' or 'auto'."
        )
    if solver == "dual" and not has_dual:
        raise UnsupportedOptionError(
            f"solver='dual' needs a positive ridge; {name} has ridge {float(ridge.min()):g}. Use "
            "solver='primal', or set ridge to a positive value."
        )
    costs = _costs(model, n, d, len(ridge), has_dual)
    allowed = {"primal": has_primal and solver != "dual", "dual": has_dual and solver != "primal"}
    candidates = [costs[key] for key in allowed if allowed[key]]
    fitting = [cost for cost in candidates if cost.bytes <= memory_limit]
    if not fitting:
        raise MemoryLimitError(_shortage(name, candidates, costs, allowed, memory_limit))
    return min(fitting, key=lambda cost: cost.flops)


def _costs(model, n, d, factors, positive_ridge):
    layout = model.layout
    outputs = layout.selector.shape[1]
    rank = layout.n_coordinates if layout.n_coordinates == outputs else 1
    dual_size = n * rank
    costs = {
        "dual": _Cost(
            DualCurvature,
            dual_size,
            2.0 * n * n * min(d, n) + 3.0 * factors * dual_size**3,
            8.0 * (n * n + 4.0 * factors * dual_size**2),
        )
    }
    if np.isfinite(d):
        size = d * outputs + model.free_jacobian.shape[1]
        costs["primal"] = _Cost(
            PrimalCurvature,
            size,
            factors * (n * d * d * outputs * (outputs + 1.0) + 2.0 * n * size**2 + 3.0 * size**3),
            8.0 * factors * 5.0 * size * (size if positive_ridge else min(size, dual_size)),
        )
    return costs


def _shortage(name, candidates, costs, allowed, limit):
    best = min(candidates, key=lambda cost: cost.bytes)
    other = [cost for key, cost in costs.items() if not allowed[key] and cost.bytes <= limit]
    remedy = "Raise memory_limit, or use fewer rows or features"
    if other:
        other_name = other[0].form.name
        remedy = f"solver={other_name!r} ({other[0].size} x {other[0].size}) would fit" + (
            " with a positive ridge" if other_name == "dual" else ""
        )
    return (
        f"The {best.form.name} factorization of {name} is {best.size} x {best.size} and needs "
        f"about {best.bytes / 1e9:.3g} GB; memory_limit allows {limit / 1e9:.3g} GB. {remedy}."
    )
