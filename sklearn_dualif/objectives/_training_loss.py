"""The loss that the model was trained on, in the units of scikit-learn's metric."""

from ._base import Objective
from ._bound import BoundObjective


class Loss(Objective):
    """The loss that the model was trained on, as an objective with an option.

    Parameters
    ----------
    linear : bool, default=False
        Whether effects on the loss are linear in those on the outputs, instead of the loss at the
        changed outputs less the loss before. Linear scores of single rows may be added up.

    See Also
    --------
    AverageLoss : The mean loss of a slice of the query rows, or of the worst group.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.objectives import Loss
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression(solver="newton-cholesky")
    >>> influence = InfluenceEstimator(model, objective=Loss(linear=True))
    >>> influence.fit(X, y).influence(X[:2], y[:2]).shape
    (2, 150)
    """

    requires_y = True

    def __init__(self, *, linear=False):
        self.linear = linear

    def bind(self, model):
        return TrainingLoss(model, linear=self.linear)


class TrainingLoss(BoundObjective):
    """Unweighted loss of a query row: log loss, squared error, deviance, ..."""

    requires_y = True

    def __init__(self, model, *, linear=False):
        super().__init__(model)
        self.linear = linear

    def value(self, z, y):
        """Return the loss of each row, (t,)."""
        return self.model.loss.value(y, z)

    def change(self, z, dz, y):
        return self.model.loss.change(y.unsqueeze(1), z.unsqueeze(1), dz)

    def gradient(self, z, y):
        return self.model.loss.slope(y, z)
