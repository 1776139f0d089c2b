"""What the columns of a table are: numbers, dates, categories, or nothing for a model.

Texts are taken for numbers or dates if nearly all of them are; the others of such a column count as
missing, with a word. A text of its own in most rows is a name, an id or prose, from which no linear
model learns anything that holds for other rows.
"""

from dataclasses import dataclass

import numpy as np

from ._errors import counted, listed

MISSING = frozenset(
    "?|NA|N/A|n/a|#N/A|<NA>|NaN|nan|NULL|Null|null|None|none|NaT|-|--|.".split("|") + [""]
)
_NEARLY_ALL = 0.95
_FEW = 20
_OWN = 0.5
_DATES = ("ISO8601", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y")
_LARGEST = 1e150


@dataclass(frozen=True)
class Column:
    """A column of a table, as a model may be given it.

    Attributes
    ----------
    name : str
    kind : {"number", "date", "category", "left out"}
    values : Series or None
        Floats, dates or categories.
    said : str
        What became of it, if there is something to say.
    """

    name: str
    kind: str
    values: object = None
    said: str = ""


def texts_of(table, name):
    """Return a column's texts (n,) without spaces around them, None where one is missing."""
    if hasattr(table, "cells"):
        cells = table.cells[table.names.index(name)]
        stripped = [cell.strip() for cell in cells]
        return np.array([None if text in MISSING else text for text in stripped], dtype=object)
    series = table.series(name)
    missing = series.isna().to_numpy()
    return np.array(
        [None if gone else str(value) for value, gone in zip(series, missing, strict=True)],
        dtype=object,
    )


def column_of(table, name):
    """Return the `Column` of a name of a table."""
    if hasattr(table, "cells"):
        return _from_texts(name, texts_of(table, name))
    series = table.series(name)
    kind = series.dtype.kind
    if kind in "biuf":
        return _numbers(name, series.astype(float), "")
    if kind == "M":
        return _known(name, "date", series, "")
    values = series.dropna()
    plain = [isinstance(value, (str, int, float, bool, bytes)) for value in values[:1000]]
    if plain and not all(plain):
        return Column(name, "left out", said=f"values of type {type(values.iloc[0]).__name__}")
    return _from_texts(name, texts_of(table, name))


def as_numbers(texts):
    """Return texts (n,) as numbers, NaN where they are none, with a decimal point or comma."""
    import pandas as pd

    texts = pd.Series(texts, dtype=object)
    numbers = pd.to_numeric(texts, errors="coerce")
    known = texts.notna()
    if numbers.notna().sum() < _NEARLY_ALL * known.sum():
        comma = texts.str.fullmatch(r"[+-]?\d+(,\d+)?", na=False)
        thousands = texts[comma & texts.str.contains(",", na=False)].str.fullmatch(r".*,\d{3}")
        if comma.sum() >= _NEARLY_ALL * known.sum() and not thousands.all():
            numbers = pd.to_numeric(texts.str.replace(",", "."), errors="coerce")
    return numbers.astype(float)


def _from_texts(name, texts):
    import pandas as pd

    known = np.array([text is not None for text in texts])
    if not known.any():
        return Column(name, "left out", said="empty")
    n = known.sum()
    numbers = as_numbers(texts)
    if numbers.notna().sum() >= _NEARLY_ALL * n:
        odd = texts[known & numbers.isna().to_numpy()]
        said = f"{counted(len(odd), 'value')} no number ({listed(odd, 3)})" if len(odd) else ""
        return _numbers(name, numbers, f"{said}, taken as missing" if odd.size else "")
    series = pd.Series(texts, dtype=object)
    if series[known].str.fullmatch(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([ T].*)?").mean() >= 0.9:
        for form in _DATES:
            dates = pd.to_datetime(series, format=form, errors="coerce", utc=True)
            if dates.notna().sum() >= _NEARLY_ALL * n:
                odd = texts[known & dates.isna().to_numpy()]
                said = f"{counted(len(odd), 'value')} no date ({listed(odd, 3)}), taken as missing"
                return _known(name, "date", dates.dt.tz_localize(None), said if odd.size else "")
    n_distinct = series.nunique()
    if n_distinct > max(_FEW, _OWN * n):
        said = f"{counted(n_distinct, 'text')} in {counted(n, 'row')}: names, ids or prose"
        return Column(name, "left out", said=said)
    return _known(name, "category", series.astype("category"), "")


def _numbers(name, numbers, said):
    wild = ~(numbers.abs() <= _LARGEST) & numbers.notna()
    if wild.any():
        said = f"{counted(int(wild.sum()), 'value')} infinite or too large, taken as missing"
        numbers = numbers.mask(wild)
    known = numbers.dropna()
    n = len(numbers)
    rows = len(known) == n > _FEW and known.is_unique and known.max() - known.min() == n - 1
    if rows and (known == known.round()).all():
        return Column(name, "left out", said="numbers the rows")
    return _known(name, "number", numbers, said)


def _known(name, kind, values, said):
    if not values.notna().any():
        return Column(name, "left out", said="empty")
    if values.notna().all() and values.nunique() == 1:
        return Column(name, "left out", said="the same in every row")
    return Column(name, kind, values, said)
