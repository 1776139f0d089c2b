"""What speaks against each training row's target.

A first look takes what the model without a row says of it, from one fit, and finds suspects; a
second one what a model without the suspects says.
"""

import numpy as np
import torch
from sklearn.base import is_classifier

from ..exceptions import UnsupportedModelError
from ..losses import HalfTweedieDeviance
from ..models import final_estimator
from ._confident import confident_errors
from ._outliers import discoveries, spread_of
from ._second_look import first_look, second_look

_TINY = np.finfo(np.float64).tiny
_HUBER = 1.345
_ROUNDING = 1e-11
# A row whose leverage is this close to 1 is met whatever its target is.
_OWN_DIRECTION = 1e-8


def evidence_of(influence, y):
    """Return the evidence against the training rows of a fitted InfluenceEstimator.

    Parameters
    ----------
    influence : InfluenceEstimator
        Fitted.
    y : array-like
        The targets that it was fitted with.
    """
    name = type(final_estimator(influence.estimator_)).__name__
    if not influence._engine.gives_effects:
        raise UnsupportedModelError(
            "curvature='identity' gives scores, and finding wrong rows takes leave-one-out "
            "predictions. Use curvature='gauss_newton'."
        )
    if influence._engine.model.targets.classes is None:
        if is_classifier(influence):
            raise UnsupportedModelError(
                f"{name} was fitted with several labels a row, of which each may be wrong by "
                "itself. Fit one classifier a label."
            )
        return ResidualEvidence(influence, y)
    if not hasattr(influence.estimator_, "predict_proba"):
        raise UnsupportedModelError(
            f"{name} has no predict_proba, and labels are judged by probabilities. Use a "
            "classifier that has it, such as LogisticRegression or MLPClassifier."
        )
    return ClassEvidence(influence, y)


class ClassEvidence:
    """Evidence against labels: probabilities.

    Attributes
    ----------
    suspects : (n,) bool array
        Rows that are confidently of another class than their label, which the second look is
        without.
    strength : (n,) array
        Log odds of the most probable other class against the given one, at the second look.
    disputed : (n,) bool array
        Whether another class is more probable than the given one.
    n_wrong : int
        How many rows are wrong, as far as one can tell: the number of suspects; of a network, of
        those that it still disputes.
    suggested : (n,) array
        The most probable class.
    """

    kind = "label"

    def __init__(self, influence, y):
        model = influence._engine.model
        self.classes = influence.classes_
        self.given = self.labels = model.targets.index(y)
        self.rows = np.arange(len(self.given))
        self._model, self._weighted = model, influence._sample_weight > 0
        first = first_look(influence)
        self.loo_probability = self._probabilities(first.outputs)[self.rows, self.given]
        look = second_look(influence, first, self._suspects)
        self.suspects, self._unseen = look.suspects, look.unseen
        self.proba = self._probabilities(look.outputs)
        self.probability = self.proba[self.rows, self.given]
        others = self.proba.copy()
        others[self.rows, self.given] = 0.0
        self.strength = np.log(np.maximum(others.max(axis=1), _TINY))
        self.strength -= np.log(np.maximum(self.probability, _TINY))
        self.disputed = self.strength > 0.0
        best = np.where(self.disputed, others.argmax(axis=1), self.given)
        self.suggested = self.classes[best]
        self.suggested_probability = self.proba[self.rows, best]
        by_newton_step = influence._engine.moves_to_optimum
        wrong = self.suspects if by_newton_step else self.suspects & self.disputed
        self.n_wrong = int(wrong.sum())

    def _probabilities(self, outputs):
        return self._model.from_outputs("predict_proba", outputs)

    def _suspects(self, look):
        suspects = confident_errors(self._probabilities(look.outputs), self.given)
        n_classes = len(self.classes)
        kept = np.bincount(self.given[self._weighted & ~suspects], minlength=n_classes)
        return suspects & (kept[self.given] > 0)  # no class may lose all its rows

    def factors(self, rows):
        """Return by what to multiply the weights of rows: the odds of their labels."""
        return np.exp(-np.maximum(self.strength[rows], 0.0))

    def columns(self):
        """Return columns of a table by name."""
        return {
            "given_label": self.classes[self.given],
            "suggested_label": self.suggested,
            "loo_probability": self.loo_probability,
            "clean_probability": self.probability,
        }

    def sentences(self):
        """Return what the model says of each row."""
        return [
            f"the model {'without it ' if unseen else ''}calls it {label} at {_short(p)}"
            for label, p, unseen in zip(
                self.suggested, self.suggested_probability, self._unseen, strict=True
            )
        ]


class ResidualEvidence:
    """Evidence against the targets of a regression: residuals.

    Attributes
    ----------
    suspects : (n,) bool array
        Rows whose residual is too large to be noise, which the second look is without.
    strength : (n,) array
        Size of the residual at the second look in units of its spread; the root mean square over
        several outputs.
    disputed : (n,) bool array
        All rows: no prediction equals its target.
    n_wrong : int
        How many residuals are too large to be noise, at the second look.
    suggested : (n,) or (n, n_outputs) array
        What the model without the row and the suspects predicts.
    """

    kind = "target"
    labels = None

    def __init__(self, influence, y):
        engine = influence._engine
        self.y = np.asarray(y, dtype=np.float64)
        self._model, self._problem = engine.model, engine.problem
        look = second_look(influence, first_look(influence), self._suspects, residuals=True)
        self.suspects = look.suspects
        self.strength = self._standardized(look, ~look.suspects)
        self.n_wrong = int(discoveries(self.strength, engine.model.n_outputs).sum())
        self.disputed = np.ones(len(self.strength), dtype=bool)
        shown = engine.model.from_outputs("predict", look.outputs)
        self.suggested = influence._conversion.predictions(shown).reshape(self.y.shape)
        self.loo_prediction = influence.loo_predict().reshape(self.y.shape)

    def _suspects(self, look):
        return discoveries(self._standardized(look, slice(None)), self._model.n_outputs)

    def _standardized(self, look, typical):
        """Return residuals (n,) in units of the spread of typical rows'."""
        model, y = self._model, self._problem.y
        outputs = torch.from_numpy(look.outputs)
        if isinstance(model.loss, HalfTweedieDeviance):
            squares = model.loss.value(y, outputs).numpy()
        else:
            squares = (y - outputs).square().mean(1).numpy()
        squares = squares * _freedom(look.leverage / model.n_outputs)
        # What is left of targets that the model meets exactly is rounding.
        rounding = _ROUNDING * np.sqrt(np.mean(self.y[typical] ** 2))
        spread = max(spread_of(squares[typical], model.n_outputs), rounding)
        size = np.sqrt(squares)
        return np.divide(size, spread, out=np.zeros_like(size), where=spread > 0)

    def factors(self, rows):
        """Return by what to multiply the weights of rows: those of Huber's loss."""
        return np.minimum(1.0, _HUBER / np.maximum(self.strength[rows], _TINY))

    def columns(self):
        """Return columns of a table by name."""
        return {
            **_by_output("given_label", self.y),
            **_by_output("suggested_label", self.suggested),
            **_by_output("loo_residual", self.y - self.loo_prediction),
            "residual_in_spreads": self.strength,
        }

    def sentences(self):
        """Return what the model says of each row."""
        if self.y.ndim > 1:
            return [f"the model without it is {r:.1f} spreads off" for r in self.strength]
        return [
            f"the model without it says {value:.4g}, not {given:.4g}, {r:.1f} spreads off"
            for value, given, r in zip(self.suggested, self.y, self.strength, strict=True)
        ]


def _freedom(leverage):
    """Return what squared leave-one-out residuals (n,) are multiplied by to have one mean.

    It is ``1 - h``. A row with a direction of its own can't be judged: no other tells its target.
    In a model that has one for most rows ``1 - h`` says nothing, and residuals stay as they are.
    """
    judged = leverage < 1.0 - _OWN_DIRECTION
    if judged.mean() < 0.5:
        return np.ones_like(leverage)
    return np.where(judged, 1.0 - leverage, 0.0)


def _by_output(name, values):
    if values.ndim == 1:
        return {name: values}
    return {f"{name}_{k}": column for k, column in enumerate(values.T)}


def _short(probability):
    """Return a probability as ".98"."""
    return f"{probability:.2f}".removeprefix("0")
