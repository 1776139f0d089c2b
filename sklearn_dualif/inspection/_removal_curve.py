"""Scores without the rows that a ranking puts first."""

import numpy as np

from ..metrics import RemovalCurve, removal_curve
from ._drawing import HELPS, HURTS, axes_for, whole_figure, without_frame


class RemovalCurveDisplay:
    """Score of refits against the share of rows removed: a ranking beside what it has to beat.

    Make one with `from_estimator`, or with `from_predictions` from what `metrics.removal_curve`
    returned.

    Parameters
    ----------
    curve : RemovalCurve
        See `sklearn_dualif.metrics.removal_curve`.
    score_name : str, default="score"
        For the axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of these.
    lines_ : dict of matplotlib Line2D
        "ranking", "training loss" and "random".
    band_ : matplotlib PolyCollection or None
        One standard deviation about the mean of the random orders; None of a single one.

    See Also
    --------
    sklearn_dualif.metrics.removal_curve

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.inspection import RemovalCurveDisplay
    >>> X, y = load_wine(return_X_y=True)
    >>> X = scale(X)
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X[::2], y[::2])
    >>> display = RemovalCurveDisplay.from_estimator(
    ...     influence, X[1::2], y[1::2], fractions=[0, 0.1], random_state=0
    ... )
    >>> display.frame().shape
    (2, 6)
    """

    def __init__(self, curve, *, score_name="score"):
        self.curve = curve
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        influence_estimator,
        X,
        y,
        *,
        ranking=None,
        fractions=(0.0, 0.05, 0.1, 0.2, 0.3),
        scoring=None,
        n_repeats=5,
        n_jobs=None,
        random_state=None,
        ax=None,
    ):
        """Make the refits and draw their scores.

        Parameters
        ----------
        influence_estimator, X, y, ranking, fractions, scoring, n_repeats, n_jobs, random_state
            See `sklearn_dualif.metrics.removal_curve`.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        RemovalCurveDisplay
        """
        curve = removal_curve(
            influence_estimator,
            X,
            y,
            ranking=ranking,
            fractions=fractions,
            scoring=scoring,
            n_repeats=n_repeats,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        name = scoring.replace("_", " ") if isinstance(scoring, str) else "score"
        return cls(curve, score_name=name).plot(ax=ax)

    @classmethod
    def from_predictions(cls, curve, *, score_name="score", ax=None):
        """Draw a curve that is known already.

        Parameters
        ----------
        curve, score_name
            See `RemovalCurveDisplay`.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        RemovalCurveDisplay
        """
        return cls(curve, score_name=score_name).plot(ax=ax)

    def plot(self, ax=None):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        RemovalCurveDisplay
            This object.
        """
        curve = self._checked()
        ax = axes_for(ax)
        order = np.argsort(curve.fractions, kind="stable")
        shares = 100 * curve.fractions[order]
        drawn = (
            ("random", curve.random_mean, "rows at random", {"color": "0.4", "linestyle": ":"}),
            (
                "training loss",
                curve.training_loss,
                "largest training loss first",
                {"color": HURTS, "marker": "s", "linestyle": "--"},
            ),
            ("ranking", curve.score, "this ranking", {"color": HELPS, "marker": "o"}),
        )
        self.lines_ = {}
        for name, values, label, style in drawn:
            (self.lines_[name],) = ax.plot(shares, values[order], label=label, **style)
        self.band_ = None
        if len(curve.random) > 1:
            mean, spread = curve.random_mean[order], curve.random_std[order]
            self.band_ = ax.fill_between(
                shares, mean - spread, mean + spread, color="0.4", alpha=0.2, linewidth=0
            )
            self.lines_["random"].set_label(f"rows at random, {len(curve.random)} times: mean ± sd")
        ax.set(
            xlabel="share of the training rows removed, %",
            ylabel=f"{self.score_name} of a refit without them",
        )
        handles, labels = ax.get_legend_handles_labels()
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}  # above, where no curve is
        ax.legend(handles[::-1], labels[::-1], fontsize=9, frameon=False, **place)
        without_frame(ax)
        self.ax_, self.figure_ = ax, whole_figure(ax)
        return self

    def frame(self):
        """Return what is drawn as a table.

        Returns
        -------
        pandas.DataFrame
            That of `sklearn_dualif.metrics.RemovalCurve.frame`.
        """
        return self._checked().frame()

    def _checked(self):
        if not isinstance(self.curve, RemovalCurve):
            raise TypeError(
                f"curve is a {type(self.curve).__name__}, not a RemovalCurve. Pass what "
                "sklearn_dualif.metrics.removal_curve returns."
            )
        return self.curve
