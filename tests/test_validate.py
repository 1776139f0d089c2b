"""What `validate` says: of models that refits confirm, of those they don't, and of frozen ones."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import scale
from skorch import NeuralNetClassifier
from skorch.dataset import ValidSplit
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import NotStationaryWarning, UnsupportedOptionError
from sklearn_dualif.metrics import validate
from sklearn_dualif.metrics._agreement import agreement

TIGHT = LogisticRegression(tol=1e-10, max_iter=10_000)
not_at_the_optimum = pytest.mark.filterwarnings(
    "ignore::sklearn_dualif.exceptions.NotStationaryWarning"
)


@cache
def data(load=load_wine):
    """Return training rows, query rows and their targets of one of scikit-learn's data sets."""
    X, y = load(return_X_y=True)
    return train_test_split(scale(X), y, random_state=0)


def validated(estimator, rows=None, **options):
    X, X_query, y, y_query = data() if rows is None else rows
    influence = InfluenceEstimator(estimator).fit(X, y)
    return validate(influence, X_query, y_query, **{"random_state": 0, **options})


# Models that refits confirm


@pytest.mark.parametrize(
    ("estimator", "load"),
    [
        *((TIGHT, load) for load in (load_wine, load_breast_cancer, load_digits)),
        *((Ridge(), load) for load in (load_wine, load_breast_cancer, load_digits, load_diabetes)),
    ],
)
def test_models_at_their_optimum_are_trusted(estimator, load):
    if load is load_digits:
        X, y = load(return_X_y=True)
        rows = train_test_split(X / 16, y, random_state=0)
    else:
        rows = data(load)
    result = validated(estimator, rows)
    assert result.verdict == "trust the sizes"
    assert 0.95 <= result.slope <= 1.05
    assert result.correlation > 0.99
    assert result.slope_interval[0] <= result.slope <= result.slope_interval[1]
    low, high = result.slope_interval
    sized = f"slope {result.slope:.2f} [{low:.2f}, {high:.2f}]"
    assert str(result) == f"predicted effects match refits: {sized}; trust the sizes"
    assert result.n_refits == 21


def test_the_solver_s_tolerance_does_not_matter():
    tight, default = validated(TIGHT), validated(LogisticRegression())
    assert default.verdict == "trust the sizes"
    assert default.slope == pytest.approx(tight.slope, abs=1e-3)
    assert tight.stationarity < 0.01 < default.stationarity


def test_numbers_are_those_of_plain_loops():
    X, X_query, y, y_query = data(load_diabetes)
    influence = InfluenceEstimator(Ridge(1.0), order="first").fit(X, y)
    result = validate(influence, X_query, y_query, n_refits=12, random_state=0)

    def errors(kept):
        return (Ridge(1.0).fit(X[kept], y[kept]).predict(X_query) - y_query) ** 2

    everything = np.arange(len(X))
    before = errors(everything)
    predicted, refitted = [], []
    for group in result.groups.groups:
        refitted.append(errors(np.delete(everything, group)) - before)
        predicted.append(influence.removal_effect(group, X_query, y_query))
    assert np.allclose(result.groups.refitted, refitted)
    assert np.allclose(result.groups.predicted, predicted)
    single = [errors(np.delete(everything, row)) - before for row in result.rows.rows]
    alone = influence.influence(X_query, y_query)[:, result.rows.rows].T
    assert np.allclose(result.rows.refitted, single)
    assert np.allclose(result.rows.predicted, alone)
    assert (len(refitted), len(single), result.n_refits) == (5, 6, 12)
    large = np.argsort(-np.abs(influence.self_influence_))[: round(0.25 * len(X))]
    assert np.isin(result.rows.rows, large).all()
    scales = [np.sqrt(np.mean(np.square(part))) for part in (refitted, single)]
    p = np.concatenate([np.ravel(predicted) / scales[0], np.ravel(alone) / scales[1]])
    r = np.concatenate([np.ravel(refitted) / scales[0], np.ravel(single) / scales[1]])
    assert result.slope == pytest.approx(np.polyfit(p, r, 1)[0])
    assert result.correlation == pytest.approx(np.corrcoef(p, r)[0, 1])
    assert result.rank_correlation == pytest.approx(spearmanr(p, r).statistic)
    assert result.training_loss == pytest.approx(np.mean((influence.predict(X) - y) ** 2))
    assert result.stationarity == influence.stationarity_
    assert result.returned < 1e-6


def test_random_state_draws_what_is_removed():
    options = {"n_refits": 8}
    one, same, other = (
        validated(Ridge(), data(load_diabetes), random_state=seed, **options) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.groups.groups, same.groups.groups)
    assert (one.slope, one.slope_interval) == (same.slope, same.slope_interval)
    assert not np.array_equal(one.groups.groups, other.groups.groups)


def test_sizes_that_are_wrong_are_ranking_only():
    X, X_query, y, y_query = data()
    model = FrozenEstimator(clone(TIGHT).fit(X, y))
    influence = InfluenceEstimator(model, ridge=5.0).fit(X, y)
    result = validate(influence, X_query, y_query, random_state=0)
    assert result.verdict == "ranking only"
    assert result.slope > 1.2
    assert str(result).startswith("ranking only: refits confirm the order of effects, not the size")
    assert "try order='exact'" in str(result)


# Networks

MLP = MLPClassifier(
    (32,), activation="tanh", solver="lbfgs", alpha=3.0, tol=1e-8, max_iter=5000, random_state=0
)
# Each start ends in another minimum.
PIECEWISE = clone(MLP).set_params(
    activation="relu", alpha=0.3, hidden_layer_sizes=(4,), tol=1e-12, max_iter=20_000
)


def test_a_trained_perceptron_is_trusted():
    X, X_query, y, y_query = data()
    influence = InfluenceEstimator(MLP, parameters=["*.weight", "1.bias"]).fit(X, y)
    result = validate(influence, X_query, y_query, n_refits=13, random_state=0)
    assert result.verdict == "trust the sizes"
    assert 0.8 <= result.slope <= 1.2


class Convolutions(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
        self.double()


def net(**params):
    """Return a skorch net that is trained on all rows at a time."""
    return NeuralNetClassifier(
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        batch_size=-1,
        verbose=0,
        **{"train_split": None, **params},
    )


@cache
def images():
    X, y = load_digits(return_X_y=True)
    X = (X / 16.0).reshape(-1, 1, 8, 8)
    return train_test_split(X, y, train_size=400, test_size=200, random_state=0, stratify=y)


@pytest.mark.slow
def test_a_trained_convolutional_net_is_trusted():
    estimator = net(module=Convolutions, optimizer__weight_decay=0.06, lr=0.3, max_epochs=600)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        result = validated(estimator, images(), n_refits=9)
    assert result.stationarity < 0.1
    assert result.returned == 0.0
    assert 0.8 <= result.slope <= 1.2
    assert result.verdict == "trust the sizes"


@not_at_the_optimum
def test_an_undertrained_net_is_not_trusted():
    estimator = net(module=Convolutions, optimizer__weight_decay=0.03, lr=0.3, max_epochs=20)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        result = validated(estimator, images(), n_refits=9)
    assert result.verdict == "don't trust"
    assert result.stationarity > 1.0
    said = str(result)
    assert said.startswith(
        "don't trust: the model is not at an optimum of the stated objective (stationarity "
    )
    assert "; try training longer with a falling step size or a larger weight decay" in said


@not_at_the_optimum
def test_training_that_does_not_repeat_is_said():
    X, X_query, y, y_query = data()
    estimator = clone(PIECEWISE).set_params(random_state=None)
    state = np.random.get_state()
    np.random.seed(1)
    try:
        influence = InfluenceEstimator(estimator, parameters=["*.weight", "1.bias"]).fit(X, y)
        result = validate(influence, X_query, y_query, n_refits=9, random_state=0)
    finally:
        np.random.set_state(state)
    assert result.returned > 0.5
    assert result.verdict != "trust the sizes"
    assert "does not come back to the model; try an integer random_state" in str(result)


# Models that refits say nothing of


def trained(module, X, y, decay):
    """Return the module at the optimum of mean cross-entropy plus half the decay times squares."""
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    parameters = list(module.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=2000, tolerance_grad=1e-10, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(module(X), y)
        value = value + 0.5 * decay * sum((p**2).sum() for p in parameters)
        value.backward()
        return value

    optimizer.step(objective)
    return TorchModel(module, weight_decay=decay, classes=[0, 1, 2])


def linear():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Linear(13, 3).double()


def test_a_torch_model_at_its_optimum_is_ranking_only():
    X, X_query, y, y_query = data()
    result = validated(trained(linear(), X, y, 0.01))
    assert result.verdict == "ranking only"
    assert "the sizes were not checked; no refits: A TorchModel is trained by its owner" in str(
        result
    )
    assert np.isnan([result.slope, result.correlation, result.returned]).all()
    assert result.n_refits == 0
    assert result.rows is None
    assert result.groups is None
    assert result.stationarity < 0.1


@not_at_the_optimum
def test_a_torch_model_of_other_rows_is_not_trusted():
    X, X_query, y, y_query = data()
    model = trained(linear(), X[:20], y[:20], 0.01)
    result = validated(model)
    assert result.verdict == "don't trust"
    assert "try passing the rows, targets and weight decay that it was trained with" in str(result)
    expected = torch.nn.functional.cross_entropy(
        model.module(torch.as_tensor(X)), torch.as_tensor(y)
    )
    assert result.training_loss == pytest.approx(expected.item())


def test_a_frozen_model_of_its_own_rows_is_trusted():
    X, X_query, y, y_query = data()
    for estimator in (LogisticRegression(), Ridge()):
        result = validated(FrozenEstimator(estimator.fit(X, y)))
        assert result.verdict == "trust the sizes"


@pytest.mark.parametrize("estimator", [LogisticRegression(), Ridge()], ids=["logistic", "ridge"])
def test_a_frozen_model_of_other_rows_is_not_trusted(estimator):
    X, X_query, y, y_query = data()
    with pytest.warns(NotStationaryWarning):
        result = validated(FrozenEstimator(estimator.fit(X[::3], y[::3])))
    assert result.verdict == "don't trust"
    assert result.returned > 0.5
    assert result.n_refits == 1
    assert "is not one of these rows; pass the rows, targets and weights that it was" in str(result)


@not_at_the_optimum
def test_frozen_nets_from_another_start_speak_for_themselves():
    X, X_query, y, y_query = data()
    other = FrozenEstimator(clone(PIECEWISE).fit(X, y).set_params(random_state=4))
    influence = InfluenceEstimator(other, parameters=["*.weight", "1.bias"]).fit(X, y)
    result = validate(influence, X_query, y_query, random_state=0)
    assert result.n_refits == 1
    assert result.verdict == "don't trust"
    assert result.stationarity > 0.1
    assert "so that refits say nothing of it" in str(result)


@not_at_the_optimum
def test_nets_that_hold_out_rows_are_not_refitted():
    X, X_query, y, y_query = data()
    estimator = net(
        module=nn.Linear, module__in_features=13, module__out_features=3, max_epochs=5,
        train_split=ValidSplit(5), optimizer__weight_decay=0.01,
    )  # fmt: skip
    result = validated(estimator)
    assert result.n_refits == 0
    assert "holds out rows by its train_split" in str(result)


# Refusals


@pytest.mark.parametrize("n_refits", [6, 0, 7.0, True, "9"])
def test_too_few_refits(n_refits):
    with pytest.raises(ValueError, match=r"n_refits=.* at least 7"):
        validated(Ridge(), n_refits=n_refits)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, np.nan, "half", True])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"fraction=.* between 0 and 1"):
        validated(Ridge(), fraction=fraction)


def test_scores_are_no_effects():
    X, X_query, y, y_query = data()
    influence = InfluenceEstimator(Ridge(), curvature="identity").fit(X, y)
    with pytest.raises(UnsupportedOptionError, match="not effects of their removal"):
        validate(influence, X_query, y_query)


def test_queries_that_nothing_changes():
    X, X_query, y, y_query = data()
    influence = InfluenceEstimator(Ridge(fit_intercept=False)).fit(X, y)
    with pytest.raises(ValueError, match=r"changes nothing on these queries in 20 refits"):
        validate(influence, np.zeros_like(X_query), y_query)


def test_unfitted_and_other_estimators():
    X, X_query, y, y_query = data()
    with pytest.raises(NotFittedError):
        validate(InfluenceEstimator(Ridge()), X_query, y_query)
    with pytest.raises(TypeError, match=r"validate needs a fitted InfluenceEstimator; got Ridge"):
        validate(Ridge(), X_query, y_query)


def test_a_resample_of_removals_with_one_predicted_effect():
    # All but one removal are predicted to do the same, which a resample may leave out: its variance
    # is 0 but for rounding, on either side.
    generator = np.random.RandomState(0)
    refitted = generator.standard_normal((10, 7))
    predicted = np.zeros((10, 7))
    predicted[0] = refitted[0]
    found = agreement(predicted, refitted, generator)
    assert found["pearson_interval"][0] == 0.0
    assert found["pearson"] == pytest.approx(np.corrcoef(predicted.ravel(), refitted.ravel())[0, 1])
