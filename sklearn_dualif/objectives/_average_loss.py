"""The mean loss of some query rows, or of the group that fares worst."""

import numpy as np
import torch

from ._aggregate import WeightedAggregate
from ._base import Objective
from ._groups import Groups
from ._training_loss import TrainingLoss


class AverageLoss(Objective):
    """The mean loss over a subset of the query rows, or the largest mean of a group.

    One number for all query rows, whose targets it needs.

    Parameters
    ----------
    subset : array-like, default=None
        Query rows that count: a boolean mask (n_queries,), or positions. None: all.
    groups : array-like, (n_queries,), default=None
        Labels of groups. The objective is then the largest of the groups' mean losses.

    See Also
    --------
    Loss : One loss for each query row.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.objectives import AverageLoss
    >>> X, y = load_diabetes(return_X_y=True)
    >>> influence = InfluenceEstimator(Ridge(0.1)).fit(X[:300], y[:300])
    >>> women = X[300:, 1] < 0
    >>> effects = influence.influence(X[300:], y[300:], objective=AverageLoss(women))
    >>> effects.shape
    (1, 300)
    >>> single = influence.influence(X[300:][women], y[300:][women])
    >>> bool((abs(effects[0] - single.mean(axis=0)) < 1e-9).all())
    True
    """

    requires_y = True
    aggregate = True

    def __init__(self, subset=None, *, groups=None):
        self.subset = subset
        self.groups = groups

    def bind(self, model):
        groups = None if self.groups is None else Groups.of(self.groups, "groups")
        return MeanLoss(TrainingLoss(model), self.subset, groups)


class MeanLoss(WeightedAggregate):
    """The mean of the losses of a subset, or the largest of those of groups.

    Parameters
    ----------
    rows : TrainingLoss
    subset : array-like or None
        See `AverageLoss`.
    groups : Groups or None
    """

    requires_y = True

    def __init__(self, rows, subset, groups):
        super().__init__(rows)
        self.subset = subset
        self.groups = groups
        self.n_rows = None if groups is None else len(groups.codes)

    def row_weights(self, n_rows, y):
        kept = torch.from_numpy(_mask(self.subset, n_rows))
        if self.groups is None:
            return kept[:, None].to(torch.float64) / kept.sum()
        self.groups.check_length(n_rows, "groups")
        return self.groups.means(kept, "in the subset")

    def combine(self, sums):
        return sums.amax(0)


def _mask(subset, n_rows):
    """Return the mask (n_rows,) of a subset of query rows."""
    if subset is None:
        return np.ones(n_rows, dtype=bool)
    subset = np.asarray(subset)
    mask = np.zeros(n_rows, dtype=bool)
    if subset.ndim != 1 or (subset.dtype == bool and len(subset) != n_rows):
        raise ValueError(
            f"subset has shape {subset.shape}, but there are {n_rows} query rows. Give a boolean "
            f"mask of shape {(n_rows,)}, or the positions of rows."
        )
    if subset.dtype == bool or np.issubdtype(subset.dtype, np.integer):
        positions = np.flatnonzero(subset) if subset.dtype == bool else subset
        if len(positions) and 0 <= positions.min() and positions.max() < n_rows:
            mask[positions] = True
            return mask
    raise ValueError(
        f"subset={subset!r} names no rows, or some that there are not. Give a boolean mask with "
        f"some row, or positions from 0 to {n_rows - 1}."
    )
