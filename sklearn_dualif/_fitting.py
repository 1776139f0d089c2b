"""What `InfluenceEstimator.fit` does, step by step."""

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_consistent_length

from .exceptions import UnsupportedOptionError
from .influence import build_engine, build_problem, build_scores, leave_one_out_ridge
from .linalg import parse_bytes
from .losses import HalfSquaredError
from .models import (
    NetworkModel,
    as_model_function,
    check_supported,
    conversion_of,
    final_estimator,
    final_fit_params,
    is_frozen,
    mean_loss_weight,
    ridge_parameters,
    tunable_estimator,
)
from .objectives import TrainingLoss, resolve_objective

# Forms whose diagnostics cost more than their fit: computed when they are asked for.
_LAZY = ("iterative", "kfac", "identity")


def fit_influence(influence, X, y, X_val, y_val, fit_params):
    """Fit the wrapped model, factorize its curvature and set all fitted attributes.

    Parameters
    ----------
    influence : InfluenceEstimator
        Attributes are set on it last, all together.
    X, y, X_val, y_val : array-like
        Training and validation rows; the latter may be None.
    fit_params : dict
        For the wrapped model's ``fit``.
    """
    started = time.perf_counter()
    parse_bytes(influence.memory_limit)
    check_supported(influence.estimator)
    if _num_samples(X) < 2:
        raise ValueError(
            "InfluenceEstimator needs at least 2 rows and got one row (n_samples = 1): removing "
            "it leaves no model."
        )
    progress = influence._init_callback_context(max_subtasks=len(_STAGES))
    progress.call_on_fit_task_begin(estimator=influence)
    torch_state = torch.get_rng_state()
    with stage(progress, influence, _STAGES[0]):
        fitted = fit_model(influence, X, y, fit_params)
    with stage(progress, influence, _STAGES[1]):
        if influence.curvature == "identity":
            engine = _build_scores(influence, X, y, fitted)
        else:
            engine = _build_effects(influence, X, y, fitted)
    with stage(progress, influence, _STAGES[2]):
        model = engine.model
        objective = resolve_objective(influence.objective, model)
        values = _attributes(engine)
        diagnostics = Diagnostics(engine, objective, X, y)
        if X_val is not None:
            diagnostics.average_over(X_val, y_val)
            diagnostics.held_out = True
        if engine.form not in _LAZY:
            diagnostics.compute()
    for name, value in values.items():
        setattr(influence, name, value)
    influence.estimator_ = fitted.estimator
    influence._conversion = fitted.conversion
    influence._damping = fitted.damping
    influence._engine = engine
    influence._diagnostics = diagnostics
    influence._sample_weight = fitted.weights
    influence._train_index = X.index.copy() if hasattr(X, "iloc") else None
    # What a refit without some rows starts from; references, not copies.
    influence._X_train, influence._y_train, influence._fit_params = X, y, dict(fit_params)
    influence._torch_state = torch_state
    for name in ("classes_", "n_features_in_", "feature_names_in_"):
        if hasattr(fitted.estimator, name):
            setattr(influence, name, getattr(fitted.estimator, name))
        elif hasattr(influence, name):
            delattr(influence, name)
    if model.targets.classes is not None:
        influence.classes_ = model.targets.classes
    progress.call_on_fit_task_end(estimator=influence)
    if influence.verbose:
        info = engine.solver_info
        parts = [
            f"{type(model.estimator).__name__}: {engine.form} form",
            f"{len(fitted.weights)} rows",
        ]
        if engine.gives_effects:
            parts += [
                f"{info.get('size', engine.curvature.width)} coordinates",
                f"ridge {influence.ridge_}",
                f"effective dimension {influence.effective_dimension_:.4g}",
            ]
        _print(", ".join([*parts, f"{time.perf_counter() - started:.2f} s"]))


def _print(line):
    print(f"[InfluenceEstimator] {line}")


def _build_effects(influence, X, y, fitted):
    """Return the `InfluenceEngine` of a fitted model."""
    problem, damping = build_problem(
        fitted.model,
        X,
        y,
        fitted.weights,
        influence.solver,
        parse_bytes(influence.memory_limit),
        fitted.damping,
        fisher=influence.curvature == "empirical_fisher",
        kfac=influence.curvature == "kfac",
        tol=influence.tol,
        random_state=influence.random_state,
        sketch=influence.sketch,
        report=_print if influence.verbose else None,
    )
    return build_engine(
        problem,
        damping,
        order=influence.order,
        batch_size=influence.batch_size,
        frozen=is_frozen(influence.estimator),
    )


def _build_scores(influence, X, y, fitted):
    """Return the `InnerProductEngine` of a fitted model."""
    if fitted.damping is not None:
        raise UnsupportedOptionError(
            f"ridge={influence.ridge!r} would damp the curvature of "
            f"{type(fitted.model.estimator).__name__}, and curvature='identity' has none. Use "
            "ridge='model'."
        )
    checkpoints = None
    if isinstance(fitted.model, NetworkModel):
        from .models._checkpoints import as_checkpoints, own_checkpoints

        if influence.checkpoints is True:
            checkpoints = own_checkpoints(fitted.model)
        elif influence.checkpoints is not False:
            checkpoints = as_checkpoints(influence.checkpoints)
    elif not isinstance(influence.checkpoints, bool):
        raise UnsupportedOptionError(
            f"checkpoints={influence.checkpoints!r} are of networks; leave checkpoints=True for "
            f"{type(fitted.model.estimator).__name__}."
        )
    return build_scores(
        fitted.model,
        X,
        y,
        fitted.weights,
        checkpoints=checkpoints,
        normalize=influence.normalize,
    )


class FittedModel(NamedTuple):
    """A wrapped model as fitted, and what it computes.

    Attributes
    ----------
    estimator : estimator
        The fitted clone.
    model : ModelFunction
        Ready for rows like the training rows.
    weights : (n,) array
        Sample weights that it was fitted with.
    conversion : object
        From the caller's rows and targets to the estimator's.
    damping : float or None
        Ridge that replaces the model's own in the curvature.
    """

    estimator: object
    model: object
    weights: np.ndarray
    conversion: object
    damping: float | None


def fit_model(influence, X, y, fit_params):
    """Fit the wrapped model of an InfluenceEstimator; nothing is set on it."""
    conversion = conversion_of(influence.estimator, X, y)
    rows, given = conversion.rows(X), conversion.targets(y)
    frozen = is_frozen(influence.estimator)
    fitted, damping = _fit_wrapped(influence, rows, given, fit_params, frozen)
    own = final_fit_params(fitted, fit_params)
    model = as_model_function(fitted)
    weights = _sample_weight(own, X, y)
    times = model.times_trained(rows, given)
    weights = weights if times is None else weights * times
    model = model.prepared(X, **_network_options(influence, model))
    targets = conversion.labelled(model.targets)
    model = replace(model, targets=targets.freeze(np.asarray(y), weights))
    return FittedModel(fitted, model, weights, conversion, damping)


def _network_options(influence, model):
    """Return the options that only networks have; raise if another model was given one."""
    options = {name: getattr(influence, name) for name in ("parameters", "dtype", "device")}
    if isinstance(model, NetworkModel):
        return options
    if influence.curvature == "kfac":
        raise UnsupportedOptionError(
            "curvature='kfac' is for networks, whose layers it takes one by one; for "
            f"{type(model.estimator).__name__} use curvature='gauss_newton', which is exact."
        )
    for name, default in (("parameters", None), ("dtype", "float64"), ("device", None)):
        if options[name] != default:
            raise UnsupportedOptionError(
                f"{name}={options[name]!r} is for networks; leave {name}={default!r} for "
                f"{type(model.estimator).__name__}."
            )
    return {}


_STAGES = ("fit the wrapped model", "remove every row", "average over the objective")


@contextmanager
def stage(progress, estimator, name):
    """Report a part of a fit to scikit-learn's callbacks."""
    task = progress.subcontext(task_name=name)
    task.call_on_fit_task_begin(estimator=estimator)
    yield
    task.call_on_fit_task_end(estimator=estimator)


def _fit_wrapped(influence, X, y, fit_params, frozen):
    """Return the fitted clone and the damping that replaces its penalty in the curvature."""
    estimator = clone(influence.estimator)
    ridge = influence.ridge
    if ridge == "loo":
        return _fit_with_best_ridge(influence, estimator, X, y, fit_params, frozen), None
    damping = None
    if ridge != "model":
        target = tunable_estimator(estimator)
        total = _total_weight(estimator, X, y, fit_params)
        parameters = None
        if not frozen:
            parameters = ridge_parameters(target, float(ridge), _num_samples(X), total)
        if parameters is None:
            damping = float(ridge)
        else:
            target.set_params(**parameters)
    return estimator.fit(X, y, **fit_params), damping


def _total_weight(estimator, X, y, fit_params):
    weight = final_fit_params(estimator, fit_params).get("sample_weight")
    total = float(_num_samples(X))
    if weight is not None:
        total = float(np.sum(weight)) if np.ndim(weight) else float(weight) * total
    return mean_loss_weight(final_estimator(estimator), X, y, total)


def _fit_with_best_ridge(influence, estimator, X, y, fit_params, frozen):
    """Return the estimator fitted with the ridge of least leave-one-out loss."""
    final = tunable_estimator(estimator)
    name = type(final_estimator(final)).__name__ if frozen else type(final).__name__
    remedy = (
        "Use GridSearchCV(InfluenceEstimator(...), {'ridge': [...]}) to choose a ridge by "
        "cross-validation."
    )
    if frozen:
        raise UnsupportedOptionError(f"ridge='loo' cannot refit a frozen {name}. {remedy}")
    try:
        neutral = None if frozen else ridge_parameters(final, 1.0, 1, 1.0)
    except UnsupportedOptionError:
        raise UnsupportedOptionError(
            f"ridge='loo' cannot be set on {name}, which chooses its own penalty. Wrap the plain "
            f"estimator. {remedy}"
        ) from None
    if neutral is None:
        raise UnsupportedOptionError(
            f"ridge='loo' cannot be set on {name}, which has no penalty. Wrap Ridge instead."
        )
    final.set_params(**neutral)  # one ridge, where the model was given one for each target
    estimator.fit(X, y, **fit_params)
    model = as_model_function(estimator)
    network = isinstance(model, NetworkModel)
    if (
        network
        or not isinstance(model.loss, HalfSquaredError)
        or model.penalty.scales_with != "nothing"
    ):
        raise UnsupportedOptionError(
            f"ridge='loo' needs a squared loss, for which one decomposition serves every ridge; "
            f"{name} has another objective. {remedy}"
        )
    own = final_fit_params(estimator, fit_params)
    weights = _sample_weight(own, X, y)
    model = replace(model, targets=model.targets.freeze(np.asarray(y), weights))
    memory_limit = parse_bytes(influence.memory_limit)
    problem, _ = build_problem(model, X, y, weights, influence.solver, memory_limit, 1.0)
    best = leave_one_out_ridge(problem)
    final = final_estimator(estimator)
    final.set_params(**ridge_parameters(final, best, len(weights), float(weights.sum())))
    final.fit(model.transform(X), y, **own)
    return estimator


def _sample_weight(own, X, y):
    """Return the sample weights (n,) that the final estimator was fitted with."""
    n = _num_samples(X)
    check_consistent_length(np.empty(n), y)
    weight = own.get("sample_weight")
    return _check_sample_weight(
        weight, np.empty((n, 1)), dtype=np.float64, ensure_non_negative=True
    )


class Diagnostics:
    """What the single removals of the training rows say; computed when first asked for.

    Parameters
    ----------
    engine : InfluenceEngine
    objective : BoundObjective
        Of ``influence_``.
    X, y : array-like
        The training rows, over which it is where `average_over` is not called.

    Attributes
    ----------
    held_out : bool
        Whether ``influence_`` is about validation rows.
    """

    held_out = False

    def __init__(self, engine, objective, X, y):
        self._engine = engine
        self._objective = objective
        self._training = X, y
        self._values = {}

    @property
    def lacks_rows(self):
        """Whether the objective has labels of other rows than those that there are."""
        n_rows = self._objective.n_rows
        known = n_rows in (None, self._engine.problem.features.shape[0])
        return not known and "influence_" not in self._values

    def average_over(self, X, y):
        """Let ``influence_`` be about the mean objective over these rows."""
        engine, objective = self._engine, self._objective
        features, targets = objective.queries(X, y)
        average = engine.mean_influence(features, targets, objective, engine.order)
        self._values["influence_"] = average.numpy()

    def _average_over_training_rows(self):
        engine, objective = self._engine, self._objective
        if objective.moves_rows:
            self.average_over(*self._training)
            return
        objective.prepare(engine.problem.features, engine.problem.y)
        self._values["influence_"] = engine.training_influence(objective).numpy()

    def compute(self):
        """Return the fitted attributes by name."""
        engine, model = self._engine, self._engine.model
        if "self_influence_" not in self._values:
            own = engine.self_influence(TrainingLoss(model)).numpy()
            self._values["self_influence_"] = own
        if engine.gives_effects and "leverage_" not in self._values:
            leverage = engine.leverage().numpy()
            self._values |= {
                "leverage_": leverage,
                "effective_dimension_": float(leverage.sum()),
                "loo_loss_": model.loss.value(engine.problem.y, engine.loo_outputs()).numpy(),
            }
        if "influence_" not in self._values and not self.lacks_rows:
            self._average_over_training_rows()
        return self._values


def _attributes(engine):
    """Return the other fitted attributes by name."""
    model, problem = engine.model, engine.problem
    ridge = engine.ridge.numpy()
    names = model.parameter_names(problem.features.shape[0])
    return {
        "stationarity_": engine.stationarity,
        "relative_move_": model.relative_move if isinstance(model, NetworkModel) else None,
        "solver_": engine.form,
        "solver_info_": engine.solver_info,
        "sketch_info_": engine.sketch_info,
        "ridge_": float(ridge[0]) if np.ptp(ridge) == 0 else ridge.copy(),
        "n_outputs_": model.n_outputs,
        "n_parameters_": len(names),
        "parameter_names_": names,
    }
