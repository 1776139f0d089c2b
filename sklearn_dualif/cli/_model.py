"""The models that are offered, and how strong their penalty is."""

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline

from .._estimator import InfluenceEstimator
from ._errors import InputError
from ._preparation import preparation_for

_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_ROWS_TO_CHOOSE = 4000
_MOST_PARAMETERS = 2000
_DECAY = 3.0


def influence_for(model, X, y, task, random_state):
    """Return an InfluenceEstimator, not fitted, around a model that is offered, and its name.

    Parameters
    ----------
    model : {"logistic", "ridge", "mlp"} or None
        None: "logistic" for classes, "ridge" for numbers.
    X, y : DataFrame, Series
        Training rows, by which the penalty is chosen.
    task : {"classification", "regression"}
        What the target is.
    random_state : int
        Of networks, and of the rows by which a penalty is chosen.
    """
    classes = task == "classification"
    model = model or ("logistic" if classes else "ridge")
    if (model == "logistic") != classes and model != "mlp":
        needs = "numbers" if classes else "classes"
        other = "logistic" if classes else "ridge"
        raise InputError(
            f"--model {model} is for a target of {needs}. Pass --model {other} or mlp, or --task."
        )
    preparation = preparation_for(X)
    if model == "mlp":
        # Of two layers that share the scale of the target, the decay goes with that scale.
        decay = _DECAY if classes else float(f"{_DECAY * (y.std() or 1.0):.3g}")
        network = (MLPClassifier if classes else MLPRegressor)(
            hidden_layer_sizes=(32,),
            activation="tanh",
            solver="lbfgs",
            alpha=decay,
            tol=1e-8,
            max_iter=5000,
            random_state=random_state,
        )
        # Nothing but these holds an MLP's intercepts: without them effects have no size.
        held = {"parameters": ["*.weight", "1.bias"], "random_state": random_state}
        pipeline = make_pipeline(preparation, network)
        return InfluenceEstimator(pipeline, **held), f"network of 32 units, weight decay {decay:g}"
    rows = _some(y, classes, random_state)
    choose = _logistic if classes else _ridge
    return choose(preparation, X.iloc[rows], y.iloc[rows])


def _logistic(preparation, X, y):
    """Return a logistic regression with the C of least leave-one-out log loss."""
    width = preparation.fit_transform(X).shape[1]
    n_parameters = width * max(1, y.nunique())
    solver = "newton-cholesky" if n_parameters <= _MOST_PARAMETERS else "lbfgs"
    losses = {}
    for strength in _STRENGTHS:
        model = LogisticRegression(C=strength, solver=solver, max_iter=2000)
        influence = InfluenceEstimator(make_pipeline(clone(preparation), model))
        losses[strength] = influence.fit(X, y).loo_loss_.mean()
    best = min(losses, key=losses.get)
    model = LogisticRegression(C=best, solver=solver, max_iter=2000)
    name = f"logistic regression, C = {best:g}"
    return InfluenceEstimator(make_pipeline(preparation, model)), name


def _ridge(preparation, X, y):
    """Return a ridge regression with the penalty of least leave-one-out error."""
    pipeline = make_pipeline(clone(preparation), Ridge())
    alpha = float(f"{InfluenceEstimator(pipeline, ridge='loo').fit(X, y).ridge_:.3g}")
    pipeline = make_pipeline(preparation, Ridge(alpha=alpha))
    return InfluenceEstimator(pipeline), f"ridge regression, alpha = {alpha:g}"


def _some(y, classes, random_state):
    """Return positions of about `_ROWS_TO_CHOOSE` rows in their order, two or more a class."""
    n = len(y)
    if n <= _ROWS_TO_CHOOSE:
        return np.arange(n)
    generator = np.random.default_rng(random_state)
    rows = generator.choice(n, _ROWS_TO_CHOOSE, replace=False)
    if classes:
        labels = y.to_numpy()
        first = [np.flatnonzero(labels == label)[:2] for label in np.unique(labels)]
        rows = np.concatenate([rows, *first])
    return np.unique(rows)
