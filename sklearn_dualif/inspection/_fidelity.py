"""Predicted effects beside those of refits."""

import numpy as np
from sklearn.utils import check_random_state

from ..metrics import LeaveOneOutEffects, RemovalFidelity, Validation, validate
from ..metrics._agreement import agreement
from ._drawing import HELPS, HURTS, MANY, axes_for, whole_figure, without_frame
from ._wording import target_of

_STYLES = {
    "groups of rows": {"color": HELPS, "marker": "o"},
    "single rows": {"color": HURTS, "marker": "^"},
    "removals": {"color": HELPS, "marker": "o"},
}


class FidelityDisplay:
    """Effects of refits against predicted ones, with the identity and the fitted slope.

    On the identity, sizes are those of refits. Make one with `from_estimator`, which makes refits,
    or with `from_predictions` from effects that are known already.

    Parameters
    ----------
    predicted, refitted : (n_effects,) array
        Effects, one for each removal and query.
    kind : (n_effects,) array of str
        What was removed: "groups of rows", "single rows" or "removals".
    slope : float
        Of the least-squares line of refitted on predicted effects.
    slope_interval : (low, high) of float
        Its 95 % interval; NaN where there is none.
    scaled : bool, default=False
        Whether effects are in units of the typical refitted effect of their kind.
    target : str, default="objective"
        What the effects are on, for the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of these.
    points_ : list of matplotlib Line2D
        The effects, one line for each kind.
    identity_, slope_ : matplotlib AxLine, matplotlib Line2D
        The two lines.
    band_ : matplotlib PolyCollection or None
        The interval of the slope.

    See Also
    --------
    sklearn_dualif.metrics.validate : The same in a sentence.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.inspection import FidelityDisplay
    >>> X, y = load_wine(return_X_y=True)
    >>> X = scale(X)
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X[::2], y[::2])
    >>> display = FidelityDisplay.from_estimator(influence, X[1::2], y[1::2], random_state=0)
    >>> round(display.slope, 2)
    0.98
    >>> display.frame()["kind"].unique().tolist()
    ['groups of rows', 'single rows']
    """

    def __init__(
        self,
        *,
        predicted,
        refitted,
        kind,
        slope,
        slope_interval,
        scaled=False,
        target="objective",
    ):
        self.predicted = predicted
        self.refitted = refitted
        self.kind = kind
        self.slope = slope
        self.slope_interval = slope_interval
        self.scaled = scaled
        self.target = target

    @classmethod
    def from_estimator(
        cls,
        influence_estimator,
        X,
        y=None,
        *,
        n_refits=21,
        fraction=0.05,
        objective=None,
        order=None,
        n_jobs=None,
        random_state=None,
        ax=None,
    ):
        """Make the refits of `metrics.validate` and draw their effects.

        Parameters
        ----------
        influence_estimator, X, y, n_refits, fraction, objective, order, n_jobs, random_state
            See `sklearn_dualif.metrics.validate`.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        FidelityDisplay

        Raises
        ------
        ValueError
            If the model cannot be fitted again, so that there is nothing to draw.
        """
        found = validate(
            influence_estimator,
            X,
            y,
            n_refits=n_refits,
            fraction=fraction,
            objective=objective,
            order=order,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        chosen = influence_estimator.objective if objective is None else objective
        return cls.from_predictions(found, target=target_of(chosen).name, ax=ax)

    @classmethod
    def from_predictions(
        cls, predicted, refitted=None, *, target="objective", random_state=None, ax=None
    ):
        """Draw effects that are known already.

        Parameters
        ----------
        predicted : Validation, RemovalFidelity, LeaveOneOutEffects or array-like
            What `metrics.validate`, `metrics.removal_fidelity` or `metrics.leave_one_out_effects`
            returned; or predicted effects (n_removals, n_queries) or (n_removals,). Of a
            `Validation`, effects of both kinds are drawn, each in units of their typical size.
        refitted : array-like, optional
            Those of refits, of the same shape, if ``predicted`` is an array.
        target : str, default="objective"
            What the effects are on, for the axes.
        random_state : int, RandomState instance or None, default=None
            Draws the resamples of the slope's interval, if ``predicted`` is an array.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        FidelityDisplay

        Raises
        ------
        ValueError
            For a `Validation` without refits, and for arrays that don't match.
        """
        known = isinstance(predicted, (Validation, RemovalFidelity, LeaveOneOutEffects))
        if known and refitted is not None:
            raise ValueError(
                f"refitted was given beside a {type(predicted).__name__}, which has its own. Pass "
                "either that or two arrays."
            )
        if isinstance(predicted, Validation):
            parts, scaled = _parts_of_validation(predicted), True
        elif known:
            kind = "single rows" if isinstance(predicted, LeaveOneOutEffects) else "groups of rows"
            parts, scaled = {kind: (predicted.predicted, predicted.refitted)}, False
        else:
            arrays = _checked_arrays(predicted, refitted)
            parts, scaled = {"removals": arrays}, False
            found = agreement(*arrays, check_random_state(random_state))
        numbers = (
            {name: getattr(predicted, name) for name in ("slope", "slope_interval")}
            if known
            else {name: found[name] for name in ("slope", "slope_interval")}
        )
        display = cls(
            predicted=np.concatenate([np.ravel(p) for p, _ in parts.values()]),
            refitted=np.concatenate([np.ravel(r) for _, r in parts.values()]),
            kind=np.repeat(list(parts), [np.size(p) for p, _ in parts.values()]),
            scaled=scaled,
            target=target,
            **numbers,
        )
        return display.plot(ax=ax)

    def plot(self, ax=None):
        """Draw the effects.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        FidelityDisplay
            This object.
        """
        ax = axes_for(ax)
        predicted, refitted, kind = map(np.asarray, (self.predicted, self.refitted, self.kind))
        self.points_ = []
        for name in dict.fromkeys(kind.tolist()):
            of_kind = kind == name
            (points,) = ax.plot(
                predicted[of_kind],
                refitted[of_kind],
                linestyle="none",
                markersize=4,
                alpha=0.35 if len(predicted) > 500 else 0.6,
                markeredgewidth=0,
                zorder=2.5,  # above the lines
                rasterized=len(predicted) > MANY,
                label=name,
                **_STYLES[name],
            )
            self.points_.append(points)
        self.identity_ = ax.axline(
            (0, 0), slope=1, color="0.25", linestyle="--", linewidth=1, label="as refits: slope 1"
        )
        self._draw_slope(ax, predicted, refitted)
        unit, same = "", ""
        if self.scaled:
            unit, same = "\n(in units of the typical refitted effect)", " (same units)"
        ax.set(
            xlabel=f"predicted effect of a removal on the {self.target}{unit}",
            ylabel=f"effect in a refit{same}",
        )
        legend = ax.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        for handle in legend.legend_handles:
            handle.set_alpha(1)
        without_frame(ax)
        self.ax_, self.figure_ = ax, whole_figure(ax)
        return self

    def _draw_slope(self, ax, predicted, refitted):
        """Draw the fitted line through the mean effect, and its interval."""
        ends = np.array([predicted.min(), predicted.max()])
        middle = predicted.mean(), refitted.mean()
        low, high = self.slope_interval
        known = np.isfinite([low, high]).all()
        said = f" [{low:.2f}, {high:.2f}]" if known else ""
        self.slope_, self.band_ = None, None
        if not np.isfinite(self.slope):
            return
        (self.slope_,) = ax.plot(
            ends,
            middle[1] + self.slope * (ends - middle[0]),
            color="black",
            linewidth=1.5,
            zorder=1.8,
            label=f"fitted: slope {self.slope:.2f}{said}",
        )
        if known:
            x = np.array([ends[0], middle[0], ends[1]])
            sides = [middle[1] + slope * (x - middle[0]) for slope in (low, high)]
            self.band_ = ax.fill_between(x, *sides, color="black", alpha=0.15, linewidth=0)

    def frame(self):
        """Return what is drawn as a table.

        Returns
        -------
        pandas.DataFrame
            One line for each removal and query, with the columns kind, predicted and refitted.
        """
        import pandas as pd

        return pd.DataFrame(
            {"kind": self.kind, "predicted": self.predicted, "refitted": self.refitted}
        )


def _parts_of_validation(validation):
    """Return (predicted, refitted) by kind, each in units of the refitted ones' typical size."""
    if validation.groups is None or validation.rows is None:
        raise ValueError(
            f"This Validation made no comparison with refits ({validation.reasons[-1]}), so that "
            "there are no effects to draw. str(validation) says what is known."
        )
    parts = {}
    for name, found in (("groups of rows", validation.groups), ("single rows", validation.rows)):
        size = np.sqrt(np.mean(found.refitted**2)) or 1.0
        parts[name] = found.predicted / size, found.refitted / size
    return parts


def _checked_arrays(predicted, refitted):
    if refitted is None:
        raise ValueError(
            f"predicted is a {type(predicted).__name__} and refitted is missing. Pass effects of "
            "refits with it, or what metrics.validate returns."
        )
    arrays = [np.asarray(values, dtype=np.float64) for values in (predicted, refitted)]
    if arrays[0].shape != arrays[1].shape or arrays[0].ndim not in (1, 2) or not arrays[0].size:
        raise ValueError(
            f"predicted has shape {arrays[0].shape} and refitted {arrays[1].shape}. Give both as "
            "(n_removals, n_queries), or both as (n_removals,)."
        )
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError("Some effects are not finite. Leave these removals or queries out.")
    return [values.reshape(len(values), -1) for values in arrays]
