"""Rows in the order of their self-influence, and those that stand out."""

from numbers import Real

import numpy as np

from ..metrics._removals import check_fitted
from ._drawing import (
    HURTS,
    MANY,
    NEUTRAL,
    axes_for,
    checked_columns,
    checked_count,
    name_points,
    row_names,
    short,
    whole_figure,
    without_frame,
)

_FENCE = 3.0


class SelfInfluenceDisplay:
    """Training rows ranked by self-influence, with a threshold and the rows above it named.

    The self-influence of a row is what removing it does to its own loss: large for rows that the
    model learns from no other, atypical, memorised or mislabelled. Make one with `from_estimator`
    or `from_predictions`.

    Parameters
    ----------
    self_influence : (n_train,) array
        ``self_influence_`` of an `InfluenceEstimator`.
    threshold : "auto" or float, default="auto"
        Where to draw the line. "auto": the upper quartile plus three times the distance between
        the quartiles, beyond which a box plot calls values far out.
    names : (n_train,) array-like of str, optional
        Of the rows. None: their positions.
    n_labels : int, default=12
        Rows above the line to name at most, the largest first.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of these.
    threshold_ : float
        Where the line is.
    above_ : (n_above,) array of int
        Positions of the rows above it, the largest first.
    labels_ : list of matplotlib Annotation
        Their names.

    See Also
    --------
    InfluenceDisplay : What rows do to others, too.
    sklearn_dualif.cleaning.find_issues : Which of them are probably wrong.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.inspection import SelfInfluenceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> y[7] = 2  # a mistake
    >>> influence = InfluenceEstimator(LogisticRegression(max_iter=1000)).fit(X, y)
    >>> display = SelfInfluenceDisplay.from_estimator(influence)
    >>> int(display.above_[0])
    7
    """

    def __init__(self, *, self_influence, threshold="auto", names=None, n_labels=12):
        self.self_influence = self_influence
        self.threshold = threshold
        self.names = names
        self.n_labels = n_labels

    @classmethod
    def from_estimator(cls, influence_estimator, *, threshold="auto", n_labels=12, ax=None):
        """Draw the training rows of a fitted InfluenceEstimator.

        Parameters
        ----------
        influence_estimator : InfluenceEstimator
            Fitted.
        threshold, n_labels
            See `SelfInfluenceDisplay`.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        SelfInfluenceDisplay
        """
        check_fitted(influence_estimator, "SelfInfluenceDisplay")
        return cls(
            self_influence=influence_estimator.self_influence_,
            threshold=threshold,
            names=influence_estimator._train_index,
            n_labels=n_labels,
        ).plot(ax=ax)

    @classmethod
    def from_predictions(
        cls, self_influence, *, threshold="auto", names=None, n_labels=12, ax=None
    ):
        """Draw numbers that are known already.

        Parameters
        ----------
        self_influence, threshold, names, n_labels
            See `SelfInfluenceDisplay`.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        SelfInfluenceDisplay
        """
        return cls(
            self_influence=self_influence, threshold=threshold, names=names, n_labels=n_labels
        ).plot(ax=ax)

    def plot(self, ax=None):
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        SelfInfluenceDisplay
            This object.
        """
        own, order = self._ranked()
        names = row_names(self.names, len(own))
        n_labels = checked_count(self.n_labels, "n_labels")
        threshold = self._line(own)
        ax = axes_for(ax)
        ranks = np.empty(len(own))
        ranks[order] = np.arange(1, len(own) + 1)
        above = order[own[order] > threshold]
        rest = order[len(above) :]
        dense = {"rasterized": len(own) > MANY, "linestyle": "none"}
        ax.plot(ranks[rest], own[rest], marker=".", color=NEUTRAL, markersize=5, **dense)
        ax.plot(ranks[above], own[above], marker="o", color=HURTS, markersize=6, **dense)
        ax.axhline(threshold, color="0.3", linestyle="--", linewidth=1)
        named = above[:n_labels]
        ax.set(
            xscale="log",
            xlabel="rank of the row",
            ylabel="self-influence: what removing the row\ndoes to its own loss",
            title=f"{_rows(len(above))} above the line at {short(threshold)}"
            + (f", {len(named)} named" if len(named) < len(above) else ""),
        )
        ax.title.set(fontsize=10, ha="left", x=0)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.margins(x=0.06, y=0.1)
        without_frame(ax)
        self.labels_ = name_points(ax, ranks, own, named, names)
        self.threshold_, self.above_ = threshold, above
        self.ax_, self.figure_ = ax, whole_figure(ax)
        return self

    def frame(self):
        """Return what is drawn as a table.

        Returns
        -------
        pandas.DataFrame
            One line for each training row, the largest first, with the columns rank, row (its
            name), position, self_influence and above (whether it is above the line).
        """
        import pandas as pd

        own, order = self._ranked()
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(own) + 1),
                "row": row_names(self.names, len(own))[order],
                "position": order,
                "self_influence": own[order],
                "above": own[order] > self._line(own),
            }
        )

    def _ranked(self):
        own = checked_columns(self_influence=self.self_influence)["self_influence"]
        return own, np.argsort(-own, kind="stable")

    def _line(self, own):
        if isinstance(self.threshold, str) and self.threshold == "auto":
            lower, upper = np.quantile(own, [0.25, 0.75])
            return float(upper + _FENCE * (upper - lower))
        number = isinstance(self.threshold, Real) and not isinstance(self.threshold, bool)
        if not number or not np.isfinite(self.threshold):
            raise ValueError(
                f"threshold={self.threshold!r} must be a finite number, in the units of the "
                "self-influences, or 'auto'."
            )
        return float(self.threshold)


def _rows(count):
    return "1 row" if count == 1 else f"{count:,} rows"
