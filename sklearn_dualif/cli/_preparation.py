"""How features become numbers: the steps of a pipeline before the model.

Numbers: the median for missing ones, with a column that says so, then mean 0 and deviation 1.
Dates: the same for their days. Categories: a column for each frequent one, one for all rare ones,
and missing is a category. Codes stand for categories, since counting texts would take most of the
time of every refit.
"""

from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

_RARE = 10
_MOST_CATEGORIES = 50
_MOST_DENSE = 30_000_000


def preparation_for(X):
    """Return a transformer for rows like those of a frame of floats, dates and categories."""
    kinds = {"number": [], "date": [], "category": []}
    width = 0
    for name, dtype in X.dtypes.items():
        kind = {"f": "number", "M": "date"}.get(dtype.kind, "category")
        kinds[kind].append(name)
        width += min(len(dtype.categories), _MOST_CATEGORIES) if kind == "category" else 1
    sparse = width * len(X) > _MOST_DENSE
    rare = max(2, min(_RARE, len(X) // 100))
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        min_frequency=rare,
        max_categories=_MOST_CATEGORIES,
        sparse_output=sparse,
    )
    steps = [
        ("number", _scaled(), kinds["number"]),
        ("date", make_pipeline(FunctionTransformer(days_of), _scaled()), kinds["date"]),
        ("category", make_pipeline(FunctionTransformer(codes_of), encoder), kinds["category"]),
    ]
    return ColumnTransformer(
        [step for step in steps if step[2]], sparse_threshold=1.0 if sparse else 0.0
    )


def _scaled():
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler())


def days_of(frame):
    """Return dates as days since 1970, NaN where one is missing."""
    import numpy as np
    import pandas as pd

    days = (frame - pd.Timestamp(0)) / pd.Timedelta(days=1)
    return days.to_numpy(dtype=np.float64)


def codes_of(frame):
    """Return categories as numbers, -1 where one is missing."""
    return frame.apply(lambda column: column.cat.codes).to_numpy()
