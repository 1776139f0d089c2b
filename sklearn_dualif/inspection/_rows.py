"""The values of rows as short texts, and rows as images."""

import numpy as np
from scipy import sparse
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from ._drawing import clipped, short

_CHANNELS = (1, 3, 4)


def values_of(X, feature_names=None):
    """Return what gives the values of some rows: `TableRows`, or None where there is none to show.

    Parameters
    ----------
    X : array-like
        A table, or a list of texts.
    feature_names : sequence of str, optional
        Of the columns. None: those of a frame, or x0, x1, ...
    """
    if isinstance(X, np.ndarray) and X.ndim > 2:
        return None
    if hasattr(X, "columns"):
        names, n_columns = [str(name) for name in X.columns], X.shape[1]
    elif len(getattr(X, "shape", ())) == 2 or _is_nested(X):
        n_columns = X.shape[1] if hasattr(X, "shape") else len(X[0])
        names = [f"x{column}" for column in range(n_columns)]
    else:
        names, n_columns = ["text" if isinstance(_first(X), str) else "x"], 1
    if feature_names is not None:
        names = [str(name) for name in feature_names]
        if len(names) != n_columns:
            raise ValueError(
                f"feature_names has {len(names)} names and X {n_columns} columns. Give one name "
                "for each column."
            )
    return TableRows(X, names)


def _first(X):
    return X.iloc[0] if hasattr(X, "iloc") else X[0]


def _is_nested(X):
    return isinstance(X, (list, tuple)) and isinstance(X[0], (list, tuple, np.ndarray))


class TableRows:
    """Values of rows by column.

    Parameters
    ----------
    X : array-like
    names : list of str
        Of the columns.
    """

    def __init__(self, X, names):
        self.X, self.names = X, names

    def take(self, rows):
        """Return the values of some rows as an array (n_rows, n_columns) of objects."""
        part = _safe_indexing(self.X, np.asarray(rows, dtype=np.intp))
        if sparse.issparse(part):
            part = part.toarray()
        elif hasattr(part, "to_numpy"):
            part = part.to_numpy(dtype=object)
        values = np.empty((len(rows), len(self.names)), dtype=object)
        values[:] = np.asarray(part, dtype=object).reshape(values.shape)
        return values


def in_words(value, length=40):
    """Return a value of a table as a short text."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
    if not number:
        return clipped(value, length)
    if float(value) == int(value) if np.isfinite(value) else False:
        return f"{int(value)}".replace("-", "−") if abs(value) < 1e6 else short(float(value))
    return short(float(value))


def as_images(X, rows, image_shape):
    """Return some rows as images (n_rows, height, width) or (n_rows, height, width, channels).

    Parameters
    ----------
    X : array-like, (n, n_features) or (n, ...)
        All rows.
    rows : sequence of int
        Those to return.
    image_shape : tuple of int
        (height, width), (height, width, channels) or (channels, height, width).

    Returns
    -------
    array
        From 0 to 1 by the least and the largest value of each image; images in colour that are
        from 0 to 1, or whole numbers from 0 to 255, as they are.
    """
    shape = check_image_shape(X, image_shape)
    part = _safe_indexing(X, np.asarray(rows, dtype=np.intp))
    part = part.toarray() if sparse.issparse(part) else np.asarray(part)
    images = part.reshape(len(rows), *shape).astype(np.float64)
    if len(shape) == 3 and shape[-1] not in _CHANNELS:
        images = np.moveaxis(images, 1, -1)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if not len(rows) or (images.ndim == 4 and images.min() >= 0 and images.max() <= 1):
        return images
    if images.ndim == 4 and part.dtype == np.uint8:
        return images / 255
    inner = tuple(range(1, images.ndim))
    low, high = images.min(inner, keepdims=True), images.max(inner, keepdims=True)
    return (images - low) / np.where(high > low, high - low, 1.0)


def check_image_shape(X, image_shape):
    """Return the shape of the rows of X as images; raise if they have another size."""
    shape = tuple(np.atleast_1d(image_shape).tolist())
    whole = all(isinstance(size, int) and size > 0 for size in shape)
    colours = len(shape) == 3 and (shape[-1] in _CHANNELS or shape[0] in _CHANNELS)
    if not whole or not (len(shape) == 2 or colours):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width), or these with 1, 3 or 4 "
            "channels before or after them."
        )
    X_shape = X.shape if hasattr(X, "shape") else np.shape(X)
    n_values = int(np.prod(X_shape[1:]))
    if n_values != np.prod(shape):
        raise ValueError(
            f"image_shape={image_shape!r} has {np.prod(shape)} values and a row of X {n_values}. "
            "Give the shape of one image."
        )
    return shape


def targets_of(y):
    """Return the targets (n,) as short texts."""
    y = np.asarray(y, dtype=object)
    if y.ndim > 1 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1:
        return [in_words(value, 24) for value in y]
    return [", ".join(in_words(value, 12) for value in row) for row in y]


def n_rows_of(X):
    """Return the number of rows."""
    return _num_samples(X)
