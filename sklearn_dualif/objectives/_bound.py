"""What engines ask of an objective: the objective of one model."""

from abc import ABC, abstractmethod

import numpy as np
from sklearn.utils import check_consistent_length


class BoundObjective(ABC):
    """A function of the outputs of query rows: one number a row, or one for all of them.

    Outputs ``z`` (t, C) are those of the loss, before the inverse link; ``y`` are targets as the
    model encodes them, or None.

    Parameters
    ----------
    model : ModelFunction
        Gives the loss and says which outputs are seen.

    Attributes
    ----------
    requires_y : bool
        Whether the targets of the query rows are needed.
    takes_y : bool
        Whether they are looked at where they are given.
    linear : bool
        Whether effects are linear in those on the outputs, whatever the order.
    aggregate : bool
        Whether there is one number for all query rows.
    rows : BoundObjective or None
        Of an aggregate that is a function of weighted sums of it; see `WeightedAggregate`.
    moves_rows : bool
        Whether it is about other rows than those it is given; see `features`.
    n_rows : int or None
        How many query rows it carries labels for; None: it carries none.
    """

    requires_y = False
    linear = False
    aggregate = False
    rows = None
    moves_rows = False
    n_rows = None

    def __init__(self, model):
        self.model = model

    @property
    def takes_y(self):
        """Whether targets are looked at where they are given."""
        return self.requires_y

    def features(self, X, y):
        """Return the tangent features of query rows, as the caller gave them."""
        return self.model.features(X)

    def prepare(self, features, y):  # noqa: B027 - most have nothing to look at
        """Look at the query rows; called before any question about them.

        Parameters
        ----------
        features : LinearFeatures, KernelFeatures or TangentFeatures
            Of all query rows.
        y : tensor or None
            Their encoded targets.
        """

    def held(self, features, y):
        """Return this objective and its targets with all that the model decides held fixed.

        Parameters
        ----------
        features, y
            See `prepare`.
        """
        return self, y

    def queries(self, X, y):
        """Return features and encoded targets of query rows as the caller gave them; prepare."""
        if y is None and self.requires_y:
            raise ValueError(
                "This objective needs the targets y of the query rows. Pass them, or use "
                "objective='prediction'."
            )
        features, targets = self.features(X, y), None
        if y is not None and self.takes_y:
            targets = self.model.targets.encode(y)
            check_consistent_length(np.empty(features.shape[0]), targets)
        self.prepare(features, targets)
        return features, targets

    def value(self, z, y):
        """Return each row's number (t,), or the one number, at outputs z."""
        raise NotImplementedError(f"{type(self).__name__} is known by its changes alone.")

    @abstractmethod
    def change(self, z, dz, y):
        """Return the change when outputs z become z + dz (t, m, C): (t, m); aggregates: (m,)."""

    @abstractmethod
    def gradient(self, z, y):
        """Return the derivative of each row's number, or of the one number, by z: (t, C)."""
