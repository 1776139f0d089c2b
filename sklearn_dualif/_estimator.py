"""The estimator: validate, compose, delegate."""

from copy import deepcopy
from numbers import Integral, Real

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils._metadata_requests import _routing_enabled
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.validation import _num_samples, check_is_fitted

from ._delegation import WrappedModelMixin
from ._validation import check_known_options, check_order, check_positions, check_ridge


class InfluenceEstimator(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    WrappedModelMixin,
    BaseEstimator,
):
    r"""Effects of training rows on a model, as a refit without them would give.

    Wraps a scikit-learn model, fits it, and answers which training rows made it what it is: what
    its outputs, losses and parameters would be with rows gone or relabelled, without refitting.

    **An influence is the effect of removal**: the objective of the model trained without a row
    minus the objective of the model trained with it. On a loss, positive means that the row helps
    (without it the loss rises) and negative that it hurts. Units are those of scikit-learn's
    metric for one row: nats for log loss, :math:`(y - \hat y)^2` for squared error, the full
    deviance for Poisson, Gamma and Tweedie.

    Parameters
    ----------
    estimator : estimator
        A linear, generalized linear or kernel model or a multilayer perceptron of scikit-learn, a
        `TorchModel`, a classifier or regressor of skorch, a `Pipeline` that ends in one, a
        `FrozenEstimator` of one (used as it is), or a search over one. Cloned, never changed.
    ridge : "model", "loo" or float, default="model"
        Penalty in units of the objective :math:`\sum_i w_i \ell_i + \tfrac12
        \mathrm{ridge}\,\|\theta\|^2`. "model" keeps the wrapped model's own. A float sets it on
        the clone before fitting (``alpha``, ``C`` or weight decay, converted); for a frozen model,
        a `TorchModel`, or one without a penalty it only damps the curvature. A network without
        weight decay is damped by 0.01 of the kernel's mean eigenvalue, with a warning. "loo" takes
        the value of a grid with the least leave-one-out squared error from one decomposition
        (Ridge, RidgeClassifier, KernelRidge): 49 values from 1e-8 to 1e4 times the mean non-zero
        eigenvalue of the kernel matrix.
    curvature : {"gauss_newton", "empirical_fisher", "kfac", "identity"}, default="gauss_newton"
        What stands between gradients: the curvature of the loss, or the outer product of each row's
        gradient, which does not give the effects of a refit. "kfac" approximates the former for
        networks, layer by layer in the eigenbases of Kronecker factors (EK-FAC), at a cost that
        goes with rows times parameters; leverages can then be larger than the number of outputs.
        "identity" puts nothing between gradients: their inner products are Hessian-free scores,
        which rank rows but are no effects of removal. Of an estimator with it, only `influence`,
        ``influence_``, ``self_influence_`` (the squared length of a gradient) and `transform` can
        be asked, and ``order`` is not used.
    objective : {"loss", "prediction", "margin"}, Objective or callable, default="loss"
        What `influence` and ``influence_`` are about: a name, one of `sklearn_dualif.objectives`,
        or a function of the outputs (n, n_outputs), before the inverse link, and the targets of
        query rows as torch tensors that returns one number a row, or an aggregate: one number for
        all query rows. It is differentiated automatically.
    order : {"newton", "first", "exact"}, default="newton"
        "newton" takes one Newton step on the rows that stay, which is exact for squared loss.
        "first" is the classical linear approximation. "exact" iterates to the optimum without the
        rows and equals a refit; for a network, one of its linearisation.
    solver : {"auto", "primal", "dual", "iterative"}, default="auto"
        Factorize in parameters (primal) or in rows (dual), or, for networks, keep as much of the
        kernel of the rows as ``tol`` asks for (iterative). "auto" takes the cheaper one that fits
        ``memory_limit``; of a network whose matrices are all larger than 4000, the iterative one.
    sketch : sketch or None, default=None
        One of `sklearn_dualif.sketching`: effects are then those of random projections of the
        Jacobians, whose size goes with ``n_components`` and not with rows or parameters. With
        ``curvature="kfac"`` a `FactorizedSketch` of a given size. None: exact Jacobians.
    normalize : bool, default=False
        With ``curvature="identity"``, whether `influence` and ``influence_`` are cosines of the
        angle between gradients.
    checkpoints : bool, CheckpointRecorder, path or list of (state_dict, float), default=True
        With ``curvature="identity"``, states of a network during its training, whose scores are
        added up in proportion to the learning rate (TracIn). True: those that come with the model,
        from a `CheckpointRecorder` among the callbacks of a skorch net or from a `TorchModel`, if
        any. False: the fitted parameters alone.
    parameters : list of str, str or None, default=None
        Names of the parameters of a network that may move, as in ``module.named_parameters()``, or
        glob patterns of them; those of the layers of a perceptron are "0.weight", "0.bias",
        "1.weight" and so on. None: all trainable ones. For a perceptron of one hidden layer
        ``["*.weight", "1.bias"]`` agrees better with refits than None, as nothing else holds the
        hidden intercepts.
    tol : float, default=1e-3
        Relative error of first-order effects that ``solver="iterative"`` goes for. Its exact
        removals of groups go to a hundredth of it.
    memory_limit : int, str or None, default=None
        Bytes, or a string such as "4GB", that a factorization may take. None: a share of what the
        machine has free.
    batch_size : int or None, default=None
        Query rows at a time. None: as many as fit a few tens of megabytes.
    dtype : {"float64", "float32"}, default="float64"
        Precision of a network's derivatives and kernel. The network itself is run, and matrices
        are factorised, in double precision.
    device : str, torch.device or None, default=None
        Where a network, its derivatives and its kernel are computed. None: the processor.
    n_jobs : int or None, default=None
        Not used by these models, whose linear algebra is threaded already.
    random_state : int, RandomState instance or None, default=None
        Draws what ``solver="iterative"`` keeps of the kernel, and the rows that its error is
        estimated on. Nothing else is random.
    verbose : int, default=0
        Above 0, say which form was chosen, its size and the time that it took.

    Attributes
    ----------
    estimator_ : estimator
        The fitted clone. With ``solver="iterative"`` or ``curvature="kfac"`` or "identity", the
        next five are computed when they are first asked for.
    self_influence_ : (n_train,) array
        Effect of removing row i on its own loss. Large for atypical and mislabelled rows.
    influence_ : (n_train,) array
        Effect of removing row i on the mean objective over ``X_val, y_val``, or on an aggregate
        of them; without them over the training rows, linear in the objective.
    leverage_ : (n_train,) array
        Trace of row i's block of the hat matrix, between 0 and the number of outputs.
    effective_dimension_ : float
        Sum of the leverages: the degrees of freedom that the fit uses.
    loo_loss_ : (n_train,) array
        Loss of each row under the model without it.
    stationarity_ : float
        Norm of the objective's gradient at the fitted parameters, in units of a typical row's.
        Networks are not moved to the optimum; above 0.1 a warning says so. None with
        ``curvature="identity"``.
    relative_move_ : float or None
        How far training moved the parameters that may move: the norm of the way, over that of the
        initial ones. Above 1, networks trained anew may end up elsewhere. Known of perceptrons with
        an integer ``random_state`` and of expansions by `linearize`; None for other models.
    solver_ : str
        The form that was chosen.
    solver_info_ : dict
        "size" of the matrix, free parameters included. With ``curvature="kfac"`` also the number of
        "layers" with Kronecker factors, and of other parameters whose matrix is "dense" or taken as
        "diagonal". For the iterative form instead "rank" of the
        kernel kept, "relative_error" of first-order effects as estimated on the losses of the
        training rows "queries", "residual_trace" and "largest_residual" (diagonal entry) of what is
        left out in units of the ridge, "iterations" (estimates made) and "bytes" of the factor.
        With ``curvature="identity"`` the number of "checkpoints", 0 without any.
    sketch_info_ : dict or None
        Of a sketch: "n_components" (None where one of size "auto" found the exact form smaller,
        which was then used), "effective_dimension" of the matrix that it stands for,
        "components_per_dimension", "sketched_ridge" (that debiases it), "error" (what the largest
        error of a first-order effect stays below with probability .95, in units of
        :math:`\sqrt{g^\top F^+ g\; g'^\top F^+ g'}`; NaN with ``curvature="kfac"``), "too_small"
        (whether it has too few components to be debiased, or any of the layers of "kfac" has) and
        "exact" (solver, size and bytes of the form without it).
    ridge_ : float or (n_outputs,) array
        Ridge of the curvature, in sum form.
    n_outputs_, n_parameters_ : int
        Sizes of the wrapped model.
    parameter_names_ : list of str
        Order of `parameter_change`.
    classes_ : (n_classes,) array
        For classifiers.
    n_features_in_ : int
        Features seen by `fit`, where the wrapped model knows them.
    feature_names_in_ : array of str
        Their names, where X has them.

    See Also
    --------
    sklearn.frozen.FrozenEstimator : Wrap a model that is already fitted.

    Notes
    -----
    With :math:`H` the Hessian of the objective and :math:`h_G = S_G^\top J_G H^{-1} J_G^\top S_G`
    the hat matrix of a group of rows (:math:`J` their Jacobian, :math:`S S^\top` the curvature of
    their losses, :math:`S c` their gradients), the Newton effect of removing them on the outputs of
    other rows is :math:`J_t H^{-1} J_G^\top S_G (I - h_G)^{-1} c_G`; the first-order effect
    lacks the inverse. The dual form computes the same from the kernel :math:`J J^\top` [1]_.

    Scikit-learn's default tolerances stop too early for differences between refits. A private copy
    of the parameters is therefore brought to the optimum; the wrapped model and its predictions
    stay as fitted.

    The objects passed to `fit` are kept by reference, for `metrics.removal_fidelity`, and are part
    of a pickle.

    A net of skorch is given its rows in the precision of its module and its labels as numbers, so
    that both may be any; the net itself, in ``estimator_`` or from `unlearn`, predicts numbers. In
    a `Pipeline` the step before it has to give that precision, as
    ``FunctionTransformer(np.float32)`` does, and the targets of a regression have the shape of its
    outputs. Rows that its ``train_split`` holds out have no influence.

    References
    ----------
    .. [1] Z. Sun and S. Valaee, "Extending Kernel Trick to Influence Functions",
       arXiv:2605.11239, 2026.
    .. [2] P. W. Koh and P. Liang, "Understanding Black-box Predictions via Influence Functions",
       ICML 2017.
    .. [3] K. Rahnama Rad and A. Maleki, "A scalable estimate of the out-of-sample prediction error
       via approximate leave-one-out cross-validation", JRSS B 82, 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEstimator
    >>> X, y = load_iris(return_X_y=True)
    >>> y[7] = 2  # a mistake
    >>> influence = InfluenceEstimator(LogisticRegression()).fit(X, y)
    >>> int(influence.self_influence_.argmax())
    7
    >>> influence.loo_predict_proba()[7].round(2)  # what the model says without the row
    array([0.97, 0.03, 0.  ])
    >>> influence.removal_effect([7], X[:2], y[:2], order="exact").round(4)  # as a refit
    array([-0.0129, -0.0205])
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit"])],
        "ridge": [str, Real],
        "curvature": [str],
        "objective": "no_validation",
        "order": [str],
        "solver": [str],
        "sketch": "no_validation",
        "normalize": ["boolean"],
        "checkpoints": "no_validation",
        "parameters": "no_validation",
        "tol": [Interval(Real, 0, 1, closed="neither")],
        "memory_limit": [str, Real, None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "dtype": "no_validation",
        "device": "no_validation",
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator,
        *,
        ridge="model",
        curvature="gauss_newton",
        objective="loss",
        order="newton",
        solver="auto",
        sketch=None,
        normalize=False,
        checkpoints=True,
        parameters=None,
        tol=1e-3,
        memory_limit=None,
        batch_size=None,
        dtype="float64",
        device=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.ridge = ridge
        self.curvature = curvature
        self.objective = objective
        self.order = order
        self.solver = solver
        self.sketch = sketch
        self.normalize = normalize
        self.checkpoints = checkpoints
        self.parameters = parameters
        self.tol = tol
        self.memory_limit = memory_limit
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, *, X_val=None, y_val=None, **fit_params):
        """Fit the wrapped model and prepare its leave-one-out effects.

        Parameters
        ----------
        X : array-like, sparse matrix or whatever the wrapped model takes, (n_train, n_features)
            Training rows.
        y : array-like, (n_train,) or (n_train, n_outputs)
            Their targets.
        X_val, y_val : array-like, optional
            Rows over which ``influence_`` is averaged. In a Pipeline, pass
            ``transform_input=["X_val"]`` to it.
        **fit_params : dict
            Passed to the wrapped model's ``fit``. A ``sample_weight`` among them is honoured in
            every number.

        Returns
        -------
        self : InfluenceEstimator

        Raises
        ------
        UnsupportedModelError
            A `TypeError`, if the wrapped model is not one of those listed.
        UnsupportedOptionError
            A `ValueError`, if one of its options has no closed form.
        MemoryLimitError
            A `ValueError`, if no factorization fits ``memory_limit``.
        """
        from ._fitting import fit_influence

        fit_influence(self, X, y, X_val, y_val, self._check_fit(X_val, y_val, fit_params))
        return self

    def _check_fit(self, X_val, y_val, fit_params):
        """Check the parameters of the estimator and return the wrapped model's fit parameters."""
        from .objectives import as_objective

        check_known_options(self)
        check_order(self.order, self.curvature)
        check_ridge(self.ridge)
        needs_y = as_objective(self.objective).requires_y
        if (X_val is None) != (y_val is None) and (X_val is None or needs_y):
            given, missing = ("y_val", "X_val") if X_val is None else ("X_val", "y_val")
            raise ValueError(f"{given} was given without {missing}. Give both, or neither.")
        if _routing_enabled():
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        return fit_params

    # Diagnostics -------------------------------------------------------------------------------

    @property
    def self_influence_(self):
        return self._diagnostic("self_influence_")

    @property
    def influence_(self):
        return self._diagnostic("influence_")

    @property
    def leverage_(self):
        return self._diagnostic("leverage_")

    @property
    def effective_dimension_(self):
        return self._diagnostic("effective_dimension_")

    @property
    def loo_loss_(self):
        return self._diagnostic("loo_loss_")

    def _diagnostic(self, name):
        if "_diagnostics" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no {name} yet. Call fit first.")
        values = self._diagnostics.compute()
        if name == "influence_" and self._diagnostics.lacks_rows:
            raise AttributeError(
                "influence_ would be about the training rows, and the objective has labels of "
                "other rows. Pass those rows to fit as X_val, or ask influence about them."
            )
        if name not in values:
            raise AttributeError(
                f"curvature='identity' gives scores, not effects of removal, and no {name}. Use "
                "curvature='gauss_newton'."
            )
        return values[name]

    # Single rows -------------------------------------------------------------------------------

    def influence(self, X, y=None, *, objective=None, order=None):
        """Return the effect of removing each training row on each query row's objective.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.
        y : array-like, (n_queries,) or (n_queries, n_outputs), optional
            Their targets, for the objectives "loss" and "margin" and others about targets.
        objective : str, Objective or callable, optional
            Instead of the estimator's own.
        order : str, optional
            Instead of the estimator's own.

        Returns
        -------
        (n_queries, n_train) array, (1, n_train) for an aggregate objective
            Positive on a loss: the training row helps that query.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn_dualif import InfluenceEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> influence = InfluenceEstimator(Ridge(0.1)).fit(X, y)
        >>> effects = influence.influence(X[:3], y[:3])
        >>> effects.shape
        (3, 442)
        >>> refit = Ridge(0.1).fit(X[1:], y[1:])
        >>> change = (refit.predict(X[:3]) - y[:3]) ** 2 - (influence.predict(X[:3]) - y[:3]) ** 2
        >>> bool(abs(effects[:, 0] - change).max() < 1e-6)
        True
        """
        objective, order = self._choices(objective, order)
        features, targets = self._queries(X, y, objective)
        return self._engine.influence(features, targets, objective, order).numpy()

    def transform(self, X):
        """Return the effect of removing each training row on each query row's prediction.

        Parameters
        ----------
        X : array-like, (n_queries, n_features)
            Query rows.

        Returns
        -------
        (n_queries, n_train) array
            `influence` with ``objective="prediction"``, in the estimator's order.
        """
        return self.influence(X, objective="prediction")

    def loo_decision_function(self):
        """Return each training row's decision function under the model without that row.

        Returns
        -------
        (n_train,) or (n_train, n_classes) array
        """
        return self._leave_one_out("decision_function")

    def loo_predict_proba(self):
        """Return each training row's class probabilities under the model without that row.

        Out-of-sample probabilities for every row, from one fit.

        Returns
        -------
        (n_train, n_classes) array
        """
        return self._leave_one_out("predict_proba")

    def loo_predict(self):
        """Return what the model without each training row predicts for it.

        Returns
        -------
        (n_train,) or (n_train, n_outputs) array
        """
        return self._leave_one_out("predict")

    def explain(self, X, y=None, *, k=10, objective=None):
        """Return the training rows that matter most for each query row.

        Parameters
        ----------
        X, y : array-like
            Query rows and, for objectives about them, their targets. With neither ``y`` nor an
            objective, it is "prediction".
        k : int, default=10
            Rows a query.
        objective : str, Objective or callable, optional
            Instead of the estimator's own.

        Returns
        -------
        pandas.DataFrame
            Columns query (the query's index label; "all" for an aggregate), rank (1 is the largest
            effect by size), position, train_index (the training row's index label), effect,
            self_influence.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn_dualif import InfluenceEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> influence = InfluenceEstimator(Ridge(0.1)).fit(X, y)
        >>> influence.explain(X[:1], k=2)[["query", "rank", "position", "effect"]].round(2)
           query  rank  position  effect
        0      0     1       382    1.26
        1      0     2       290   -1.26
        """
        import pandas as pd

        check_is_fitted(self)
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise ValueError(f"k={k!r} must be a whole number of at least 1.")
        if y is None and objective is None:
            objective = "prediction"
        if not self._engine.gives_effects:
            self._engine.no_effects()
        effects = self.influence(X, y, objective=objective)
        k = min(int(k), effects.shape[1])
        order = np.argsort(-np.abs(effects), axis=1, kind="stable")[:, :k]
        n_queries = len(effects)
        if n_queries != _num_samples(X):
            labels = ["all"]
        else:
            labels = X.index if hasattr(X, "iloc") else np.arange(n_queries)
        index = np.arange(effects.shape[1]) if self._train_index is None else self._train_index
        position = order.ravel()
        return pd.DataFrame(
            {
                "query": np.repeat(np.asarray(labels), k),
                "rank": np.tile(np.arange(1, k + 1), n_queries),
                "position": position,
                "train_index": np.asarray(index)[position],
                "effect": np.take_along_axis(effects, order, 1).ravel(),
                "self_influence": self.self_influence_[position],
            }
        )

    def leakage(self, X, y=None, *, objective=None):
        """Return how far a sketch scatters each query's first-order effects.

        A gradient with a part that no training row has gets effects from a sketch that it does
        not have: they are random, and this is their size.

        Parameters
        ----------
        X, y : array-like
            Query rows and, for objectives about them, their targets. With neither ``y`` nor an
            objective, it is "prediction".
        objective : str, Objective or callable, optional
            Instead of the estimator's own.

        Returns
        -------
        (n_queries,) array, (1,) for an aggregate objective
            Standard deviation under the choice of the sketch, root mean square over the training
            rows. Zero without a sketch.

        Raises
        ------
        UnsupportedOptionError
            A `ValueError`, for a sketch of a model without a ridge or with ``curvature="kfac"``.
        """
        if y is None and objective is None:
            objective = "prediction"
        objective, _ = self._choices(objective, None)
        features, targets = self._queries(X, y, objective)
        return self._engine.leakage(features, targets, objective).numpy()

    # Groups of rows ----------------------------------------------------------------------------

    def removal_effect(self, indices, X=None, y=None, *, objective=None, order=None):
        """Return the effect of removing training rows together on each query's objective.

        Parameters
        ----------
        indices : array-like of int, slice, or boolean mask (n_train,)
            Positions of the rows, in the order of the X passed to `fit`.
        X, y : array-like, optional
            Query rows and targets; none: the training rows.
        objective : str, Objective or callable, optional
            Instead of the estimator's own.
        order : str, optional
            Instead of the estimator's own.

        Returns
        -------
        (n_queries,) array, (1,) for an aggregate objective

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn_dualif import InfluenceEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> influence = InfluenceEstimator(Ridge(0.1)).fit(X, y)
        >>> effect = influence.removal_effect([3, 14, 15], X[:2], objective="prediction")
        >>> kept = [row for row in range(442) if row not in (3, 14, 15)]
        >>> refit = Ridge(0.1).fit(X[kept], y[kept])
        >>> bool(abs(effect - (refit.predict(X[:2]) - influence.predict(X[:2]))).max() < 1e-8)
        True
        """
        objective, order = self._choices(objective, order)
        rows = self._rows(indices)
        features, targets = self._queries(X, y, objective)
        state = self._engine.removal_state(rows, order)
        return self._engine.state_effect(state, features, targets, objective, order).numpy()

    def output_change(self, indices, X=None, *, order=None):
        """Return the effect of removing training rows together on each query's outputs.

        Parameters
        ----------
        indices : array-like of int, slice, or boolean mask (n_train,)
            Positions of the rows.
        X : array-like, optional
            Query rows; none: the training rows.
        order : str, optional
            Instead of the estimator's own.

        Returns
        -------
        (n_queries, n_outputs) array
            Change of the decision function, or of the prediction of a regression.
        """
        _, order = self._choices("prediction", order)
        rows = self._rows(indices)
        features, _ = self._queries(X, None, None)
        state = self._engine.removal_state(rows, order)
        return self._engine.response_change(state, features, order).numpy()

    def relabel_effect(self, indices, y_new, X=None, y=None, *, objective=None, order=None):
        """Return the effect of giving training rows other targets on each query's objective.

        Parameters
        ----------
        indices : array-like of int, slice, or boolean mask (n_train,)
            Positions of the rows.
        y_new : array-like, (n_indices,) or (n_indices, n_outputs), or one value for all
            Their targets instead.
        X, y : array-like, optional
            Query rows and targets; none: the training rows with their original targets.
        objective : str, Objective or callable, optional
            Instead of the estimator's own.
        order : str, optional
            Instead of the estimator's own.

        Returns
        -------
        (n_queries,) array, (1,) for an aggregate objective

        Notes
        -----
        The curvature of a log loss does not depend on the label, so one Newton step is only a
        first guess where many rows change: ``order="exact"`` then gives what a refit would.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn_dualif import InfluenceEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> influence = InfluenceEstimator(Ridge(0.1)).fit(X, y)
        >>> effect = influence.relabel_effect([0], 100.0, X[:2], objective="prediction")
        >>> relabeled = y.copy()
        >>> relabeled[0] = 100.0
        >>> refit = Ridge(0.1).fit(X, relabeled)
        >>> bool(abs(effect - (refit.predict(X[:2]) - influence.predict(X[:2]))).max() < 1e-8)
        True
        """
        objective, order = self._choices(objective, order)
        rows = self._rows(indices, keep_some=False)
        features, targets = self._queries(X, y, objective)
        encoded, weights = self._new_targets(rows, y_new)
        state = self._engine.relabel_state(rows, encoded, weights, order)
        return self._engine.state_effect(state, features, targets, objective, order).numpy()

    def parameter_change(self, indices, *, order=None):
        """Return the parameters without some training rows minus the parameters with them.

        Parameters
        ----------
        indices : array-like of int, slice, or boolean mask (n_train,)
            Positions of the rows.
        order : str, optional
            Instead of the estimator's own.

        Returns
        -------
        (n_parameters,) array
            In the order of ``parameter_names_``.
        """
        _, order = self._choices("prediction", order)
        state = self._engine.removal_state(self._rows(indices), order)
        return self._engine.parameters_of(state, order)

    def unlearn(self, indices, *, order=None):
        """Return a fitted copy of the wrapped estimator without the rows' influence.

        Parameters
        ----------
        indices : array-like of int, slice, or boolean mask (n_train,)
            Positions of the rows.
        order : str, optional
            Instead of the estimator's own.

        Returns
        -------
        estimator
            A copy of ``estimator_`` with other parameters. Fitted transformers, class weights and
            hyperparameters are those of the full data.

        Examples
        --------
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn_dualif import InfluenceEstimator
        >>> X, y = load_diabetes(return_X_y=True)
        >>> influence = InfluenceEstimator(Ridge(0.1)).fit(X, y)
        >>> forgotten = influence.unlearn([0, 1])
        >>> refit = Ridge(0.1).fit(X[2:], y[2:])
        >>> bool(abs(forgotten.predict(X) - refit.predict(X)).max() < 1e-8)
        True
        """
        from .models import final_estimator

        _, order = self._choices("prediction", order)
        rows = self._rows(indices)
        state = self._engine.removal_state(rows, order)
        estimator = deepcopy(self.estimator_)
        removed = np.zeros(self._n_features_out, dtype=bool)
        removed[rows.numpy()] = True
        self._engine.write(final_estimator(estimator), state, removed, order)
        return estimator

    def trim_for(
        self,
        objective,
        X,
        y,
        *,
        step=0.005,
        max_removed=0.05,
        max_loss=0.01,
        order=None,
        refit=False,
        n_jobs=None,
    ):
        """Find training rows to drop, in steps, that bring an objective closer to zero.

        Each step takes the rows whose single removals bring the objective closest to zero where it
        stands by then, and predicts objective and score without all rows so far together. It ends
        before the objective changes its sign, stops coming closer to zero, or costs too much.

        Parameters
        ----------
        objective : Objective, "loss" or callable
            What is to come closer to zero: a gap between groups, an average loss. One number a
            query row counts by its mean.
        X, y : array-like
            Query rows that it is evaluated on, and their targets.
        step : float or int, default=0.005
            Rows of a step: a share of the training rows, or a number.
        max_removed : float or int, default=0.05
            Rows dropped in all, at most.
        max_loss : float, default=0.01
            How much lower the accuracy, or R² of a regression, on the query rows may become; of an
            objective that moves rows, on these.
        order : str, optional
            Of the removals, instead of the estimator's own. "exact" is dearer and, on convex
            models, equal to refits.
        refit : bool, default=False
            Whether to refit the model without the rows after each step, too.
        n_jobs : int or None, default=None
            Refits at a time.

        Returns
        -------
        Trimming
            With ``rows`` in the order of dropping; the path ``n_removed``, ``objective`` and
            ``score`` after each step, and ``refitted_objective`` and ``refitted_score`` if asked
            for, also as a data frame by ``frame()``; why it ``stopped``; and ``estimator``, a
            fitted model without the rows.

        Notes
        -----
        The path is as good as the rows that it was found on: judge the model that it ends at on
        other rows than ``X``.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.preprocessing import scale
        >>> from sklearn_dualif import InfluenceEstimator
        >>> from sklearn_dualif.objectives import DemographicParity
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> group, X = X[:, 1] > 19, scale(X)
        >>> influence = InfluenceEstimator(LogisticRegression(C=0.1)).fit(X[:300], y[:300])
        >>> trimming = influence.trim_for(DemographicParity(group[300:]), X[300:], y[300:], step=5)
        >>> trimming.n_removed
        array([ 0,  5, 10, 15])
        >>> trimming.objective.round(2)
        array([0.36, 0.34, 0.33, 0.32])
        """
        from ._trimming import trim

        check_is_fitted(self)
        check_order(self.order if order is None else order, self.curvature)
        if not self._engine.gives_effects:
            self._engine.no_effects()
        return trim(
            self,
            objective,
            X,
            y,
            step=step,
            max_removed=max_removed,
            max_loss=max_loss,
            order=order,
            refit=refit,
            n_jobs=n_jobs,
        )

    # Composition -------------------------------------------------------------------------------

    @property
    def _n_features_out(self):
        return len(self._sample_weight)

    def _choices(self, objective, order):
        from .objectives import resolve_objective

        check_is_fitted(self)
        order = self.order if order is None else order
        check_order(order, self.curvature)
        objective = self.objective if objective is None else objective
        return resolve_objective(objective, self._engine.model), order

    def _rows(self, indices, *, keep_some=True):
        import torch

        positions = check_positions(indices, self._n_features_out, keep_some=keep_some)
        return torch.from_numpy(positions.astype(np.int64))

    def _queries(self, X, y, objective):
        """Return features and encoded targets of query rows, or of the training rows."""
        problem = self._engine.problem
        if X is None:
            if y is not None:
                raise ValueError("y was given without X. Give both, or neither.")
            features = problem.features
            if objective is not None:
                if objective.moves_rows:
                    features = objective.features(self._X_train, self._y_train)
                objective.prepare(features, problem.y)
            return features, problem.y
        return (problem.model.features(X), None) if objective is None else objective.queries(X, y)

    def _new_targets(self, rows, y_new):
        model = self._engine.model
        y_new = np.asarray(y_new)
        if y_new.ndim == 0:
            several = model.targets.classes is None and model.n_outputs > 1
            y_new = np.full((len(rows), model.n_outputs) if several else len(rows), y_new)
        if len(y_new) != len(rows):
            raise ValueError(
                f"y_new has {len(y_new)} targets for {len(rows)} rows. Give one for each row, or "
                "one value for all."
            )
        encoded = model.targets.encode(y_new)
        if model.targets.classes is None:
            return encoded, self._engine.problem.weights[rows]
        return encoded, model.targets.weigh(y_new, self._sample_weight[rows.numpy()])

    def _leave_one_out(self, method):
        check_is_fitted(self)
        if not hasattr(self.estimator_, method):
            raise AttributeError(f"{type(self.estimator_).__name__} has no method {method!r}.")
        model = self._engine.model
        outputs = self._engine.loo_outputs()[:, : model.n_outputs].numpy()
        values = model.from_outputs(method, outputs)
        return self._conversion.predictions(values) if method == "predict" else values
