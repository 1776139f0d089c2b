"""Random projections of gradients, and what their spectrum says; knows no model."""

from ._base import Projection, Sketch
from ._dense import GaussianSketch, RademacherSketch
from ._factorized import FactorizedSketch, Layer
from ._hadamard import HadamardSketch
from ._sparse import SparseSketch
from ._spectrum import SketchedSpectrum, components_for, largest_error

__all__ = [
    "FactorizedSketch",
    "GaussianSketch",
    "HadamardSketch",
    "Layer",
    "Projection",
    "RademacherSketch",
    "Sketch",
    "SketchedSpectrum",
    "SparseSketch",
    "components_for",
    "largest_error",
]
