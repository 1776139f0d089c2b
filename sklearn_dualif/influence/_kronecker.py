"""A network whose curvature is taken layer by layer, as large as its layers and not as its rows."""

from dataclasses import dataclass
from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ..curvature import KroneckerCurvature
from ..exceptions import MemoryLimitError
from ..kernels import KroneckerBasis, KroneckerDesign
from ._network import NetworkEngine, NetworkProblem

# Copies of a row's Jacobian that a removal takes.
_COPIES = 4


@dataclass(frozen=True, kw_only=True)
class KroneckerProblem(NetworkProblem):
    """The objective of a network's linearisation with a curvature that is taken layer by layer."""

    curvature_type = KroneckerCurvature

    _memory_remedy = "Give sketch=FactorizedSketch(n_components=...), which projects the layers"

    @cached_property
    def tangent(self):
        """The rows in the eigenbases of the layers' Kronecker factors."""
        basis = self._basis()
        self._check_memory(basis)
        weights = self.weights if self.weights.ndim == 1 else self.weights.mean(1)
        basis = basis.settled(self.features, self.expansion.root[0], weights)
        return KroneckerDesign(basis, self.features)

    def _basis(self, projection=None):
        """Return the coordinates of the layers, before they are settled."""
        heads = self.features.take(slice(0, 1)).heads(prepared=False)
        return KroneckerBasis(heads, projection)

    def _bytes(self, basis):
        """Return what the eigenvectors of a basis and the Jacobian of a row take."""
        row = _COPIES * self.model.n_latent * (basis.size + self.model.network.n_free)
        return 8 * (basis.doubles + row)

    def _check_memory(self, basis):
        needed, limit = self._bytes(basis), self.accuracy.memory_limit
        if needed > limit:
            raise MemoryLimitError(
                f"curvature='kfac' of {type(self.model.estimator).__name__} needs about "
                f"{needed / 1e9:.3g} GB for the eigenvectors of its layers, those of its "
                f"{self.model.network.n_free} parameters without a penalty and the Jacobian of a "
                f"row; memory_limit allows {limit / 1e9:.3g} GB. {self._memory_remedy}, raise "
                "memory_limit, let fewer parameters move (parameters=[...]), or penalise all that "
                "do."
            )


class KroneckerEngine(NetworkEngine):
    """`NetworkEngine` with a curvature that is taken layer by layer."""

    @property
    def solver_info(self):
        return super().solver_info | self.problem.tangent.basis.counts()

    def _stationarity(self):
        problem, gradient = self.problem, self.problem.expansion.gradient[0].unsqueeze(-1)
        penalized, free = problem.model.network.parameters()
        ridge = 0.0 if problem.centered else float(problem.model_ridge[0])
        total, norms = ridge * penalized.cpu(), []
        free = torch.zeros_like(free, device="cpu")
        for rows in gen_batches(len(gradient), problem.features.batch_rows):
            heads = problem.features.take(rows).heads(gradient[rows], prepared=False)
            own = heads.free_jacobian[:, 0]
            squares = heads.diagonal_blocks()[:, 0, 0] + (own**2).sum(1)
            norms.append(squares.double().cpu().clamp(min=0.0).sqrt())
            ones = own.new_ones(len(own), 1, 1)
            total += heads.pull(ones)[:, 0].double().cpu()
            free += own.sum(0).double().cpu()
        size = float(torch.sqrt((total**2).sum() + (free**2).sum()))
        return self._in_typical_rows(size, torch.cat(norms))

    def _query_heads(self, features, root):
        return features.heads(root, prepared=False)

    def _lifted(self, states, order):
        return self.problem.tangent.lift(states[0])
