"""The base of all objectives, and of those that users write."""

from sklearn.base import BaseEstimator

from ._evaluated import EvaluatedObjective, slopes


class Objective(BaseEstimator):
    """What an influence is about; to be subclassed for targets of one's own.

    A subclass defines `value` in torch operations. Its derivative is taken automatically, and its
    effects are the values at the changed outputs less those before.

    Attributes
    ----------
    requires_y : bool
        Whether `value` needs the targets of the query rows.
    aggregate : bool
        Whether `value` is one number for all query rows, not one a row.

    See Also
    --------
    Loss : The loss that the model was trained on.
    DemographicParity : An aggregate.

    Notes
    -----
    A plain function of outputs and targets does as well, where it needs no settings:
    ``objective=lambda outputs, y: outputs.amax(1)``. It is an aggregate if it returns a tensor
    without dimensions. An objective with one number a row is called with any number of rows; an
    aggregate always with all query rows, so that it may hold something for each of them.

    Examples
    --------
    How much probability the predicted class has:

    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.objectives import Objective
    >>> class Confidence(Objective):
    ...     def value(self, outputs, y):
    ...         return torch.softmax(outputs, 1).amax(1)
    >>> X, y = load_iris(return_X_y=True)
    >>> influence = InfluenceEstimator(LogisticRegression(solver="newton-cholesky")).fit(X, y)
    >>> influence.influence(X[:2], objective=Confidence()).shape
    (2, 150)
    """

    requires_y = False
    aggregate = False

    def value(self, outputs, y):
        """Return the objective of query rows.

        Parameters
        ----------
        outputs : (n, n_outputs) tensor
            Before the inverse link: logits, log means, regression outputs.
        y : tensor or None
            Class indices (n,), indicators or numbers (n, n_outputs); None if there are none.

        Returns
        -------
        (n,) tensor, or one without dimensions for an aggregate
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no value(outputs, y). Define it, in torch operations."
        )

    def gradient(self, outputs, y):
        """Return the derivative of the value, or of the sum of values, by the outputs.

        Parameters
        ----------
        outputs, y : tensor
            See `value`.

        Returns
        -------
        (n, n_outputs) tensor
        """
        return slopes(self.value, outputs, y)

    def bind(self, model):
        """Return what engines ask of this objective for a model.

        Parameters
        ----------
        model : ModelFunction
            What effects are asked of.

        Returns
        -------
        BoundObjective
        """
        return EvaluatedObjective(model, self)


class FunctionObjective(Objective):
    """A plain function of outputs and targets.

    Parameters
    ----------
    function : callable
        As `Objective.value`.
    """

    aggregate = None

    def __init__(self, function):
        self.function = function

    def value(self, outputs, y):
        return self.function(outputs, y)
