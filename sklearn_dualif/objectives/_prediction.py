"""What the model predicts for a row, and how clearly it prefers a class."""

from abc import abstractmethod
from numbers import Integral

import torch

from ..models import class_codes
from ._base import Objective
from ._bound import BoundObjective
from ._classes import class_index


class Prediction(Objective):
    """What the model says of a row; needs no targets.

    Parameters
    ----------
    output : int, class label or None, default=None
        Of a regression with several outputs, the position of the one that is meant; of a
        classifier, the label of the class whose score is meant. None: the mean of a regression's
        outputs; the decision function of two classes; of several, the lead of the predicted class,
        which is held fixed: its logit minus the log-sum-exp of the others or, without a softmax,
        its score minus the best other score.

    See Also
    --------
    Margin : The lead of the class that is given as y.

    Notes
    -----
    A regression's output is in its own units, after the inverse link. A classifier's score is a
    column of its decision function; that of the first of two classes is its negative.

    Examples
    --------
    >>> from sklearn.datasets import load_linnerud
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.objectives import Prediction
    >>> X, Y = load_linnerud(return_X_y=True)
    >>> influence = InfluenceEstimator(Ridge()).fit(X, Y)
    >>> effect = influence.removal_effect([3], X[:4], objective=Prediction(output=1))
    >>> bool((abs(effect - influence.output_change([3], X[:4])[:, 1]) < 1e-12).all())
    True
    """

    def __init__(self, output=None):
        self.output = output

    def bind(self, model):
        classes = model.targets.classes
        if self.output is None:
            several = classes is not None and model.n_outputs > 1
            return PredictedLead(model) if several else Response(model)
        if classes is None:
            return Response(model, self._position(model))
        index = class_index(classes, self.output, "output", model)
        if model.n_outputs == 1:
            return ClassScore(model, 0, 1.0 if index == 1 else -1.0)
        return ClassScore(model, index, 1.0)

    def _position(self, model):
        """Return the position of an output that is no class."""
        number = isinstance(self.output, Integral) and not isinstance(self.output, bool)
        if not number or not 0 <= self.output < model.n_outputs:
            raise ValueError(
                f"output={self.output!r} is none of the {model.n_outputs} outputs of "
                f"{type(model.estimator).__name__}. Give a position from 0 to "
                f"{model.n_outputs - 1}, or None for their mean."
            )
        return int(self.output)


class Margin(Objective):
    """`Prediction` for the class given as y instead of the predicted one; classifiers only.

    See Also
    --------
    Prediction : The same without targets.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.objectives import Margin
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(solver="newton-cholesky")
    >>> influence = InfluenceEstimator(model, objective=Margin()).fit(X, y)
    >>> influence.influence(X[:2], y[:2]).shape
    (2, 150)
    """

    requires_y = True

    def bind(self, model):
        if model.targets.classes is None:
            raise ValueError(
                "objective='margin' needs a classifier with one label a row; use 'prediction' for "
                f"{type(model.estimator).__name__}."
            )
        return SignedScore(model) if model.n_outputs == 1 else LabelLead(model)


class Response(BoundObjective):
    """What the model predicts, after the inverse link: one output, or the mean of all."""

    def __init__(self, model, output=None):
        super().__init__(model)
        seen = model.n_outputs
        weights = torch.zeros(model.n_latent, dtype=torch.float64)
        weights[slice(seen) if output is None else output] = 1.0 / (seen if output is None else 1)
        self.weights = weights

    def change(self, z, dz, y):
        shown = self.model.loss.response_change(z.unsqueeze(1), dz)
        return shown[..., 0] if shown.shape[-1] == 1 else shown @ self.weights

    def gradient(self, z, y):
        return self.model.loss.response_slope(z) * self.weights


class ClassScore(BoundObjective):
    """A column of the decision function, with a sign."""

    def __init__(self, model, column, sign):
        super().__init__(model)
        self.column = column
        self.sign = sign

    def change(self, z, dz, y):
        return self.sign * dz[..., self.column]

    def gradient(self, z, y):
        slope = torch.zeros_like(z)
        slope[:, self.column] = self.sign
        return slope


class SignedScore(BoundObjective):
    """The decision function of two classes, positive towards the given one."""

    requires_y = True

    def change(self, z, dz, y):
        return self._sign(y)[:, None] * dz[..., 0]

    def gradient(self, z, y):
        return self._sign(y)[:, None]

    @staticmethod
    def _sign(y):
        return 2.0 * class_codes(y).to(torch.float64) - 1.0


class Lead(BoundObjective):
    """The lead of one of several classes."""

    @abstractmethod
    def _index(self, z, y):
        """Return the class (t,) of each row."""

    def change(self, z, dz, y):
        return _lead_change(self.model.loss, z, dz, self._index(z, y))

    def gradient(self, z, y):
        return _lead_gradient(self.model.loss, z, self._index(z, y))


class PredictedLead(Lead):
    """The lead of the predicted class, held fixed."""

    def _index(self, z, y):
        return z.argmax(-1)

    def held(self, features, y):
        return LabelLead(self.model), self.model.outputs(features).argmax(-1)


class LabelLead(Lead):
    """The lead of the given class."""

    requires_y = True

    def _index(self, z, y):
        return class_codes(y)


def _without(z, index):
    """Return z with the entries ``index`` set to -inf."""
    return z.scatter(-1, index.unsqueeze(-1), -torch.inf)


def _pick(z, index):
    return torch.take_along_dim(z, index.unsqueeze(-1), -1)[..., 0]


def _lead_change(loss, z, dz, index):
    spread = index.unsqueeze(-1).expand(dz.shape[:-1])
    own = _pick(dz, spread)
    if loss.coupling == "coupled":
        # -(log-sum-exp of the others) moves by log(sum_j p_j exp(dz_j)), p over the others.
        others = torch.softmax(_without(z, index), -1).unsqueeze(1)
        relative = dz - own.unsqueeze(-1)
        growth = (others * torch.expm1(relative)).sum(-1)
        far = torch.logsumexp(torch.log(others) + relative, -1)
        return -torch.where(growth.abs() < 0.5, torch.log1p(growth.clamp(min=-0.5)), far)
    before = _without(z, index).amax(-1)
    after = _without(z.unsqueeze(1) + dz, spread).amax(-1)
    return own - (after - before.unsqueeze(-1))


def _lead_gradient(loss, z, index):
    others = _without(z, index)
    if loss.coupling == "coupled":
        share = torch.softmax(others, -1)
    else:
        share = torch.nn.functional.one_hot(others.argmax(-1), z.shape[1]).to(z.dtype)
    return torch.nn.functional.one_hot(index, z.shape[1]).to(z.dtype) - share
