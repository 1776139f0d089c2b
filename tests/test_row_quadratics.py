"""Each row's form with the inverse Hessian: through pairs of outputs, and through whitened rows.

And the sums of outer products that the Hessian is made of.
"""

import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.kernels import LinearFeatures


def rows():
    return make_classification(
        90, 6, n_informative=5, n_redundant=0, n_classes=4, n_clusters_per_class=1, random_state=0
    )


def curvature_of(C=1.0, *, fit_intercept=True, offset=0.0, twins_apart=None):
    X, y = rows()
    if twins_apart is not None:
        X[:, 0] = X[:, 1] + twins_apart * X[:, 0]
    model = LogisticRegression(
        C=C, fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-8, max_iter=1000
    )
    influence = InfluenceEstimator(model, solver="primal").fit(X + offset, y)
    return influence._engine.curvature


def dense_forms(curvature):
    """Return ``J_i H^{-1} J_i^T`` from the rows' Jacobians and the Hessian written out."""
    X, root = curvature.features.dense(), curvature.expansion.root[0]
    n, k = root.shape[:2]
    eye = torch.eye(k, dtype=torch.float64)
    weights = torch.einsum("nd,ko->nkdo", X, eye).flatten(2)
    jacobian = torch.cat([curvature.free.expand(n, -1, -1), weights], 2)
    rows = (root.mT @ jacobian).flatten(0, 1)
    hessian = rows.T @ rows
    hessian.diagonal()[curvature.n_free :] += float(curvature.ridge[0])
    return jacobian @ torch.linalg.solve(hessian, jacobian.mT)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_pairs_of_outputs_give_the_forms(fit_intercept, offset):
    curvature = curvature_of(fit_intercept=fit_intercept, offset=offset)
    found = curvature.row_quadratics(slice(None))[0]
    whitened = curvature.whitened_rows(slice(None))[0]
    assert curvature._pair_forms
    torch.testing.assert_close(found, whitened @ whitened.mT, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, dense_forms(curvature), rtol=1e-7, atol=1e-10)


def test_rows_are_whitened_where_the_inverse_is_large():
    curvature = curvature_of(1e9, twins_apart=2e-4)
    assert curvature._factors[0].inverse_norm > 1e6
    assert curvature._pair_forms == []
    found = curvature.row_quadratics(slice(None))[0]
    hats = curvature.expansion.root[0].mT @ found @ curvature.expansion.root[0]
    total = float(hats.diagonal(dim1=1, dim2=2).sum())
    held_by_ridge = float(curvature.ridge[0] * (curvature.map[0, curvature.n_free :] ** 2).sum())
    assert total + held_by_ridge == pytest.approx(curvature.map_rows, rel=1e-6)


@pytest.mark.parametrize("matrices", [1, 3, 19, 20, 39, 40, 66])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 3), (150, 17), (90, 70), (200, 131)])
def test_sums_of_outer_products_and_forms(rows, width, matrices):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    X, center, weights = normal(rows, width), normal(width), normal(rows, matrices)
    features = LinearFeatures(X.numpy())
    wanted = torch.einsum("nj,na,nb->jab", weights, X - center, X - center)
    torch.testing.assert_close(features.weighted_grams(weights, center), wanted)
    half = normal(matrices, width, width)
    forms = half + half.mT
    wanted = torch.einsum("na,jab,nb->nj", X - center, forms, X - center)
    torch.testing.assert_close(features.quadratic_forms(forms, center), wanted)
