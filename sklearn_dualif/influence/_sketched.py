"""A network's rows in the coordinates of a random projection, as large as its accuracy asks for."""

import dataclasses
import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from sklearn.utils import gen_batches

from ..exceptions import InfluenceWarning, MemoryLimitError
from ..kernels import SketchBasis, TangentDesign
from ..linalg import column_gram
from ..sketching import SketchedSpectrum, components_for, largest_error
from ._network import NetworkEngine, NetworkProblem

_FIRST_SIZE = 256
# Of the effective dimension: from here on the spectrum of the sketch tells it.
_ENOUGH = 1.5
_BLOCK = 2**23
_NEGLIGIBLE = 1e-12


class SketchedTangent:
    """Sketched Jacobians of the training rows, and what their spectrum says of the sketch.

    Parameters
    ----------
    features : TangentFeatures
        The training rows.
    root : (n, C, q) tensor
        Roots of their losses' curvatures.
    sketch : Sketch
        As the caller gave it.
    ridge : float
        Of the curvature.
    memory_limit : int
        Bytes.
    for_effects : bool
        Whether one that chooses its own size goes on to what its ``eps`` asks for, beyond what
        tells the effective dimension.

    Attributes
    ----------
    projection : Projection
    values : (n, C, m) tensor
        Penalised Jacobians times ``P^T``.
    spectrum : SketchedSpectrum
        Without what the free parameters explain.
    """

    def __init__(self, features, root, sketch, ridge, memory_limit, *, for_effects=True):
        self.features, self.root = features, root
        self.sketch, self.ridge = sketch, ridge
        self.memory_limit = memory_limit
        self.exact_rank = min(root.shape[0] * root.shape[2], features.shape[1])
        self._seed = sketch.seed()
        self._raw = self.projection = None
        self.wanted = 0
        if sketch.n_components == "auto":
            self._search(for_effects)
        else:
            self._grow(sketch.n_components)

    # Growth ------------------------------------------------------------------------------------

    def _bytes(self, n_components):
        heads = self.root.shape[0] * self.root.shape[1]
        side = min(n_components, heads + 1)
        return 2.0 * heads * n_components * self._like.element_size() + 40.0 * side**2

    @cached_property
    def _layers(self):
        return self.features.layers()

    @cached_property
    def _like(self):
        return self.features.output_heads.free_jacobian

    @cached_property
    def _largest(self):
        """The largest size that fits."""
        low, high = 0, 2**31
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle)
        return low

    def _fits(self, n_components):
        return self._bytes(n_components) <= self.memory_limit

    def _grow(self, n_components):
        """Sketch with so many components; the first ones are reused where they stay."""
        if not self._fits(n_components):
            raise MemoryLimitError(
                f"A sketch of n_components={n_components} needs about "
                f"{self._bytes(n_components) / 1e9:.3g} GB; memory_limit allows "
                f"{self.memory_limit / 1e9:.3g} GB, which is n_components={self._largest}. Raise "
                "memory_limit or lower n_components."
            )
        self.projection = self.sketch.for_layers(self._layers, n_components, self._seed)
        heads = self.features.output_heads
        if self._raw is not None and self.projection.nested:
            more = heads.sketched(self.projection, self._raw.shape[2])
            self._raw = torch.cat([self._raw, more], 2)
        else:
            self._raw = heads.sketched(self.projection)
        self.spectrum = self._spectrum()

    def _search(self, for_effects):
        """Double the size until it tells the effective dimension, then take what eps asks for."""
        size = min(_FIRST_SIZE, self._largest)
        while True:
            self._grow(size)
            sketched = self.spectrum.sketched_ridge(self.ridge)
            if sketched is not None and size >= _ENOUGH * self.spectrum.dimension(sketched):
                break
            if size >= min(self._largest, self.exact_rank):
                return
            size = min(2 * size, self._largest)
        if not for_effects:
            return
        wanted = components_for(self.sketch.eps, *self.spectrum.dimensions(sketched))
        self.wanted = wanted
        if size < wanted < self.exact_rank:
            self._grow(min(wanted, self._largest))

    def _spectrum(self):
        """Return the spectrum of the root-weighted sketch that free parameters do not explain."""
        scale = self.projection.scale
        n, q, m = len(self.root), self.root.shape[2], self.projection.n_components
        explained = explained_by_free(self._like, self.root)
        if n * q < m:
            rows = scale * self._weighted(slice(None)).double()
            basis = explained.flatten(0, 1)
            rows = rows - basis @ (basis.T @ rows)
            gram = rows @ rows.T
        else:
            gram = torch.zeros(m, m, dtype=torch.float64, device=self._like.device)
            cross = gram.new_zeros(explained.shape[2], m)
            for part in gen_batches(n, max(1, _BLOCK // (q * m))):
                rows = scale * self._weighted(part)
                gram += column_gram(rows)
                cross += explained[part].flatten(0, 1).T @ rows.double()
            gram -= cross.T @ cross
        values = torch.linalg.eigvalsh(gram).cpu().numpy()
        return SketchedSpectrum(values, m, self.projection.ambient)

    def _weighted(self, rows):
        """Return the root-weighted sketch (b q, m) of some rows."""
        return (self.root[rows].to(self._raw).mT @ self._raw[rows]).flatten(0, 1)

    # What is known of it -----------------------------------------------------------------------

    @property
    def is_needless(self):
        """Whether the exact form is no larger than the sketch that would do."""
        return max(self.projection.n_components, self.wanted) >= self.exact_rank

    def sketched_ridge(self, ridge):
        """Return the ridge of the sketch that stands for one of the model."""
        sketched = self.spectrum.sketched_ridge(ridge) if self.sketch.debias else None
        return ridge if sketched is None else sketched

    def info(self, exact):
        """Return what `InfluenceEstimator` reports as ``sketch_info_``.

        Parameters
        ----------
        exact : dict
            What the exact form would take.
        """
        m, spectrum = self.projection.n_components, self.spectrum
        sketched = self.sketched_ridge(self.ridge)
        first, second = spectrum.dimensions(sketched)
        known = self.ridge == 0.0 and m >= self.exact_rank
        too_small = spectrum.sketched_ridge(self.ridge) is None and not known
        if too_small:
            first = self._extrapolated()
        seen = spectrum.ridge(sketched)
        bias = 0.0
        if self.ridge > 0:
            bias = (math.sqrt(seen) - math.sqrt(self.ridge)) / (
                math.sqrt(seen) + math.sqrt(self.ridge)
            )
        return {
            "n_components": m,
            "effective_dimension": first,
            "components_per_dimension": m / first if first > 0 else math.inf,
            "sketched_ridge": sketched,
            "error": math.inf if too_small else bias + largest_error(first, second, m),
            "too_small": too_small,
            "exact": exact,
        }

    def _extrapolated(self):
        """Return the effective dimension, continued from the ridges that the sketch can tell."""
        if self.ridge == 0.0:
            return float(self.exact_rank)
        known = 2.0 * self.spectrum.least_ridge
        first, second = self.spectrum.dimensions(self.spectrum.sketched_ridge(known))
        growth = (known / self.ridge) ** ((first - second) / first)
        return float(min(first * growth, self.exact_rank))

    def warn_if_too_small(self, info):
        """Warn of a sketch that has fewer components than the ridge asks for."""
        if not info["too_small"]:
            return
        enough = math.ceil(_ENOUGH * info["effective_dimension"])
        exact = info["exact"]
        remedy = f"Use n_components={enough} or more, n_components='auto', or a larger ridge."
        if enough >= self.exact_rank:
            remedy = (
                f"The exact form (solver={exact['solver']!r}, {exact['size']} coordinates) is "
                "smaller than a sketch that would do: leave sketch=None, or use a larger ridge."
            )
        warnings.warn(
            f"n_components={info['n_components']} is fewer than the ridge {self.ridge:.3g} asks "
            f"for: the effective dimension is about {info['effective_dimension']:.0f}. Effects "
            f"come out too small. {remedy}",
            InfluenceWarning,
            stacklevel=2,
        )

    def design(self, solver):
        """Return the Jacobians of the training rows in the smaller of the two coordinates."""
        values, network = self._raw * self.projection.scale, self.features.network
        penalized, _ = network.parameters()
        n_rows, m = values.shape[0] * values.shape[1], values.shape[2]
        rotation, name = None, "primal"
        if solver == "dual" or (solver == "auto" and n_rows + 1 < m):
            name = "dual"
            own = self.projection(penalized.double()[None])
            span = torch.cat([values.flatten(0, 1).double(), own])
            rotation = orthonormal(span.T)
        basis = SketchBasis(network, self.projection, rotation)
        values = torch.cat([self._like, basis.rotated(values)], 2)
        return TangentDesign(basis, self.features, name, values)


def explained_by_free(free, root):
    """Return an orthonormal basis (n, q, r) of what free parameters (n, C, f) do to rows."""
    columns = root.to(free).mT @ free
    basis = orthonormal(columns.flatten(0, 1).double())
    return basis.view(*columns.shape[:2], -1)


def orthonormal(columns):
    """Return an orthonormal basis of the span of columns (k, m)."""
    if not columns.numel():
        return columns
    basis, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    return basis[:, sizes > _NEGLIGIBLE * sizes[0]]


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


def sketched_problem(sketch, solver, problem, damping):
    """Return a `SketchedProblem` and the damping of its curvature.

    Where a sketch that chooses its own size finds the exact form smaller, the problem that is
    returned is the exact one.

    Parameters
    ----------
    sketch : Sketch
        As the caller gave it.
    solver : {"auto", "primal", "dual"}
        "dual" takes coordinates in the span of the sketched rows; "auto" the smaller of both.
    problem : NetworkProblem
        The exact one, with what its exact form would take in ``sketch_info``.
    damping : (1,) tensor or None
        Ridge that replaces the model's in the curvature.
    """
    asked = problem.ridge if damping is None else damping
    root, limit = problem.expansion.root[0], problem.accuracy.memory_limit
    tangent = SketchedTangent(problem.features, root, sketch, float(asked[0]), limit)
    info = tangent.info(problem.sketch_info["exact"])
    if sketch.n_components == "auto" and solver == "auto" and tangent.is_needless:
        return replace(problem, sketch_info=info | {"n_components": None}), damping
    tangent.warn_if_too_small(info)
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

        The root mean square over the training rows.
        """
        spectrum, curvature = self.problem.spectrum, self.curvature
        m, sketched = spectrum.n_components, float(curvature.ridge[0])
        _, second = spectrum.dimensions(sketched)
        residual = self._solved_norms(features, y, objective)
        own = self._training_norms()
        typical = float((own**2).mean()) ** 0.5
        return residual * (spectrum.ridge(sketched) * typical * math.sqrt(m - second) / m)

    def _solved_norms(self, features, y, objective):
        """Return the length of the sketched inverse times each query's gradient, (t,)."""
        free, basis, parts = self.model.network.n_free, self.problem.design.basis, []
        ridge = float(self.curvature.ridge[0])
        for rows in gen_batches(features.shape[0], max(1, _BLOCK // self._design_width)):
            part = features.take(rows)
            z = self.model.outputs(part)
            slope = objective.gradient(z, None if y is None else y[rows])
            heads = part.heads(slope.unsqueeze(-1))
            sketched = basis.sketched(heads)
            kept = basis.rotated(sketched)
            design = torch.cat([heads.free_jacobian.to(kept), kept], 2)[:, 0].double().cpu()
            states = self.curvature.solve(design.T[None])
            squares = (states[0, free:] ** 2).sum(0)
            # Components outside of the kept coordinates: no training row has them.
            outside = (sketched**2).sum((1, 2)) - (kept**2).sum((1, 2))
            squares += outside.double().cpu().clamp(min=0.0) / ridge**2
            parts.append(torch.sqrt(squares))
        return torch.cat(parts)

    def _training_norms(self):
        """Return the length of each row's first-order removal in the coordinates, (n,)."""
        curvature, parts = self.curvature, []
        for rows in torch.arange(curvature.n_rows).split(curvature.columns_per_block()):
            gradients = curvature.row_gradients(rows, curvature.expansion.gradient[:, rows])
            states = curvature.solve(gradients)
            parts.append(torch.linalg.vector_norm(states[0, curvature.n_free :], dim=0))
        return torch.cat(parts)
