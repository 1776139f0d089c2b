"""The members of an `InfluenceEnsemble`: how they are made, scored and asked."""

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone, is_classifier
from sklearn.ensemble._base import _set_random_states
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params, _num_samples, check_consistent_length

from ._fitting import fit_model, stage
from .exceptions import InfluenceWarning, UnsupportedOptionError
from .models import (
    NetworkModel,
    NetworkVariant,
    TorchModel,
    check_supported,
    final_estimator,
    is_frozen,
    trained_at_random,
    with_fixed_masks,
)
from .objectives import as_objective


@dataclass(frozen=True)
class Member:
    """One model of an ensemble, without its factorization.

    Attributes
    ----------
    influence : InfluenceEstimator
        Not fitted, around the fitted model.
    rows : (n,) array of int or None
        Positions of the training rows that the model was fitted on, sorted, as often as each was
        drawn. None: all of them, once.
    """

    influence: object
    rows: np.ndarray | None

    @property
    def model(self):
        """The fitted model."""
        return self.influence.estimator

    def queries(self, X):
        """Return query rows as the model takes them: a precomputed kernel without other rows."""
        return _queries_of(self.influence, self.rows, X)

    def ask(self, question, X, y, X_query, y_query, fit_params):
        """Return the answer of this member, factorised anew, to a question about queries.

        Parameters
        ----------
        question : callable
            ``question(influence, X_query, y_query)`` of the fitted `InfluenceEstimator`.
        X, y, X_query, y_query : array-like
            All training rows, and the queries.
        fit_params : dict
            Of `InfluenceEstimator.fit`.
        """
        influence = copy.copy(self.influence)
        X_val, y_val = _averaged_over(influence, self.rows, X, y, None, None)
        X, y, fit_params = _part_of(influence, self.rows, X, y, fit_params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InfluenceWarning)  # the ensemble's fit has warned
            influence.fit(X, y, X_val=X_val, y_val=y_val, **fit_params)
        return question(influence, self.queries(X_query), y_query)


class Scored(NamedTuple):
    """A member and its scores.

    Attributes
    ----------
    member : Member
    self_influence, influence : (n,) array
        Of the rows that it was fitted on. The latter is None where the objective has labels of
        other rows than those that it would be averaged over.
    classes : (n_classes,) array or None
    conversion : object
        From the caller's rows to those of the model.
    """

    member: Member
    self_influence: np.ndarray
    influence: np.ndarray
    classes: np.ndarray | None
    conversion: object


def fit_members(ensemble, X, y, X_val, y_val, fit_params):
    """Return the `Scored` members of an ensemble.

    Parameters
    ----------
    ensemble : InfluenceEnsemble
        Its parameters are read; nothing is set on it.
    X, y, X_val, y_val : array-like
        As its ``fit`` takes them.
    fit_params : dict
        Of `InfluenceEstimator.fit`.
    """
    estimator = ensemble.estimator
    inner_params = estimator._check_fit(X_val, y_val, fit_params)
    check_supported(estimator.estimator)
    if y is None:
        raise ValueError("InfluenceEnsemble requires y to be passed, but the target y is None.")
    generator = check_random_state(ensemble.random_state)
    seeds = generator.randint(np.iinfo(np.int32).max, size=ensemble.n_estimators)
    rows = [None] * ensemble.n_estimators
    if ensemble.kind in ("seed", "bootstrap"):
        _check_trainable(estimator.estimator, ensemble.kind)
        models = [clone(estimator) for _ in seeds]
        if ensemble.kind == "bootstrap":
            check_consistent_length(X, y)
            rows = balanced_draws(_strata(estimator, X, y), ensemble.n_estimators, generator)
    else:
        make = _masked if ensemble.kind == "dropout" else _recorded
        models = make(ensemble, X, y, inner_params, seeds)
    data = X, y, X_val, y_val, fit_params
    progress = ensemble._init_callback_context(max_subtasks=len(models))
    progress.call_on_fit_task_begin(estimator=ensemble)
    fits = Parallel(n_jobs=ensemble.n_jobs, return_as="generator")(
        delayed(_fit_member)(influence, drawn, seed, *data)
        for influence, drawn, seed in zip(models, rows, seeds, strict=False)
    )
    members = []
    for _ in models:
        with stage(progress, ensemble, "fit a member"):
            members.append(next(fits))
    progress.call_on_fit_task_end(estimator=ensemble)
    if ensemble.kind == "seed":
        _check_different(members)
    return members


def _fit_member(influence, rows, seed, X, y, X_val, y_val, fit_params):
    """Return a `Scored` member, whose factorization is gone when this returns."""
    influence = copy.copy(influence)
    X_val, y_val = _averaged_over(influence, rows, X, y, X_val, y_val)
    X, y, fit_params = _part_of(influence, rows, X, y, fit_params)
    _set_random_states(influence, int(seed))
    with _seeded_torch(int(seed)):
        influence.fit(X, y, X_val=X_val, y_val=y_val, **fit_params)
    fitted = influence.estimator_
    fitted = fitted if isinstance(fitted, FrozenEstimator) else FrozenEstimator(fitted)
    return Scored(
        Member(_around(influence, fitted, influence._damping), rows),
        influence.self_influence_,
        getattr(influence, "influence_", None),
        getattr(influence, "classes_", None),
        influence._conversion,
    )


def _around(estimator, fitted, damping):
    """Return an unfitted `InfluenceEstimator` like another, around a fitted model.

    The model has the ridge that it was fitted with, unless ``damping`` is to replace it.
    """
    ridge = "model" if damping is None else damping
    return clone(estimator).set_params(estimator=fitted, ridge=ridge)


@contextmanager
def _seeded_torch(seed):
    """Seed torch's generators for a while."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


# Other starts, other rows ----------------------------------------------------------------------


def _check_trainable(estimator, kind):
    """Raise unless an estimator can be fitted again, and differently."""
    final = final_estimator(estimator)
    name = type(final).__name__
    if isinstance(final, TorchModel) or is_frozen(estimator):
        reason = "is trained by its owner" if isinstance(final, TorchModel) else "is frozen"
        raise UnsupportedOptionError(
            f"kind={kind!r} fits the model again for each member, and this {name} {reason}. Wrap "
            "a model that can be fitted (a net of skorch for a torch module), or use "
            "kind='dropout', or kind='checkpoint' with checkpoints of its training."
        )
    if kind == "seed" and not trained_at_random(final):
        raise UnsupportedOptionError(
            f"kind='seed' is for networks, whose training ends elsewhere for another seed. The "
            f"fit of {name} has one optimum whatever the seed, so that all members would be the "
            "same. Use kind='bootstrap'."
        )


def _check_different(members):
    """Raise if several seeds made one and the same model."""
    first, *others = (scored.self_influence for scored in members)
    if others and all(np.array_equal(first, other) for other in others):
        name = type(final_estimator(members[0].member.model)).__name__
        raise ValueError(
            f"All {len(members)} members of kind='seed' came out the same, so that the training "
            f"of {name} does not depend on the seed. Give a net the class of its module and not a "
            "module that has its parameters already, or use kind='bootstrap' or 'dropout'."
        )


def _strata(estimator, X, y):
    """Return positions of the rows of each class; of a regression, of all rows."""
    n = _num_samples(X)
    if not is_classifier(estimator):
        return [np.arange(n)]
    labels = np.asarray(y)
    if labels.size == n:
        labels = labels.ravel()
    _, codes = np.unique(labels, return_inverse=True, axis=0 if labels.ndim > 1 else None)
    return [np.flatnonzero(codes.ravel() == code) for code in range(codes.max() + 1)]


def balanced_draws(strata, n_members, generator):
    """Return positions (n,), sorted, for each member of a balanced bootstrap.

    As many copies of the rows as there are members are shuffled and dealt out: over all members
    each row is drawn equally often, and each of the strata has its size in all of them.
    """
    dealt = [
        generator.permutation(np.tile(rows, n_members)).reshape(n_members, -1) for rows in strata
    ]
    return list(np.sort(np.hstack(dealt), axis=1))


def _part_of(influence, rows, X, y, fit_params):
    """Return the rows, targets and fit parameters of a member with some rows."""
    if rows is None:
        return X, y, fit_params
    X, y = indexable(X, y)
    fit_params = _check_method_params(X, fit_params, rows)
    return *_safe_split(influence, X, y, rows), fit_params


def _queries_of(influence, rows, X):
    """Return query rows for a member with some rows."""
    if rows is None or X is None or not get_tags(influence).input_tags.pairwise:
        return X
    return _safe_indexing(X, rows, axis=1)


def _averaged_over(influence, rows, X, y, X_val, y_val):
    """Return the queries and targets that ``influence_`` of a member is to be about.

    An aggregate may hold something for each training row, in the order of all of them.
    """
    if rows is None or X_val is not None or as_objective(influence.objective).aggregate is False:
        return _queries_of(influence, rows, X_val), y_val
    return _queries_of(influence, rows, X), y


def to_all_rows(scores, rows, n_rows):
    """Return scores of a member (..., n_rows) for all rows, and which rows it has, (n_rows,).

    The score of a row is the mean of those of its copies, 0 where there are none.
    """
    if rows is None:
        return scores, np.ones(n_rows, dtype=bool)
    present, first, counts = np.unique(rows, return_index=True, return_counts=True)
    result = np.zeros((*scores.shape[:-1], n_rows))
    result[..., present] = np.add.reduceat(scores, first, axis=-1) / counts
    return result, np.isin(np.arange(n_rows), present)


# Other states of one network -------------------------------------------------------------------


def _fitted_network(ensemble, X, y, fit_params):
    """Return the `FittedModel` whose network all members share."""
    fitted = fit_model(ensemble.estimator, X, y, fit_params)
    if not isinstance(fitted.model, NetworkModel):
        raise UnsupportedOptionError(
            f"kind={ensemble.kind!r} is for networks, and {type(fitted.model.estimator).__name__} "
            "is none. Use kind='bootstrap'."
        )
    return fitted


def _masked(ensemble, X, y, fit_params, seeds):
    """Return an unfitted `InfluenceEstimator` for each seed of masks."""
    fitted = _fitted_network(ensemble, X, y, fit_params)
    module, inputs = fitted.model.with_dropout(ensemble.dropout_rate), fitted.model.inputs(X)
    return [
        _around(
            ensemble.estimator,
            NetworkVariant(fitted.estimator, with_fixed_masks(module, inputs, int(seed))),
            fitted.damping,
        )
        for seed in seeds
    ]


def _recorded(ensemble, X, y, fit_params, seeds):
    """Return an unfitted `InfluenceEstimator` for each of the last checkpoints."""
    from .models._checkpoints import as_checkpoints, own_checkpoints

    given = ensemble.estimator.checkpoints
    fitted = _fitted_network(ensemble, X, y, fit_params)
    points = own_checkpoints(fitted.model) if given is True else None
    if not isinstance(given, bool):
        points = as_checkpoints(given)
    if points is None:
        raise UnsupportedOptionError(
            "kind='checkpoint' takes its members from checkpoints of a training, and "
            f"{type(fitted.model.estimator).__name__} comes with none (checkpoints={given!r}). Put "
            "a CheckpointRecorder among the callbacks of a skorch net, or give checkpoints to "
            "TorchModel or, with curvature='identity', to InfluenceEstimator."
        )
    scores = ensemble.estimator.curvature == "identity"
    members = []
    for point in points[-len(seeds) :]:
        variant = NetworkVariant(fitted.estimator, point.module(fitted.model.module))
        member = _around(ensemble.estimator, variant, fitted.damping)
        members.append(member.set_params(checkpoints=False) if scores else member)
    return members
