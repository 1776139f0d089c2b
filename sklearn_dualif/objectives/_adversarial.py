"""The loss on rows that were moved against the model."""

from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_consistent_length

from ..exceptions import UnsupportedOptionError
from ..models import LinearModel, movable_rows
from ._attacks import ascend, cross_boundary
from ._base import Objective
from ._training_loss import TrainingLoss


class AdversarialLoss(Objective):
    r"""The loss on adversarial examples, found at the fitted model and then held fixed.

    Each query row is moved within its own class label so that the model errs more, and effects are
    those on its loss there: a removal with a negative effect makes the model more robust. Needs
    the targets of the query rows.

    Parameters
    ----------
    eps : float, default=None
        Largest change of each feature, in the units of what the final estimator is given: of a
        `Pipeline`, behind its transformers. Not used by ``method="boundary"``.
    method : {"auto", "boundary", "fgsm", "pgd"}, default="auto"
        "fgsm" moves every feature by eps, each in the direction in which the loss rises at the
        row; for one output of a linear model that is the worst case. "pgd" takes ``steps`` such
        steps, each from where the last one ended, and stays within eps of the row. "boundary", for
        linear classifiers, goes 1.3 times the way to the nearest decision boundary, however long
        [2]_. "auto" is "fgsm" for a linear model of one output and else "pgd"; without an eps it
        is "boundary".
    steps : int, default=10
        Steps of "pgd".
    step_size : float, default=None
        Change of a feature in a step of "pgd". None: 2.5 eps / steps.

    See Also
    --------
    Loss : The loss on the rows as they are.

    Notes
    -----
    Nothing is drawn at random: "pgd" starts from the rows themselves. Rows that are moved may
    leave what the features can be; choose eps accordingly. Sparse rows and rows of integers, such
    as token ids, cannot be moved, nor can those of kernel models, whose derivatives by the rows
    are not known.

    Without validation rows, ``influence_`` is about the training rows moved alike.

    References
    ----------
    .. [1] I. Goodfellow, J. Shlens and C. Szegedy, "Explaining and Harnessing Adversarial
       Examples", ICLR 2015; A. Madry et al., "Towards Deep Learning Models Resistant to
       Adversarial Attacks", ICLR 2018.
    .. [2] A. Chhabra, P. Li, P. Mohapatra and H. Liu, "What Data Benefits My Classifier? Enhancing
       Model Performance and Interpretability through Influence-Based Data Selection", ICLR 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.objectives import AdversarialLoss
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), LogisticRegression())
    >>> influence = InfluenceEstimator(model).fit(X[:300], y[:300])
    >>> tenth = AdversarialLoss(0.1)  # of a standard deviation
    >>> influence.influence(X[300:], y[300:], objective=tenth).shape
    (269, 300)
    """

    requires_y = True

    def __init__(self, eps=None, *, method="auto", steps=10, step_size=None):
        self.eps = eps
        self.method = method
        self.steps = steps
        self.step_size = step_size

    def bind(self, model):
        self._check()
        method = self.method
        if method == "auto" and self.eps is None:
            method = "boundary"
        elif method == "auto":
            single = isinstance(model, LinearModel) and model.n_outputs == 1
            method = "fgsm" if single else "pgd"
        classifies = model.targets.classes is not None
        if method == "boundary" and not (isinstance(model, LinearModel) and classifies):
            raise UnsupportedOptionError(
                f"method='boundary' is for linear classifiers, and {type(model.estimator).__name__}"
                " is none. Give an eps, with method='pgd' or 'fgsm'."
            )
        return MovedLoss(model, self, method)

    def _check(self):
        if self.method not in ("auto", "boundary", "fgsm", "pgd"):
            raise ValueError(
                f"method={self.method!r} is not known. Choose 'auto', 'boundary', 'fgsm' or 'pgd'."
            )
        if self.eps is None and self.method in ("fgsm", "pgd"):
            raise ValueError(f"method={self.method!r} needs eps, the largest change of a feature.")
        if not (self.eps is None or (_is_number(self.eps) and self.eps >= 0)):
            raise ValueError(
                f"eps={self.eps!r} is not allowed: give a finite number >= 0, the largest change "
                "of a feature."
            )
        whole = isinstance(self.steps, Integral) and not isinstance(self.steps, bool)
        if not (whole and self.steps >= 1):
            raise ValueError(f"steps={self.steps!r} must be a whole number of at least 1.")
        if not (self.step_size is None or (_is_number(self.step_size) and self.step_size > 0)):
            raise ValueError(
                f"step_size={self.step_size!r} is not allowed: give a finite number > 0, or None "
                "for 2.5 eps / steps."
            )


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool) and np.isfinite(value)


class MovedLoss(TrainingLoss):
    """The training loss on rows that are moved first.

    Parameters
    ----------
    model : ModelFunction
    attack : AdversarialLoss
        Gives the options.
    method : {"boundary", "fgsm", "pgd"}
    """

    moves_rows = True

    def __init__(self, model, attack, method):
        super().__init__(model)
        self.attack = attack
        self.method = method

    def features(self, X, y):
        model, attack = self.model, self.attack
        rows, targets = movable_rows(model, model.features(X)), model.targets.encode(y)
        check_consistent_length(np.empty(len(rows.values)), targets)
        if self.method == "boundary":
            return rows.features(cross_boundary(rows, model.n_outputs, model.coef))
        n_steps, size = 1, attack.eps
        if self.method == "pgd":
            n_steps, size = attack.steps, attack.step_size
            size = 2.5 * attack.eps / n_steps if size is None else size
        return rows.features(ascend(rows, model.loss, targets, attack.eps, n_steps, size))
