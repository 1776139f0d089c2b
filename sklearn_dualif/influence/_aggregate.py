"""Effects of all single removals on one number for all queries, from a stream of their parts."""

import torch


class LinearForm:
    """The objective whose derivative by the outputs is what stands in the place of targets."""

    linear = True
    aggregate = False

    @staticmethod
    def gradient(z, y):
        """Return the derivative, (t, C)."""
        return y


def total_effects(tiles, n_rows):
    """Return the sums over queries, (n,), of tiles (queries, columns, effects)."""
    result = torch.zeros(n_rows, dtype=torch.float64)
    for _, columns, effects in tiles:
        result[columns] += effects.sum(0)
    return result


def weighted_effects(objective, z, y, tiles, n_rows):
    """Return the effects (n,) on a `WeightedAggregate`.

    Parameters
    ----------
    objective : WeightedAggregate
        Prepared for these queries.
    z : (t, C) tensor
        Outputs of the queries.
    y : tensor or None
        Their encoded targets.
    tiles : iterable
        Of (queries, columns, effects on the objective's ``rows``).
    n_rows : int
        Number of training rows.
    """
    sums = objective.sums(z, y)
    moves = torch.zeros(len(sums), n_rows, dtype=torch.float64)
    for queries, columns, effects in tiles:
        moves[:, columns] += objective.weights[queries].T @ effects
    return objective.change_of(sums, moves)


def evaluated_effects(objective, z, y, blocks, n_rows):
    """Return the effects (n,) on an aggregate that needs all queries' outputs at once.

    Parameters
    ----------
    objective, z, y, n_rows
        See `weighted_effects`.
    blocks : iterable
        Of (rows, changes (t, b, C) of the outputs).
    """
    result = torch.empty(n_rows, dtype=torch.float64)
    for rows, dz in blocks:
        result[rows] = objective.change(z, dz, y)
    return result
