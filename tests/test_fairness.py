"""Gaps between groups: of rates, under removals, and against real refits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from objective_helpers import (
    ENGINES,
    GROUPS,
    LABELS,
    N_QUERIES,
    assert_close,
    fit,
    fitted,
    naive_derivatives,
    naive_effects,
    orders,
    probabilities,
    rows,
    scores,
    single_changes,
)
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.objectives import DemographicParity, EqualizedOdds, EqualOpportunity

SPECS = {
    "parity": (DemographicParity, {}),
    "parity from a": (DemographicParity, {"reference": "a"}),
    "opportunity": (EqualOpportunity, {}),
    "opportunity from c": (EqualOpportunity, {"reference": "c"}),
    "odds": (EqualizedOdds, {}),
    "mean odds": (EqualizedOdds, {"agg": "mean"}),
    "odds from b": (EqualizedOdds, {"reference": "b", "agg": "mean"}),
}
each_spec = pytest.mark.parametrize("name", SPECS)


def naive_gap(values, positive, groups, kind, reference=None, agg="worst_case"):
    """Return a gap by its definition, one group at a time."""
    conditions = {
        DemographicParity: [np.ones(len(values), bool)],
        EqualOpportunity: [positive],
        EqualizedOdds: [positive, ~positive],
    }
    gaps = []
    for rows_ in conditions[kind]:
        rate = {g: values[rows_ & (groups == g)].mean() for g in np.unique(groups)}
        if reference is None:
            gaps.append(max(rate.values()) - min(rate.values()))
        else:
            signed = [rate[g] - rate[reference] for g in rate if g != reference]
            gaps.append(max(signed, key=abs))
    return max(gaps, key=abs) if agg == "worst_case" else np.mean(gaps)


# The gaps themselves


def decisions(seed, n_groups=3, n=80):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    p = np.clip(0.3 * y + rng.random(n) * 0.7, 0, 1)
    return y, p, rng.choice([*"abcde"][:n_groups], n)


@pytest.mark.parametrize("n_groups", [2, 4])
@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), (False, True), ("no", "yes"), (3, 7)])
def test_gaps_of_predictions_are_those_of_fairlearn(n_groups, labels):
    metrics = pytest.importorskip("fairlearn.metrics")
    y, p, groups = decisions(n_groups, n_groups)
    y, predicted = np.array(labels)[y], np.array(labels)[(p > 0.5).astype(int)]
    given = {"sensitive_features": groups}
    numbers = (y == labels[1]).astype(int), (predicted == labels[1]).astype(int)
    pairs = [
        (DemographicParity(groups), metrics.demographic_parity_difference(*numbers, **given)),
        (EqualOpportunity(groups), metrics.equal_opportunity_difference(*numbers, **given)),
        (EqualizedOdds(groups), metrics.equalized_odds_difference(*numbers, **given)),
        (
            EqualizedOdds(groups, agg="mean"),
            metrics.equalized_odds_difference(*numbers, **given, agg="mean"),
        ),
    ]
    for spec, expected in pairs:
        assert spec.prediction_gap(predicted, y) == pytest.approx(expected, abs=1e-15)


@each_spec
@pytest.mark.parametrize("n_groups", [3, 5])
def test_gaps_by_their_definition(name, n_groups):
    kind, options = SPECS[name]
    y, p, groups = decisions(n_groups, n_groups)
    spec = kind(groups, **options)
    expected = naive_gap(p, y == 1, groups, kind, **options)
    assert spec.probability_gap(p, y) == pytest.approx(expected, abs=1e-15)
    predicted = (p > 0.5).astype(int)
    expected = naive_gap(predicted, y == 1, groups, kind, **options)
    assert spec.prediction_gap(predicted, y) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    "labelled",
    [
        lambda g: list(g),
        lambda g: pd.Series(g, index=range(9, 9 - len(g), -1)),
        lambda g: pd.Series(g, dtype="category"),
        lambda g: pd.DataFrame({"group": g}),
        lambda g: (g == "a").astype(int) + 2 * (g == "b"),
        lambda g: [{"a": True, "b": 2.5, "c": "other"}[label] for label in g],
    ],
    ids=["list", "series", "category", "frame", "integers", "mixed"],
)
def test_labels_of_any_kind(labelled):
    _, p, groups = decisions(0)
    expected = DemographicParity(groups).probability_gap(p)
    assert DemographicParity(labelled(groups)).probability_gap(p) == expected


def test_the_favourable_label_can_be_either():
    y, p, groups = decisions(1)
    names = LABELS[y]
    spec = EqualOpportunity(groups, favorable="ash")
    expected = naive_gap(1 - p, y == 0, groups, EqualOpportunity)
    assert spec.probability_gap(1 - p, names) == pytest.approx(expected, abs=1e-15)


# Under removals


@each_spec
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_effects_are_those_of_the_gap_at_the_changed_outputs(engine, n_classes, name):
    kind, options = SPECS[name]
    influence, (_, _, X, y) = fitted(engine, n_classes), rows(n_classes)
    spec = kind(GROUPS, favorable="birch", **options)

    def gap(z):
        p = probabilities(influence, z)[:, 1]
        return naive_gap(p, y == "birch", GROUPS, kind, **options)

    for order in orders(engine) if name in ("parity", "mean odds") else ["newton"]:
        effects = influence.influence(X, y, objective=spec, order=order)
        assert effects.shape == (1, len(influence._X_train))
        assert_close(effects[0], naive_effects(engine, n_classes, order, gap))
    together = influence.removal_effect([1, 5, 8], X, y, objective=spec)
    z, dz = scores(influence, X), influence.output_change([1, 5, 8], X)
    assert_close(together, [gap(z + dz) - gap(z)])
    relabelled = influence.relabel_effect([4], ["birch"], X, y, objective=spec)
    assert relabelled.shape == (1,) and np.isfinite(relabelled).all()


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("loss", ["log_loss", "modified_huber"])
def test_rates_are_those_of_predict_proba(loss, n_classes):
    X, y, X_query, _ = rows(n_classes)
    model = SGDClassifier(loss, alpha=0.05, average=True, tol=None, random_state=0)
    influence = fit(model, {}, X, y)
    p = influence.predict_proba(X_query)
    outputs = torch.from_numpy(influence.decision_function(X_query).reshape(N_QUERIES, -1))
    for index, label in enumerate(LABELS[:n_classes]):
        spec = DemographicParity(GROUPS, favorable=label)
        bound, _ = influence._choices(spec, None)
        bound.queries(X_query, None)
        gap = float(bound.combine(bound.sums(outputs, None)[:, None]))
        assert gap == pytest.approx(spec.probability_gap(p[:, index]), abs=1e-14)


@each_spec
@pytest.mark.parametrize("engine", ["dual", "network primal", "rest"])
def test_first_order_is_the_derivative(engine, name):
    kind, options = SPECS[name]
    influence, (_, _, X, y) = fitted(engine, 3), rows(3)
    spec = kind(GROUPS, favorable="birch", **options)

    def gap(z):
        p = probabilities(influence, z)[:, 1]
        return naive_gap(p, y == "birch", GROUPS, kind, **options)

    slopes = naive_derivatives(gap, scores(influence, X))
    objective, _ = influence._choices(spec, None)
    features, targets = influence._queries(X, y, objective)
    found = objective.gradient(influence._engine.query_outputs(features, "first"), targets)
    np.testing.assert_allclose(found, slopes, atol=1e-9)
    expected = (slopes * single_changes(engine, 3, "first")).sum((1, 2))
    effects = influence.influence(X, y, objective=spec, order="first")
    np.testing.assert_allclose(effects, [expected], atol=1e-9)


@pytest.mark.parametrize("order", ["first", "newton", "exact"])
def test_both_forms_and_all_batches_agree(order):
    X, y, X_query, y_query = rows(2)
    spec = EqualizedOdds(GROUPS)
    for one, other in (("primal", "dual"), ("network primal", "network dual")):
        expected = fitted(one).influence(X_query, y_query, objective=spec, order=order)
        found = fitted(other).influence(X_query, y_query, objective=spec, order=order)
        assert_close(found, expected, 1e-8)
        model, options = ENGINES[one]
        small = fit(model, {**options, "batch_size": 3}, X, y)
        found = small.influence(X_query, y_query, objective=spec, order=order)
        assert_close(found, expected)


def test_the_objective_of_an_estimator_is_about_its_validation_rows():
    X, y, X_query, y_query = rows(2)
    model, spec = ENGINES["primal"][0], EqualOpportunity(GROUPS)
    influence = InfluenceEstimator(clone(model), objective=spec)
    influence.fit(X, y, X_val=X_query, y_val=y_query)
    expected = fitted("primal").influence(X_query, y_query, objective=spec)
    np.testing.assert_allclose(influence.influence_, expected[0], atol=1e-14)
    label_free = InfluenceEstimator(clone(model), objective=DemographicParity(GROUPS))
    label_free.fit(X, y, X_val=X_query)
    expected = fitted("primal").influence(X_query, objective=DemographicParity(GROUPS))
    np.testing.assert_allclose(label_free.influence_, expected[0], atol=1e-14)
    own = DemographicParity(np.arange(len(y)) % 2)
    over_training = InfluenceEstimator(clone(model), objective=own, order="first").fit(X, y)
    expected = over_training.influence(X)
    np.testing.assert_allclose(over_training.influence_, expected[0], atol=1e-12)
    np.testing.assert_allclose(over_training.removal_effect([2]), expected[:, 2], atol=1e-12)


def test_an_estimator_may_carry_labels_of_rows_to_come():
    X, y, X_query, y_query = rows(2)
    spec = EqualOpportunity(GROUPS)
    influence = InfluenceEstimator(clone(ENGINES["primal"][0]), objective=spec).fit(X, y)
    expected = fitted("primal").influence(X_query, y_query, objective=spec)
    np.testing.assert_array_equal(influence.influence(X_query, y_query), expected)
    assert influence.self_influence_.shape == (len(X),)
    with pytest.raises(AttributeError, match=r"labels of other rows. Pass .* as X_val"):
        _ = influence.influence_
    with pytest.raises(ValueError, match=r"has 21 labels.*on 40 rows"):
        influence.removal_effect([0])
    with pytest.raises(ValueError, match=r"has 21 labels.*on 5 rows"):
        influence.fit(X, y, X_val=X_query[:5], y_val=y_query[:5])


# Against real refits


def biased(seed=0, n=200, n_queries=120, d=5):
    """Return rows of two groups that differ, training rows first, and the groups of queries."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, n + n_queries)
    X = rng.standard_normal((n + n_queries, d)) + 0.5 * group[:, None]
    score = X @ rng.standard_normal(d) + 0.5 * group + rng.standard_normal(n + n_queries)
    y = (score > 0.3).astype(int)
    return X[:n], y[:n], X[n:], y[n:], group[n:]


@pytest.mark.parametrize("kind", [DemographicParity, EqualOpportunity, EqualizedOdds])
def test_removals_agree_with_refits_of_a_logistic_regression(kind):
    X, y, X_query, y_query, group = biased()
    model, spec = LogisticRegression(solver="newton-cholesky", tol=1e-12), kind(group)
    influence = InfluenceEstimator(model).fit(X, y)

    def gap(fitted_model):
        return spec.probability_gap(fitted_model.predict_proba(X_query)[:, 1], y_query)

    refits = (clone(model).fit(np.delete(X, i, 0), np.delete(y, i)) for i in range(len(X)))
    real = np.array([gap(refit) for refit in refits]) - gap(influence)
    found = {
        order: influence.influence(X_query, y_query, objective=spec, order=order)[0]
        for order in ("first", "newton", "exact")
    }
    error = {
        order: np.linalg.norm(effects - real) / np.linalg.norm(real)
        for order, effects in found.items()
    }
    assert error["newton"] <= 0.02 < error["first"] <= 0.1
    assert spearmanr(found["newton"], real).statistic >= 0.995
    np.testing.assert_allclose(found["exact"], real, atol=1e-8)


def trained(module, X, y, weight_decay):
    """Train a copy-free module to its optimum from where it is."""
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y).double()[:, None]
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(module(inputs), targets)
        loss = loss + 0.5 * weight_decay * sum((p**2).sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return module


def test_removals_agree_with_refits_of_a_network():
    X, y, X_query, y_query, group = biased(n=60, n_queries=60, d=3)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    decay = 0.02
    trained(module, X, y, decay)
    model = TorchModel(module, loss="binary_cross_entropy", weight_decay=decay)
    influence = InfluenceEstimator(model).fit(X, y)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = torch.from_numpy(X_query)

    def probability():
        return torch.sigmoid(module(inputs))[:, 0].detach().numpy()

    before, refits = probability(), []
    for row in range(len(X)):
        module.load_state_dict(state)
        trained(module, np.delete(X, row, 0), np.delete(y, row), decay)
        refits.append(probability())
    for kind in (DemographicParity, EqualOpportunity):
        spec = kind(group)
        real = [spec.probability_gap(p, y_query) for p in refits]
        real = np.array(real) - spec.probability_gap(before, y_query)
        effects = influence.influence(X_query, y_query, objective=spec)[0]
        assert spearmanr(effects, real).statistic >= 0.9


# Errors

P = np.linspace(0.1, 0.9, N_QUERIES)
BINARY = np.arange(N_QUERIES) % 2


@pytest.mark.parametrize(
    "spec, message",
    [
        (DemographicParity(GROUPS[:5]), "sensitive_features has 5 labels.*on 21 rows"),
        (DemographicParity(["a"] * N_QUERIES), r"the one group \['a'\]"),
        (DemographicParity([None, *GROUPS[1:]]), "no value for row 0 .None."),
        (DemographicParity([*GROUPS[1:], float("nan")]), "no value for row 20 .nan."),
        (DemographicParity(pd.Series(BINARY, dtype="Int64").replace(1, pd.NA)), "row 1 .<NA>."),
        (DemographicParity(np.stack([GROUPS, GROUPS], 1)), r"one label a row.*\(21, 2\)"),
        (DemographicParity(GROUPS, reference="z"), "reference='z' is not among the groups"),
        (EqualizedOdds(GROUPS, agg="median"), "agg='median'.*'worst_case' or 'mean'"),
    ],
)
def test_groups_that_cannot_be_compared(spec, message):
    _, _, X, y = rows(2)
    with pytest.raises(ValueError, match=message):
        spec.prediction_gap(BINARY, BINARY)
    with pytest.raises(ValueError, match=message):
        fitted("primal").influence(X, y, objective=spec)


def test_a_group_without_rows_of_a_class():
    _, _, X, y = rows(2)
    alone = np.where((y == "birch") & (np.arange(N_QUERIES) < 3), "alone", "many")
    for spec, names in (
        (EqualOpportunity(alone, favorable="ash"), "'alone' has no rows of the favourable class"),
        (EqualizedOdds(alone), "'alone' has no rows of another class"),
    ):
        with pytest.raises(ValueError, match=names):
            fitted("primal").influence(X, y, objective=spec)


def test_classes_and_models_without_a_rate():
    X, y, X_query, y_query = rows(3)
    spec = DemographicParity(GROUPS)
    with pytest.raises(ValueError, match=r"needs favorable= .* 3 classes.*'cedar'"):
        fitted("primal", 3).influence(X_query, objective=spec)
    with pytest.raises(ValueError, match="favorable='oak' is not among the classes"):
        other = DemographicParity(GROUPS, favorable="oak")
        fitted("primal").influence(X_query, objective=other)
    ridge = InfluenceEstimator(RidgeClassifier()).fit(*rows(2)[:2])
    with pytest.raises(ValueError, match=r"RidgeClassifier gives no class probabilities.*Wrap"):
        ridge.influence(X_query, objective=spec)
    numbers = InfluenceEstimator(clone(fitted("primal").estimator_)).fit(X, y)
    with pytest.raises(ValueError, match="needs the targets y"):
        numbers.influence(X_query, objective=EqualOpportunity(GROUPS, favorable="ash"))


def test_numbers_that_are_no_rates():
    spec = DemographicParity(GROUPS)
    for wrong in (P[:, None], 2 * P, np.where(P > 0.5, np.nan, P)):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            spec.probability_gap(wrong)
    with pytest.raises(ValueError, match=r"about rows of the favourable class\. Pass y_true"):
        EqualOpportunity(GROUPS).prediction_gap(BINARY)
    with pytest.raises(ValueError, match=r"which of the labels \['ash', 'birch', 'cedar'\]"):
        spec.prediction_gap(LABELS[np.arange(N_QUERIES) % 3])
