"""Sums over rows of the outer products of their features, and quadratic forms in them.

Both are matrix products. Of few matrices the features are multiplied with the scaled features.
Of many, the weights of the matrices are multiplied with the products of each two features, which
serve all of them and of which each is taken once.
"""

import torch
from sklearn.utils import gen_batches

# Of what is thrown away: it stays in a processor's cache, unless too few rows slow the product.
_SCRATCH_BYTES = 2 * 2**20
_SCRATCH_ROWS = 64
# From so many matrices on, the products of features pay.
_MANY_GRAMS = 40
_MANY_FORMS = 20
_PARTS = 8
_FEW_PRODUCTS = 256


def weighted_grams(features, weights, center):
    """Return ``sum_i weights_ij (x_i - center)(x_i - center)^T`` for each column j: (j, d, d).

    Parameters
    ----------
    features : (n, d) tensor
        ``x``.
    weights : (n, j) tensor
        A column for each sum.
    center : (d,) tensor
        Is subtracted from each row.
    """
    (n, d), m = features.shape, weights.shape[1]
    if m < _MANY_GRAMS:
        result = features.new_zeros(d, m * d)
        scratch = _scratch(features, m * d)
        for rows in _scratch_blocks(n, m * d):
            block = features[rows] - center
            scaled = scratch[: block.numel() * m].view(-1, m, d)
            torch.mul(weights[rows, :, None], block[:, None], out=scaled)
            result.addmm_(block.T, scaled.flatten(1))
        return result.view(d, m, d).transpose(0, 1)
    result = features.new_empty(m, d, d)
    scratch = _scratch(features, max(map(_width, _parts(d))))
    for part in _parts(d):
        total = features.new_zeros(m, _width(part))
        for rows, products in _products(features, center, part, scratch):
            total.addmm_(weights[rows].T, products)
        result[:, part, : part.stop] = total.view(m, -1, part.stop)
        result[:, : part.start, part] = result[:, part, : part.start].mT
    return result


def quadratic_forms(features, matrices, center):
    """Return ``(x_i - center)^T matrices_j (x_i - center)``, (n, j).

    Parameters
    ----------
    features : (n, d) tensor
        ``x``.
    matrices : (j, d, d) tensor
        Symmetric.
    center : (d,) tensor
        Is subtracted from each row.
    """
    (n, d), m = features.shape, len(matrices)
    if m < _MANY_FORMS:
        result = features.new_empty(n, m)
        columns = matrices.transpose(0, 1).reshape(d, m * d)
        for rows in _scratch_blocks(n, m * d):
            block = features[rows] - center
            result[rows] = ((block @ columns).view(-1, m, d) @ block[:, :, None])[..., 0]
        return result
    result = features.new_zeros(m, n)
    scratch = _scratch(features, max(map(_width, _parts(d))))
    for part in _parts(d):
        once = matrices[:, part, : part.stop].clone()
        once[:, :, : part.start] *= 2.0  # their mirror images are in no part
        once = once.flatten(1)
        for rows, products in _products(features, center, part, scratch):
            result[:, rows].addmm_(once, products.T)
    return result.T


def _parts(d):
    """Return slices of features: with all features before and in them they make half the pairs."""
    fitting = _SCRATCH_BYTES // (8 * _SCRATCH_ROWS * d)
    return gen_batches(d, max(1, min(fitting, max(-(-d // _PARTS), _FEW_PRODUCTS // d))))


def _width(part):
    """Return how many products a part gives."""
    return (part.stop - part.start) * part.stop


def _products(features, center, part, scratch):
    """Yield slices of rows with the products of features in a part of k and up to its end.

    These are (b, k * stop), and overwritten by the next.
    """
    stop, width = part.stop, _width(part)
    for rows in _scratch_blocks(len(features), width):
        block = features[rows, :stop] - center[:stop]
        products = scratch[: len(block) * width].view(len(block), -1, stop)
        torch.mul(block[:, part, None], block[:, None], out=products)
        yield rows, products.flatten(1)


def _scratch_blocks(n, width):
    """Return slices of n rows for (rows, width) doubles that are made and thrown away."""
    return gen_batches(n, _scratch_rows(width))


def _scratch_rows(width):
    return max(_SCRATCH_ROWS, _SCRATCH_BYTES // (8 * max(width, 1)))


def _scratch(features, width):
    """Return memory for the rows of `_scratch_blocks` of up to this width."""
    return features.new_empty(max(_SCRATCH_BYTES // 8, _SCRATCH_ROWS * width))
