"""A network whose curvature is taken layer by layer, as large as its layers and not as its rows."""

from dataclasses import dataclass
from functools import cached_property

import torch

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

    @cached_property
    def tangent(self):
        """The rows in the eigenbases of the layers' Kronecker factors."""
        basis = KroneckerBasis(self.features.take(slice(0, 1)).heads(prepared=False))
        self._check_memory(basis)
        weights = self.weights if self.weights.ndim == 1 else self.weights.mean(1)
        basis = basis.settled(self.features, self.expansion.root[0], weights)
        return KroneckerDesign(basis, self.features)

    def _check_memory(self, basis):
        network, limit = self.model.network, self.accuracy.memory_limit
        row = _COPIES * self.model.n_latent * (basis.size + network.n_free)
        needed = 8.0 * (basis.doubles + row)
        if needed > limit:
            raise MemoryLimitError(
                f"curvature='kfac' of {type(self.model.estimator).__name__} needs about "
                f"{needed / 1e9:.3g} GB for the eigenvectors of its layers, those of its "
                f"{network.n_free} parameters without a penalty and the Jacobian of a row; "
                f"memory_limit allows {limit / 1e9:.3g} GB. Raise memory_limit, let fewer "
                "parameters move (parameters=[...]), or penalise all that do."
            )


class KroneckerEngine(NetworkEngine):
    """`NetworkEngine` with a curvature that is taken layer by layer."""

    @property
    def solver_info(self):
        return super().solver_info | self.problem.tangent.basis.counts()

    def _stationarity(self):
        problem, curvature = self.problem, self.curvature
        start = problem.start[:, :, 0] * float(problem.model_ridge[0])
        start[:, : curvature.n_free] = 0.0
        gradient = problem.expansion.gradient
        total = curvature.sum_gradients(gradient.unsqueeze(-1))[..., 0] + start
        size = float(torch.linalg.vector_norm(total))
        return self._in_typical_rows(size, curvature.gradient_norms())

    def _query_heads(self, features, root):
        return features.heads(root, prepared=False)

    def _lifted(self, states, order):
        return self.problem.tangent.lift(states[0])
