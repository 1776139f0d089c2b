"""Between the data of a caller and those that a wrapped estimator takes."""


class Conversion:
    """Rows, targets and predictions go through as they are."""

    def rows(self, X):
        """Return rows as the methods of the estimator take them."""
        return X

    def targets(self, y):
        """Return targets as the methods of the estimator take them."""
        return y

    def predictions(self, values):
        """Return what the estimator predicts in the terms of the caller's targets."""
        return values

    def labelled(self, targets):
        """Return the `Targets` of the fitted estimator for targets of the caller."""
        return targets
