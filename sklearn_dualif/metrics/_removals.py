"""Which rows are removed, and what their removal does: as predicted, and by refits."""

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from .._estimator import InfluenceEstimator
from ..models import NetworkModel


def check_fitted(influence, function):
    """Raise unless what a function was given is a fitted InfluenceEstimator."""
    if not isinstance(influence, InfluenceEstimator):
        raise TypeError(
            f"{function} needs a fitted InfluenceEstimator; got {type(influence).__name__}. Wrap "
            "the model in one."
        )
    check_is_fitted(influence)


# Rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemovableRows:
    """Training rows with weight, of no class the last one.

    Attributes
    ----------
    rows : (n,) array
        Positions of the rows with weight.
    codes : (n,) array
        Number of the class of each; 0 where targets are no classes.
    classes : bool
        Whether targets are classes.
    """

    rows: np.ndarray
    codes: np.ndarray
    classes: bool

    @classmethod
    def of(cls, influence):
        """Return those of a fitted InfluenceEstimator."""
        rows = np.flatnonzero(influence._sample_weight > 0)
        targets = influence._engine.model.targets
        classes = targets.classes is not None
        codes = np.zeros(len(rows), dtype=int)
        if classes:
            codes = targets.index(np.ravel(influence._y_train))[rows]
        return cls(rows, codes, classes)

    @property
    def largest(self):
        """How many rows can be removed together."""
        return len(self.rows) - len(np.unique(self.codes))

    @property
    def single(self):
        """Positions of the rows that can be removed alone."""
        counts = np.bincount(self.codes)[self.codes]
        return self.rows[counts > 1]

    def check_size(self, size, said):
        """Raise if too few rows would stay; ``said`` is what the caller asked for."""
        if size > self.largest:
            reason = "one of each class must stay" if self.classes else "one must stay"
            raise ValueError(
                f"{said} of {len(self.rows)} training rows is {size}, but {reason}, so that at "
                f"most {self.largest} can be removed. Lower it."
            )

    def leading(self, order, size):
        """Return the sorted positions of the first rows of an order that can be removed together.

        Parameters
        ----------
        order : array of int
            Positions, the first to remove first. Those of no weight and the last one of each class
            are passed over; rows that it leaves out come after it.
        size : int
            Number of rows.
        """
        places = np.full(self.rows[-1] + 1, -1)
        places[self.rows] = np.arange(len(self.rows))
        order = np.concatenate([order, np.setdiff1d(self.rows, order)])
        order = order[np.isin(order, self.rows)]
        codes = self.codes[places[order]]
        _, last_of_class = np.unique(codes[::-1], return_index=True)
        return np.sort(np.delete(order, len(order) - 1 - last_of_class)[:size])

    def draw(self, size, generator):
        """Return the sorted positions of rows drawn at random."""
        return self.leading(generator.permutation(self.rows), size)


# Effects ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """The objective that effects are about, on the rows that they are asked of.

    Attributes
    ----------
    influence : InfluenceEstimator
        Fitted.
    X : array-like
        Query rows.
    objective : BoundObjective
        Prepared for these.
    order : str
        Of predictions.
    features, targets
        The query rows and their targets, encoded.
    """

    influence: object
    X: object
    objective: object
    order: str
    features: object
    targets: object

    @classmethod
    def of(cls, influence, X, y, objective, order):
        """Return the question of a caller; raise if refits cannot answer it."""
        chosen, order = influence._choices(objective, order)
        if chosen.moves_rows:
            raise ValueError(
                "The refits are asked about the rows X, and this objective is about others that "
                "it makes of them. Pass those rows as X, with objective='loss'."
            )
        return cls(influence, X, chosen, order, *influence._queries(X, y, chosen))

    @property
    def at_the_optimum(self):
        """Whether effects are those between optima, wherever the solver stopped."""
        return not isinstance(self.influence._engine.model, NetworkModel)

    def linear(self):
        """Return the question with an objective that is linear in the outputs."""
        objective = copy(self.objective)
        objective.linear = True
        return replace(self, objective=objective)

    def predicted(self, groups):
        """Return predicted effects (n_groups, n_queries) of removing each group together."""
        engine = self.influence._engine
        states = [engine.removal_state(torch.from_numpy(group), self.order) for group in groups]
        effects = engine.state_effects(
            torch.cat(states, -1), self.features, self.targets, self.objective, self.order
        )
        return finite(effects.T.numpy(), "predicted")

    def single(self, rows=None):
        """Return predicted effects (n_queries, n_rows) of removing rows alone; None: all rows."""
        if rows is not None and self.at_the_optimum:
            # Never the whole matrix, which may be larger than all else.
            return self.predicted(rows[:, None]).T
        engine = self.influence._engine
        effects = engine.influence(self.features, self.targets, self.objective, self.order)
        effects = finite(effects.numpy(), "predicted")
        return effects if rows is None else effects[:, rows]

    def outputs(self):
        """Return the outputs (n_queries, n_latent) of the model as it was fitted."""
        return self.influence._engine.model.outputs(self.features)

    def refitted(self, refits, groups, *, n_jobs=None, verbose=0):
        """Return outputs (n_groups, n_queries, n_latent) of refits without each group."""
        moved = Parallel(n_jobs=n_jobs, verbose=verbose)(
            delayed(refits.outputs)(group, self.X) for group in groups
        )
        return torch.from_numpy(np.stack(moved))

    def changes(self, before, after):
        """Return effects (n_groups, n_queries) of moving outputs.

        Parameters
        ----------
        before : (n_queries, n_latent) tensor
            Outputs with all rows.
        after : (n_groups, n_queries, n_latent) tensor
            Outputs without each group.
        """
        dz = (after - before).transpose(0, 1)
        changes = torch.atleast_2d(self.objective.change(before, dz, self.targets))
        return finite(changes.T.numpy(), "refitted")


def finite(effects, kind):
    """Return effects; raise unless all are finite."""
    if not np.isfinite(effects).all():
        raise ValueError(
            f"Some {kind} effects are not finite: the objective overflows on these queries. Pass "
            "queries like the training rows, scale the features, or choose larger ridges."
        )
    return effects
