"""How many directions of the parameters the rows determine, at any ridge."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.utils.validation import check_consistent_length

from .._estimator import InfluenceEstimator
from .._fitting import fit_model
from .._validation import check_known_options
from ..exceptions import InfluenceWarning
from ..influence import curvature_spectrum, usual_ridges
from ..linalg import parse_bytes
from ..models import check_supported


@dataclass(frozen=True, eq=False)
class EffectiveDimension:
    """Effective dimension of a model's curvature over ridges.

    Attributes
    ----------
    ridge : (r,) array
        Ridges, in units of the objective in sum form.
    dimension : (r,) array
        Effective dimension at each, free intercepts included. NaN where a sketch is too small to
        tell.
    std : (r,) array
        Standard deviation of each under the choice of the sketch; 0 where it is exact.
    method : {"exact", "sketch"}
        Whether all eigenvalues were computed, or those of a random projection.
    n_components : int or None
        Of the sketch.
    model_ridge : float or (n_outputs,) array
        The model's own ridge.
    largest : int
        What the dimension cannot exceed: rows times outputs, or parameters.
    """

    ridge: np.ndarray
    dimension: np.ndarray
    std: np.ndarray
    method: str
    n_components: int | None
    model_ridge: float | np.ndarray
    largest: int


def effective_dimension(estimator, X, y, ridge=None, *, sketch=None, fit_params=None):
    r"""Return the effective dimension of a model on rows, over a grid of ridges.

    How many parameters the rows determine against a ridge: the degrees of freedom of the fit, and
    what decides how large a sketch has to be (see `sklearn_dualif.sketching`).

    Parameters
    ----------
    estimator : estimator or InfluenceEstimator
        A model that `InfluenceEstimator` can wrap, or one that wraps it and says of which
        parameters, in which precision and with which ``curvature``. Cloned and fitted once, with
        its own ridge; a frozen one is used as it is.
    X : array-like, (n_train, n_features)
        Training rows.
    y : array-like, (n_train,) or (n_train, n_outputs)
        Their targets.
    ridge : float or sequence of float, optional
        Ridges, in units of the objective
        :math:`\sum_i w_i \ell_i + \tfrac12 \mathrm{ridge}\,\|\theta\|^2`. None: 29 values from
        1e-5 to 100 times the mean eigenvalue.
    sketch : sketch, optional
        Estimate from the spectrum of one of `sklearn_dualif.sketching`, of size "auto" as large as
        the smallest ridge needs. None: exact for up to 6,000 eigenvalues, beyond that from a
        `RademacherSketch`.
    fit_params : dict, optional
        For the model's ``fit``, such as ``sample_weight``.

    Returns
    -------
    EffectiveDimension

    Raises
    ------
    ValueError
        If a ridge is not positive.
    UnsupportedModelError
        A `TypeError`, if the model is not one that can be wrapped.

    See Also
    --------
    sklearn_dualif.inspection.EffectiveDimensionDisplay : Draws it.
    sklearn_dualif.InfluenceEstimator : Has the exact one at its own ridge as
        ``effective_dimension_``.

    Notes
    -----
    With :math:`F = J^\top S S^\top J` the curvature of the losses at the fitted parameters
    (Gauss-Newton, or the empirical Fisher matrix), it is
    :math:`d_\lambda = \mathrm{tr}\, F (F + \lambda)^{-1}`, plus the free parameters that the rows
    determine. From a sketch with eigenvalues :math:`\mu_j` it is
    :math:`\sum_j \mu_j / (\mu_j + \lambda_s)` at the ridge :math:`\lambda_s` that debiases the
    sketch, which is right to a fraction of one as soon as the sketch is somewhat larger than
    :math:`d_\lambda`; its standard deviation is that of a linear statistic of the spectrum [2]_.

    References
    ----------
    .. [1] P. Hu, Y. Hu, J. W. Ma and H. Zhao, "A Unified Theory of Random Projection for Influence
       Functions", arXiv:2602.10449, 2026.
    .. [2] Z. D. Bai and J. W. Silverstein, "CLT for linear spectral statistics of
       large-dimensional sample covariance matrices", Annals of Probability 32, 2004.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif.metrics import effective_dimension
    >>> X, y = load_digits(return_X_y=True)
    >>> found = effective_dimension(
    ...     LogisticRegression(max_iter=1000), X / 16, y, ridge=[0.1, 1.0, 10.0]
    ... )
    >>> found.dimension.round(1)
    array([347.6, 187. ,  61.5])
    """
    given = isinstance(estimator, InfluenceEstimator)
    influence = estimator if given else InfluenceEstimator(estimator)
    if sketch is not None:
        influence = InfluenceEstimator(**influence.get_params(deep=False) | {"sketch": sketch})
    check_known_options(influence)
    check_supported(influence.estimator)
    check_consistent_length(X, y)
    ridge = None if ridge is None else _checked_ridges(ridge)
    fitted = fit_model(influence, X, y, fit_params or {})
    spectrum = curvature_spectrum(
        fitted.model,
        X,
        y,
        fitted.weights,
        fisher=influence.curvature == "empirical_fisher",
        memory_limit=parse_bytes(influence.memory_limit),
        sketch=influence.sketch,
        least_ridge=None if ridge is None else float(ridge.min()),
    )
    ridge = usual_ridges(spectrum.mean) if ridge is None else ridge
    dimension, std = np.array([spectrum.dimension(value) for value in ridge]).T
    if np.isnan(dimension).any():
        least = spectrum.sketched.least_ridge
        warnings.warn(
            f"A sketch of n_components={spectrum.sketched.n_components} cannot tell the effective "
            f"dimension at ridges below {least:.3g}, where it exceeds that number. Use a larger "
            "one, n_components='auto' with a larger memory_limit, or larger ridges.",
            InfluenceWarning,
            stacklevel=2,
        )
    sketched = spectrum.sketched
    own = spectrum.ridge
    return EffectiveDimension(
        ridge=ridge,
        dimension=dimension,
        std=std,
        method="exact" if sketched is None else "sketch",
        n_components=None if sketched is None else sketched.n_components,
        model_ridge=float(own[0]) if np.ptp(own) == 0 else own,
        largest=spectrum.size + spectrum.n_free,
    )


def _checked_ridges(ridge):
    ridge = np.atleast_1d(np.asarray(ridge, dtype=np.float64))
    wrong = ridge[~((ridge > 0) & np.isfinite(ridge))]
    if ridge.ndim != 1 or not len(ridge) or len(wrong):
        shown = float(wrong[0]) if len(wrong) else ridge.shape
        raise ValueError(
            f"ridge={shown} is not allowed: give positive, finite numbers, in one dimension."
        )
    return ridge
