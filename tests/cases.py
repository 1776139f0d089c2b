"""The zoo: small named cases, one for each kind of model and data that can be wrapped.

Estimators are as a user types them (default tolerances where those converge); data come from
seeded generators, standardised and well conditioned, with no class near extinction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import (
    BayesianRidge,
    GammaRegressor,
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
    TweedieRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.utils import Bunch

N_QUERIES = 7
LABELS = np.array(["ash", "birch", "cedar"])


@dataclass(frozen=True)
class Case:
    """A model with its training rows and query rows.

    ``quadratic``: squared loss, one Newton step is exact. ``sum_form``: the penalty does not scale
    with the number or the weight of the rows. ``smooth``: twice differentiable everywhere. ``sgd``:
    the fitted parameters are only near the optimum.
    """

    name: str
    estimator: object
    X: object
    y: object
    sample_weight: np.ndarray | None
    X_query: object
    y_query: object
    quadratic: bool = False
    sum_form: bool = True
    smooth: bool = True
    sgd: bool = False

    @property
    def n_rows(self):
        """Return the number of training rows."""
        return self.X.shape[0]

    @property
    def fit_params(self):
        """Return the fit parameters which take the sample weights to the model."""
        if self.sample_weight is None:
            return {}
        return {weight_name(self.estimator): self.sample_weight}

    def fit(self):
        """Return a fitted scikit-learn model of its own."""
        return clone(self.estimator).fit(self.X, self.y, **self.fit_params)

    def third(self, seed=0):
        """Return a third of the rows, drawn without replacement."""
        return np.random.default_rng(seed).permutation(self.n_rows)[: self.n_rows // 3]


def weight_name(estimator):
    """Return the name of the sample weight's fit parameter, through nested pipelines."""
    if isinstance(estimator, GridSearchCV):
        return weight_name(estimator.estimator)
    if hasattr(estimator, "steps"):
        step, last = estimator.steps[-1]
        return f"{step}__{weight_name(last)}"
    return "sample_weight"


# Data: one generator a kind of target; each gives training and query rows from one draw


def _features(rng, n, d):
    X = rng.standard_normal((n, d))
    X[:, 0] += 0.5 * X[:, 1]
    return X


def _halves(X, y, n):
    return Bunch(X=X[:n], y=y[:n], X_query=X[n:], y_query=y[n:])


def regression(seed, n=40, d=5, n_targets=None):
    """Return rows of a noisy linear regression with an offset and a few outliers."""
    rng = np.random.default_rng(seed)
    X = _features(rng, n + N_QUERIES, d)
    shape = (d,) if n_targets is None else (d, n_targets)
    y = 2.0 + X @ rng.standard_normal(shape) / np.sqrt(d / 5)
    y = y + 0.7 * rng.standard_normal(y.shape)
    y[:3] += 4.0
    return _halves(X, y, n)


def counts(seed, n=40, d=4):
    """Return rows of a Poisson regression."""
    rng = np.random.default_rng(seed)
    X = _features(rng, n + N_QUERIES, d)
    beta = 0.5 * rng.standard_normal(d) / np.sqrt(d / 4)
    return _halves(X, rng.poisson(np.exp(0.8 + X @ beta)).astype(float), n)


def positive(seed, n=40, d=4):
    """Return rows of a gamma regression."""
    rng = np.random.default_rng(seed)
    X = _features(rng, n + N_QUERIES, d)
    beta = 0.5 * rng.standard_normal(d) / np.sqrt(d / 4)
    return _halves(X, rng.gamma(3.0, np.exp(0.3 + X @ beta) / 3.0), n)


def binary(seed, n=40, d=4):
    """Return rows of two overlapping classes, 0 and 1."""
    rng = np.random.default_rng(seed)
    X = _features(rng, n + N_QUERIES, d)
    score = X @ rng.standard_normal(d) / np.sqrt(d / 4) + 1.2 * rng.standard_normal(len(X))
    return _halves(X, (score > -0.3).astype(int), n)


def three_classes(seed, n=48, d=4):
    """Return rows of three overlapping classes with string labels, each with a third or so."""
    rng = np.random.default_rng(seed)
    index = np.arange(n + N_QUERIES) % 3
    centres = 1.2 * rng.standard_normal((3, d)) / np.sqrt(d / 4)
    X = _features(rng, n + N_QUERIES, d) + centres[index]
    return _halves(X, LABELS[index], n)


def weights(n, seed=0):
    """Return positive weights with a zero, a one and a two among them."""
    s = np.random.default_rng(seed).uniform(0.4, 1.8, n)
    s[:3] = 0.0, 1.0, 2.0
    return s


def as_sparse(data):
    """Return the same rows as CSR, small entries dropped."""
    X, X_query = (np.where(np.abs(A) < 0.4, 0.0, A) for A in (data.X, data.X_query))
    return Bunch(**{**data, "X": sp.csr_array(X), "X_query": sp.csr_array(X_query)})


def as_frame(data):
    """Return the same rows as pandas objects with labels of their own."""
    names = [f"f{j}" for j in range(data.X.shape[1])]
    index = [f"row{i}" for i in range(len(data.X))]
    return Bunch(
        X=pd.DataFrame(data.X, columns=names, index=index),
        y=pd.Series(data.y, index=index, name="target"),
        X_query=pd.DataFrame(data.X_query, columns=names),
        y_query=pd.Series(data.y_query, name="target"),
    )


def _case(name, estimator, data, weighted=False, **flags):
    s = weights(data.X.shape[0]) if weighted else None
    return Case(name, estimator, data.X, data.y, s, data.X_query, data.y_query, **flags)


def _frozen(model, data):
    return FrozenEstimator(model.fit(data.X, data.y))


# The cases, one function a family


def _ridge_cases():
    tall, wide, multi = regression(0), regression(1, n=30, d=80), regression(2, n_targets=3)
    return [
        _case("linear", LinearRegression(), tall),
        _case("linear-no-intercept", LinearRegression(fit_intercept=False), tall),
        _case("linear-weights", LinearRegression(), tall, True),
        _case("linear-multi", LinearRegression(), multi),
        _case("linear-sparse", LinearRegression(), as_sparse(tall)),
        _case("linear-wide", LinearRegression(), wide),
        _case("linear-wide-weights", LinearRegression(), regression(3, n=24, d=60), True),
        _case("ridge", Ridge(), tall),
        _case("ridge-no-intercept", Ridge(alpha=0.3, fit_intercept=False), tall),
        _case("ridge-weights", Ridge(alpha=2.0), tall, True),
        _case("ridge-frame", Ridge(), as_frame(tall)),
        _case("ridge-wide", Ridge(alpha=3.0), wide),
        _case("ridge-wide-sparse", Ridge(alpha=3.0), as_sparse(wide)),
        _case("ridge-sparse-weights", Ridge(), as_sparse(tall), True),
        _case("ridge-sparse-no-intercept", Ridge(fit_intercept=False), as_sparse(tall)),
        _case("ridge-multi-weights", Ridge(alpha=0.7), multi, True),
        _case("ridge-alpha-per-target", Ridge(alpha=np.array([0.1, 1.0, 10.0])), multi),
        _case("ridge-lsqr", Ridge(solver="lsqr"), tall),
        _case("ridge-cv", RidgeCV(alphas=(0.1, 1.0, 10.0)), tall, True),
        _case("ridge-cv-per-target", RidgeCV(alpha_per_target=True), multi),
        _case("bayesian-ridge", BayesianRidge(), tall),
        _case("bayesian-ridge-weights", BayesianRidge(fit_intercept=False), tall, True),
        _case("tweedie-normal", TweedieRegressor(power=0, alpha=0.05), tall, sum_form=False),
    ]


def _ridge_classifier_cases():
    two, three = binary(10), three_classes(11)
    per_class = {"ash": 0.5, "birch": 2.0, "cedar": 1.0}
    return [
        _case("ridge-classifier-binary", RidgeClassifier(), two),
        _case("ridge-classifier-binary-weights", RidgeClassifier(class_weight="balanced"), two, 1),
        _case("ridge-classifier", RidgeClassifier(alpha=0.5), three),
        _case("ridge-classifier-dict", RidgeClassifier(class_weight=per_class), three, True),
        _case("ridge-classifier-sparse", RidgeClassifier(fit_intercept=False), as_sparse(three)),
        _case("ridge-classifier-cv", RidgeClassifierCV(alphas=(0.1, 1.0, 10.0)), three),
    ]


def _kernel_cases():
    tall, multi = regression(20, d=3), regression(21, d=3, n_targets=2)
    smooth = ConstantKernel(2.0) * RBF(1.5)
    noise = np.random.default_rng(22).uniform(0.05, 0.5, len(tall.y))
    gram = Bunch(**{**tall, "X": tall.X @ tall.X.T, "X_query": tall.X_query @ tall.X.T})
    fixed_process = GaussianProcessRegressor(smooth + WhiteKernel(0.3), optimizer=None)
    return [
        _case("kernel-ridge", KernelRidge(alpha=0.5, kernel="rbf", gamma=0.3), tall),
        _case("kernel-ridge-linear", KernelRidge(alpha=1.5), tall, True),
        _case("kernel-ridge-multi", KernelRidge(alpha=0.5, kernel="rbf"), multi, True),
        _case(
            "kernel-ridge-alpha-per-target",
            KernelRidge(alpha=np.array([0.2, 2.0]), kernel="polynomial", degree=2),
            multi,
        ),
        _case("kernel-ridge-precomputed", KernelRidge(alpha=0.8, kernel="precomputed"), gram),
        _case("kernel-ridge-sparse", KernelRidge(kernel="rbf", gamma=0.2), as_sparse(tall)),
        _case("process", fixed_process, tall),
        _case("process-optimised", GaussianProcessRegressor(RBF() + WhiteKernel()), tall),
        _case(
            "process-normalised",
            GaussianProcessRegressor(smooth, alpha=0.4, normalize_y=True, optimizer=None),
            tall,
        ),
        _case(
            "process-noise-per-row",
            GaussianProcessRegressor(smooth, alpha=noise, optimizer=None),
            tall,
        ),
        _case(
            "process-multi",
            GaussianProcessRegressor(smooth, alpha=0.3, normalize_y=True, optimizer=None),
            multi,
        ),
    ]


def _composite_quadratic_cases():
    tall, three = regression(30), three_classes(31)
    scaled = make_pipeline(StandardScaler(), Ridge(alpha=0.5))
    nested = make_pipeline(
        make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler()),
        make_pipeline(StandardScaler(with_std=False), Ridge(alpha=4.0)),
    )
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0, 10.0]}, cv=3)
    classify = make_pipeline(StandardScaler(), RidgeClassifier(class_weight="balanced"))
    return [
        _case("ridge-pipeline", scaled, tall),
        _case("ridge-pipeline-weights", scaled, as_frame(tall), True),
        _case("ridge-nested-pipeline", nested, tall, True),
        _case("ridge-frozen", _frozen(Ridge(alpha=0.5), tall), tall),
        _case(
            "ridge-frozen-pipeline", _frozen(make_pipeline(StandardScaler(), Ridge()), tall), tall
        ),
        _case("ridge-search", search, tall),
        _case("ridge-classifier-pipeline", classify, as_frame(three)),
    ]


def _logistic_binary_cases():
    two, wide = binary(40), binary(41, n=36, d=80)
    per_class = {0: 0.5, 1: 2.0}
    scaled = make_pipeline(StandardScaler(), LogisticRegression(C=0.5))
    search = GridSearchCV(scaled, {"logisticregression__C": [0.1, 1.0]}, cv=3)
    text = Bunch(**{**two, "y": LABELS[two.y], "y_query": LABELS[two.y_query]})
    return [
        _case("logistic", LogisticRegression(), two),
        _case("logistic-strings", LogisticRegression(C=3.0), as_frame(text)),
        _case("logistic-no-intercept", LogisticRegression(fit_intercept=False), two),
        _case("logistic-weights", LogisticRegression(), two, True),
        _case("logistic-dict", LogisticRegression(class_weight=per_class), two),
        _case("logistic-balanced", LogisticRegression(class_weight="balanced"), two, True),
        _case("logistic-no-penalty", LogisticRegression(C=np.inf), binary(42, n=60, d=3)),
        _case("logistic-sparse", LogisticRegression(), as_sparse(two)),
        _case("logistic-wide", LogisticRegression(C=0.1), wide),
        _case("logistic-wide-sparse", LogisticRegression(C=0.1), as_sparse(wide), True),
        _case("logistic-newton", LogisticRegression(solver="newton-cholesky"), two),
        _case("logistic-pipeline", scaled, as_frame(two), True),
        _case("logistic-search", search, two),
    ]


def _logistic_multinomial_cases():
    three, wide = three_classes(50), three_classes(51, n=36, d=80)
    per_class = {"ash": 0.5, "birch": 2.0, "cedar": 1.0}
    scaled = make_pipeline(StandardScaler(), LogisticRegression())
    search = LogisticRegressionCV(
        Cs=[0.1, 1.0], cv=3, l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False
    )
    return [
        _case("softmax", LogisticRegression(), three),
        _case("softmax-no-intercept", LogisticRegression(fit_intercept=False), three),
        _case("softmax-weights", LogisticRegression(C=0.5), three, True),
        _case("softmax-dict", LogisticRegression(class_weight=per_class), three),
        _case("softmax-balanced", LogisticRegression(class_weight="balanced"), three, True),
        _case("softmax-sparse", LogisticRegression(), as_sparse(three)),
        _case("softmax-wide", LogisticRegression(C=0.1), wide),
        _case("softmax-cv", search, three),
        _case("softmax-pipeline", scaled, as_frame(three)),
        _case("softmax-frozen", _frozen(LogisticRegression(), three), three),
    ]


def _liblinear_cases():
    two, three, tall = binary(60), three_classes(61), regression(62)
    wide = binary(63, n=36, d=80)
    lib = {"solver": "liblinear"}
    per_class = {"ash": 0.5, "birch": 2.0, "cedar": 1.0}
    flags = {"smooth": False}
    svr = LinearSVR(loss="squared_epsilon_insensitive", epsilon=0.3, C=0.5, dual=False)
    plain_svr = LinearSVR(
        loss="squared_epsilon_insensitive", dual=False, fit_intercept=False, epsilon=0.1
    )
    return [
        _case("liblinear", LogisticRegression(**lib), two),
        _case("liblinear-scaling", LogisticRegression(**lib, intercept_scaling=3.0), two, True),
        _case("liblinear-balanced", LogisticRegression(**lib, class_weight="balanced"), two, True),
        _case("liblinear-no-intercept", LogisticRegression(**lib, fit_intercept=False), two),
        _case("svc", LinearSVC(C=0.5, dual=False), two, **flags),
        _case("svc-dict", LinearSVC(C=0.5, dual=False, class_weight={0: 2.0}), two, True, **flags),
        _case("svc-three", LinearSVC(C=0.5, dual=False), three, **flags),
        _case(
            "svc-three-dict", LinearSVC(dual=False, class_weight=per_class), three, True, **flags
        ),
        _case(
            "svc-sparse-scaling",
            LinearSVC(dual=False, intercept_scaling=2.0),
            as_sparse(two),
            **flags,
        ),
        _case("svc-no-intercept", LinearSVC(dual=False, fit_intercept=False), three, **flags),
        _case("svc-wide", LinearSVC(C=0.05, dual=False), wide, **flags),
        _case("svr", svr, tall, **flags),
        _case("svr-weights-sparse", svr, as_sparse(tall), True, **flags),
        _case("svr-no-intercept", plain_svr, tall, **flags),
    ]


def _glm_cases():
    count, gain = counts(70), positive(71)
    many = counts(72, n=30, d=80)
    zeros = Bunch(**{**gain, "y": np.where(gain.y < 0.4, 0.0, gain.y)})
    scaled = make_pipeline(StandardScaler(), PoissonRegressor(alpha=0.1))
    flags = {"sum_form": False}
    return [
        _case("poisson", PoissonRegressor(alpha=0.1), count, **flags),
        _case("poisson-no-penalty", PoissonRegressor(alpha=0.0), count, True, **flags),
        _case("poisson-no-intercept", PoissonRegressor(fit_intercept=False), count, **flags),
        _case("poisson-weights", PoissonRegressor(alpha=0.3), count, True, **flags),
        _case("poisson-sparse", PoissonRegressor(alpha=0.1), as_sparse(count), **flags),
        _case("poisson-wide", PoissonRegressor(alpha=0.5), many, **flags),
        _case("poisson-pipeline", scaled, as_frame(count), True, **flags),
        _case("gamma", GammaRegressor(alpha=0.1), gain, **flags),
        _case("gamma-weights", GammaRegressor(alpha=0.2), gain, True, **flags),
        _case("tweedie", TweedieRegressor(power=1.5, alpha=0.1), zeros, **flags),
        _case(
            "tweedie-no-intercept",
            TweedieRegressor(power=1.2, alpha=0.1, fit_intercept=False),
            zeros,
            True,
            **flags,
        ),
    ]


def _huber_cases():
    tall = regression(80)
    scaled = make_pipeline(StandardScaler(), HuberRegressor())
    flags = {"smooth": False}
    return [
        _case("huber", HuberRegressor(), tall, **flags),
        _case("huber-penalty", HuberRegressor(alpha=1.0, epsilon=1.8), tall, True, **flags),
        _case("huber-no-intercept", HuberRegressor(fit_intercept=False), tall, **flags),
        _case("huber-sparse", HuberRegressor(alpha=0.1), as_sparse(tall), **flags),
        _case("huber-pipeline", scaled, as_frame(tall), **flags),
    ]


def _sgd(model, loss, **params):
    params = {"average": True, "alpha": 0.05, "max_iter": 2000, "tol": None, **params}
    return model(loss=loss, random_state=0, **params)


def _sgd_cases():
    two, three, tall = binary(90), three_classes(91), regression(92)
    per_class = {"ash": 0.5, "birch": 2.0, "cedar": 1.0}
    flags = {"sum_form": False, "sgd": True}
    rough = {**flags, "smooth": False}
    steps = {"learning_rate": "constant", "eta0": 0.003, "average": 20_000}
    classifier, regressor = SGDClassifier, SGDRegressor
    return [
        _case("sgd-log", _sgd(classifier, "log_loss"), two, **flags),
        _case("sgd-log-weights", _sgd(classifier, "log_loss"), two, True, **flags),
        _case("sgd-log-three", _sgd(classifier, "log_loss"), three, **flags),
        _case(
            "sgd-log-three-dict",
            _sgd(classifier, "log_loss", class_weight=per_class),
            three,
            **flags,
        ),
        _case("sgd-modified-huber", _sgd(classifier, "modified_huber", **steps), two, **rough),
        _case("sgd-squared-hinge", _sgd(classifier, "squared_hinge", **steps), three, **rough),
        _case("sgd-classifier-squared", _sgd(classifier, "squared_error", **steps), two, **flags),
        _case("sgd-squared", _sgd(regressor, "squared_error", **steps), tall, **flags),
        _case("sgd-huber", _sgd(regressor, "huber", epsilon=0.8, **steps), tall, **rough),
        _case(
            "sgd-squared-epsilon",
            _sgd(regressor, "squared_epsilon_insensitive", epsilon=0.2, **steps),
            tall,
            True,
            **rough,
        ),
    ]


# The zoo


def _flagged_quadratic(cases):
    return [Case(**{**vars(case), "quadratic": True}) for case in cases]


@cache
def all_cases():
    """Return every case of the zoo, as a tuple."""
    quadratic = _ridge_cases() + _ridge_classifier_cases() + _kernel_cases()
    quadratic = _flagged_quadratic(quadratic + _composite_quadratic_cases())
    rest = _logistic_binary_cases() + _logistic_multinomial_cases() + _liblinear_cases()
    return (*quadratic, *rest, *_glm_cases(), *_huber_cases(), *_sgd_cases())


def quadratic_cases():
    """Return the cases with squared loss and a closed form, where one Newton step is exact."""
    return [case for case in all_cases() if case.quadratic]


def convex_cases():
    """Return the other cases whose solver reaches the optimum: exact by refinement."""
    return [case for case in all_cases() if not (case.quadratic or case.sgd)]


def sgd_cases():
    """Return the averaged stochastic gradient cases."""
    return [case for case in all_cases() if case.sgd]


def sum_form_cases():
    """Return the cases whose penalty does not scale with the rows."""
    return [case for case in all_cases() if case.sum_form]


def case(name):
    """Return one case by its name."""
    return next(case for case in all_cases() if case.name == name)


def case_ids(cases):
    """Return the names, for ``pytest.mark.parametrize(..., ids=...)``."""
    return [case.name for case in cases]
