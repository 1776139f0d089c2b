"""Training rows in the coordinates of a random projection, as large as its accuracy asks for."""

import hashlib
import math
import time
import warnings
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import gen_batches

from ..exceptions import InfluenceWarning, MemoryLimitError
from ..kernels import LinearFeatures, SketchBasis, TangentDesign
from ..linalg import column_gram
from ..sketching import ENOUGH, FactorizedSpectrum, SketchedSpectrum, SketchStore

_FIRST_SIZE = 256
_BLOCK = 2**23
_BATCH_DOUBLES = 2**26
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
    report : callable or None
        Called with a line on how far the writing of a store is.

    Attributes
    ----------
    projection : Projection
    values : (n, C, f + m) tensor
        Jacobians by the free parameters, and penalised ones times ``P^T``.
    spectrum : SketchedSpectrum
        Without what the free parameters explain.
    """

    def __init__(
        self, features, root, sketch, ridge, memory_limit, *, for_effects=True, report=None
    ):
        self.features, self.root = features, root
        self.sketch, self.ridge = sketch, ridge
        self.memory_limit = memory_limit
        self.exact_rank = min(root.shape[0] * root.shape[2], features.shape[1])
        self.free = features.free_jacobian
        self.n_free = self.free.shape[2]
        self._layers = features.layers()
        self._seed, self._report = sketch.seed(), report
        self.values = self.projection = self.store = None
        self.wanted = 0
        if sketch.n_components == "auto":
            self._search(for_effects)
        else:
            self._grow(sketch.n_components)

    # Growth ------------------------------------------------------------------------------------

    def _bytes(self, n_components):
        heads = self.root.shape[0] * self.root.shape[1]
        side = min(n_components, heads + 1)
        in_memory = 0 if self.sketch.store is not None else heads * n_components
        return 2.0 * in_memory * self.free.element_size() + 40.0 * side**2

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
        before, self.projection = (
            self.projection,
            self.sketch.for_layers(self._layers, n_components, self._seed),
        )
        if self.sketch.store is not None:
            self.values = self._stored()
        elif before is not None and self.projection.nested:
            known = self.values * (self.projection.scale / before.scale)
            known[..., : self.n_free] = self.free
            more = self._sketched(self.features, before.n_components)
            self.values = torch.cat([known, more], 2)
        else:
            self.values = torch.cat([self.free, self._sketched(self.features)], 2)
        self.spectrum = self._spectrum()

    def _sketched(self, features, first=0):
        """Return sketched Jacobians (n, C, m), or the components from ``first`` on."""
        # Many rows at once, since the numbers of the projection are drawn for each batch.
        size = max(1, _BATCH_DOUBLES // features.network.doubles_per_row)
        parts = [h.sketched(self.projection, first) for _, h in features.parts(size)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).mul_(self.projection.scale)

    def _stored(self):
        """Return the Jacobians from the store, with what was missing there written first."""
        shape = *self.root.shape[:2], self.n_free + self.projection.n_components
        self.store = SketchStore(self.sketch.store, self._identity(), shape, self.free.dtype)
        missing, started = self.store.missing, time.perf_counter()
        for done, block in enumerate(missing):
            if self._report is not None and done:
                left = (time.perf_counter() - started) * (len(missing) / done - 1.0)
                self._report(f"sketched {done} of {len(missing)} blocks, about {left:.0f} s left")
            rows = self.store.rows(block)
            part = self.features.take(rows)
            part.keep_within(_BATCH_DOUBLES)
            self.store.write(block, torch.cat([self.free[rows], self._sketched(part)], 2))
        return self.store.values

    def _identity(self):
        """Return what the rows of a store depend on."""
        sketch, network = self.sketch, self.features.network
        settings = sketch.get_params() | {"n_components": self.projection.n_components}
        for name in ("store", "random_state", "eps", "debias"):
            settings.pop(name)
        shown = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
        return {
            "model": digest(*network.parameters(), *self._layers),
            "X": digest(self.features.inputs),
            "sketch": f"{type(sketch).__name__}({shown})",
            "seed": str(self._seed),
            "random numbers": f"numpy {np.__version__}, torch {torch.__version__}",
        }

    def _search(self, for_effects):
        """Double the size until it tells the effective dimension, then take what eps asks for."""
        size = max(1, min(max(_FIRST_SIZE, len(self._layers)), self._largest))
        while True:
            self._grow(size)
            sketched = self.spectrum.sketched_ridge(self.ridge)
            if sketched is not None and size >= ENOUGH * self.spectrum.dimension(sketched):
                break
            if size >= min(self._largest, self.exact_rank):
                return
            size = min(2 * size, self._largest)
        if not for_effects:
            return
        wanted = self.wanted = self.spectrum.components_for(self.sketch.eps, sketched)
        if size < wanted < self.exact_rank:
            self._grow(min(wanted, self._largest))

    def _spectrum(self):
        """Return the spectrum of the root-weighted sketch that free parameters do not explain."""
        n, q, m = len(self.root), self.root.shape[2], self.projection.n_components
        explained = explained_by_free(self.free, self.root).cpu()
        if n * q < m and not self.projection.factorized:
            rows = self._weighted(slice(None)).double().cpu()
            basis = explained.flatten(0, 1)
            rows = rows - basis @ (basis.T @ rows)
            gram = rows @ rows.T
        else:
            gram = torch.zeros(m, m, dtype=torch.float64)
            cross = gram.new_zeros(explained.shape[2], m)
            for part in gen_batches(n, max(1, _BLOCK // (q * m))):
                rows = self._weighted(part)
                gram += column_gram(rows)
                cross += explained[part].flatten(0, 1).T @ rows.double().cpu()
            gram -= cross.T @ cross
        if self.projection.factorized:
            return FactorizedSpectrum(gram.numpy(), self.projection)
        values = torch.linalg.eigvalsh(gram).numpy()
        return SketchedSpectrum(values, m, self.projection.ambient)

    def _weighted(self, rows):
        """Return the root-weighted sketch (b q, m) of some rows."""
        values = self.values[rows, :, self.n_free :]
        return (self.root[rows].to(values).mT @ values).flatten(0, 1)

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
        first = spectrum.dimension(sketched)
        known = self.ridge == 0.0 and m >= self.exact_rank
        too_small = spectrum.sketched_ridge(self.ridge) is None and not known
        if too_small:
            first = self._extrapolated()
        error = math.inf if too_small else spectrum.error(sketched) + self._bias(sketched)
        return {
            "n_components": m,
            "effective_dimension": first,
            "components_per_dimension": m / first if first > 0 else math.inf,
            "sketched_ridge": sketched,
            "error": error,
            "too_small": too_small,
            "exact": exact,
        }

    def _bias(self, sketched):
        """Return the largest error of a ridge that stands for another one than was asked for."""
        if self.ridge == 0.0 or self.sketch.debias:
            return 0.0
        roots = math.sqrt(self.spectrum.ridge(sketched)), math.sqrt(self.ridge)
        return abs(roots[0] - roots[1]) / (roots[0] + roots[1])

    def _extrapolated(self):
        """Return the effective dimension, continued from the ridges that the sketch can tell."""
        if self.ridge == 0.0:
            return float(self.exact_rank)
        spectrum, known = self.spectrum, max(self.ridge, 2.0 * self.spectrum.least_ridge)
        while (sketched := spectrum.sketched_ridge(known)) is None:
            known *= 2.0
        first, second = spectrum.dimensions(sketched)
        growth = (known / self.ridge) ** ((first - second) / first)
        return float(min(first * growth, self.exact_rank))

    def warn_of_size(self, info):
        """Warn of fewer components than the ridge, or what was asked for, needs."""
        size, error = info["n_components"], info["error"]
        chosen = self.sketch.n_components == "auto"
        if chosen and (info["too_small"] or self.wanted > size):
            warnings.warn(
                f"memory_limit allows n_components={size}, with which the error is {error:.2g} and "
                f"not eps={self.sketch.eps:g}; {max(self.wanted, self._enough(info))} or more "
                "would do. Raise memory_limit or eps, or use a larger ridge.",
                InfluenceWarning,
                stacklevel=2,
            )
            return
        if not info["too_small"]:
            return
        enough, exact = self._enough(info), info["exact"]
        remedy = f"Use n_components={enough} or more, n_components='auto', or a larger ridge."
        if enough >= self.exact_rank:
            remedy = (
                f"The exact form (solver={exact['solver']!r}, {exact['size']} coordinates) is "
                "smaller than a sketch that would do: leave sketch=None, or use a larger ridge."
            )
        warnings.warn(
            f"n_components={size} is fewer than the ridge {self.ridge:.3g} asks for: the effective "
            f"dimension is about {info['effective_dimension']:.0f}. Effects come out too small. "
            f"{remedy}",
            InfluenceWarning,
            stacklevel=2,
        )

    @staticmethod
    def _enough(info):
        """Return the components with which effects are right on average."""
        return math.ceil(ENOUGH * info["effective_dimension"])

    def design(self, solver):
        """Return the Jacobians of the training rows in the smaller of the two coordinates."""
        features, values = self.features, self.values
        network = features.network
        if self.store is not None:
            basis = SketchBasis(network, self.projection)
            return StoredDesign(basis, features, "primal", self.store)
        heads, m = values.shape[0] * values.shape[1], self.projection.n_components
        if solver != "dual" and (solver == "primal" or heads + 1 >= m):
            basis = SketchBasis(network, self.projection)
            return TangentDesign(basis, features, "primal", values)
        penalized, _ = network.parameters()
        own = self.projection(penalized.double()[None])
        sketched = values[..., self.n_free :]
        rotation = orthonormal(torch.cat([sketched.flatten(0, 1).double(), own]).T)
        basis = SketchBasis(network, self.projection, rotation)
        values = torch.cat([self.free, basis.rotated(sketched)], 2)
        return TangentDesign(basis, features, "dual", values)


class StoredDesign(TangentDesign):
    """`TangentDesign` whose training rows are in a store, and not in pickles."""

    def __init__(self, basis, features, name, store):
        super().__init__(basis, features, name, store.values)
        self.store = store

    def __getstate__(self):
        return {**vars(self), "values": None}

    def __setstate__(self, state):
        vars(self).update(state)
        self.values = self.store.values


def digest(*parts):
    """Return a checksum of tensors, sparse rows and plain values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, LinearFeatures):
            part = part.matrix
        if sparse.issparse(part):
            for array in (part.data, part.indices, part.indptr):
                found.update(np.ascontiguousarray(array))
        elif torch.is_tensor(part):
            found.update(part.detach().cpu().contiguous().numpy())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()[:16]


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
