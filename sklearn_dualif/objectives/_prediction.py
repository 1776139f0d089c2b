"""What the model predicts for a row, and how clearly it prefers a class."""

import torch

from ._base import Objective


class Prediction(Objective):
    """The regression output, the decision function, or the lead of the predicted class.

    With several classes: the predicted class's logit minus the log-sum-exp of the others where the
    model has a softmax, else its score minus the best other score. The class is held fixed.
    """

    def change(self, z, dz, y):
        seen = self.model.n_outputs
        if self.model.targets.classes is None or seen == 1:
            shown = self.model.loss.response_change(z.unsqueeze(1), dz)
            return shown[..., :seen].mean(-1)
        return _lead_change(self.model.loss, z, dz, z.argmax(-1))

    def gradient(self, z, y):
        seen = self.model.n_outputs
        if self.model.targets.classes is None or seen == 1:
            slope = self.model.loss.response_slope(z) / seen
            slope[:, seen:] = 0.0
            return slope
        return _lead_gradient(self.model.loss, z, z.argmax(-1))


class Margin(Objective):
    """`Prediction` for the given class instead of the predicted one; classifiers only."""

    requires_y = True

    def __init__(self, model):
        super().__init__(model)
        if model.targets.classes is None:
            raise ValueError(
                "objective='margin' needs a classifier with one label a row; use 'prediction' for "
                f"{type(model.estimator).__name__}."
            )

    def change(self, z, dz, y):
        if self.model.n_outputs == 1:
            return self._sign(y)[:, None] * dz[..., 0]
        return _lead_change(self.model.loss, z, dz, self._index(y))

    def gradient(self, z, y):
        if self.model.n_outputs == 1:
            return self._sign(y)[:, None]
        return _lead_gradient(self.model.loss, z, self._index(y))

    @staticmethod
    def _sign(y):
        return torch.where(y[:, 0] > 0, 1.0, -1.0).to(torch.float64)

    @staticmethod
    def _index(y):
        return y if y.ndim == 1 else y.argmax(-1)


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
