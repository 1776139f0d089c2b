"""Differences in how a classifier treats groups, as fairlearn names them."""

import numpy as np
import torch
from sklearn.utils import check_consistent_length, column_or_1d

from ._base import Objective
from ._classes import class_index, class_probability
from ._groups import Groups
from ._rates import ClassProbability, GapRule, RateGap


class GroupGap(Objective):
    """What the gaps between groups share."""

    aggregate = True
    _conditions = ("all",)

    def __init__(self, sensitive_features, *, reference=None, favorable=None):
        self.sensitive_features = sensitive_features
        self.reference = reference
        self.favorable = favorable

    def bind(self, model):
        favorable = self._position_of_favorable(model)
        rows = ClassProbability(model, class_probability(model, favorable))
        return RateGap(rows, self._rule(), favorable)

    def probability_gap(self, probabilities, y_true=None):
        """Return the gap in expected rates, the means of predicted probabilities.

        Parameters
        ----------
        probabilities : array-like, (n_queries,)
            Of the favourable class: its column of ``predict_proba``.
        y_true : array-like, (n_queries,), optional
            Labels of the rows, for gaps that are about rows of some class.

        Returns
        -------
        float
            What the objective is of a model that gives these probabilities.
        """
        probabilities = np.asarray(probabilities, dtype=np.float64)
        if probabilities.ndim != 1 or not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError(
                "probabilities must be numbers from 0 to 1, (n_queries,); got shape "
                f"{probabilities.shape}. Pass the favourable class's column of predict_proba."
            )
        return self._gap(probabilities, y_true, y_true)

    def prediction_gap(self, y_pred, y_true=None):
        """Return the gap in the rates of predictions: fairlearn's metric of the same name.

        Parameters
        ----------
        y_pred : array-like, (n_queries,)
            Predicted labels.
        y_true : array-like, (n_queries,), optional
            Labels of the rows, for gaps that are about rows of some class.

        Returns
        -------
        float
        """
        known = y_pred if y_true is None else np.append(y_true, y_pred)
        return self._gap(self._is_favorable(y_pred, known), y_true, known)

    def _gap(self, values, y_true, known):
        rule, positive = self._rule(), None
        rule.groups.check_length(len(values), "sensitive_features")
        if rule.conditions != ("all",):
            if y_true is None:
                raise ValueError(
                    f"{type(self).__name__} is about rows of the favourable class. Pass y_true."
                )
            positive = torch.from_numpy(self._is_favorable(y_true, known))
            check_consistent_length(values, positive)
        rates = rule.weights(positive).T @ torch.from_numpy(values.astype(np.float64))
        return float(rule.combine(rates.unsqueeze(1)))

    def _rule(self):
        """Return the `GapRule`; raise for groups that cannot be compared."""
        groups = Groups.of(self.sensitive_features, "sensitive_features")
        if len(groups.labels) < 2:
            raise ValueError(
                f"sensitive_features has the one group {groups.labels[:1]}, and a gap is between "
                "groups. Pass query rows of two groups or more."
            )
        reference = self.reference
        if reference is not None:
            reference = groups.position(reference, "reference")
        return GapRule(groups, self._conditions, reference)

    def _position_of_favorable(self, model):
        name, wrapped = type(self).__name__, type(model.estimator).__name__
        classes = model.targets.classes
        if classes is None:
            raise ValueError(
                f"{name} needs a classifier with one label a row, which {wrapped} is not. Compare "
                "the losses of groups with AverageLoss(groups=...)."
            )
        if self.favorable is not None:
            return class_index(classes, self.favorable, "favorable", model)
        if len(classes) > 2:
            raise ValueError(
                f"{name} needs favorable= to choose one of the {len(classes)} classes of "
                f"{wrapped}: {classes.tolist()}."
            )
        return 1

    def _is_favorable(self, labels, known):
        """Tell which labels are the favourable one, given those that occur."""
        favorable = self.favorable
        if favorable is None:
            occurring = set(column_or_1d(known).tolist())
            numbers = occurring <= {0, 1} or occurring <= {-1, 1}
            if not numbers and len(occurring) != 2:
                raise ValueError(
                    f"{type(self).__name__} cannot tell which of the labels "
                    f"{sorted(occurring, key=str)} is the favourable one. Give favorable=."
                )
            favorable = 1 if numbers else max(occurring)
        return np.array([label == favorable for label in column_or_1d(labels).tolist()])


class DemographicParity(GroupGap):
    r"""The difference between groups in the rate at which the favourable class is predicted.

    Expected rates are compared, the means of predicted probabilities, which unlike the rates of
    predictions change with every removal. One number for all query rows.

    Parameters
    ----------
    sensitive_features : array-like, (n_queries,)
        Group of each row that the objective is evaluated on: any labels.
    reference : label, default=None
        Group that the others are compared with: the gap is then the rate of the other group minus
        that of the reference, with a sign; of several others the one that is furthest from it.
        None: the largest rate less the smallest, of any number of groups.
    favorable : label, default=None
        Class whose rate is meant. None: the last of two.

    See Also
    --------
    EqualOpportunity : Among rows that are of the favourable class.
    EqualizedOdds : Among those, and among all others.

    Notes
    -----
    The gap without a reference has a kink where two groups change places at its end; an effect
    that is evaluated (``order="newton"``) follows it, a linear one does not. A removal helps
    parity if its effect is negative; of a gap with a sign, if it brings the gap towards zero.

    References
    ----------
    .. [1] H. Weerts et al., "Fairlearn: Assessing and Improving Fairness of AI Systems", JMLR 24,
       2023.
    .. [2] A. Chhabra, P. Li, P. Mohapatra and H. Liu, "What Data Benefits My Classifier? Enhancing
       Model Performance and Interpretability through Influence-Based Data Selection", ICLR 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_dualif import InfluenceEstimator
    >>> from sklearn_dualif.objectives import DemographicParity
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> group = X[:, 1] > 19
    >>> X = scale(X)
    >>> influence = InfluenceEstimator(LogisticRegression(C=0.1)).fit(X[:300], y[:300])
    >>> parity = DemographicParity(group[300:])
    >>> round(parity.probability_gap(influence.predict_proba(X[300:])[:, 1]), 3)
    0.36
    >>> effects = influence.influence(X[300:], objective=parity)
    >>> effects.shape
    (1, 300)
    >>> worst = effects[0].argsort()[:20]  # whose removals lower the gap most
    >>> influence.removal_effect(worst, X[300:], objective=parity, order="exact").round(3)
    array([-0.055])
    """


class EqualOpportunity(GroupGap):
    r"""`DemographicParity` among the rows of the favourable class: of true positive rates.

    Needs the targets of the query rows.

    Parameters
    ----------
    sensitive_features, reference, favorable
        See `DemographicParity`.

    See Also
    --------
    DemographicParity : Among all rows.
    EqualizedOdds : Of false positive rates too.

    References
    ----------
    .. [1] M. Hardt, E. Price and N. Srebro, "Equality of Opportunity in Supervised Learning",
       NeurIPS 2016.

    Examples
    --------
    >>> from sklearn_dualif.objectives import EqualOpportunity
    >>> opportunity = EqualOpportunity(["a", "a", "a", "b", "b", "b"])
    >>> opportunity.prediction_gap(y_pred=[1, 0, 1, 1, 1, 0], y_true=[1, 1, 0, 1, 1, 0])
    0.5
    """

    requires_y = True
    _conditions = ("favorable",)


class EqualizedOdds(GroupGap):
    r"""The gaps in true positive and in false positive rates, the larger one or their mean.

    Needs the targets of the query rows.

    Parameters
    ----------
    sensitive_features, reference, favorable
        See `DemographicParity`.
    agg : {"worst_case", "mean"}, default="worst_case"
        Which counts: the gap that is larger by size, or the mean of both.

    See Also
    --------
    EqualOpportunity : Of true positive rates alone.

    References
    ----------
    .. [1] M. Hardt, E. Price and N. Srebro, "Equality of Opportunity in Supervised Learning",
       NeurIPS 2016.

    Examples
    --------
    >>> from sklearn_dualif.objectives import EqualizedOdds
    >>> odds = EqualizedOdds(["a", "a", "a", "b", "b", "b"], agg="mean")
    >>> odds.prediction_gap(y_pred=[1, 0, 1, 1, 1, 0], y_true=[1, 1, 0, 1, 1, 0])
    0.75
    """

    requires_y = True
    _conditions = ("favorable", "others")

    def __init__(self, sensitive_features, *, reference=None, favorable=None, agg="worst_case"):
        super().__init__(sensitive_features, reference=reference, favorable=favorable)
        self.agg = agg

    def _rule(self):
        if self.agg not in ("worst_case", "mean"):
            raise ValueError(f"agg={self.agg!r} is not known. Choose 'worst_case' or 'mean'.")
        return super()._rule()._replace(agg=self.agg)
