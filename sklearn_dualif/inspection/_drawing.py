"""What the displays share: colours, axes, and names beside points."""

import numpy as np

# Of Okabe and Ito's palette: told apart by the colour-blind, and by their lightness in print.
HELPS, HURTS, NEUTRAL = "#0072B2", "#D55E00", "0.45"

# More points than these are drawn as pixels in vector formats, whose files they would bloat.
MANY = 2000

_LETTER = 9
_PLACES = [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
_DISTANCES = (6, 14, 26)
_HORIZONTAL = {1: "left", 0: "center", -1: "right"}
_VERTICAL = {1: "bottom", 0: "center", -1: "top"}


def axes_for(ax, figsize=None):
    """Return the axes that a caller gave, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def whole_figure(ax):
    """Return the figure of axes, also of those in a part of one."""
    return ax.figure.canvas.figure


def without_frame(ax):
    """Take the upper and the right line off."""
    ax.spines[["top", "right"]].set_visible(False)


def row_names(index, n_rows):
    """Return the names (n_rows,) of rows: their index labels, or their positions."""
    if index is None:
        return np.array([str(row) for row in range(n_rows)], dtype=object)
    names = [str(label) for label in index]
    if len(names) != n_rows:
        raise ValueError(
            f"names has {len(names)} entries for {n_rows} rows. Give one name for each row, or "
            "None for their positions."
        )
    return np.array(names, dtype=object)


def checked_columns(**columns):
    """Return arrays (n,) of finite numbers by name, all of the same length."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    first, *_ = arrays
    for name, values in arrays.items():
        if values.ndim != 1 or not len(values) or values.shape != arrays[first].shape:
            raise ValueError(
                f"{name} has shape {values.shape} and {first} {arrays[first].shape}. Give one "
                "number for each training row in each."
            )
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} has values that are not finite, such as in row "
                f"{np.flatnonzero(~np.isfinite(values))[0]}. Leave these rows out."
            )
    return arrays


def checked_count(value, name):
    """Return a number of things to draw; raise unless it is whole and not negative."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 0:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 0.")
    return int(value)


def short(value, digits=3):
    """Return a number with a few significant digits."""
    if not np.isfinite(value):
        return {np.inf: "∞", -np.inf: "−∞"}.get(value, "—")
    size = abs(value)
    if size and not 1e-4 <= size < 1e6:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def signed(value):
    """Return a number with a few significant digits and its sign."""
    return short(value) if value < 0 or value == 0 else f"+{short(value)}"


def clipped(text, length=40):
    """Return a text in one line, cut where it is too long."""
    text = " ".join(str(text).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def name_points(ax, x, y, rows, names):
    """Write names beside some points, where they cover other names and points least.

    Parameters
    ----------
    ax : matplotlib Axes
        With everything else drawn.
    x, y : (n,) array
        All points.
    rows : sequence of int
        Points to name, the most important first.
    names : (n,) array of str
        Of all points.

    Returns
    -------
    list of matplotlib Annotation
    """
    from matplotlib.text import Text

    whole_figure(ax).draw_without_rendering()  # so that the layout is known
    points = ax.transData.transform(np.column_stack([x, y]))
    inside, unit = ax.get_window_extent(), whole_figure(ax).dpi / 72
    taken = [] if ax.get_legend() is None else [ax.get_legend().get_window_extent()]
    written = []
    for row in rows:
        text = ax.annotate(
            clipped(names[row], 24),
            (x[row], y[row]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_LETTER,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 3},
        )
        # The extent of an annotation has its line, too.
        size = Text.get_window_extent(text)
        places = []
        for distance in _DISTANCES:
            for right, up in _PLACES:
                box = _beside(points[row], right, up, distance * unit, size)
                cost = _cost(box, taken, points, inside) + distance / 10
                places.append((cost, len(places), right * distance, up * distance, box))
        _, _, right, up, box = min(places)
        text.set_position((right, up))
        text.set(ha=_HORIZONTAL[np.sign(right)], va=_VERTICAL[np.sign(up)])
        taken.append(box)
        written.append(text)
    return written


def _beside(point, right, up, distance, size):
    """Return the box of a text of some size that is written beside a point."""
    from matplotlib.transforms import Bbox

    left = point[0] + right * distance - size.width * (1 - right) / 2
    bottom = point[1] + up * distance - size.height * (1 - up) / 2
    return Bbox.from_bounds(left, bottom, size.width, size.height).padded(1)


def _cost(box, taken, points, inside):
    """Return how badly a name is placed: names covered count most, then the edge, then points."""
    crowd = (points > [box.x0, box.y0]).all(1) & (points < [box.x1, box.y1]).all(1)
    over = sum(box.overlaps(other) for other in taken)
    out = max(0.0, inside.x0 - box.x0) + max(0.0, box.x1 - inside.x1)
    out += max(0.0, inside.y0 - box.y0) + max(0.0, box.y1 - inside.y1)
    return 100.0 * over + out + min(int(crowd.sum()), 20)
