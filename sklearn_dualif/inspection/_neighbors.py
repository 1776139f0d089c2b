"""Queries, each beside the training rows that help it most and those that hurt it most."""

import numpy as np

from ..metrics._removals import check_fitted
from ._drawing import HELPS, HURTS, checked_count, row_names, signed, whole_figure
from ._rows import as_images, check_image_shape, in_words, n_rows_of, targets_of, values_of
from ._wording import Target, target_of

_MOST_QUERIES = 12


class NeighborsDisplay:
    """Queries with the training rows whose removal raises their objective most, or lowers it most.

    On a loss, these are the most helpful and the most harmful rows. Rows are drawn as images with
    ``image_shape``, else as a small table. Make one with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    effects : (n_queries, n_train) array
        Effect of removing each training row on each query.
    X : array-like, (n_queries, n_features)
        The queries, twelve at most.
    X_train : array-like, (n_train, n_features)
        The training rows.
    y, y_train : array-like, optional
        Their targets, to be shown.
    k : int, default=4
        Rows of each kind a query. There are fewer where fewer have an effect of that sign.
    image_shape : tuple of int, optional
        (height, width) of a row as an image, or these with channels before or after them. None:
        a table.
    feature_names : sequence of str, optional
        Of the columns. None: those of a frame, or x0, x1, ...
    features : sequence of str or int, optional
        Columns to show in a table. None: the first six.
    names, query_names : array-like of str, optional
        Of the training rows and the queries. None: their positions.
    target : str, default="loss"
        What the effects are on.
    is_loss : bool, default=True
        Whether less of it is better, so that rows help or hurt.

    Attributes
    ----------
    axes_ : (n_queries, n_columns) array of matplotlib Axes
        One for each image; of tables, one for each query.
    figure_ : matplotlib Figure
        The figure of these.

    See Also
    --------
    sklearn_dualif.InfluenceEstimator.explain : The same rows as a data frame.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.inspection import NeighborsDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> influence = InfluenceEstimator(LogisticRegression(max_iter=5000)).fit(X[:300], y[:300])
    >>> display = NeighborsDisplay.from_estimator(
    ...     influence, X[300:302], y[300:302], image_shape=(8, 8)
    ... )
    >>> display.axes_.shape  # two queries, each with four rows of either kind
    (2, 9)
    >>> display.frame()[["query", "kind", "row", "effect"]].shape
    (16, 4)
    """

    def __init__(
        self,
        *,
        effects,
        X,
        X_train,
        y=None,
        y_train=None,
        k=4,
        image_shape=None,
        feature_names=None,
        features=None,
        names=None,
        query_names=None,
        target="loss",
        is_loss=True,
    ):
        self.effects = effects
        self.X = X
        self.X_train = X_train
        self.y = y
        self.y_train = y_train
        self.k = k
        self.image_shape = image_shape
        self.feature_names = feature_names
        self.features = features
        self.names = names
        self.query_names = query_names
        self.target = target
        self.is_loss = is_loss

    @classmethod
    def from_estimator(
        cls,
        influence_estimator,
        X,
        y=None,
        *,
        k=4,
        objective=None,
        image_shape=None,
        feature_names=None,
        features=None,
        fig=None,
        ax=None,
    ):
        """Find the rows behind some queries and draw them.

        Parameters
        ----------
        influence_estimator : InfluenceEstimator
            Fitted.
        X, y : array-like
            The queries, twelve at most, and, for objectives about them, their targets.
        objective : str, Objective or callable, optional
            Instead of the estimator's own.
        k, image_shape, feature_names, features
            See `NeighborsDisplay`.
        fig : matplotlib Figure or SubFigure, optional
            Where to draw. None: in a new figure.
        ax : matplotlib Axes, optional
            Its place in a figure is taken.

        Returns
        -------
        NeighborsDisplay

        Raises
        ------
        ValueError
            For an aggregate objective, which has no single queries, too many queries, and an
            ``image_shape`` of another size than the rows.
        """
        check_fitted(influence_estimator, "NeighborsDisplay")
        _check_number(X)
        chosen = influence_estimator.objective if objective is None else objective
        effects = influence_estimator.influence(X, y, objective=objective)
        target = target_of(chosen, "")
        return cls.from_predictions(
            effects,
            X,
            influence_estimator._X_train,
            y=y,
            y_train=influence_estimator._y_train,
            k=k,
            image_shape=image_shape,
            feature_names=feature_names,
            features=features,
            names=influence_estimator._train_index,
            query_names=X.index if hasattr(X, "iloc") else None,
            target=target.name,
            is_loss=target.is_loss,
            fig=fig,
            ax=ax,
        )

    @classmethod
    def from_predictions(cls, effects, X, X_train, *, fig=None, ax=None, **options):
        """Draw effects that are known already.

        Parameters
        ----------
        effects, X, X_train
            See `NeighborsDisplay`.
        fig : matplotlib Figure or SubFigure, optional
            Where to draw. None: in a new figure.
        ax : matplotlib Axes, optional
            Its place in a figure is taken.
        **options : dict
            The other parameters of `NeighborsDisplay`.

        Returns
        -------
        NeighborsDisplay
        """
        return cls(effects=effects, X=X, X_train=X_train, **options).plot(fig=fig, ax=ax)

    def plot(self, *, fig=None, ax=None):
        """Draw the queries and the rows.

        Parameters
        ----------
        fig : matplotlib Figure or SubFigure, optional
            Where to draw. None: in a new figure.
        ax : matplotlib Axes, optional
            Its place in a figure is taken.

        Returns
        -------
        NeighborsDisplay
            This object.
        """
        if fig is not None and ax is not None:
            raise ValueError("fig and ax were both given. Pass one of them.")
        if self.image_shape is not None:
            check_image_shape(self.X, self.image_shape)
            check_image_shape(self.X_train, self.image_shape)
        chosen = self._chosen()
        draw = self._draw_tables if self.image_shape is None else self._draw_images
        draw(chosen, fig, ax)
        self.figure_ = whole_figure(self.axes_.flat[0])
        return self

    def frame(self):
        """Return what is drawn as a table.

        Returns
        -------
        pandas.DataFrame
            One line for each query and training row, with the columns query and row (their names),
            position, kind ("raises" or "lowers": what removing the row does), rank (1 is the
            largest effect of its kind), effect and, where known, target; of tables also their
            columns, all of them.
        """
        import pandas as pd

        queries, names = self._names()
        lines = []
        for query, both in enumerate(self._chosen()):
            for kind, rows in zip(("raises", "lowers"), both, strict=True):
                for rank, row in enumerate(rows, 1):
                    line = {
                        "query": queries[query],
                        "row": names[row],
                        "position": row,
                        "kind": kind,
                        "rank": rank,
                        "effect": self.effects[query][row],
                    }
                    lines.append(line)
        columns = ["query", "row", "position", "kind", "rank", "effect"]
        table = pd.DataFrame(lines, columns=columns)
        positions = table["position"].to_numpy(dtype=np.intp)
        if self.y_train is not None:
            table["target"] = list(np.asarray(self.y_train)[positions])
        values = values_of(self.X_train, self.feature_names) if self.image_shape is None else None
        if values is None:
            return table
        shown = pd.DataFrame(values.take(positions), columns=values.names).infer_objects()
        return pd.concat([table, shown], axis=1)

    # What is drawn -----------------------------------------------------------------------------

    def _chosen(self):
        """Return for each query the rows that raise it most, and those that lower it most."""
        effects = np.asarray(self.effects, dtype=np.float64)
        sizes = n_rows_of(self.X), n_rows_of(self.X_train)
        _check_number(self.X)
        if effects.shape != sizes:
            aggregate = " An aggregate has no single queries." if effects.shape[:1] == (1,) else ""
            raise ValueError(
                f"effects has shape {effects.shape}, for {sizes[0]} queries and {sizes[1]} "
                f"training rows. Give one row for each query.{aggregate}"
            )
        k = checked_count(self.k, "k")
        chosen = []
        for values in effects:
            order = np.argsort(values, kind="stable")
            low, high = order[:k], order[::-1][:k]
            chosen.append((high[values[high] > 0], low[values[low] < 0]))
        return chosen

    def _names(self):
        index = self.names
        queries = row_names(self.query_names, n_rows_of(self.X))
        return queries, row_names(index, n_rows_of(self.X_train))

    def _labelled(self, names, targets, row):
        """Return a row's name and, where known, its target."""
        return names[row] if targets is None else f"{names[row]}: {targets[row]}"

    def _draw_images(self, chosen, fig, ax):
        queries, names = self._names()
        labels = [None if y is None else targets_of(y) for y in (self.y, self.y_train)]
        k, n = checked_count(self.k, "k"), len(chosen)
        grid = _grid(fig, ax, (max(1.05 * (2 * k + 1), 7.0) + 0.4, 1.32 * n + 0.4))
        self.axes_ = grid.subplots(n, 2 * k + 1, squeeze=False)
        cmap = {"cmap": "gray", "vmin": 0, "vmax": 1}
        for query, (raising, lowering) in enumerate(chosen):
            axes = self.axes_[query]
            (own,) = as_images(self.X, [query], self.image_shape)
            axes[0].imshow(own, **cmap)
            axes[0].set_xlabel(self._labelled(queries, labels[0], query), fontsize=9)
            for start, rows, color in ((1, raising, HELPS), (1 + k, lowering, HURTS)):
                images = as_images(self.X_train, rows, self.image_shape)
                for axis, row, image in zip(axes[start:], rows, images, strict=False):
                    axis.imshow(image, **cmap)
                    axis.spines[:].set(color=color, linewidth=2)
                    said = self._labelled(names, labels[1], row)
                    effect = signed(np.asarray(self.effects)[query, row])
                    axis.set_xlabel(f"{said}\n{effect}", fontsize=9)
                for axis in axes[start + len(rows) : start + k]:
                    axis.set_axis_off()
        for axis in self.axes_.flat:
            axis.set(xticks=[], yticks=[])
        target = Target(self.target, self.is_loss)
        self.axes_[0, 0].set_title("query", fontsize=10)
        for column, title, color in ((1, target.raises, HELPS), (1 + k, target.lowers, HURTS)):
            if k:
                self.axes_[0, column].annotate(
                    title,
                    (0, 1),
                    xytext=(0, 5),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    fontsize=10,
                    fontweight="bold",
                    color=color,
                    annotation_clip=False,
                ).set_in_layout(False)  # or its column would be as wide

    def _draw_tables(self, chosen, fig, ax):
        heights = [1.4 + sum(map(len, both)) for both in chosen]
        cells = [self._cells(query, *both) for query, both in enumerate(chosen)]
        lengths = np.array([[len(text) for text in line] for part in cells for line in part])
        widths = np.clip(lengths.max(0), 5, 40) + 2
        size = (max(6.0, 0.085 * widths.sum()), 0.27 * sum(heights) + 0.45 * len(chosen) + 0.5)
        grid = _grid(fig, ax, size)
        self.axes_ = grid.subplots(len(chosen), 1, height_ratios=heights, squeeze=False)
        target = Target(self.target, self.is_loss)
        for axis, lines, (raising, lowering) in zip(self.axes_[:, 0], cells, chosen, strict=True):
            axis.set_axis_off()
            table = axis.table(
                lines,
                colWidths=list(widths / widths.sum()),
                cellLoc="right",
                edges="horizontal",
                bbox=(0, 0, 1, 1),
            )
            table.auto_set_font_size(False)
            table.set_fontsize(9)
            colors = [None, "black", *[HELPS] * len(raising), *[HURTS] * len(lowering)]
            for (line, column), cell in table.get_celld().items():
                cell.set(edgecolor="0.8", linewidth=0.6)
                cell.PAD = 0.03
                if line < 2:
                    cell.get_text().set_fontweight("bold")
                elif column == 1:
                    cell.get_text().set_color(colors[line])
        ends = f"+ {target.raises};  − {target.lowers}"
        self.axes_[0, 0].set_title(ends, fontsize=10, loc="left")

    def _cells(self, query, raising, lowering):
        """Return the texts of a table: its head, the query, and the rows."""
        queries, names = self._names()
        rows = [*raising, *lowering]
        train = values_of(self.X_train, self.feature_names)
        columns = [] if train is None else self._columns(train.names)
        head = ["row", "effect"]
        effects = np.asarray(self.effects)[query]
        lines = [[f"query {queries[query]}", ""]]
        lines += [[names[row], signed(effects[row])] for row in rows]
        if self.y_train is not None:
            shown = targets_of(self.y_train)
            head.append("target")
            lines[0].append("" if self.y is None else targets_of(self.y)[query])
            for line, row in zip(lines[1:], rows, strict=True):
                line.append(shown[row])
        if columns:
            head += [in_words(train.names[column], 24) for column in columns]
            own = values_of(self.X, self.feature_names).take([query])
            values = [*own, *train.take(rows)]
            for line, row in zip(lines, values, strict=True):
                line += [in_words(row[column], 24) for column in columns]
        return [head, *lines]

    def _columns(self, names):
        """Return the positions of the columns to show."""
        if self.features is None:
            return list(range(min(6, len(names))))
        columns = []
        for feature in self.features:
            if isinstance(feature, str) and feature in names:
                columns.append(names.index(feature))
            elif isinstance(feature, (int, np.integer)) and 0 <= feature < len(names):
                columns.append(int(feature))
            else:
                raise ValueError(
                    f"features has {feature!r}, which is no column. Give names among "
                    f"{names[:20]}, or positions below {len(names)}."
                )
        return columns


def _check_number(X):
    n_queries = n_rows_of(X)
    if n_queries > _MOST_QUERIES:
        single = (
            " Row i alone is X[[i]], or X.iloc[[i]] of a frame."
            if getattr(X, "ndim", 2) == 1
            else ""
        )
        raise ValueError(
            f"X has {n_queries} queries, and a picture shows {_MOST_QUERIES} at most. Pass "
            f"some.{single}"
        )


def _grid(fig, ax, size):
    """Return what has ``subplots``: a figure, or a part of one in the place of axes."""
    if ax is not None:
        ax.set_axis_off()
        return ax.figure.add_subfigure(ax.get_subplotspec())
    if fig is not None:
        return fig
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")
