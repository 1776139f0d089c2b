r"""Which values of a row are unusual for its column.

A number is as unusual as it is far from the median, in spreads: the distance between the quartiles
over 1.349, which is the standard deviation of a normal column, or the standard deviation itself
where the quartiles coincide. A category that a share p of the rows have counts as a number
:math:`\sqrt{-2 \ln p}` spreads away, at which a normal density falls to the share p of its peak. Of
sparse rows, the largest values are shown.
"""

import numpy as np
from scipy import sparse

from ._rows import in_words, values_of

_ALL = 8
_SOME = 6
_QUARTILES = 1.349


def values_in_words(X, rows, feature_names=None):
    """Return the values of some rows in words, and what the words are.

    Parameters
    ----------
    X : array-like
        All rows.
    rows : sequence of int
        Those to describe.
    feature_names : sequence of str, optional
        Of the columns.

    Returns
    -------
    texts : list of str or None
        Such as "age 34, city Rome". None where rows have no columns.
    heading : str
        "values", or how many of them.
    """
    table = values_of(X, feature_names)
    if table is None:
        return None, ""
    if len(table.names) == 1:
        return [in_words(value, 300) for (value,) in table.take(rows)], table.names[0]
    values = table.take(rows)
    if len(table.names) <= _ALL:
        order, heading = np.tile(np.arange(len(table.names)), (len(rows), 1)), "values"
    else:
        order = np.argsort(-_unusual(X, values, len(table.names)), axis=1, kind="stable")
        order = order[:, :_SOME]
        which = "largest" if sparse.issparse(X) else "most unusual"
        heading = f"{which} values ({_SOME} of {len(table.names)})"
    texts = [
        ", ".join(f"{table.names[column]} {in_words(row[column])}" for column in columns)
        for row, columns in zip(values, order, strict=True)
    ]
    return texts, heading


def _unusual(X, values, n_columns):
    """Return how unusual values (n_rows, n_columns) are for their columns."""
    import pandas as pd

    if sparse.issparse(X):
        return np.abs(values.astype(np.float64))
    frame = X if hasattr(X, "iloc") else None
    array = None if frame is not None else np.asarray(X)
    scores = np.zeros(values.shape)
    for column in range(n_columns):
        own = frame.iloc[:, column] if frame is not None else pd.Series(array[:, column])
        numbers = pd.to_numeric(own, errors="coerce") if own.dtype == object else own
        if pd.api.types.is_numeric_dtype(numbers) and not pd.api.types.is_bool_dtype(numbers):
            if numbers.notna().sum() == own.notna().sum():
                scores[:, column] = _distances(numbers, values[:, column])
                continue
        shares = own.astype(str).value_counts(normalize=True)
        known = np.array([shares.get(str(value), 1.0) for value in values[:, column]])
        scores[:, column] = np.sqrt(-2.0 * np.log(known))
    return scores


def _distances(numbers, values):
    """Return distances of values (m,) from the median of a column, in its spreads."""
    import pandas as pd

    numbers = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return np.zeros(len(values))
    lower, middle, upper = np.quantile(numbers, [0.25, 0.5, 0.75])
    spread = (upper - lower) / _QUARTILES or numbers.std() or 1.0
    found = np.abs(pd.to_numeric(pd.Series(values), errors="coerce").to_numpy() - middle) / spread
    return np.nan_to_num(found, nan=0.0, posinf=np.finfo(np.float64).max)
