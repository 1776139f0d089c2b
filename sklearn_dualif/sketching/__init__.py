"""Random projections of gradients, and what their spectrum says; knows no model."""

from ._base import Projection, Sketch
from ._dense import GaussianSketch, RademacherSketch
from ._factorized import FactorizedSketch, Layer
from ._factorized_spectrum import FactorizedSpectrum
from ._hadamard import HadamardSketch
from ._kronecker_spectrum import KroneckerSpectrum
from ._sparse import SparseSketch
from ._spectrum import ENOUGH, SketchedSpectrum
from ._store import SketchStore, remove_store, repair_store

__all__ = [
    "ENOUGH",
    "FactorizedSketch",
    "FactorizedSpectrum",
    "GaussianSketch",
    "HadamardSketch",
    "KroneckerSpectrum",
    "Layer",
    "Projection",
    "RademacherSketch",
    "Sketch",
    "SketchStore",
    "SketchedSpectrum",
    "SparseSketch",
    "remove_store",
    "repair_store",
]
