"""Networks seen through a random projection of their Jacobians."""

import dataclasses
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ..exceptions import UnsupportedOptionError
from ..kernels import TangentDesign
from ..sketching import SketchedSpectrum
from ._network import NetworkEngine, NetworkProblem
from ._sketched_tangent import SketchedTangent

_BLOCK = 2**23


@dataclass(frozen=True, kw_only=True)
class SketchedProblem(NetworkProblem):
    """The objective of a network's linearisation in the coordinates of a sketch.

    Its ridge and the shares of it are the sketch's, where they stand for the model's.

    Attributes
    ----------
    design : TangentDesign
        The rows in these coordinates.
    spectrum : SketchedSpectrum
        Of the sketched matrix.
    own_ridge : (1,) tensor
        The model's.
    asked_ridge : (1,) tensor
        What the curvature of effects stands for.
    """

    design: TangentDesign
    spectrum: SketchedSpectrum
    own_ridge: torch.Tensor
    asked_ridge: torch.Tensor

    @property
    def tangent(self):
        """The rows in the coordinates of the sketch."""
        return self.design

    @property
    def model_ridge(self):
        return self.own_ridge

    @cached_property
    def start(self):
        """The fitted parameters as a state: where the ridge of the sketch holds the gradient."""
        start = self.design.start()
        if self.centered:
            return torch.zeros_like(start)
        if float(self.ridge[0]) > 0:
            start[:, self.model.network.n_free :] *= float(self.own_ridge[0] / self.ridge[0])
        return start

    def _with_tangent(self, problem):
        return problem


def sketched_problem(sketch, solver, report, problem, damping):
    """Return a `SketchedProblem` and the damping of its curvature.

    Where a sketch that chooses its own size finds the exact form smaller, the problem that is
    returned is the exact one.

    Parameters
    ----------
    sketch : Sketch
        As the caller gave it.
    solver : {"auto", "primal", "dual"}
        "dual" takes coordinates in the span of the sketched rows; "auto" the smaller of both.
    report : callable or None
        Called with a line on how far a store is.
    problem : NetworkProblem
        The exact one, with what its exact form would take in ``sketch_info``.
    damping : (1,) tensor or None
        Ridge that replaces the model's in the curvature.
    """
    asked = problem.ridge if damping is None else damping
    root, limit = problem.expansion.root[0], problem.accuracy.memory_limit
    tangent = SketchedTangent(problem.features, root, sketch, float(asked[0]), limit, report=report)
    info = tangent.info(problem.sketch_info["exact"])
    if sketch.n_components == "auto" and solver == "auto" and tangent.is_needless:
        return replace(problem, sketch_info=info | {"n_components": None}), damping
    tangent.warn_of_size(info)
    own = problem.ridge
    sketched = torch.full_like(own, tangent.sketched_ridge(float(own[0])))
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    if problem.shares is not None:
        fields["shares"] = problem.shares * (sketched / own)
    fields |= {"form": "primal", "ridge": sketched, "sketch_info": info}
    if damping is not None:
        damping = torch.full_like(asked, tangent.sketched_ridge(float(asked[0])))
    sketched_one = SketchedProblem(
        **fields,
        design=tangent.design(solver),
        spectrum=tangent.spectrum,
        own_ridge=own,
        asked_ridge=asked,
    )
    return sketched_one, damping


class SketchedEngine(NetworkEngine):
    """`NetworkEngine` in the coordinates of a sketch."""

    @property
    def ridge(self):
        return self.model.ridges(self.problem.asked_ridge)

    def leakage(self, features, y, objective):
        """Return the standard deviation of queries' scores under the choice of the sketch, (t,).

        The root mean square over the training rows. Of an aggregate's one score, (1,).
        """
        spectrum, curvature = self.problem.spectrum, self.curvature
        sketched = float(curvature.ridge[0])
        if sketched == 0.0:
            raise UnsupportedOptionError(
                "leakage is that of a ridge, and the model has ridge 0: a sketch with as many "
                "components as parameters is exact there. Set ridge to a positive value."
            )
        _, second = spectrum.dimensions(sketched)
        # Of the sketched vectors' squared lengths, what the scatter of the sketch does not add.
        own_part = 1.0 - second / spectrum.n_components
        residual = self._solved_norms(features, y, objective)
        own = self._training_norms()
        typical = float((own**2).mean()) ** 0.5
        scatter = math.sqrt(spectrum.scatter(sketched))
        return residual * (spectrum.ridge(sketched) * typical * own_part * scatter)

    def _solved_norms(self, features, y, objective):
        """Return the length of the sketched inverse times each query's gradient, (t,) or (1,)."""
        basis, targets = self.problem.design.basis, []
        slopes = objective.gradient(self.model.outputs(features), y)
        for rows in gen_batches(features.shape[0], max(1, _BLOCK // self._design_width)):
            heads = features.take(rows).heads(slopes[rows].unsqueeze(-1))
            sketched = basis.sketched(heads)
            target = torch.cat([heads.free_jacobian.to(sketched), sketched], 2)[:, 0]
            if objective.aggregate:
                targets.append(target.sum(0, keepdim=True))
            else:
                targets.append(self._solved_norm(target))
        return self._solved_norm(sum(targets)) if objective.aggregate else torch.cat(targets)

    def _solved_norm(self, target):
        """Return the length (t,) of solutions for targets (t, f + m): free parts, then sketched."""
        free, ridge = self.model.network.n_free, float(self.curvature.ridge[0])
        sketched = target[:, None, free:]
        kept = self.problem.design.basis.rotated(sketched)
        design = torch.cat([target[:, :free], kept[:, 0]], 1).double().cpu()
        states = self.curvature.solve(design.T[None])
        squares = (states[0, free:] ** 2).sum(0)
        # Components outside of the kept coordinates: no training row has them.
        outside = (sketched**2).sum((1, 2)) - (kept**2).sum((1, 2))
        return torch.sqrt(squares + outside.double().cpu().clamp(min=0.0) / ridge**2)

    def _training_norms(self):
        """Return the length of each row's first-order removal in the coordinates, (n,)."""
        curvature, parts = self.curvature, []
        for rows in torch.arange(curvature.n_rows).split(curvature.columns_per_block()):
            gradients = curvature.row_gradients(rows, curvature.expansion.gradient[:, rows])
            states = curvature.solve(gradients)
            parts.append(torch.linalg.vector_norm(states[0, curvature.n_free :], dim=0))
        return torch.cat(parts)
