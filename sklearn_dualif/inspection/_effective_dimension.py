"""The curve of effective dimensions, and the sketches that are large enough for it."""

import numpy as np

from ..metrics import effective_dimension

_TWO_SIDED = 1.96


class EffectiveDimensionDisplay:
    """Effective dimension against the ridge, with the sizes of sketches.

    A sketch of some size stands for ridges right of where its line meets the curve. Make one with
    `from_estimator`, or from what `metrics.effective_dimension` returned.

    Parameters
    ----------
    effective_dimension : EffectiveDimension
        See `sklearn_dualif.metrics.effective_dimension`.
    n_components : sequence of int, default=()
        Sizes of sketches to draw as lines.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of these.
    line_ : matplotlib Line2D
        The curve.
    band_ : matplotlib PolyCollection or None
        Its 95 % interval, where it comes from a sketch.

    See Also
    --------
    sklearn_dualif.metrics.effective_dimension

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif.inspection import EffectiveDimensionDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> display = EffectiveDimensionDisplay.from_estimator(
    ...     LogisticRegression(max_iter=1000), X / 16, y, n_components=[128, 512]
    ... )
    >>> display.frame().columns.tolist()
    ['ridge', 'effective_dimension', 'std']
    """

    def __init__(self, effective_dimension, *, n_components=()):
        self.effective_dimension = effective_dimension
        self.n_components = n_components

    @classmethod
    def from_estimator(
        cls, estimator, X, y, ridge=None, *, sketch=None, fit_params=None, n_components=(), ax=None
    ):
        """Compute the dimensions and draw them.

        Parameters
        ----------
        estimator, X, y, ridge, sketch, fit_params
            See `sklearn_dualif.metrics.effective_dimension`.
        n_components : sequence of int, default=()
            Sizes of sketches to draw as lines.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        EffectiveDimensionDisplay
        """
        found = effective_dimension(estimator, X, y, ridge, sketch=sketch, fit_params=fit_params)
        return cls(found, n_components=n_components).plot(ax=ax)

    def plot(self, ax=None):
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        EffectiveDimensionDisplay
            This object.
        """
        import matplotlib.pyplot as plt

        found = self.effective_dimension
        if ax is None:
            _, ax = plt.subplots()
        label = "exact" if found.method == "exact" else f"from a sketch of {found.n_components}"
        (self.line_,) = ax.plot(found.ridge, found.dimension, label=label)
        self.band_ = None
        if found.method == "sketch":
            spread = _TWO_SIDED * found.std
            self.band_ = ax.fill_between(
                found.ridge, found.dimension - spread, found.dimension + spread, alpha=0.3
            )
        for index, size in enumerate(sorted(self.n_components)):
            color = f"C{index + 1}"
            ax.axhline(size, linestyle="--", linewidth=1, color=color, label=f"m = {size:,}")
        for own in np.unique(found.model_ridge):
            if own > 0:
                ax.axvline(own, linestyle=":", color="0.3", label="the model's ridge")
        ax.set(xscale="log", yscale="log", xlabel="ridge", ylabel="effective dimension")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self):
        """Return what is drawn as a table.

        Returns
        -------
        pandas.DataFrame
            Columns ridge, effective_dimension and std.
        """
        import pandas as pd

        found = self.effective_dimension
        return pd.DataFrame(
            {
                "ridge": found.ridge,
                "effective_dimension": found.dimension,
                "std": found.std,
            }
        )
