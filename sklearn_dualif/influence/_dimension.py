"""Eigenvalues of the curvature of a model's losses, which give its effective dimension."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import gen_batches

from ..linalg import column_gram
from ..losses import empirical_fisher
from ..models import KernelModel, NetworkModel
from ..sketching import RademacherSketch
from ._setup import as_network
from ._sketched_tangent import SketchedTangent, explained_by_free

_LARGEST_DIRECT = 6000
_BLOCK = 2**23
_ROUNDING = 1e-13


@dataclass(frozen=True)
class CurvatureSpectrum:
    """Eigenvalues of ``J^T S S^T J`` by the penalised parameters, as far as they are known.

    Attributes
    ----------
    eigenvalues : (r,) array or None
        All that are not zero, largest first; None where a sketch stands for them.
    sketched : SketchedSpectrum or None
        Of that sketch.
    n_free : int
        Directions that unpenalised parameters explain, and which are left out.
    size : int
        No more eigenvalues than that can differ from zero.
    mean : float
        The eigenvalues' mean over that size.
    ridge : (Gs,) array
        Of the model.
    """

    eigenvalues: np.ndarray | None
    sketched: object
    n_free: int
    size: int
    mean: float
    ridge: np.ndarray

    def dimension(self, ridge):
        """Return the effective dimension at a ridge and its standard deviation; NaN if unknown."""
        if self.eigenvalues is not None:
            positive = self.eigenvalues[self.eigenvalues > 0]
            return float((positive / (positive + ridge)).sum()) + self.n_free, 0.0
        sketched = self.sketched.sketched_ridge(ridge)
        if sketched is None:
            return np.nan, np.nan
        found = self.sketched.dimension(sketched) + self.n_free
        return found, self.sketched.deviation(sketched)


def usual_ridges(mean):
    """Return ridges around a mean eigenvalue over which a curve of dimensions is drawn."""
    return mean * np.geomspace(1e-5, 1e2, 29)


def curvature_spectrum(model, X, y, sample_weight, *, fisher, memory_limit, sketch, least_ridge):
    """Return the `CurvatureSpectrum` of a fitted model on rows.

    Parameters
    ----------
    model : ModelFunction
        Ready for rows like X.
    X, y : array-like
        As the outermost estimator takes them.
    sample_weight : (n,) array
        Weights that it was fitted with.
    fisher : bool
        Whether the empirical Fisher matrix is meant.
    memory_limit : int
        Bytes.
    sketch : Sketch or None
        None: exact where that fits, else Rademacher.
    least_ridge : float or None
        The smallest ridge that will be asked for; None: of `usual_ridges`.
    """
    targets = model.targets.encode(y)
    weights = model.targets.weigh(y, sample_weight)
    if isinstance(model, KernelModel):
        return _of_kernel(model, X, targets, sample_weight, weights, fisher)
    if not isinstance(model, NetworkModel):
        model = as_network(model)
    features = model.features(X)
    expansion = model.expand(targets, model.outputs(features), weights)
    root = (empirical_fisher(expansion, weights) if fisher else expansion).root[0]
    ridge = model.penalty.ridge(weights, 1).numpy()
    explained = explained_by_free(features.free_jacobian, root)
    size = min(root.shape[0] * root.shape[2], features.shape[1])
    own = features.own_kernel.double().cpu()
    mean = float(torch.einsum("ncq,ncd,ndq->", root, own, root)) / size
    known = {"n_free": explained.shape[2], "size": size, "mean": mean, "ridge": ridge}
    if sketch is None and size <= _LARGEST_DIRECT and 24.0 * size**2 <= memory_limit:
        return CurvatureSpectrum(_eigenvalues(features, root, explained), None, **known)
    tangent = SketchedTangent(
        features,
        root,
        RademacherSketch(random_state=0) if sketch is None else sketch,
        float(usual_ridges(mean)[0]) if least_ridge is None else least_ridge,
        memory_limit,
        for_effects=False,
    )
    return CurvatureSpectrum(None, tangent.spectrum, **known)


def _eigenvalues(features, root, explained):
    """Return the eigenvalues of the smaller of the kernel and the curvature itself."""
    heads = features.output_heads.mixed(root)
    n, q = heads.shape
    d = features.shape[1]
    if n * q <= d:
        gram = heads.gram(heads).double()
        basis = explained.flatten(0, 1).to(gram)
        gram -= basis @ (basis.T @ gram)
        gram -= (gram @ basis) @ basis.T
    else:
        gram = torch.zeros(d, d, dtype=torch.float64)
        cross = torch.zeros(explained.shape[2], d, dtype=torch.float64)
        for rows in gen_batches(n, max(1, _BLOCK // (q * d))):
            part = features.take(rows).heads(root[rows]).jacobian().flatten(0, 1)
            gram += column_gram(part)
            cross += (explained[rows].flatten(0, 1).T.to(part) @ part).double().cpu()
        gram -= cross.T @ cross
    return _positive(torch.linalg.eigvalsh(gram))


def _of_kernel(model, X, targets, sample_weight, weights, fisher):
    features = model.features(X)
    expansion = model.expand(targets, model.outputs(features), weights)
    if fisher:
        expansion = empirical_fisher(expansion, weights)
    kernel, found = features.gram(features), []
    for root in expansion.root[..., 0, 0]:
        found.append(_positive(torch.linalg.eigvalsh(root[:, None] * kernel * root)))
    ridge = model.penalty.ridge(sample_weight, model.n_factors).numpy()
    # Outputs that share a curvature have these eigenvalues each.
    found = np.concatenate(found * (model.layout.n_blocks // len(found)))
    return CurvatureSpectrum(
        np.sort(found)[::-1],
        None,
        n_free=0,
        size=len(found),
        mean=float(found.mean()),
        ridge=ridge,
    )


def _positive(values):
    values = values.cpu().numpy()[::-1]
    return np.where(values > _ROUNDING * values[0], values, 0.0)
