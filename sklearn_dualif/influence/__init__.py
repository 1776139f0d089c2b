"""Influence as functions of a factorization: removals, edits, leave-one-out, parameters."""

from ._dimension import curvature_spectrum, usual_ridges
from ._engine import InfluenceEngine
from ._inner_product import build_scores
from ._problem import TrainingProblem
from ._ridge_path import leave_one_out_ridge
from ._setup import build_engine, build_problem
from ._single_relabels import mean_relabel_effects

__all__ = [
    "InfluenceEngine",
    "TrainingProblem",
    "build_engine",
    "build_problem",
    "build_scores",
    "curvature_spectrum",
    "leave_one_out_ridge",
    "mean_relabel_effects",
    "usual_ridges",
]
