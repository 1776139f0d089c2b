"""The curvature by layers in the coordinates of a sketch."""

from ..sketching import KroneckerSpectrum
from ._kronecker import KroneckerCurvature


class SketchedKroneckerCurvature(KroneckerCurvature):
    """`KroneckerCurvature` of layers that are seen through a projection.

    Projected layers have a ridge of their own that stands for the one that was asked for; removals
    take the same share of it along.

    Parameters
    ----------
    features : KroneckerDesign
        Of a projected basis.
    layout, free, expansion, ridge, shiftable
        See `KroneckerCurvature`.
    debias : bool
        Whether projected layers have that ridge; else all have the one that was asked for.

    Attributes
    ----------
    spectrum : KroneckerSpectrum
    sketched_ridge : float
        Of projected layers.
    """

    def __init__(self, features, layout, free, expansion, ridge, *, shiftable, debias):
        self.debias = debias
        super().__init__(features, layout, free, expansion, ridge, shiftable=shiftable)

    @property
    def asked_ridge(self):
        """The ridge that the curvature stands for."""
        return float(self.ridge[0])

    def _relative_ridges(self):
        basis, asked = self.features.basis, self.asked_ridge
        self.spectrum = KroneckerSpectrum(self.eigenvalues[self.n_free :].numpy(), basis.projection)
        found = self.spectrum.sketched_ridge(asked) if self.debias else None
        self.sketched_ridge = asked if found is None else found
        ridges = super()._relative_ridges().clone()
        if self.sketched_ridge != asked:
            for place in basis.projected:
                ridges[self.n_free :][place] *= self.sketched_ridge / asked
        return ridges
