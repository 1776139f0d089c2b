"""Exact influence for scikit-learn's own models, beside the same work done by others.

``python benchmarks/native.py [a b c d] [--json FILE] [--threads N] [--repeats K]``

a. Softmax regression on the digits: the whole test × training matrix of loss effects, beside
   dattri's explicit influence function, both checked against leave-one-out refits.
b. Binary logistic regression, 100,000 × 100: everything ``fit`` gives and the leave-one-out
   probabilities, beside assembling XᵀWX once.
c. Ridge and binary logistic regression, 5,000 × 50: the matrix of loss effects, beside
   pyinfluence's ``InfluenceFunctions`` and beside refitting.
d. Kernel ridge regression, 5,000 rows: all leave-one-outs, beside the fit itself.

Every part runs in processes of its own: one for the seconds, in which the contenders take turns so
that their ratio holds on a busy machine too, and one for each contender's peak memory. A small run
of every contender comes first, so that imports and thread pools are in neither figure. Nothing
here asserts: each part prints its table, and of each target whether it was met.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from _measure import agreement
from _refits import leave_one_out_logistic, leave_one_out_softmax
from _run import MEGABYTE, Job, claim, main
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge

from sklearn_dualif import InfluenceEstimator

# a. Softmax regression on the digits ------------------------------------------------------------


def digits(n_train, n_test):
    """Permuted, scaled digits with a column of ones, so that every parameter is penalised."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X = np.c_[X[order] / 16, np.ones(len(y))]
    y = y[order]
    test = slice(n_train, n_train + n_test)
    return X[:n_train], y[:n_train], X[test], y[test]


def dattri_explicit(model, ridge, X, y, X_test, y_test):
    """Loss effects of removal by dattri's ``IFAttributorExplicit``, (n_test, n_train).

    Given the mean loss and the ridge on the mean, dattri's curvature is H/n, and its scores
    gₜᵀ(H/n)⁻¹gᵢ are minus the derivative of a test loss by row i's weight in the mean. Removal
    takes 1/n off that weight: scores / n is the effect of removal, with our sign. One batch each of
    training and test rows: with more, dattri sums the inverses of the batches' Hessians.
    """
    import torch
    from dattri.algorithm.influence_function import IFAttributorExplicit
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    module = torch.nn.Linear(X.shape[1], len(model.classes_), bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(model.coef_))

    def mean_loss(params, data):
        features, labels = data
        outputs = torch.func.functional_call(module, params, features)
        return torch.nn.functional.cross_entropy(outputs, labels)

    def loader(features, labels):
        rows = TensorDataset(torch.from_numpy(features).float(), torch.from_numpy(labels))
        return DataLoader(rows, batch_size=len(rows), shuffle=False)

    task = AttributionTask(mean_loss, module, module.state_dict())
    attributor = IFAttributorExplicit(task, regularization=ridge / len(y))
    train = loader(X, y)
    attributor.cache(train)
    scores = attributor.attribute(train, loader(X_test, y_test))
    return scores.detach().numpy().T / len(y)


def softmax_job(small):
    n_train, n_test, n_refits = (150, 20, 5) if small else (1400, 397, 100)
    X, y, X_test, y_test = digits(n_train, n_test)
    ridge = 1e-3 * n_train
    model = LogisticRegression(
        fit_intercept=False, C=1 / ridge, solver="newton-cholesky", tol=1e-12, max_iter=1000
    ).fit(X, y)

    def ours(order):
        influence = InfluenceEstimator(FrozenEstimator(model), order=order).fit(X, y)
        return influence.influence(X_test, y_test)

    newton, first, exact = (f"ours, order={order!r}" for order in ("newton", "first", "exact"))
    dattri = "dattri explicit"

    def check(results):
        rows = np.random.default_rng(0).choice(n_train, n_refits, replace=False)
        refits = leave_one_out_softmax(X, y, ridge, model.coef_, rows, X_test, y_test)
        agreements = {
            name: agreement(effects[:, rows], refits) for name, effects in results.items()
        }
        return agreements, {}

    def claims(found):
        ratios, agreements = found.ratios, found.agreements
        ours, peer, to_optimum = agreements[newton], agreements[dattri], agreements[exact]
        slope = f"{ours['slope']:.4f} and {ours['slope back']:.4f}"
        in_range = all(abs(ours[key] - 1) <= 0.03 for key in ("slope", "slope back"))
        matched = all(abs(to_optimum[key] - 1) < 5e-4 for key in ("pearson", "slope"))
        return [
            claim(
                "newton: seconds / dattri's", f"{ratios[newton]:.2f}", "≤ 1", ratios[newton] <= 1
            ),
            claim(
                "newton: pooled Pearson",
                f"{ours['pearson']:.5f}",
                "≥ .999, above dattri's",
                ours["pearson"] >= max(0.999, peer["pearson"]),
            ),
            claim("newton: slope, either way", slope, "1 ± .03", in_range),
            claim(
                "exact: Pearson and slope",
                f"{to_optimum['pearson']:.6f} and {to_optimum['slope']:.6f}",
                "1 to three digits",
                matched,
            ),
        ]

    return Job(
        f"Softmax on the digits: loss effects, {n_test} × {n_train}, fit and query",
        {
            newton: partial(ours, "newton"),
            dattri: partial(dattri_explicit, model, ridge, X, y, X_test, y_test),
            first: partial(ours, "first"),
            exact: partial(ours, "exact"),
        },
        baseline=dattri,
        check=check,
        claims=claims,
        repeats={exact: 1},
    )


# b. Binary logistic regression, many rows -------------------------------------------------------


def logistic_rows(n, d, seed=0):
    """Gaussian rows, labels drawn from a logistic model of them."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    logits = X @ rng.standard_normal(d) * (2 / np.sqrt(d))
    return X, (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(int)


def converged_logistic(X, y):
    """A binary logistic regression run to the limit of float64."""
    return LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-11, max_iter=100).fit(X, y)


def diagnostics_job(small):
    n, d, n_refits = (500, 10, 2) if small else (100_000, 100, 10)
    X, y = logistic_rows(n, d)
    model = converged_logistic(X, y)
    p = model.predict_proba(X)[:, 1]
    w = p * (1 - p)

    def ours():
        influence = InfluenceEstimator(FrozenEstimator(model)).fit(X, y)
        return (
            influence.self_influence_,
            influence.leverage_,
            influence.influence_,
            influence.loo_predict_proba(),
        )

    def assemble():
        return (X * w[:, None]).T @ X

    everything, baseline = "ours: everything", "XᵀWX once"

    def check(results):
        _, leverage, _, out_of_sample = results[everything]
        A = np.c_[X, np.ones(n)]
        hessian = (A * w[:, None]).T @ A
        hessian[np.arange(d), np.arange(d)] += 1.0
        hat = w * np.einsum("ij,ij->i", A @ np.linalg.inv(hessian), A)
        rows = np.random.default_rng(0).choice(n, n_refits, replace=False)
        theta = np.r_[model.coef_[0], model.intercept_]
        refits = leave_one_out_logistic(A, y, 1.0, theta, rows)
        figures = {
            "largest relative error of a leverage": float(np.abs(leverage / hat - 1).max()),
            "leave-one-out probabilities: rms error / rms change, against "
            f"{n_refits} refits": float(
                np.linalg.norm(out_of_sample[rows, 1] - refits) / np.linalg.norm(p[rows] - refits)
            ),
        }
        return {}, figures

    def claims(found):
        ratios = found.ratios
        growth = found.megabytes[everything] * MEGABYTE / X.nbytes
        return [
            claim(
                "seconds / assembling XᵀWX",
                f"{ratios[everything]:.1f}",
                "≤ 20",
                ratios[everything] <= 20,
            ),
            claim("peak memory growth / X", f"{growth:.2f}", "≤ 3", growth <= 3),
        ]

    return Job(
        f"Binary logistic, {n:,} × {d}: self-influence, leverage, influence_, "
        "leave-one-out probabilities, fit included",
        {everything: ours, baseline: assemble},
        baseline=baseline,
        check=check,
        claims=claims,
    )


# c. Ridge and logistic regression, beside pyinfluence and refits --------------------------------


def pyinfluence_functions(model, X, y, X_test, y_test):
    """Loss effects by pyinfluence's ``InfluenceFunctions``, without its damping.

    Its default damping would come on top of the model's own ridge; 0 hands it the true Hessian.
    """
    from pyinfluence import InfluenceFunctions

    return InfluenceFunctions(mode="loss", damping=0.0).fit(model, X, y).explain(X_test, y_test)


def pyinfluence_refits(model, X, y, rows, X_test, y_test):
    """Loss effects of leaving out `rows`, by the models and losses of pyinfluence's LOOInfluence.

    ``LOOInfluence.fit`` refits without every row, one after the other. It is given the refits of
    `rows` alone, made as it makes them; entries without a refit are its NaN columns.
    """
    from pyinfluence import LOOInfluence

    refits = LOOInfluence(mode="loss", verbose=0)
    refits.model_, refits.X_train_, refits.y_train_ = model, X, y
    refits.is_classifier_ = hasattr(model, "classes_")
    refits.loo_models_ = [None] * len(y)
    for row in rows:
        kept = np.arange(len(y)) != row
        refits.loo_models_[row] = clone(model).fit(X[kept], y[kept])
    return refits.explain(X_test, y_test)[:, rows]


def matrix_job(kind, small):
    n, d, n_test, n_refits = (200, 5, 20, 5) if small else (5000, 50, 500, 60)
    X_all, y_all = logistic_rows(n + n_test, d)
    if kind == "Ridge":
        rng = np.random.default_rng(1)
        y_all = X_all @ rng.standard_normal(d) + rng.standard_normal(n + n_test)
        model = Ridge(alpha=1.0, solver="cholesky")
    else:
        model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-11, max_iter=100)
    X, y, X_test, y_test = X_all[:n], y_all[:n], X_all[n:], y_all[n:]
    model.fit(X, y)
    rows = np.random.default_rng(0).choice(n, n_refits, replace=False)
    # pyinfluence's squared loss is ½(y − ŷ)², in all its classes; ours is scikit-learn's metric.
    unit = 2.0 if kind == "Ridge" else 1.0

    def ours():
        return InfluenceEstimator(FrozenEstimator(model)).fit(X, y).influence(X_test, y_test)

    newton, peer = "ours", "pyinfluence InfluenceFunctions"
    refitting = f"{n_refits} of {n} refits"

    def check(results):
        refits = results[refitting]
        agreements = {
            newton: agreement(results[newton][:, rows], unit * refits),
            peer: agreement(results[peer][:, rows], refits),
        }
        return agreements, {}

    def claims(found):
        ratios, agreements = found.ratios, found.agreements
        ours, theirs = agreements[newton], agreements[peer]
        all_refits = ratios[refitting] * n / n_refits / ratios[newton]
        closer = abs(ours["slope"] - 1) <= abs(theirs["slope"] - 1)
        return [
            claim("seconds / pyinfluence's", f"{ratios[newton]:.2f}", "≤ 2", ratios[newton] <= 2),
            claim(
                "rms error against the refits",
                f"{ours['rms error']:.1e}, theirs {theirs['rms error']:.1e}",
                "smaller",
                ours["rms error"] < theirs["rms error"],
            ),
            claim(
                "slope", f"{ours['slope']:.6f}, theirs {theirs['slope']:.6f}", "nearer to 1", closer
            ),
            claim(
                "Spearman",
                f"{ours['spearman']:.8f}, theirs {theirs['spearman']:.8f}",
                "higher",
                ours["spearman"] >= theirs["spearman"],
            ),
            claim(
                f"all {n} refits (extrapolated from {n_refits}) / ours",
                f"{all_refits:,.0f}",
                "",
                None,
            ),
        ]

    return Job(
        f"{kind}, {n:,} × {d}: leave-one-out loss effects, {n_test} × {n:,}, fit and query",
        {
            newton: ours,
            peer: partial(pyinfluence_functions, model, X, y, X_test, y_test),
            refitting: partial(pyinfluence_refits, model, X, y, rows, X_test, y_test),
        },
        baseline=peer,
        check=check,
        claims=claims,
        repeats={refitting: 1},
    )


# d. Kernel ridge regression ----------------------------------------------------------------------


def kernel_job(small):
    n, d, n_refits = (200, 5, 2) if small else (5000, 20, 3)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    y = np.sin(X[:, 0]) + 0.5 * X[:, 1] * X[:, 2] + 0.1 * rng.standard_normal(n)
    kernel_ridge = KernelRidge(kernel="rbf", gamma=1 / d, alpha=1e-2)

    def ours():
        influence = InfluenceEstimator(kernel_ridge).fit(X, y)
        return influence.loo_predict(), influence.loo_loss_

    everything, baseline = "ours: fit, loo_predict, loo_loss_", "KernelRidge.fit"

    def check(results):
        out_of_sample, loss = results[everything]
        in_sample = kernel_ridge.fit(X, y).predict(X)
        rows = rng.choice(n, n_refits, replace=False)
        refits = np.empty(n_refits)
        for position, row in enumerate(rows):
            kept = np.arange(n) != row
            refits[position] = clone(kernel_ridge).fit(X[kept], y[kept]).predict(X[[row]])[0]
        change = np.abs(in_sample[rows] - refits).max()
        figures = {
            f"leave-one-out predictions: largest error / largest change, against {n_refits} "
            "refits": float(np.abs(out_of_sample[rows] - refits).max() / change),
            "leave-one-out losses: largest relative error against theirs": float(
                np.abs(loss[rows] / (y[rows] - refits) ** 2 - 1).max()
            ),
        }
        return {}, figures

    def claims(found):
        ratio = found.ratios[everything]
        return [claim("seconds / KernelRidge.fit", f"{ratio:.2f}", "≤ 4", ratio <= 4)]

    return Job(
        f"Kernel ridge (rbf), {n:,} rows: all leave-one-outs, fit included",
        {everything: ours, baseline: lambda: clone(kernel_ridge).fit(X, y)},
        baseline=baseline,
        check=check,
        claims=claims,
    )


PARTS = {
    "a": [softmax_job],
    "b": [diagnostics_job],
    "c": [partial(matrix_job, "Ridge"), partial(matrix_job, "LogisticRegression")],
    "d": [kernel_job],
}


if __name__ == "__main__":
    main(__doc__, __file__, PARTS)
