"""Networks: linearised at their fitted parameters, and never moved from there."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch

from ..curvature import TangentCurvature
from ..exceptions import InfluenceWarning, MemoryLimitError, NotStationaryWarning
from ..kernels import KernelBasis, ParameterBasis, TangentDesign
from ..linalg import pivoted_cholesky
from ._engine import InfluenceEngine
from ._problem import TrainingProblem, minimise

_DAMPING = 0.01
_NOT_STATIONARY = 0.1


@dataclass(frozen=True, kw_only=True)
class NetworkProblem(TrainingProblem):
    """The objective of a network's linearisation.

    Attributes
    ----------
    tangent : TangentDesign
        Explicit Jacobians of the training rows in some coordinates of the parameters.
    centered : bool
        Whether the ridge is about the fitted parameters (a damping), not about zero.
    """

    tangent: TangentDesign
    centered: bool = False

    def curvature(self, z, *, ridge=None):
        return self.form(
            self.tangent,
            self.layout,
            self.model.free_jacobian,
            self.expand(z),
            self.ridge if ridge is None else ridge,
            shiftable=self.shares is not None,
        )

    @cached_property
    def start(self):
        """The fitted parameters as a state, from the center of the ridge."""
        start = self.tangent.start()
        return torch.zeros_like(start) if self.centered else start


def build_network_problem(model, X, y, sample_weight, solver, memory_limit, damping=None):
    """Return the `NetworkProblem` of a prepared network on rows; see `build_problem`."""
    features = model.features(X)
    targets = model.targets.encode(y)
    weights = model.targets.weigh(y, sample_weight)
    ridge = model.penalty.ridge(weights, 1)
    shares = model.penalty.shares(weights)
    z = model.outputs(features)
    root = model.expand(targets, z, weights).root[0]
    centered = float(ridge[0]) == 0.0
    if centered:
        ridge = torch.full_like(ridge, _own_damping(model, features, root, damping))
        damping = None
    form = _choose_form(model, features, root.shape[2], solver, memory_limit)
    tangent = _FORMS[form](features, root)
    problem = NetworkProblem(
        model=model,
        features=features,
        y=targets,
        weights=weights,
        ridge=ridge,
        shares=shares,
        form=TangentCurvature,
        tangent=tangent,
        centered=centered,
    )
    return problem, None if damping is None else torch.full_like(ridge, damping)


def _own_damping(model, features, root, damping):
    """Return the ridge of a network without weight decay, and say so if it was not given."""
    if damping is not None:
        return damping
    blocks = features.heads(root).diagonal_blocks()
    ridge = _DAMPING * float(blocks.diagonal(dim1=1, dim2=2).double().mean())
    warnings.warn(
        f"{type(model.estimator).__name__} was trained without weight decay, so its optimum does "
        f"not say how far its parameters may move. A damping of {ridge:.3g} (0.01 of the kernel's "
        "mean eigenvalue) about the fitted parameters is used; set ridge=, and choose it by "
        "comparing with refits.",
        InfluenceWarning,
        stacklevel=2,
    )
    return ridge


def _primal(features, root):
    return TangentDesign(ParameterBasis(features.network), features, "primal")


def _dual(features, root):
    heads = features.heads(root)
    factor = pivoted_cholesky(heads.gram(heads))
    penalized, _ = features.network.parameters()
    basis = KernelBasis(heads.picked(factor.pivots), factor.corner, penalized)
    return TangentDesign(basis, features, "dual")


_FORMS = {"primal": _primal, "dual": _dual}


def _choose_form(model, features, rank_per_row, solver, memory_limit):
    """Return the name of the cheapest form that fits, by counted work."""
    n, d = features.shape
    free, outputs = model.network.n_free, model.n_latent
    sizes = {"primal": d + free, "dual": min(n * rank_per_row, d) + free}
    if solver != "auto":
        sizes = {solver: sizes[solver]}
    needed = {name: 8.0 * size * (n * outputs + 5.0 * size) for name, size in sizes.items()}
    fitting = {name: sizes[name] for name in sizes if needed[name] <= memory_limit}
    if not fitting:
        name = min(needed, key=needed.get)
        raise MemoryLimitError(
            f"The {name} form of {type(model.estimator).__name__} has {sizes[name]} coordinates "
            f"for {n} rows and needs about {needed[name] / 1e9:.3g} GB; memory_limit allows "
            f"{memory_limit / 1e9:.3g} GB. Raise memory_limit, use fewer rows, or let fewer "
            "parameters move (parameters=[...])."
        )
    # Of equal sizes the primal form saves the kernel.
    return min(fitting, key=fitting.get)


class NetworkEngine(InfluenceEngine):
    """Everything that can be asked of a network on its training rows.

    Effects are those of the network's linearisation at its fitted parameters. "exact" compares
    optima of the linearisation, which differ from the fitted parameters where training stopped
    early.
    """

    moves_to_optimum = False

    def _start(self):
        return self.problem.start

    def _exact_is_newton(self):
        return False

    @cached_property
    def _optimum(self):
        problem = self.problem
        state, z, curvature, converged = minimise(problem, self.problem.start, self.z)
        if not converged:
            raise ValueError(
                "order='exact' found no optimum of the network's linearisation (parameters "
                "without a penalty, such as the intercepts of an MLP, may separate the classes by "
                "themselves). Use order='newton', or penalise all parameters."
            )
        curvature.anchor(state, problem.shares)
        return state, z, curvature, curvature.leave_one_out()

    def _stationarity(self):
        problem, tangent = self.problem, self.problem.tangent
        gradient = problem.model.loss.weighted_gradient(problem.y, self.z, problem.weights)
        per_row = torch.einsum("ncp,nc->np", tangent.values, gradient)
        pull = problem.ridge[0] * problem.start[0, :, 0]
        pull[: self.model.network.n_free] = 0.0
        norms = torch.linalg.vector_norm(per_row, dim=1)
        total = float(torch.linalg.vector_norm(per_row.sum(0) + pull))
        return total / float(norms[norms > 0].median()) if bool((norms > 0).any()) else 0.0

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

    def parameters_of(self, state):
        free = self.model.network.n_free
        penalized = self.problem.tangent.basis.lift(state[0, free:])
        return self.model.flatten(penalized, state[0, :free])[:, 0].double().numpy()

    def write(self, estimator, state, removed):
        parameters = self.model.fitted_parameters() + self.parameters_of(state)
        self.model.write(estimator, parameters, removed, self.problem.features, None)
