"""What the columns of a table are: numbers, dates, categories, or nothing for a model.

Texts are taken for numbers or dates if nearly all of them are; the others of such a column count as
missing, with a word. A text of its own in most rows is a name, an id or prose, from which no linear
model learns anything that holds for other rows.
"""

import re
from dataclasses import dataclass

import numpy as np

from ._cells import visible
from ._errors import counted, listed

MISSING = frozenset(
    ["", *"? NA N/A n/a #N/A <NA> NaN nan NULL Null null None none NaT - -- .".split()]
)
_NEARLY_ALL = 0.95
_FEW = 20
_OWN = 0.5
_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_DATES = ("ISO8601", *(day + time for day in _DAYS for time in _TIMES))
_UNITS = r"^(?P<sign>[+-]?)\s*[$€£¥]\s*|\s*[%$€£¥]$"
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
    texts, codes = _distinct(table, name)
    return np.append(texts, None)[codes]


def column_of(table, name):
    """Return the `Column` of a name of a table."""
    if not hasattr(table, "cells"):
        series = table.series(name)
        if series.dtype.kind in "biuf":
            return _numbers(name, series.astype(float), "")
        if series.dtype.kind == "M":
            return _known(name, "date", series, "")
        plain = [isinstance(v, (str, int, float, bool, bytes)) for v in series.dropna()[:1000]]
        if not all(plain):
            kind = type(series.dropna().iloc[0]).__name__
            return Column(name, "left out", said=f"values of type {kind}")
    return _from_texts(name, *_distinct(table, name))


def as_numbers(texts, counts):
    """Return distinct texts as numbers, NaN where they are none.

    With a decimal point or comma, with or without the other between thousands, and with a percent
    or currency sign.
    """
    import pandas as pd

    def enough(known):
        return counts[known].sum() >= _NEARLY_ALL * counts.sum()

    def parsed(texts):
        return pd.to_numeric(texts, errors="coerce").astype(float)

    plain = pd.Series(texts, dtype=object)
    numbers = parsed(plain)
    if enough(numbers.notna()):
        return numbers.to_numpy()
    bare = plain.str.replace(_UNITS, r"\g<sign>", regex=True)
    for candidate in (bare, _without_thousands(bare, ",", "."), _without_thousands(bare, ".", ",")):
        found = parsed(candidate)
        if enough(found.notna()):
            return found.to_numpy()
    comma = bare.str.fullmatch(r"[+-]?\d+(,\d+)?", na=False)
    thousands = bare[bare.str.contains(",", na=False)].str.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}")
    if enough(comma) and not thousands.all():
        numbers = parsed(bare.str.replace(",", "."))
    return numbers.to_numpy()


def _without_thousands(texts, group, point):
    """Return texts without the sign between thousands.

    Those that have a group of other than three digits, or none where one is due, are missing.
    """
    group, point = re.escape(group), re.escape(point)
    form = rf"[+-]?(\d{{1,3}}|[1-9]\d{{0,2}}({group}\d{{3}})+)({point}\d+)?"
    bare = texts.str.replace(group, "", regex=True).str.replace(point, ".", regex=True)
    return bare.where(texts.str.fullmatch(form, na=False))


def _distinct(table, name):
    """Return the distinct texts of a column, and which of them each row has, -1 for none.

    Most columns have few distinct texts, so that looking at these only saves most of the time.
    """
    import pandas as pd

    if hasattr(table, "cells"):
        values = np.array(table.cells[table.names.index(name)], dtype=object)
    else:
        values = table.series(name).astype(object).to_numpy()
    codes, distinct = pd.factorize(values)
    stripped = [visible(str(value)) for value in distinct]
    stripped = np.array([None if text in MISSING else text for text in stripped], dtype=object)
    again, texts = pd.factorize(stripped)
    return np.asarray(texts, dtype=object), np.append(again, -1)[codes]


def _from_texts(name, texts, codes):
    import pandas as pd

    if not len(texts):
        return Column(name, "left out", said="empty")
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    n = counts.sum()

    def enough(known):
        return counts[known].sum() >= _NEARLY_ALL * n

    def odd(known, kind):
        if known.all():
            return ""
        said = f"{counted(int(counts[~known].sum()), 'value')} no {kind}"
        return f"{said} ({listed(texts[~known], 3)}), taken as missing"

    numbers = as_numbers(texts, counts)
    known = ~np.isnan(numbers)
    if enough(known):
        values = pd.Series(np.append(numbers, np.nan)[codes])
        return _numbers(name, values, odd(known, "number"))
    series = pd.Series(texts, dtype=object)
    if enough(series.str.fullmatch(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([ T].*)?").to_numpy(bool)):
        for form in _DATES:
            dates = pd.to_datetime(series, format=form, errors="coerce", utc=True)
            known = dates.notna().to_numpy()
            if enough(known):
                dates = dates.dt.tz_localize(None)
                values = dates.reindex(np.where(codes < 0, len(dates), codes))
                return _known(name, "date", values.reset_index(drop=True), odd(known, "date"))
    if len(texts) > max(_FEW, _OWN * n):
        said = f"{counted(len(texts), 'text')} in {counted(int(n), 'row')}: names, ids or prose"
        return Column(name, "left out", said=said)
    order = np.argsort(texts.astype(str), kind="stable")
    place = np.append(np.argsort(order), -1)
    values = pd.Categorical.from_codes(place[codes], categories=texts[order].astype(str))
    return _known(name, "category", pd.Series(values), "")


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
