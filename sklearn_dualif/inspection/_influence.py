"""What each row does, against how much it decides its own fit."""

import numpy as np

from ..metrics._removals import check_fitted
from ._drawing import (
    HELPS,
    HURTS,
    MANY,
    axes_for,
    checked_columns,
    checked_count,
    name_points,
    row_names,
    whole_figure,
    without_frame,
)
from ._wording import Target, target_of

_LARGEST, _SMALLEST = 220.0, 8.0


class InfluenceDisplay:
    """Influence against leverage, with the most influential rows named.

    Make one with `from_estimator` or `from_predictions`. The area of a marker goes with the
    self-influence of its row, what removing it does to its own loss: in least squares, Cook's
    distance up to leverage and scale. A row of large leverage decides its own prediction; whether
    that changes anything for others is its influence.

    Parameters
    ----------
    leverage : (n_train,) array
        ``leverage_`` of an `InfluenceEstimator`.
    influence : (n_train,) array
        Effect of removing each row.
    self_influence : (n_train,) array
        Effect of removing each row on its own loss.
    names : (n_train,) array-like of str, optional
        Of the rows. None: their positions.
    target : str, default="loss"
        What the effects are on, for the axis.
    is_loss : bool, default=True
        Whether less of it is better, so that rows help or hurt.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of these.
    points_ : list of matplotlib PathCollection
        The rows whose removal raises the target, and those whose removal lowers it.
    labels_ : list of matplotlib Annotation
        The names.

    See Also
    --------
    SelfInfluenceDisplay : The rows in the order of their self-influence.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.inspection import InfluenceDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> influence = InfluenceEstimator(Ridge(0.1)).fit(X[::2], y[::2])
    >>> display = InfluenceDisplay.from_estimator(influence, X[1::2], y[1::2])
    >>> display.ax_.get_xlabel()
    'leverage: how far a row decides its own prediction'
    >>> display.frame().columns.tolist()
    ['row', 'leverage', 'influence', 'self_influence']
    """

    def __init__(
        self, *, leverage, influence, self_influence, names=None, target="loss", is_loss=True
    ):
        self.leverage = leverage
        self.influence = influence
        self.self_influence = self_influence
        self.names = names
        self.target = target
        self.is_loss = is_loss

    @classmethod
    def from_estimator(
        cls, influence_estimator, X=None, y=None, *, objective=None, n_labels=8, ax=None
    ):
        """Draw the training rows of a fitted InfluenceEstimator.

        Parameters
        ----------
        influence_estimator : InfluenceEstimator
            Fitted.
        X, y : array-like, optional
            Query rows and targets: effects are on their mean objective. Without them it is
            ``influence_``.
        objective : str, Objective or callable, optional
            Instead of the estimator's own; takes X.
        n_labels : int, default=8
            Rows to name, those of the largest influence by size.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        InfluenceDisplay

        Raises
        ------
        ValueError
            For ``curvature="identity"``, whose scores have no leverage, and for an objective
            without rows.
        """
        check_fitted(influence_estimator, "InfluenceDisplay")
        engine = influence_estimator._engine
        if not engine.gives_effects:
            engine.no_effects()
        chosen = influence_estimator.objective if objective is None else objective
        if X is not None:
            bound, order = influence_estimator._choices(objective, None)
            queries = influence_estimator._queries(X, y, bound)
            effects = engine.mean_influence(*queries, bound, order).numpy()
            rows = "held-out"
        elif y is not None or objective is not None:
            given = "objective" if y is None else "y"
            raise ValueError(f"{given} was given without X. Pass the rows that effects are on.")
        else:
            effects = influence_estimator.influence_
            rows = "held-out" if influence_estimator._diagnostics.held_out else "training"
        target = target_of(chosen, rows)
        display = cls(
            leverage=influence_estimator.leverage_,
            influence=effects,
            self_influence=influence_estimator.self_influence_,
            names=influence_estimator._train_index,
            target=target.name,
            is_loss=target.is_loss,
        )
        return display.plot(ax=ax, n_labels=n_labels)

    @classmethod
    def from_predictions(
        cls,
        leverage,
        influence,
        self_influence,
        *,
        names=None,
        target="loss",
        is_loss=True,
        n_labels=8,
        ax=None,
    ):
        """Draw numbers that are known already.

        Parameters
        ----------
        leverage, influence, self_influence, names, target, is_loss
            See `InfluenceDisplay`.
        n_labels : int, default=8
            Rows to name.
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.

        Returns
        -------
        InfluenceDisplay
        """
        display = cls(
            leverage=leverage,
            influence=influence,
            self_influence=self_influence,
            names=names,
            target=target,
            is_loss=is_loss,
        )
        return display.plot(ax=ax, n_labels=n_labels)

    def plot(self, ax=None, *, n_labels=8):
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. None: in a new figure.
        n_labels : int, default=8
            Rows to name, those of the largest influence by size.

        Returns
        -------
        InfluenceDisplay
            This object.
        """
        leverage, influence, own = self._columns()
        names = row_names(self.names, len(leverage))
        n_labels = checked_count(n_labels, "n_labels")
        ax = axes_for(ax)
        target = Target(self.target, self.is_loss)
        size = np.abs(own)
        areas = _SMALLEST + (_LARGEST - _SMALLEST) * size / (size.max() or 1.0)
        many = len(areas) > MANY
        order = np.argsort(-areas, kind="stable")  # small markers on top of large ones
        self.points_ = []
        sides = ((influence > 0, HELPS, "^", target.raises), (influence <= 0, HURTS, "v", None))
        for mask, color, marker, label in sides:
            rows = order[mask[order]]
            drawn = ax.scatter(
                leverage[rows],
                influence[rows],
                s=areas[rows],
                c=color,
                marker=marker,
                alpha=0.6,
                linewidths=0 if many else 0.5,
                edgecolors="white",
                rasterized=many,
                label=label or target.lowers,
            )
            self.points_.append(drawn)
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.set(
            xlabel="leverage: how far a row decides its own prediction",
            ylabel=f"effect of removing the row\non the {self.target}",
        )
        ax.margins(x=0.08, y=0.12)
        without_frame(ax)
        _legend_above(ax)
        named = np.argsort(-np.abs(influence), kind="stable")[:n_labels]
        self.labels_ = name_points(ax, leverage, influence, named, names)
        self.ax_, self.figure_ = ax, whole_figure(ax)
        return self

    def frame(self):
        """Return what is drawn as a table.

        Returns
        -------
        pandas.DataFrame
            One line for each training row, with the columns row (its name), leverage, influence
            and self_influence.
        """
        import pandas as pd

        leverage, influence, own = self._columns()
        return pd.DataFrame(
            {
                "row": row_names(self.names, len(leverage)),
                "leverage": leverage,
                "influence": influence,
                "self_influence": own,
            }
        )

    def _columns(self):
        return checked_columns(
            leverage=self.leverage, influence=self.influence, self_influence=self.self_influence
        ).values()


def _legend_above(ax):
    """Put the legend above the axes, where no point is."""
    legend = ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        fontsize=9,
        title="area: self-influence",
        title_fontsize=9,
        alignment="left",
        borderaxespad=0.2,
    )
    for handle in legend.legend_handles:
        handle.set_sizes([40])
