"""Features of rows whose outputs are linear in the parameters.

All models here share one kernel between their penalised outputs: ``k(x, x') = x . x'`` for the
linear ones, the model's own for the kernel ones. The Jacobian of a row is then the Kronecker
product of its features with a fixed (k, k) pattern of outputs, and is never formed.
"""

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import gen_batches

from . import _feature_products as feature_products

_BLOCK_BYTES = 32 * 2**20


def as_tensor(array):
    """Return a float64 tensor, sharing memory with a writeable float64 array."""
    array = np.asarray(array, dtype=np.float64)
    if not array.flags.writeable or any(s < 0 for s in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


class LinearFeatures:
    """Rows of a design matrix, dense or scipy sparse, with an optional penalised constant column.

    Parameters
    ----------
    X : (n, d) array or scipy sparse matrix
        Kept as it is: sparse matrices are never made dense as a whole.
    constant : float or None
        Value of a constant column appended to ``X``, for models that penalise their intercept.
    """

    def __init__(self, X, constant=None):
        self.constant = constant
        if sparse.issparse(X):
            X = X.tocsr().astype(np.float64, copy=False)
            if constant is not None:
                column = np.full((X.shape[0], 1), constant)
                X = sparse.hstack([X, sparse.csr_array(column)], format="csr")
            self.matrix = X
        else:
            X = as_tensor(X)
            if constant is not None:
                X = torch.cat([X, torch.full((len(X), 1), float(constant), dtype=X.dtype)], 1)
            self.matrix = X

    @property
    def is_sparse(self):
        """Whether the rows are kept as a scipy sparse matrix."""
        return sparse.issparse(self.matrix)

    @property
    def shape(self):
        """Number of rows and of features, the constant column included."""
        return tuple(self.matrix.shape)

    def __len__(self):
        return self.matrix.shape[0]

    def __getitem__(self, rows):
        return self.take(rows)

    def _with(self, matrix):
        rows = object.__new__(LinearFeatures)
        rows.constant, rows.matrix = self.constant, matrix
        return rows

    @property
    def dtype(self):
        """Type of the entries as a tensor's."""
        return torch.float64 if self.is_sparse else self.matrix.dtype

    def in_single_precision(self, center):
        """Return dense features less a center, which is subtracted first."""
        result = torch.empty(self.shape, dtype=torch.float32)
        for rows in self.blocks(self.shape[1]):
            result[rows] = self.matrix[rows] - center
        return self._with(result)

    def take(self, rows):
        """Return the features of some rows (a slice, positions or a mask)."""
        index = rows if isinstance(rows, slice) or not self.is_sparse else np.asarray(rows)
        return self._with(self.matrix[index])

    def stacked(self, parts):
        """Return the rows of several sparse parts."""
        return self._with(sparse.vstack([part.matrix for part in parts], format="csr"))

    def dot(self, columns):
        """Return ``X @ columns`` for (d, m) columns."""
        if self.is_sparse:
            return torch.from_numpy(np.ascontiguousarray(self.matrix @ columns.numpy()))
        return self.matrix @ columns

    def shifted_dot(self, columns, shifts):
        """Return ``X @ columns + shifts`` in one pass, shifts (m,) or (1,)."""
        if self.is_sparse:
            return self.dot(columns).add_(shifts)
        return torch.addmm(shifts, self.matrix, columns)

    def transposed_dot(self, columns):
        """Return ``X.T @ columns`` for (n, m) columns."""
        if self.is_sparse:
            return torch.from_numpy(np.ascontiguousarray(self.matrix.T @ columns.numpy()))
        # A product with few rows is faster than one with few columns.
        return (columns.T @ self.matrix).T

    def dense(self):
        """Return the rows as a dense (n, d) tensor."""
        return torch.from_numpy(self.matrix.toarray()) if self.is_sparse else self.matrix

    def gram(self, other):
        """Return the kernel block ``X @ other.T`` (n, n')."""
        if self.is_sparse and other.is_sparse:
            product = self.matrix @ other.matrix.T
            return torch.from_numpy(product.toarray())
        if self.is_sparse:
            return self.dot(other.matrix.T)
        if other.is_sparse:
            return other.dot(self.matrix.T).T
        return self.matrix @ other.matrix.T

    def diagonal(self):
        """Return the squared norms of the rows, (n,)."""
        if self.is_sparse:
            squares = self.matrix.multiply(self.matrix).sum(axis=1)
            return torch.from_numpy(np.asarray(squares, dtype=np.float64).ravel())
        return torch.linalg.vecdot(self.matrix, self.matrix)

    def column_means(self):
        """Return the mean row of dense features; zeros for sparse ones, which stay uncentred."""
        if self.is_sparse:
            return torch.zeros(self.shape[1], dtype=torch.float64)
        return self.matrix.mean(0)

    def weighted_grams(self, weights, center):
        """Return ``sum_i weights_ij (x_i - center)(x_i - center)^T`` for each column j: (j, d, d).

        Sparse features must be given a zero center.
        """
        if self.is_sparse:
            scaled = (sparse.diags_array(column) @ self.matrix for column in weights.T.numpy())
            return torch.stack([torch.from_numpy((self.matrix.T @ s).toarray()) for s in scaled])
        return feature_products.weighted_grams(self.matrix, weights, center)

    def quadratic_forms(self, matrices, center):
        """Return ``(x_i - center)^T matrices_j (x_i - center)`` of dense features, (n, j).

        The matrices (j, d, d) are symmetric.
        """
        return feature_products.quadratic_forms(self.matrix, matrices, center)

    def blocks(self, width):
        """Return slices of rows such that (rows, width) doubles stay within a few megabytes."""
        return gen_batches(self.shape[0], max(1, _BLOCK_BYTES // (8 * max(width, 1))))


class KernelFeatures:
    """Rows known through a kernel alone.

    Parameters
    ----------
    rows : array-like
        The rows, or for a precomputed kernel their block with the training rows.
    kernel : callable
        ``kernel(rows, others)`` returns the (n, n') block between two sets of rows.
    """

    is_sparse = False

    def __init__(self, rows, kernel):
        self.rows = rows
        self.kernel = kernel
        self._own_gram = None

    @property
    def shape(self):
        """Number of rows; the number of features of a kernel is unbounded."""
        return self.rows.shape[0], float("inf")

    def take(self, rows):
        """Return the features of some rows (a slice, positions or a mask)."""
        return KernelFeatures(self.rows[rows], self.kernel)

    def gram(self, other):
        """Return the kernel block (n, n') with other rows; the one with itself is kept."""
        if other is not self:
            return self.block(other.rows)
        if self._own_gram is None:
            self._own_gram = self.block(self.rows)
        return self._own_gram

    def block(self, others):
        """Return the kernel block (n, n') with rows as the kernel takes them."""
        return as_tensor(self.kernel(self.rows, others))

    def diagonal(self):
        """Return the kernel of each row with itself, (n,)."""
        return self.gram(self).diagonal()
