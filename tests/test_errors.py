"""What the estimator says of wrong rows, numbers, targets and questions.

A message has the value received, the rule and the remedy.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import binary, counts, positive, regression, three_classes
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    GammaRegressor,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.svm import SVC

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import (
    InfluenceWarning,
    MemoryLimitError,
    NotStationaryWarning,
    SingularCurvatureError,
    UnsupportedModelError,
    UnsupportedOptionError,
)

REG, CLS, THREE = regression(0), binary(1), three_classes(2)
N = 40
BAD_NUMBERS = [np.nan, np.inf, -np.inf]


@pytest.fixture(scope="module")
def ridge():
    """A fitted ridge regression."""
    return InfluenceEstimator(Ridge()).fit(REG.X, REG.y)


@pytest.fixture(scope="module")
def logistic():
    """A fitted binary logistic regression."""
    return InfluenceEstimator(LogisticRegression()).fit(CLS.X, CLS.y)


@pytest.fixture(scope="module")
def softmax():
    """A fitted logistic regression of three classes with string labels."""
    return InfluenceEstimator(LogisticRegression()).fit(THREE.X, THREE.y)


@pytest.fixture(
    scope="module",
    params=["primal", "dual", "kernel", "softmax", "poisson"],
)
def fitted(request):
    """A fitted estimator of each form, with its rows."""
    model, data, solver = {
        "primal": (Ridge(), REG, "primal"),
        "dual": (Ridge(), REG, "dual"),
        "kernel": (KernelRidge(kernel="rbf"), REG, "auto"),
        "softmax": (LogisticRegression(), THREE, "primal"),
        "poisson": (PoissonRegressor(), counts(3), "dual"),
    }[request.param]
    return InfluenceEstimator(model, solver=solver).fit(data.X, data.y), data


def with_bad(array, value):
    """Return a copy with one bad entry."""
    array = np.array(array, dtype=float)
    array[(3,) + (0,) * (array.ndim - 1)] = value
    return array


# The classes themselves


def test_every_error_is_also_a_builtin_one():
    assert issubclass(UnsupportedModelError, TypeError)
    assert issubclass(UnsupportedOptionError, ValueError)
    assert issubclass(MemoryLimitError, ValueError)
    assert issubclass(SingularCurvatureError, ValueError)
    assert issubclass(InfluenceWarning, UserWarning)
    assert issubclass(NotStationaryWarning, InfluenceWarning)


# Rows


ASKS = {
    "removal_effect": lambda e, rows: e.removal_effect(rows),
    "output_change": lambda e, rows: e.output_change(rows),
    "relabel_effect": lambda e, rows: e.relabel_effect(rows, e._engine.problem.y[0].item()),
    "parameter_change": lambda e, rows: e.parameter_change(rows),
    "unlearn": lambda e, rows: e.unlearn(rows),
}


@pytest.mark.parametrize(
    ("rows", "patterns"),
    [
        ([1, N], [f"Row {N} is out of range", f"from 0 to {N - 1}"]),
        ([0, -1], ["Row -1 is out of range", f"from 0 to {N - 1}"]),
        ([4, 2, 4], ["Row 4 is named twice", "each row once"]),
        ([True] * 3, ["mask", f"each of the {N} training rows", "got 3"]),
        ([False] * (N + 1), ["mask", f"got {N + 1}"]),
        ([0.0, 1.0], ["positions", "mask", r"got .*0\.0"]),
        ([np.nan], ["positions", "nan"]),
        (["row 1"], ["positions", "row 1", "index are not positions"]),
        ([[0, 1]], ["one-dimensional", r"\(1, 2\)"]),
        ({1, 2}, ["positions", r"\[0, 5\]", r"\{1, 2\}"]),
        (None, ["positions", "None"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("ask", ASKS)
def test_row_positions(ridge, ask, rows, patterns):
    with pytest.raises(ValueError) as caught:
        ASKS[ask](ridge, rows)
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), caught.value


def test_a_slice_of_rows(ridge):
    found, wanted = ridge.removal_effect(slice(1, 7, 2)), ridge.removal_effect([1, 3, 5])
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match=f"All {N} training rows"):
        ridge.removal_effect(slice(None))


@pytest.mark.parametrize("rows", [np.arange(N), np.ones(N, dtype=bool)], ids=["all", "mask"])
@pytest.mark.parametrize("ask", [name for name in ASKS if name != "relabel_effect"])
@pytest.mark.parametrize("order", ["first", "newton", "exact"])
def test_no_model_without_rows(ridge, ask, rows, order):
    with pytest.raises(ValueError, match=f"All {N} training rows.*Keep at least one"):
        getattr(ridge, ask)(rows, order=order)


def test_all_rows_may_be_relabelled(ridge):
    refit = Ridge().fit(REG.X, REG.y[::-1])
    effect = ridge.relabel_effect(np.arange(N), REG.y[::-1], REG.X_query, objective="prediction")
    expected = refit.predict(REG.X_query) - ridge.predict(REG.X_query)
    np.testing.assert_allclose(effect, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("order", ["first", "newton", "exact"])
@pytest.mark.parametrize("nothing", ["list", "mask"])
def test_removing_nothing_changes_nothing(fitted, order, nothing):
    influence, data = fitted
    n = data.X.shape[0]
    rows = [] if nothing == "list" else np.zeros(n, dtype=bool)
    effect = influence.removal_effect(rows, data.X_query, data.y_query, order=order)
    for change in (
        effect,
        influence.output_change(rows, order=order),
        influence.parameter_change(rows, order=order),
    ):
        np.testing.assert_allclose(change, 0.0, atol=1e-9)
    unchanged = influence.unlearn(rows, order=order).predict(data.X)
    expected = influence.predict(data.X)
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(unchanged, expected, rtol=1e-3)
    else:
        np.testing.assert_array_equal(unchanged, expected)


# Numbers that are not numbers


@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_bad_queries(fitted, value):
    influence, data = fitted
    X = with_bad(data.X_query, value)
    for ask in (
        lambda: influence.influence(X, data.y_query),
        lambda: influence.transform(X),
        lambda: influence.explain(X, data.y_query),
        lambda: influence.removal_effect([0], X, data.y_query),
        lambda: influence.output_change([0], X),
        lambda: influence.relabel_effect([0], data.y[:1], X, data.y_query),
    ):
        with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
            ask()


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("fitted", ["primal", "dual", "kernel", "poisson"], indirect=True)
def test_bad_targets(fitted, value):
    influence, data = fitted
    y = with_bad(data.y_query, value)
    for ask in (
        lambda: influence.influence(data.X_query, y),
        lambda: influence.explain(data.X_query, y),
        lambda: influence.removal_effect([0], data.X_query, y),
        lambda: influence.relabel_effect([0, 1], [1.0, value]),
    ):
        with pytest.raises(ValueError, match=r"Input y contains (NaN|infinity)"):
            ask()


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("model", "data"),
    [(Ridge(), REG), (KernelRidge(), REG), (LogisticRegression(), CLS)],
    ids=["ridge", "kernel", "logistic"],
)
def test_bad_training_rows(model, data, frozen, value):
    wrapped = FrozenEstimator(clone(model).fit(data.X, data.y)) if frozen else model
    influence = InfluenceEstimator(wrapped)
    before = dict(vars(influence))
    with pytest.raises(ValueError, match=r"X contains (NaN|infinity)"):
        influence.fit(with_bad(data.X, value), data.y)
    with pytest.raises(ValueError, match=r"y contains (NaN|infinity|the label)"):
        influence.fit(data.X, with_bad(data.y, value))
    with pytest.raises(ValueError, match=r"X contains (NaN|infinity)"):
        influence.fit(data.X, data.y, X_val=with_bad(data.X_query, value), y_val=data.y_query)
    with pytest.raises(ValueError, match=r"y contains (NaN|infinity|the label)"):
        influence.fit(data.X, data.y, X_val=data.X_query, y_val=with_bad(data.y_query, value))
    assert vars(influence) == before


@pytest.mark.parametrize(
    ("weight", "pattern"),
    [
        (np.full(N, np.nan), "sample_weight contains NaN"),
        (np.full(N, np.inf), "sample_weight contains infinity"),
        (np.full(N, -1.0), "Negative values in data passed to `sample_weight`"),
        (np.ones(3), r"sample_weight.shape == \(3,\), expected \(40,\)"),
        (np.zeros(N), "at least one non-zero"),
    ],
    ids=["nan", "inf", "negative", "short", "zero"],
)
def test_bad_weights(weight, pattern):
    model = FrozenEstimator(Ridge().fit(REG.X, REG.y))
    with pytest.raises(ValueError, match=pattern):
        InfluenceEstimator(model).fit(REG.X, REG.y, sample_weight=weight)


# Shapes


def test_lengths_that_differ(ridge):
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[40, 5\]"):
        InfluenceEstimator(Ridge()).fit(REG.X, REG.y[:5])
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[7, 5\]"):
        ridge.influence(REG.X_query, REG.y_query[:5])
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[7, 5\]"):
        ridge.removal_effect([0], REG.X_query, REG.y_query[:5])
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[7, 5\]"):
        InfluenceEstimator(Ridge()).fit(REG.X, REG.y, X_val=REG.X_query, y_val=REG.y_query[:5])


def test_columns_that_differ(fitted):
    influence, data = fitted
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting \d"):
        influence.transform(data.X_query[:, :2])
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        influence.transform(data.X_query[0])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        influence.transform(data.X_query[:0])


def test_columns_of_targets_that_differ(ridge):
    with pytest.raises(ValueError, match="y has 2 outputs but the fitted model has 1"):
        ridge.influence(REG.X_query, np.column_stack([REG.y_query, REG.y_query]))


def test_targets_outside_the_deviance():
    count, gain = counts(4), positive(5)
    poisson = InfluenceEstimator(PoissonRegressor()).fit(count.X, count.y)
    with pytest.raises(ValueError, match=r"value -2.*nonnegative.*Drop or correct"):
        poisson.influence(count.X_query, count.y_query - 2.0 - count.y_query.min())
    with pytest.raises(ValueError, match=r"value -1.*nonnegative"):
        poisson.relabel_effect([0], -1.0)
    gamma = InfluenceEstimator(GammaRegressor()).fit(gain.X, gain.y)
    with pytest.raises(ValueError, match=r"value 0.*positive.*Drop or correct"):
        gamma.influence(gain.X_query, 0.0 * gain.y_query)


def test_precomputed_kernel_of_another_size():
    gram = REG.X @ REG.X.T
    influence = InfluenceEstimator(KernelRidge(kernel="precomputed")).fit(gram, REG.y)
    with pytest.raises(ValueError, match=r"is expecting 40 features|one column for each of the 40"):
        influence.transform(REG.X_query @ REG.X[:9].T)


# Targets


@pytest.mark.parametrize("objective", ["loss", "margin"])
def test_targets_that_are_missing(logistic, objective):
    pattern = "needs the targets y.*objective='prediction'"
    for ask in (
        lambda: logistic.influence(CLS.X_query, objective=objective),
        lambda: logistic.removal_effect([0], CLS.X_query, objective=objective),
        lambda: logistic.relabel_effect([0], 1, CLS.X_query, objective=objective),
        lambda: logistic.explain(CLS.X_query, objective=objective),
    ):
        with pytest.raises(ValueError, match=pattern):
            ask()


def test_queries_that_are_missing(logistic):
    with pytest.raises(ValueError, match="y was given without X"):
        logistic.removal_effect([0], None, CLS.y_query)
    with pytest.raises(ValueError, match="y was given without X"):
        logistic.relabel_effect([0], 1, None, CLS.y_query)


@pytest.mark.parametrize("objective", ["loss", "margin"])
def test_half_of_the_validation_pair(objective):
    influence = InfluenceEstimator(LogisticRegression(), objective=objective)
    with pytest.raises(ValueError, match=r"X_val was given without y_val. Give both, or neither"):
        influence.fit(CLS.X, CLS.y, X_val=CLS.X_query)
    with pytest.raises(ValueError, match=r"y_val was given without X_val. Give both, or neither"):
        influence.fit(CLS.X, CLS.y, y_val=CLS.y_query)


def test_half_of_the_validation_pair_without_labels():
    influence = InfluenceEstimator(LogisticRegression(), objective="prediction")
    influence.fit(CLS.X, CLS.y, X_val=CLS.X_query)
    effects = influence.transform(CLS.X_query)
    np.testing.assert_allclose(influence.influence_, effects.mean(axis=0), atol=1e-12)
    with pytest.raises(ValueError, match="y_val was given without X_val"):
        influence.fit(CLS.X, CLS.y, y_val=CLS.y_query)


def test_labels_that_the_model_does_not_know(logistic, softmax):
    pattern = r"label .*{}.*not fitted on.*Known classes.*Correct the label, or refit"
    with pytest.raises(ValueError, match=pattern.format("5")):
        logistic.influence(CLS.X_query, CLS.y_query + 5)
    with pytest.raises(ValueError, match=pattern.format("ash")):
        logistic.influence(CLS.X_query, THREE.y_query)
    oaks = np.repeat("oak", 7)
    for objective in ("loss", "margin"):
        with pytest.raises(ValueError, match=pattern.format("oak")):
            softmax.influence(THREE.X_query, oaks, objective=objective)
        with pytest.raises(ValueError, match=pattern.format("oak")):
            softmax.removal_effect([0], THREE.X_query, oaks, objective=objective)
    with pytest.raises(ValueError, match=pattern.format("oak")):
        softmax.relabel_effect([0], ["oak"])
    influence = InfluenceEstimator(LogisticRegression())
    with pytest.raises(ValueError, match=pattern.format("oak")):
        influence.fit(THREE.X, THREE.y, X_val=THREE.X_query, y_val=oaks)


def test_new_targets_of_a_wrong_length(ridge, softmax):
    with pytest.raises(ValueError, match=r"y_new has 3 targets for 2 rows. Give one for each"):
        softmax.relabel_effect([0, 1], ["ash"] * 3)
    with pytest.raises(ValueError, match="y_new has 1 targets for 2 rows"):
        ridge.relabel_effect([0, 1], [1.0])
    with pytest.raises(ValueError, match="y has 2 outputs but the fitted model has 1"):
        ridge.relabel_effect([0, 1], [[1.0, 2.0], [3.0, 4.0]])
    one, two = softmax.relabel_effect([0, 1], "ash"), softmax.relabel_effect([0, 1], ["ash"] * 2)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "all", None])
def test_explain_of_a_wrong_number(ridge, k):
    with pytest.raises(ValueError, match=f"k={k!r} must be a whole number of at least 1"):
        ridge.explain(REG.X_query, k=k)


def test_explain_gives_no_more_rows_than_there_are(ridge):
    assert len(ridge.explain(REG.X_query[:2], k=1000)) == 2 * N


# Before fit


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("influence", (REG.X_query, REG.y_query)),
        ("transform", (REG.X_query,)),
        ("explain", (REG.X_query,)),
        ("loo_predict", ()),
        ("loo_predict_proba", ()),
        ("loo_decision_function", ()),
        ("removal_effect", ([0],)),
        ("output_change", ([0],)),
        ("relabel_effect", ([0], [1.0])),
        ("parameter_change", ([0],)),
        ("unlearn", ([0],)),
        ("predict", (REG.X_query,)),
        ("score", (REG.X_query, REG.y_query)),
        ("get_feature_names_out", ()),
    ],
)
def test_unfitted(method, arguments):
    with pytest.raises(NotFittedError, match="InfluenceEstimator instance is not fitted yet"):
        getattr(InfluenceEstimator(Ridge()), method)(*arguments)


def test_frozen_model_that_is_unfitted():
    with pytest.raises(NotFittedError, match="not fitted"):
        InfluenceEstimator(FrozenEstimator(Ridge())).fit(REG.X, REG.y)


# Nothing half done


FAILURES = {
    "option": ({"ridge": -1.0}, {}),
    "memory": ({"memory_limit": 1}, {}),
    "solver": ({"solver": "iterative"}, {}),
    "objective": ({"objective": "accuracy"}, {}),
    "model": ({"estimator": SVC()}, {}),
    "rows": ({}, {"X": with_bad(REG.X, np.nan)}),
    "targets": ({}, {"y": REG.y[:5]}),
    "validation rows": ({}, {"X_val": with_bad(REG.X_query, np.nan), "y_val": REG.y_query}),
    "validation columns": ({}, {"X_val": REG.X_query[:, :2], "y_val": REG.y_query}),
    "validation targets": ({}, {"X_val": REG.X_query, "y_val": with_bad(REG.y_query, np.nan)}),
    "half a pair": ({}, {"X_val": REG.X_query}),
    "weights": ({}, {"sample_weight": np.ones(3)}),
    "unknown keyword": ({}, {"weights": np.ones(N)}),
}


@pytest.mark.parametrize("before", ["unfitted", "fitted"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_fit_leaves_the_estimator_as_it_was(before, failure):
    params, arguments = FAILURES[failure]
    influence = InfluenceEstimator(Ridge())
    if before == "fitted":
        influence.fit(REG.X, REG.y)
        answer = influence.influence(REG.X_query, REG.y_query)
    influence.set_params(**params)
    state = dict(vars(influence))
    with pytest.raises((ValueError, TypeError)):
        influence.fit(**{"X": REG.X, "y": REG.y, **arguments})
    assert vars(influence).keys() == state.keys()
    assert all(vars(influence)[name] is value for name, value in state.items())
    if before == "fitted":
        influence.set_params(objective="loss")
        np.testing.assert_array_equal(influence.influence(REG.X_query, REG.y_query), answer)


def test_a_failed_question_changes_nothing(ridge):
    answer = ridge.influence(REG.X_query, REG.y_query)
    state = dict(vars(ridge))
    with pytest.raises(ValueError):
        ridge.influence(REG.X_query, REG.y_query[:2])
    assert all(vars(ridge)[name] is value for name, value in state.items())
    np.testing.assert_array_equal(ridge.influence(REG.X_query, REG.y_query), answer)
