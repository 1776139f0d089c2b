"""Influence averaged over several models, with how far they agree."""

from numbers import Integral, Real

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    _fit_context,
    is_classifier,
)
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ._delegation import tags_like
from ._estimator import InfluenceEstimator

_KINDS = ("seed", "bootstrap", "dropout", "checkpoint")


def _gives(method):
    """Check that predictions of the wrapped classifier are averages of a method's values."""

    def check(self):
        first = "predict_proba" if hasattr(self.estimator, "predict_proba") else "decision_function"
        return is_classifier(self.estimator) and method == first and hasattr(self.estimator, first)

    return check


class InfluenceEnsemble(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Influence averaged over several models of the same data.

    What a training row does to a network depends on where its training happened to start, and
    so does its score. The mean over several trainings holds less of that, and the spread tells
    how much of it there is.

    Parameters
    ----------
    estimator : InfluenceEstimator
        What is fitted for each member, with any curvature. Cloned, never changed.
    n_estimators : int, default=5
        Number of members.
    kind : {"seed", "bootstrap", "dropout", "checkpoint"}, default="seed"
        How the members differ.

        - "seed": a network is trained from several seeds.
        - "bootstrap": the model is fitted on rows drawn with replacement, by a balanced bootstrap
          [1]_: over all members each row is drawn ``n_estimators`` times, in each member each
          class as often as it has rows.
        - "dropout": one fitted network, with as many masks on its units. The dropout layers of a
          module drop the same units whatever the row, at their own rates; what is kept is divided
          by one less the rate. Nothing is trained again.
        - "checkpoint": one network at the last ``n_estimators`` of the checkpoints of its
          training (all of them where there are fewer), each a model of its own: from a
          `CheckpointRecorder` among the callbacks of a skorch net, from a `TorchModel`, or from
          ``checkpoints`` of ``estimator``. Learning rates are not used.
    dropout_rate : float, default=0.1
        With ``kind="dropout"``, for the hidden units of MLPClassifier and MLPRegressor, which have
        no dropout of their own.
    n_jobs : int or None, default=None
        Members fitted at a time, through joblib. Nets of skorch need processes, its default:
        threads share torch's random generator.
    random_state : int, RandomState instance or None, default=None
        Draws seeds, rows and masks. With the kinds "seed" and "bootstrap" every ``random_state``
        inside of ``estimator`` is set from it, and torch's generator during each fit. The one
        network of the other kinds is fitted with its own; what is set is the ``random_state`` of
        the `InfluenceEstimator` and of its sketch.

    Attributes
    ----------
    influence_ : (n_train,) array
        Mean over members of their ``influence_``: for each training row the effect of its removal
        (or its score) on the mean objective over ``X_val, y_val``, or without them over the
        rows that the member was fitted on (all training rows for an aggregate objective). Not
        there where the objective has labels of other rows.
    influence_std_ : (n_train,) array
        Standard deviation over the members.
    self_influence_, self_influence_std_ : (n_train,) array
        The same of the effect on the row's own loss.
    estimators_ : list of estimator
        Fitted wrapped model of each member, in a `FrozenEstimator`.
    estimators_samples_ : list of (n_train,) array, or None
        With ``kind="bootstrap"``: positions of the rows of each member, as often as drawn.
    scales_ : (n_members,) array
        What the scores of each member are multiplied by.
    classes_ : (n_classes,) array
        For classifiers.
    n_features_in_ : int
        Features seen by `fit`, where the wrapped model knows them.
    feature_names_in_ : array of str
        Their names, where X has them.

    See Also
    --------
    InfluenceEstimator : One member.

    Notes
    -----
    Effects of removal have the units of the objective in each member, and their plain mean is
    taken: ``scales_`` are 1. Scores with ``curvature="identity"`` are inner products of gradients,
    whose size differs from member to member. With :math:`q_k` the mean self-influence (mean square
    of a gradient) over the rows of member :math:`k`, its scores are multiplied by
    :math:`\tfrac{1}{K} \sum_j q_j / q_k`, which keeps the units of the mean member. Cosines
    (``normalize=True``) are all on one scale.

    A row that a bootstrap member has not drawn has no score there, and its mean and its spread are
    over the members that have it (of a single one, the spread is 0). The score of a row drawn
    several times is that of one of its copies.

    Only the fitted models are kept, and one factorization is held at a time (one in each process
    during `fit`): `influence`, `transform` and `removal_effect` factorise each member anew. The
    objects passed to `fit` are kept by reference, and are part of a pickle.

    For the objective "prediction" with several classes each member answers for the class that it
    predicts itself; "margin" holds a class.

    References
    ----------
    .. [1] A. C. Davison, D. V. Hinkley and E. Schechtman, "Efficient bootstrap simulation",
       Biometrika 73, 1986.
    .. [2] Z. Yang, H. Yue, J. Chen and H. Liu, "Revisit, Extend, and Enhance Hessian-Free Influence
       Functions", TMLR 2026, arXiv:2405.17490.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEnsemble, InfluenceEstimator
    >>> X, y = load_iris(return_X_y=True)
    >>> y[7] = 2  # a mistake
    >>> influence = InfluenceEstimator(LogisticRegression(max_iter=1000))
    >>> ensemble = InfluenceEnsemble(influence, kind="bootstrap", random_state=0).fit(X, y)
    >>> int(ensemble.self_influence_.argmax())
    7
    >>> ensemble.influence(X[:2], y[:2]).shape
    (2, 150)
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit"])],
        "n_estimators": "no_validation",
        "kind": "no_validation",
        "dropout_rate": [Interval(Real, 0, 1, closed="neither")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator,
        n_estimators=5,
        kind="seed",
        *,
        dropout_rate=0.1,
        n_jobs=None,
        random_state=None,
    ):
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.kind = kind
        self.dropout_rate = dropout_rate
        self.n_jobs = n_jobs
        self.random_state = random_state

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, *, X_val=None, y_val=None, **fit_params):
        """Fit the members and average their scores of the training rows.

        Parameters
        ----------
        X : array-like, sparse matrix or whatever the wrapped model takes, (n_train, n_features)
            Training rows.
        y : array-like, (n_train,) or (n_train, n_outputs)
            Their targets.
        X_val, y_val : array-like, optional
            Rows over which ``influence_`` is averaged.
        **fit_params : dict
            Passed to the ``fit`` of each `InfluenceEstimator`. What has one value a row, such as
            ``sample_weight``, goes with the rows of a bootstrap.

        Returns
        -------
        self : InfluenceEnsemble

        Raises
        ------
        TypeError
            If ``estimator`` is no `InfluenceEstimator`, or wraps a model that is not supported.
        ValueError
            If ``n_estimators`` or ``kind`` are not allowed, or the wrapped model has no members of
            this kind: no randomness in its fit, no dropout, no checkpoints, or is frozen where it
            would have to be fitted again.
        """
        from ._members import fit_members, to_all_rows

        self._check()
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        scored = fit_members(self, X, y, X_val, y_val, fit_params)
        n = len(scored[0].self_influence)
        self._members = [each.member for each in scored]
        self._conversion = scored[0].conversion
        self._X_train, self._y_train, self._fit_params = X, y, dict(fit_params)
        self._multilabel = is_classifier(self) and np.asarray(y).size > n
        self.scales_ = self._scales(np.array([each.self_influence.mean() for each in scored]))
        for name in ("influence", "self_influence"):
            vars(self).pop(f"{name}_", None)
            vars(self).pop(f"{name}_std_", None)
            if getattr(scored[0], name) is None:
                continue
            values, known = zip(
                *(to_all_rows(getattr(each, name), each.member.rows, n) for each in scored),
                strict=True,
            )
            mean, spread = _mean_and_spread(self.scales_[:, None] * values, np.array(known))
            setattr(self, f"{name}_", mean)
            setattr(self, f"{name}_std_", spread)
        self.estimators_ = [member.model for member in self._members]
        rows = [member.rows for member in self._members]
        self.estimators_samples_ = rows if self.kind == "bootstrap" else None
        model = self.estimators_[0]
        seen = {"classes_": scored[0].classes} | {
            name: getattr(model, name, None) for name in ("n_features_in_", "feature_names_in_")
        }
        for name, value in seen.items():
            vars(self).pop(name, None)
            if value is not None:
                setattr(self, name, value)
        return self

    def _check(self):
        if not isinstance(self.estimator, InfluenceEstimator):
            raise TypeError(
                "InfluenceEnsemble needs an InfluenceEstimator; got "
                f"{type(self.estimator).__name__}. Wrap the model in one: "
                "InfluenceEnsemble(InfluenceEstimator(model))."
            )
        n = self.n_estimators
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise ValueError(
                f"n_estimators={n!r} must be a whole number of at least 1: an ensemble without "
                "members has no scores. A handful is enough."
            )
        if self.kind not in _KINDS:
            raise ValueError(
                f"kind={self.kind!r} is not known. Choose 'seed', 'bootstrap', 'dropout' or "
                "'checkpoint'."
            )

    def _scales(self, squares):
        """Return what scores of members with these mean squares of gradients are multiplied by."""
        if self.estimator.curvature != "identity" or self.estimator.normalize:
            return np.ones(len(squares))
        return np.divide(squares.mean(), squares, out=np.ones(len(squares)), where=squares > 0)

    # Scores ------------------------------------------------------------------------------------

    def influence(self, X, y=None, *, objective=None, order=None):
        """Return the mean effect of removing each training row on each query's objective.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.
        y : array-like, (n_queries,) or (n_queries, n_outputs), optional
            Their targets, for the objectives "loss" and "margin".
        objective : str, Objective or callable, optional
            Instead of the objective of ``estimator``.
        order : str, optional
            Instead of the order of ``estimator``.

        Returns
        -------
        (n_queries, n_train) array
            (1, n_train) for an aggregate objective.
        """
        from ._members import to_all_rows

        check_is_fitted(self)
        total, times = 0.0, 0
        for member, scale in zip(self._members, self.scales_, strict=True):
            scores = self._ask(
                member,
                lambda influence, X, y: influence.influence(X, y, objective=objective, order=order),
                X,
                y,
            )
            scores, known = to_all_rows(scores, member.rows, self._n_features_out)
            total, times = total + scale * scores, times + known
        return total / times

    def transform(self, X):
        """Return the mean effect of removing each training row on each query's prediction.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.

        Returns
        -------
        (n_queries, n_train) array
            `influence` with ``objective="prediction"``.
        """
        return self.influence(X, objective="prediction")

    def removal_effect(self, indices, X=None, y=None, *, objective=None, order=None):
        """Return the mean effect of removing training rows together on each query's objective.

        Parameters
        ----------
        indices : array-like of int, slice, or boolean mask (n_train,)
            Positions of the rows, in the order of the X passed to `fit`.
        X, y : array-like, optional
            Query rows and targets; none: the training rows.
        objective : str, Objective or callable, optional
            Instead of the objective of ``estimator``.
        order : str, optional
            Instead of the order of ``estimator``.

        Returns
        -------
        (n_queries,) array

        Raises
        ------
        UnsupportedOptionError
            A `ValueError`, with ``curvature="identity"``, which has no effects, and with
            ``kind="bootstrap"``, whose members lack some of the rows.
        """
        from .exceptions import UnsupportedOptionError

        check_is_fitted(self)
        if self.estimators_samples_ is not None:
            raise UnsupportedOptionError(
                "removal_effect removes rows together, and members of kind='bootstrap' lack some "
                "of the rows and have others several times. Use another kind, or influence for "
                "single rows."
            )
        effects = [
            self._ask(
                member,
                lambda influence, X, y: influence.removal_effect(
                    indices, X, y, objective=objective, order=order
                ),
                X,
                y,
            )
            for member in self._members
        ]
        return np.mean(effects, axis=0)

    def _ask(self, member, question, X, y):
        return member.ask(question, self._X_train, self._y_train, X, y, self._fit_params)

    @property
    def _n_features_out(self):
        return len(self.self_influence_)

    # The wrapped models ------------------------------------------------------------------------

    def predict(self, X):
        """Return the mean prediction of the members.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.

        Returns
        -------
        (n_queries,) or (n_queries, n_outputs) array
            For classifiers the class of the highest mean probability, or mean decision function
            where there are no probabilities; else the mean prediction.
        """
        check_is_fitted(self)
        if not is_classifier(self):
            return self._conversion.predictions(self._mean("predict", X))
        if hasattr(self, "predict_proba"):
            values, threshold = self.predict_proba(X), 0.5
        else:
            values, threshold = self.decision_function(X), 0.0
        if self._multilabel:
            return (values > threshold).astype(int)
        if values.ndim == 1:
            return self.classes_[(values > threshold).astype(int)]
        return self.classes_[values.argmax(axis=1)]

    @available_if(_gives("predict_proba"))
    def predict_proba(self, X):
        """Return class probabilities, averaged over members.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.

        Returns
        -------
        (n_queries, n_classes) array
        """
        check_is_fitted(self)
        return self._mean("predict_proba", X)

    @available_if(_gives("decision_function"))
    def decision_function(self, X):
        """Return the decision function of a classifier without probabilities, averaged.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.

        Returns
        -------
        (n_queries,) or (n_queries, n_classes) array
        """
        check_is_fitted(self)
        return self._mean("decision_function", X)

    def score(self, X, y, sample_weight=None):
        """Return the accuracy of a classifier, or the R² of a regressor.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.
        y : array-like, (n_queries,) or (n_queries, n_outputs)
            Their targets.
        sample_weight : array-like, (n_queries,), optional
            Weights of the rows.

        Returns
        -------
        float
        """
        metric = accuracy_score if is_classifier(self) else r2_score
        return metric(y, self.predict(X), sample_weight=sample_weight)

    def _mean(self, method, X):
        rows = self._conversion.rows(X)
        answers = (getattr(member.model, method)(member.queries(rows)) for member in self._members)
        return sum(answers) / len(self._members)

    def get_metadata_routing(self):
        """Return the metadata routing: fit parameters go to the wrapped estimator.

        Returns
        -------
        MetadataRouter
        """
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                estimator=self.estimator,
                method_mapping=MethodMapping().add(caller="fit", callee="fit"),
            )
        )

    def __sklearn_tags__(self):
        return tags_like(super().__sklearn_tags__(), self.estimator)


def _mean_and_spread(values, known):
    """Return mean and standard deviation (n,) over members of values (k, n) where known."""
    times = known.sum(axis=0)
    mean = (values * known).sum(axis=0) / times
    return mean, np.sqrt((np.square(values - mean) * known).sum(axis=0) / times)
