"""A network whose curvature is taken layer by layer, of layers that are projected at random."""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property, partial

from ..curvature import SketchedKroneckerCurvature
from ..exceptions import InfluenceWarning, UnsupportedOptionError
from ..sketching import FactorizedSketch
from ._kronecker import KroneckerEngine, KroneckerProblem


@dataclass(frozen=True, kw_only=True)
class SketchedKroneckerProblem(KroneckerProblem):
    """`KroneckerProblem` in the coordinates of a factorised sketch.

    Attributes
    ----------
    sketch : FactorizedSketch
        As the caller gave it.
    """

    sketch: FactorizedSketch

    _memory_remedy = "Lower n_components of the sketch"

    @property
    def curvature_type(self):
        """The curvature, as it is to be debiased."""
        return partial(SketchedKroneckerCurvature, debias=self.sketch.debias)

    @cached_property
    def projection(self):
        """The projection of the layers."""
        layers, sketch = self.features.layers(), self.sketch
        return sketch.for_layers(layers, sketch.n_components, sketch.seed())

    def _basis(self):
        return super()._basis(self.projection)

    @property
    def exact_form(self):
        """Solver, size and bytes of the form without the sketch."""
        basis = super()._basis()
        size = basis.size + self.model.network.n_free
        return {"solver": "kfac", "size": size, "bytes": self._bytes(basis)}


class SketchedKroneckerEngine(KroneckerEngine):
    """`KroneckerEngine` in the coordinates of a factorised sketch."""

    def __init__(self, problem, **options):
        super().__init__(problem, **options)
        self._warn_of_size()

    @cached_property
    def sketch_info(self):
        """What is known of the sketch."""
        curvature, size = self.curvature, self.problem.projection.n_components
        spectrum, ridge = curvature.spectrum, curvature.asked_ridge
        dimension = spectrum.dimension(ridge)
        return {
            "n_components": size,
            "effective_dimension": dimension,
            "components_per_dimension": size / dimension if dimension > 0 else math.inf,
            "sketched_ridge": curvature.sketched_ridge,
            "error": math.nan,
            "too_small": spectrum.missing(ridge) > 0,
            "exact": self.problem.exact_form,
        }

    def _warn_of_size(self):
        """Warn of fewer components than the ridge needs."""
        info, ridge = self.sketch_info, self.curvature.asked_ridge
        if not info["too_small"]:
            return
        enough = info["n_components"] + self.curvature.spectrum.missing(ridge)
        remedy = f"Use n_components={enough} or more"
        if enough >= info["exact"]["size"]:
            remedy = "Leave sketch=None, as no smaller sketch would do"
        warnings.warn(
            f"n_components={info['n_components']} is fewer than the ridge {ridge:.3g} asks for in "
            "one of the layers, or in its sides: the effective dimension is about "
            f"{info['effective_dimension']:.0f} in all. Effects may come out too small. {remedy}, "
            "or a larger ridge.",
            InfluenceWarning,
            stacklevel=2,
        )

    def leakage(self, features, y, objective):
        """Raise: how far the sketch scatters effects is not known."""
        raise UnsupportedOptionError(
            "leakage is not known of a sketch with curvature='kfac'. Compare the influence of fits "
            "with several random_state of the sketch, or use curvature='gauss_newton'."
        )
