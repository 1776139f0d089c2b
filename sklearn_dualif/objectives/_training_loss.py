"""The loss that the model was trained on, in the units of scikit-learn's metric."""

from ._base import Objective


class TrainingLoss(Objective):
    """Unweighted loss of a query row: log loss, squared error, deviance, ..."""

    requires_y = True

    def change(self, z, dz, y):
        return self.model.loss.change(y.unsqueeze(1), z.unsqueeze(1), dz)

    def gradient(self, z, y):
        return self.model.loss.slope(y, z)
