"""Checks of what callers pass: row positions, pairs of queries, options of later versions."""

import numbers

import numpy as np

CURVATURES = ("gauss_newton", "empirical_fisher", "kfac", "identity")


def check_positions(indices, n_rows, *, keep_some=True):
    """Return row positions (g,) from positions or a boolean mask.

    Parameters
    ----------
    indices : array-like of int or bool, or slice
        As the caller gave them.
    n_rows : int
        Number of training rows.
    keep_some : bool
        Whether taking all rows is an error.
    """
    if isinstance(indices, slice):
        indices = np.arange(n_rows)[indices]
    indices = np.atleast_1d(np.asarray(indices))
    if indices.ndim != 1:
        raise ValueError(f"indices must be one-dimensional; got shape {indices.shape}.")
    if indices.dtype == bool:
        if len(indices) != n_rows:
            raise ValueError(
                f"A boolean mask of rows must have one entry for each of the {n_rows} training "
                f"rows; got {len(indices)}."
            )
        indices = np.flatnonzero(indices)
    elif len(indices) == 0:
        indices = indices.astype(np.intp)
    elif not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            "indices must be row positions, such as [0, 5], a slice of them or a boolean mask; got "
            f"{indices.tolist()[0]!r}. Labels of a DataFrame's index are not positions."
        )
    outside = indices[(indices < 0) | (indices >= n_rows)]
    if len(outside):
        raise ValueError(
            f"Row {int(outside[0])} is out of range: positions run from 0 to {n_rows - 1}, in the "
            "order of the X passed to fit."
        )
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"Row {int(values[counts > 1][0])} is named twice in indices. Name each row once."
        )
    if keep_some and len(indices) == n_rows:
        raise ValueError(
            f"All {n_rows} training rows would be removed, which leaves no model. Keep at least "
            "one row."
        )
    return indices


def check_ridge(ridge):
    """Raise unless ridge is "model", "loo" or a finite number >= 0."""
    if isinstance(ridge, str):
        known = ridge in ("model", "loo")
    else:
        number = isinstance(ridge, numbers.Real) and not isinstance(ridge, bool)
        known = number and np.isfinite(ridge) and ridge >= 0
    if not known:
        raise ValueError(
            f"ridge={ridge!r} is not allowed: give 'model' for the wrapped model's own penalty, "
            "'loo' for the one with the least leave-one-out loss, or a finite number >= 0."
        )


def check_known_options(estimator):
    """Raise for options whose other values this version does not have."""
    if estimator.curvature not in CURVATURES:
        raise ValueError(
            f"curvature={estimator.curvature!r} is not known. Choose 'gauss_newton', "
            "'empirical_fisher', 'kfac' or 'identity'."
        )
    if estimator.sketch is not None:
        from .sketching import Sketch

        if not isinstance(estimator.sketch, Sketch):
            raise ValueError(
                f"sketch={estimator.sketch!r} is not a sketch. Give one of "
                "sklearn_dualif.sketching, such as GaussianSketch(n_components='auto'), or None."
            )
        estimator.sketch.check()
        if estimator.solver == "iterative":
            raise ValueError(
                "solver='iterative' keeps as much of the exact kernel as tol asks for, and needs "
                "no sketch. Use sketch=None with it, or solver='auto' with the sketch."
            )
        if estimator.solver == "dual" and estimator.sketch.store is not None:
            raise ValueError(
                "solver='dual' works on rows in memory, which a store is there to avoid. Use "
                "solver='auto' with store=, or store=None."
            )
    if estimator.curvature == "kfac":
        _check_goes_with_kfac(estimator)
    _check_scores(estimator)
    if not isinstance(estimator.dtype, str) or estimator.dtype not in ("float64", "float32"):
        raise ValueError(f"dtype={estimator.dtype!r} is not known. Choose 'float64' or 'float32'.")
    if estimator.solver not in ("auto", "primal", "dual", "iterative"):
        raise ValueError(
            f"solver={estimator.solver!r} is not known; choose 'auto', 'primal', 'dual' or "
            "'iterative'."
        )


def _check_scores(estimator):
    """Raise for options of effects with scores, and the other way round."""
    if estimator.curvature == "identity":
        for name, default in (("solver", "auto"), ("sketch", None)):
            value = getattr(estimator, name)
            if value != default:
                raise ValueError(
                    f"{name}={value!r} is a way to invert a curvature, and curvature='identity' "
                    f"inverts none. Use {name}={default!r} with it, or curvature='gauss_newton'."
                )
        return
    for name, default in (("normalize", False), ("checkpoints", True)):
        value = getattr(estimator, name)
        if value is not default:
            raise ValueError(
                f"{name}={value!r} is for curvature='identity', which scores rows by inner "
                f"products; with curvature={estimator.curvature!r} use {name}={default!r}."
            )


def _check_goes_with_kfac(estimator):
    """Raise for options of exact forms, and for sketches that don't go layer by layer."""
    if estimator.solver in ("dual", "iterative"):
        raise ValueError(
            f"solver={estimator.solver!r} works on the kernel of the rows, and curvature='kfac' on "
            "the parameters of each layer. Use solver='auto' with it, or curvature='gauss_newton'."
        )
    if estimator.sketch is not None:
        _check_sketch_of_layers(estimator.sketch)


def _check_sketch_of_layers(sketch):
    """Raise for sketches that curvature='kfac' has no use for."""
    from .sketching import FactorizedSketch

    if not isinstance(sketch, FactorizedSketch):
        raise ValueError(
            f"sketch={sketch!r} mixes the parameters of all layers, and curvature='kfac' takes "
            "layers one by one. Use FactorizedSketch(n_components=...) with it, or "
            "curvature='gauss_newton'."
        )
    if sketch.n_components == "auto":
        raise ValueError(
            "n_components='auto' goes by the error of a sketch, which is not known with "
            "curvature='kfac'. Give a number; sketch_info_ says whether it is large enough."
        )
    if sketch.store is not None:
        raise ValueError(
            f"store={str(sketch.store)!r} keeps sketched rows, and curvature='kfac' holds none. "
            "Use store=None with it, or curvature='gauss_newton'."
        )


def check_order(order, curvature="gauss_newton"):
    """Raise unless order is a known name that the curvature has."""
    if order == "exact" and curvature in ("empirical_fisher", "kfac"):
        raise ValueError(
            f"order='exact' finds the optimum itself, whatever the curvature; with "
            f"curvature={curvature!r} choose order='newton' or 'first'."
        )
    if order not in ("newton", "first", "exact"):
        raise ValueError(f"order={order!r} is not known. Choose 'newton', 'first' or 'exact'.")
