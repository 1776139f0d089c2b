"""InfluenceEstimator as a scikit-learn citizen: checks, tags, names, copies, displays."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from cases import binary, counts, regression, three_classes
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.callback import ProgressBar
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_dualif import InfluenceEnsemble, InfluenceEstimator
from sklearn_dualif.exceptions import InfluenceWarning, NotStationaryWarning


@pytest.fixture
def reg():
    """Rows of a regression."""
    return regression(0)


# scikit-learn's own checks

PERCEPTRON = {
    "hidden_layer_sizes": (4,),
    "solver": "lbfgs",
    "alpha": 1.0,
    "max_iter": 500,
    "random_state": 0,
}


@parametrize_with_checks(
    [
        InfluenceEstimator(model)
        for model in (
            LogisticRegression(),
            Ridge(),
            KernelRidge(),
            PoissonRegressor(),
            LinearRegression(),
            RidgeClassifier(),
            LinearSVC(),
            MLPClassifier(**PERCEPTRON),
            MLPRegressor(**PERCEPTRON),
            make_pipeline(StandardScaler(), LogisticRegression()),
        )
    ]
    + [
        InfluenceEnsemble(InfluenceEstimator(model), n_estimators=2, kind="bootstrap")
        for model in (LogisticRegression(), Ridge())
    ]
)
def test_scikit_learn_check(estimator, check):
    with warnings.catch_warnings():
        # One check leaves rows of one class alone, for which a free intercept has no optimum.
        warnings.filterwarnings("ignore", "No minimum of the objective", NotStationaryWarning)
        # Data made for other checks leave a perceptron of four units short of its optimum, or are
        # so large that its penalty does not count.
        warnings.filterwarnings("ignore", "The fitted MLP", NotStationaryWarning)
        warnings.filterwarnings("ignore", "The ridge 1 of MLP", InfluenceWarning)
        check(estimator)


# Tags


@pytest.mark.parametrize(
    "wrap", [lambda m: m, FrozenEstimator, lambda m: make_pipeline(StandardScaler(), m)]
)
@pytest.mark.parametrize(
    "model",
    [LogisticRegression(), Ridge(), KernelRidge(kernel="precomputed"), PoissonRegressor()],
    ids=lambda model: type(model).__name__,
)
def test_tags_are_those_of_the_wrapped_model(model, wrap):
    wrapped = wrap(model)
    tags, expected = get_tags(InfluenceEstimator(wrapped)), get_tags(wrapped)
    for name in (
        "estimator_type",
        "classifier_tags",
        "regressor_tags",
        "target_tags",
        "input_tags",
    ):
        assert getattr(tags, name) == getattr(expected, name), name
    assert tags.transformer_tags is not None
    # A frozen model's own tags would switch scikit-learn's checks off.
    assert not tags._skip_test
    assert is_classifier(InfluenceEstimator(wrapped)) == is_classifier(model)
    assert is_regressor(InfluenceEstimator(wrapped)) == is_regressor(model)


def test_sparse_and_pairwise_tags():
    assert get_tags(InfluenceEstimator(Ridge())).input_tags.sparse
    assert get_tags(InfluenceEstimator(KernelRidge(kernel="precomputed"))).input_tags.pairwise
    assert get_tags(InfluenceEstimator(PoissonRegressor())).target_tags.positive_only


# Output containers and names


def test_set_output_gives_a_frame(reg):
    X = pd.DataFrame(reg.X, columns=list("abcde"), index=[f"r{i}" for i in range(40)])
    influence = InfluenceEstimator(Ridge()).set_output(transform="pandas")
    table = influence.fit(X, reg.y).transform(X[:6])
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == list(X.index[:6])
    assert list(table.columns) == list(influence.get_feature_names_out())
    assert table.columns[3] == "influenceestimator3"
    np.testing.assert_array_equal(table, influence.influence(X[:6], objective="prediction"))
    assert influence.fit_transform(X, reg.y).shape == (40, 40)
    assert isinstance(influence.set_output(transform="default").transform(X[:6]), np.ndarray)


def test_feature_names(reg):
    X = pd.DataFrame(reg.X, columns=list("abcde"))
    influence = InfluenceEstimator(Ridge()).fit(X, reg.y)
    assert list(influence.feature_names_in_) == list("abcde")
    assert influence.n_features_in_ == 5
    assert influence.parameter_names_[:2] == ["coef_[a]", "coef_[b]"]
    for ask in (influence.transform, influence.predict):
        with pytest.raises(ValueError, match="feature names should match"):
            ask(X[list("bacde")])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        influence.influence(reg.X, reg.y)
    influence.fit(reg.X, reg.y)
    assert not hasattr(influence, "feature_names_in_")


# Copies


@pytest.fixture(
    params=["logistic", "ridge", "kernel", "pipeline", "softmax"],
)
def fitted(request):
    """A fitted estimator and a few query rows."""
    model, data = {
        "logistic": (LogisticRegression(), binary(3)),
        "ridge": (Ridge(), regression(4)),
        "kernel": (KernelRidge(kernel="rbf"), regression(5)),
        "pipeline": (make_pipeline(StandardScaler(), PoissonRegressor()), counts(6)),
        "softmax": (LogisticRegression(), three_classes(7)),
    }[request.param]
    return InfluenceEstimator(model).fit(data.X, data.y), data


def through_joblib(estimator):
    """Return what comes back from a joblib file."""
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), through_joblib],
    ids=["deepcopy", "pickle", "joblib"],
)
def test_copies_answer_alike(fitted, copied):
    influence, data = fitted
    twin = copied(influence)
    queries = data.X_query, data.y_query
    np.testing.assert_array_equal(twin.influence(*queries), influence.influence(*queries))
    np.testing.assert_array_equal(twin.loo_predict(), influence.loo_predict())
    np.testing.assert_array_equal(
        twin.removal_effect([1, 2], *queries), influence.removal_effect([1, 2], *queries)
    )
    np.testing.assert_array_equal(
        twin.unlearn([1, 2]).predict(data.X_query), influence.unlearn([1, 2]).predict(data.X_query)
    )
    np.testing.assert_array_equal(twin.predict(data.X_query), influence.predict(data.X_query))


def test_clone_is_unfitted(fitted):
    influence, data = fitted
    influence.set_params(order="first", memory_limit="1GB")
    fresh = clone(influence)
    assert fresh.order == "first"
    assert fresh.memory_limit == "1GB"
    assert fresh.estimator is not influence.estimator
    assert not [name for name in vars(fresh) if name.endswith("_")]
    with pytest.raises(NotFittedError):
        fresh.transform(data.X)


def test_parameters_reach_the_wrapped_model():
    influence = InfluenceEstimator(make_pipeline(StandardScaler(), LogisticRegression()))
    influence.set_params(estimator__logisticregression__C=7.0)
    assert influence.get_params()["estimator__logisticregression__C"] == 7.0
    assert influence.estimator[-1].C == 7.0


def test_the_wrapped_object_is_left_alone(reg):
    model = Ridge()
    InfluenceEstimator(model, ridge=3.0).fit(reg.X, reg.y)
    assert model.alpha == 1.0
    assert not hasattr(model, "coef_")


# What is delegated


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (LogisticRegression(), binary(3)),
        (LogisticRegression(), three_classes(7)),
        (LinearSVC(), three_classes(7)),
        (Ridge(), regression(4)),
        (KernelRidge(kernel="rbf"), regression(5)),
        (make_pipeline(StandardScaler(), LogisticRegression()), three_classes(7)),
    ],
    ids=["logistic", "softmax", "svc", "ridge", "kernel", "pipeline"],
)
def test_predictions_are_those_of_the_wrapped_model(model, data):
    influence = InfluenceEstimator(model)
    plain = clone(model)
    methods = ("predict", "predict_proba", "predict_log_proba", "decision_function")
    assert [hasattr(influence, m) for m in methods] == [hasattr(plain, m) for m in methods]
    influence.fit(data.X, data.y)
    plain.fit(data.X, data.y)
    for method in methods:
        assert hasattr(influence, method) == hasattr(plain, method)
        if hasattr(plain, method):
            expected = getattr(plain, method)(data.X_query)
            np.testing.assert_array_equal(getattr(influence, method)(data.X_query), expected)
    expected = plain.score(data.X_query, data.y_query)
    assert influence.score(data.X_query, data.y_query) == expected
    if is_classifier(model):
        np.testing.assert_array_equal(influence.classes_, plain.classes_)
    else:
        assert not hasattr(influence, "classes_")


def test_leave_one_out_looks_like_the_wrapped_model(fitted):
    influence, data = fitted
    for method in ("predict", "predict_proba", "decision_function"):
        if not hasattr(influence, method):
            with pytest.raises(AttributeError, match=f"has no method '{method}'"):
                getattr(influence, f"loo_{method}")()
            continue
        loo = getattr(influence, f"loo_{method}")()
        expected = getattr(influence, method)(data.X)
        assert loo.shape == expected.shape
        assert loo.dtype == expected.dtype
        if method == "predict_proba":
            np.testing.assert_allclose(loo.sum(axis=1), 1.0)


# Displays


class Untouchable:
    """Fails the test when anything is asked of it."""

    def __getattr__(self, name):
        pytest.fail(f"{name} was asked for")


def html(estimator):
    """Return what a notebook shows."""
    return estimator._repr_html_()


def test_displays_start_no_work(reg):
    influence = InfluenceEstimator(Ridge()).fit(reg.X, reg.y)
    influence._engine = Untouchable()
    before = dict(vars(influence))
    for show in (dir, repr, html):
        show(influence)
    assert vars(influence).keys() == before.keys()
    assert all(vars(influence)[name] is value for name, value in before.items())


def test_displays_of_an_unfitted_estimator_start_no_work(monkeypatch):
    def fit(*args, **kwargs):
        pytest.fail("the wrapped model was fitted")

    monkeypatch.setattr(Ridge, "fit", fit)
    influence = InfluenceEstimator(Ridge())
    before = dict(vars(influence))
    for show in (dir, repr, html):
        assert "InfluenceEstimator" in str(show(influence)) or show is dir
    assert vars(influence) == before


IMPORT = """
import sys, time
import sklearn.frozen, sklearn.pipeline, sklearn.linear_model
before = set(sys.modules)
start = time.perf_counter()
import sklearn_dualif
seconds = time.perf_counter() - start
influence = sklearn_dualif.InfluenceEstimator(sklearn.linear_model.Ridge())
dir(influence), repr(influence), influence._repr_html_(), influence.get_params()
sklearn.base.clone(influence).set_params(estimator__alpha=2.0)
heavy = {"torch", "skorch", "matplotlib", "rich"} & (set(sys.modules) - before)
print(seconds, *heavy)
"""


def test_importing_is_cheap():
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    seconds, *heavy = result.stdout.split()
    assert not heavy
    assert float(seconds) < 0.5


# Progress


class Recorder:
    """A callback that keeps what it is told."""

    def __init__(self):
        self.said = []

    def setup(self, estimator, context):
        self.said.append("setup")

    def teardown(self, estimator, context):
        self.said.append("teardown")

    def on_fit_task_begin(self, estimator, context, **kwargs):
        self.said.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context, **kwargs):
        self.said.append(("end", context.task_name))


def test_callbacks_hear_of_the_stages_of_a_fit(reg):
    recorder = Recorder()
    InfluenceEstimator(Ridge()).set_callbacks(recorder).fit(reg.X, reg.y)
    first, *tasks, last = recorder.said
    assert (first, last) == ("setup", "teardown")
    begun = [name for event, name in tasks if event == "begin"]
    assert len(begun) > 2
    assert sorted(begun) == sorted(name for event, name in tasks if event == "end")


def test_callbacks_are_told_when_a_fit_fails(reg):
    recorder = Recorder()
    influence = InfluenceEstimator(Ridge()).set_callbacks(recorder)
    with pytest.raises(ValueError, match="NaN"):
        influence.fit(reg.X, reg.y, X_val=np.nan * reg.X_query, y_val=reg.y_query)
    assert recorder.said[-1] == "teardown"


def test_progress_bar(reg, capsys):
    pytest.importorskip("rich")
    InfluenceEstimator(Ridge()).set_callbacks(ProgressBar()).fit(reg.X, reg.y)
    shown = capsys.readouterr().out
    assert "InfluenceEstimator" in shown
    assert "100%" in shown


def test_verbose_says_what_was_done(reg, capsys):
    InfluenceEstimator(Ridge()).fit(reg.X, reg.y)
    assert not capsys.readouterr().out
    influence = InfluenceEstimator(Ridge(), verbose=1).fit(reg.X, reg.y)
    shown = capsys.readouterr().out
    assert influence.solver_ in shown
    assert "40 rows" in shown
