"""Pieces of a page. Every text that goes in is escaped here, and nowhere else."""

import base64
import io
from html import escape

import numpy as np

_MOST_LINES = 200


class Markup(str):
    """Text that is HTML already."""


def element(tag, *content, **attributes):
    """Return an element.

    Parameters
    ----------
    tag : str
        Such as "p".
    *content : str
        Escaped, unless `Markup`.
    **attributes : str
        Escaped; ``class_`` and ``aria_label`` are class and aria-label.
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    said = "".join(f' {names[name]}="{escape(str(value))}"' for name, value in attributes.items())
    if tag in ("img", "br"):
        return Markup(f"<{tag}{said}>")
    return Markup(f"<{tag}{said}>{joined(content)}</{tag}>")


def joined(content):
    """Return pieces one after the other, those escaped that are not `Markup`."""
    return Markup("".join(c if isinstance(c, Markup) else escape(str(c)) for c in content))


def paragraphs(text):
    """Return a text as paragraphs: an empty line is between two."""
    parts = [part.strip() for part in str(text).split("\n\n")]
    return joined([element("p", part) for part in parts if part])


def table(head, lines, label, *, numeric=()):
    """Return a table that scrolls in its own box.

    Parameters
    ----------
    head : list of str
        Names of the columns.
    lines : list of list of str
        Escaped, unless `Markup`.
    label : str
        What the box is called, for readers of screens.
    numeric : container of int
        Columns to align at the right.
    """
    kinds = ["number" if column in numeric else "text" for column in range(len(head))]
    cells = [
        element("th", name, scope="col", class_=kind)
        for name, kind in zip(head, kinds, strict=True)
    ]
    rows = [
        element("tr", *[element("td", c, class_=kind) for c, kind in zip(line, kinds, strict=True)])
        for line in lines
    ]
    body = element("thead", element("tr", *cells)), element("tbody", *rows)
    return element(
        "div",
        element("table", *body),
        class_="scroll",
        role="region",
        tabindex="0",
        aria_label=label,
    )


def frame_table(frame, label, in_words):
    """Return a data frame as a table, of its first lines where it is long.

    Parameters
    ----------
    frame : DataFrame
        Any.
    label : str
        See `table`.
    in_words : callable
        Makes a text of a value.
    """
    import pandas as pd

    plain = frame.index.name is None and isinstance(frame.index, pd.RangeIndex)
    shown = frame.iloc[:_MOST_LINES]
    head = ([] if plain else [str(frame.index.name or "")]) + [str(name) for name in frame.columns]
    lines = []
    for name, values in zip(shown.index, shown.astype(object).to_numpy(), strict=True):
        lines.append(([] if plain else [in_words(name)]) + [in_words(value) for value in values])
    first = 0 if plain else 1
    numeric = {
        first + place
        for place, kind in enumerate(frame.dtypes)
        if getattr(kind, "kind", "O") in "iufc"
    }
    drawn = table(head, lines, label, numeric=numeric)
    if len(shown) == len(frame):
        return drawn
    return joined([drawn, element("p", f"The first {len(shown)} of {len(frame):,} lines.")])


def definitions(pairs):
    """Return names and what they are, in a list."""
    return element(
        "dl", *[joined([element("dt", name), element("dd", value)]) for name, value in pairs]
    )


# Pictures --------------------------------------------------------------------------------------


def picture(figure, alt, caption, *, wide=False):
    """Return a matplotlib figure as an image within the page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, dpi=150)
    drawn = element("img", src=_data("image/svg+xml", stream.getvalue()), alt=alt)
    box = element("div", drawn, class_="scroll" if wide else "fit")
    return element(
        "figure", box, element("figcaption", caption), class_="wide" if wide else "narrow"
    )


def thumbnail(image, alt):
    """Return an array (height, width[, channels]) from 0 to 1 as a small image."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    imsave(stream, np.clip(image, 0.0, 1.0), format="png")
    return element("img", src=_data("image/png", stream.getvalue()), alt=alt, class_="thumbnail")


def _data(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
