"""The loss that the model was trained on, in the units of scikit-learn's metric."""

from ._base import Objective


class Loss:
    """The loss that the model was trained on, as an objective with an option.

    Parameters
    ----------
    linear : bool, default=False
        Whether effects on the loss are linear in those on the outputs, instead of the loss at the
        changed outputs less the loss before. Linear scores of single rows may be added up.

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

    def __init__(self, *, linear=False):
        self.linear = linear

    def bind(self, model):
        """Return the `Objective` for a model.

        Parameters
        ----------
        model : ModelFunction
            What effects are asked of.

        Returns
        -------
        TrainingLoss
        """
        return TrainingLoss(model, linear=self.linear)

    def __repr__(self):
        return f"Loss(linear={self.linear})"


class TrainingLoss(Objective):
    """Unweighted loss of a query row: log loss, squared error, deviance, ..."""

    requires_y = True

    def __init__(self, model, *, linear=False):
        super().__init__(model)
        self.linear = linear

    def change(self, z, dz, y):
        return self.model.loss.change(y.unsqueeze(1), z.unsqueeze(1), dz)

    def gradient(self, z, y):
        return self.model.loss.slope(y, z)
