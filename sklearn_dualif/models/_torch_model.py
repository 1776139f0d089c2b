"""A trained `torch.nn.Module` with the methods of a scikit-learn estimator."""

from fnmatch import fnmatchcase
from numbers import Real

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import (
    ClassifierTags,
    RegressorTags,
    assert_all_finite,
    check_array,
    check_consistent_length,
    column_or_1d,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..exceptions import UnsupportedOptionError
from ..losses import BinaryLogLoss, HalfTweedieDeviance, Loss, SoftmaxLogLoss
from ._modules import BATCH_ROWS, as_rows, module_outputs

_CLASSIFICATION = ("cross_entropy", "binary_cross_entropy")


def _classifies(model):
    return isinstance(model.loss, str) and model.loss in _CLASSIFICATION


class TorchModel(BaseEstimator):
    r"""A trained torch module as a scikit-learn estimator that is never trained further.

    The module stays the caller's: its parameters, buffers, gradients, hooks and training mode, and
    the state of torch's random generators, are after every call what they were before. It is
    always evaluated in eval mode.

    Parameters
    ----------
    module : torch.nn.Module
        Trained. ``module(inputs)`` of a batch of n rows gives outputs (n, n_outputs).
    loss : {"cross_entropy", "binary_cross_entropy", "mse"} or Loss, default="cross_entropy"
        What the module was trained on. "cross_entropy": one logit a class, two or more.
        "binary_cross_entropy": a single logit for the second of two classes, or one logit for
        each of several labels that a row may have together. "mse": squared errors of numbers.
        An instance of a `sklearn_dualif.losses.Loss`: that loss of numbers.
    weight_decay : float or dict of str to float, default=0.0
        :math:`\lambda \ge 0` of the penalty :math:`\tfrac12 \lambda \|\theta\|^2` on the *mean*
        loss, which is what ``weight_decay`` of ``torch.optim.SGD`` stands for: the mean over rows
        and, as `torch.nn.MSELoss` and `torch.nn.BCEWithLogitsLoss` have it, outputs. A dict gives
        values for patterns of parameter names, such as ``{"*.bias": 0.0, "*": 1e-4}``; the first
        pattern that matches a name counts, and a parameter that none matches has no penalty.
    classes : sequence of (n_classes,) labels, default=None
        Label of each logit, in the order of the logits; for a single logit, the label of negative
        and then that of positive ones. None: the sorted labels of the ``y`` passed to `fit` if
        there is one for each class, or else ``range(n_classes)`` if they are integers within it.
        Metrics that pair the columns of `predict_proba` with sorted labels, such as
        `sklearn.metrics.log_loss`, ask for sorted classes.
    checkpoints : CheckpointRecorder, path or list of (state_dict, float), default=None
        States of the module during its training, with the learning rates of the steps from there,
        for `InfluenceEstimator` with ``curvature="identity"``. A path: the folder of a recorder.

    Attributes
    ----------
    classes_ : (n_classes,) array
        Label of each logit; for multilabel outputs (n_outputs,). Only with a classification loss.
    n_features_in_ : int
        Number of columns of the ``X`` passed to `fit`, if it had two dimensions.
    feature_names_in_ : array of str
        Names of these columns, if they were strings.

    Notes
    -----
    A model with given ``classes`` or with a regression loss can be used without `fit`.

    ``X`` may be a tensor or an array of any number of dimensions, or a DataFrame. Floats and
    booleans take the precision of the module's parameters. Integers are passed on as integers,
    which an embedding needs.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif.models._torch_model import TorchModel
    >>> X, y = load_iris(return_X_y=True)
    >>> logistic = LogisticRegression(max_iter=1000).fit(X, y)
    >>> module = torch.nn.Linear(4, 3, dtype=torch.float64)
    >>> weight, bias = map(torch.from_numpy, (logistic.coef_, logistic.intercept_))
    >>> module.load_state_dict({"weight": weight, "bias": bias})
    <All keys matched successfully>
    >>> model = TorchModel(module, classes=["setosa", "versicolor", "virginica"])
    >>> model.predict(X[:2])
    array(['setosa', 'setosa'], dtype='<U10')
    >>> bool(abs(model.predict_proba(X) - logistic.predict_proba(X)).max() < 1e-12)
    True
    """

    def __init__(
        self, module, *, loss="cross_entropy", weight_decay=0.0, classes=None, checkpoints=None
    ):
        self.module = module
        self.loss = loss
        self.weight_decay = weight_decay
        self.classes = classes
        self.checkpoints = checkpoints

    def fit(self, X, y, sample_weight=None, **params):
        """Check that the module, the options and the rows fit together; train nothing.

        Parameters
        ----------
        X : array-like or tensor, (n_samples, ...)
            Rows. The module is tried on the first 1024.
        y : array-like or tensor, (n_samples,) or (n_samples, n_outputs)
            Labels, indicators 0 and 1 of several labels, or numbers, as the loss has it.
        sample_weight : array-like, (n_samples,), optional
            Without effect, as all parameters are trained.
        **params : dict
            Likewise.

        Returns
        -------
        self : TorchModel

        Raises
        ------
        UnsupportedModelError
            A `TypeError`, if ``module`` is no module or its outputs are no tensor.
        UnsupportedOptionError
            A `ValueError`, for an unknown loss.
        ValueError
            If outputs, targets and options don't go together.
        """
        if y is None:
            raise ValueError("TorchModel.fit needs the targets of the rows; got y=None. Pass them.")
        rows = as_rows(X)
        check_consistent_length(rows, y)
        outputs = self._outputs(rows[:BATCH_ROWS])
        weight_decays(self.module, self.weight_decay)
        classes = self._check_targets(y, outputs.shape[1])
        self.__dict__.pop("n_features_in_", None)
        self.__dict__.pop("feature_names_in_", None)
        if rows.ndim == 2:
            validate_data(self, X, skip_check_array=True)
        self._fitted_classes = classes
        return self

    @property
    def classes_(self):
        """Label of each logit."""
        if _classifies(self) and self.__sklearn_is_fitted__():
            return self._fitted_classes if self.classes is None else np.asarray(self.classes)
        raise AttributeError(
            f"This {type(self).__name__} with loss={self.loss!r} has no classes_. A loss of labels "
            "has them, once classes=[...] are given or found by fit."
        )

    def predict(self, X):
        """Return the most probable labels, or the predicted numbers.

        Parameters
        ----------
        X : array-like or tensor, (n_samples, ...)
            Rows.

        Returns
        -------
        (n_samples,) or (n_samples, n_outputs) array
            Labels; indicators 0 and 1 for multilabel outputs; for a regression loss the outputs,
            behind the inverse link of a loss that has one.

        Raises
        ------
        ValueError
            If the module can't process the rows or gives outputs that don't fit the options.
        """
        z = self._checked_outputs(X)
        if not _classifies(self):
            return _flat(np.exp(z) if isinstance(self.loss, HalfTweedieDeviance) else z)
        if self.loss == "cross_entropy":
            return self.classes_[z.argmax(axis=1)]
        positive = (z > 0).astype(np.intp)
        return positive if z.shape[1] > 1 else self.classes_[positive[:, 0]]

    @available_if(_classifies)
    def predict_proba(self, X):
        """Return probabilities of the classes.

        Parameters
        ----------
        X : array-like or tensor, (n_samples, ...)
            Rows.

        Returns
        -------
        (n_samples, n_classes) array
            In the order of ``classes_``. Each label's own probability for multilabel outputs.

        Raises
        ------
        ValueError
            If the module can't process the rows or gives outputs that don't fit the options.
        """
        z = torch.from_numpy(self._checked_outputs(X))
        if self.loss == "cross_entropy":
            return torch.softmax(z, 1).numpy()
        if z.shape[1] == 1:
            z = torch.cat([-z, z], 1)
        return torch.sigmoid(z).numpy()

    @available_if(_classifies)
    def decision_function(self, X):
        """Return the logits.

        Parameters
        ----------
        X : array-like or tensor, (n_samples, ...)
            Rows.

        Returns
        -------
        (n_samples,) or (n_samples, n_outputs) array
            One-dimensional for a single logit.

        Raises
        ------
        ValueError
            If the module can't process the rows or gives outputs that don't fit the options.
        """
        return _flat(self._checked_outputs(X))

    def score(self, X, y, sample_weight=None):
        """Return the accuracy of a classifier, or the R² of a regressor.

        Parameters
        ----------
        X : array-like or tensor, (n_samples, ...)
            Rows.
        y : array-like or tensor, (n_samples,) or (n_samples, n_outputs)
            Their targets.
        sample_weight : array-like, (n_samples,), optional
            Weights of the rows.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If the module can't process the rows or gives outputs that don't fit the options.
        """
        metric = accuracy_score if _classifies(self) else r2_score
        return metric(_as_array(y), self.predict(X), sample_weight=sample_weight)

    def __sklearn_is_fitted__(self):
        known = self.classes is not None or hasattr(self, "_fitted_classes")
        return known or not _classifies(self)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        if _classifies(self):
            tags.estimator_type = "classifier"
            tags.classifier_tags = ClassifierTags(multi_label=self.loss == "binary_cross_entropy")
        else:
            tags.estimator_type = "regressor"
            tags.regressor_tags = RegressorTags()
            tags.target_tags.multi_output = True
        return tags

    def _checked_outputs(self, X):
        """Return outputs (n, C), in double precision, of rows that match those of `fit`."""
        check_is_fitted(
            self,
            msg="This %(name)s does not know the label of each logit. Give classes=[...], or call "
            "fit with labels.",
        )
        rows = as_rows(X)
        if rows.ndim == 2 and hasattr(self, "n_features_in_"):
            validate_data(self, X, reset=False, skip_check_array=True)
        return self._outputs(rows).cpu().double().numpy()

    def _outputs(self, rows):
        """Return outputs (n, C) that the loss and the classes allow."""
        _check_loss(self.loss)
        outputs = module_outputs(self.module, rows)
        n_outputs = outputs.shape[1]
        if self.loss == "cross_entropy" and n_outputs < 2:
            raise ValueError(
                "loss='cross_entropy' needs two or more logits, but the module gives 1 output. "
                "Use loss='binary_cross_entropy' for a single logit, or loss='mse' for numbers."
            )
        if _classifies(self) and self.classes is not None:
            n_classes = max(n_outputs, 2)
            labels = np.asarray(self.classes)
            if labels.shape != (n_classes,) or len(np.unique(labels)) < n_classes:
                raise ValueError(
                    f"classes={self.classes!r} must be a sequence of {n_classes} different "
                    f"labels, as the module gives {n_outputs} logit(s): give the label of each "
                    "logit in order, or of the negative and the positive class for a single logit."
                )
        return outputs

    def _check_targets(self, y, n_outputs):
        """Return the classes, or None for numbers, of targets that fit the outputs."""
        y = _as_array(y)
        if not _classifies(self):
            _check_numbers(y, n_outputs)
            return None
        if self.loss == "binary_cross_entropy" and n_outputs > 1:
            _check_indicators(y, n_outputs)
            return np.arange(n_outputs)
        if y.ndim != 1 and y.shape[1:] != (1,):
            raise ValueError(
                f"loss={self.loss!r} with {n_outputs} output(s) needs y with one label a row, "
                f"(n_samples,); got shape {y.shape}. Pass labels, for instance y.argmax(axis=1) of "
                "one-hot rows."
            )
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        return self._match_labels(np.unique(labels), max(n_outputs, 2))

    def _match_labels(self, labels, n_classes):
        """Return the label of each class, given the sorted labels (k,) that occur."""
        if self.classes is not None:
            known = set(np.asarray(self.classes).tolist())
            unknown = [label for label in labels.tolist() if label not in known]
            if unknown:
                raise ValueError(
                    f"y contains the label {unknown[0]!r}, which is not among "
                    f"classes={self.classes!r}. Correct the label, or name it among the classes."
                )
            return np.asarray(self.classes)
        if len(labels) == n_classes:
            return labels
        if labels.dtype.kind in "iu" and labels[0] >= 0 and labels[-1] < n_classes:
            return np.arange(n_classes)
        shown = ", ".join(map(repr, labels[:5].tolist())) + (", ..." if len(labels) > 5 else "")
        raise ValueError(
            f"y has the {len(labels)} label(s) {shown}, but the module tells {n_classes} classes "
            "apart. Without classes, y must have as many different labels, or integers from 0 to "
            f"{n_classes - 1}. Give classes=[the label of each class, in the order of the logits]."
        )


def weight_decays(module, weight_decay):
    """Return the weight decay of each parameter by name.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters are named.
    weight_decay : float or dict of str to float
        As `TorchModel` takes it.

    Returns
    -------
    dict of str to float
        In the order of ``module.named_parameters()``.

    Raises
    ------
    ValueError
        If a value is not a finite number >= 0, or a pattern matches no parameter.
    """
    patterns = weight_decay if isinstance(weight_decay, dict) else {"*": weight_decay}
    for value in patterns.values():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (number and np.isfinite(value) and value >= 0):
            raise ValueError(
                f"weight_decay={weight_decay!r} is not allowed: give a finite number >= 0, or a "
                "dict from patterns of parameter names to such numbers."
            )
    names = [name for name, _ in module.named_parameters()]
    if isinstance(weight_decay, dict):
        for pattern in patterns:
            if not (isinstance(pattern, str) and any(fnmatchcase(n, pattern) for n in names)):
                raise ValueError(
                    f"weight_decay has the pattern {pattern!r}, which matches no parameter. The "
                    f"module's parameters are {', '.join(names)}."
                )
    return {
        name: next((float(v) for p, v in patterns.items() if fnmatchcase(name, p)), 0.0)
        for name in names
    }


def _check_loss(loss):
    if isinstance(loss, str) and loss in (*_CLASSIFICATION, "mse"):
        return
    rule = "Choose 'cross_entropy', 'binary_cross_entropy', 'mse' or an instance of a Loss"
    if isinstance(loss, SoftmaxLogLoss | BinaryLogLoss):
        rule = "For a loss of labels, choose 'cross_entropy' or 'binary_cross_entropy'"
    elif isinstance(loss, Loss):
        return
    elif isinstance(loss, type) and issubclass(loss, Loss):
        rule = f"Pass an instance of {loss.__name__}, not the class"
    raise UnsupportedOptionError(f"loss={loss!r} is not supported. {rule}.")


def _check_numbers(y, n_outputs):
    """Raise unless y are finite numbers, one for each output."""
    y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    n_targets = 1 if y.ndim == 1 else y.shape[1]
    if n_targets != n_outputs:
        raise ValueError(
            f"y has {n_targets} number(s) a row, but the module gives {n_outputs} output(s). Pass "
            "one target for each output."
        )


def _check_indicators(y, n_outputs):
    """Raise unless y are indicators 0 and 1, one for each output."""
    if y.ndim != 2 or y.shape[1] != n_outputs or not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"loss='binary_cross_entropy' with {n_outputs} logits needs indicators 0 and 1, "
            f"(n_samples, {n_outputs}); got y of shape {y.shape}. Pass indicators, or use "
            "loss='cross_entropy' for one label a row."
        )


def _as_array(y):
    return y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)


def _flat(z):
    return z[:, 0] if z.shape[1] == 1 else z
