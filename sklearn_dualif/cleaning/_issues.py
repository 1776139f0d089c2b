"""A table of the rows of a training set: which are probably wrong, why, and what they do."""

import numpy as np

from ._groups import group_table
from ._held_out import on_loss
from ._ranking import rank_rows
from ._selection import auto_rows


def find_issues(estimator, X, y, *, X_val=None, y_val=None, groups=None, **fit_params):
    """Find training rows, or groups of them, whose targets are probably wrong.

    Every row is judged by what the model says of it that was not trained on it, nor on the rows
    that are suspect themselves: from one fit, or of networks from three.

    Parameters
    ----------
    estimator : estimator
        A model that `InfluenceEstimator` can wrap, classifiers with ``predict_proba``; or an
        `InfluenceEstimator`, to choose its options. If that is fitted, ``X`` and ``y`` are those
        that it was fitted on.
    X : array-like, sparse matrix or DataFrame, (n_train, n_features)
        Training rows.
    y : array-like, (n_train,) or (n_train, n_outputs)
        Their targets.
    X_val, y_val : array-like, optional
        Rows whose targets can be trusted. They make the ranking better, and the effects are on
        their mean loss. Without them, effects are on the training rows that are not suspect, each
        held out of one of five more fits; of networks, there are no effects.
    groups : array-like (n_train,), or name of a column of X, optional
        A group of each row: a site, an annotator, a range of dates. The table is then of groups.
        The model is given ``X`` with all its columns; pass a column that is no feature apart.
    **fit_params : dict
        Passed to the model's ``fit``, such as ``sample_weight``.

    Returns
    -------
    DataFrame
        One row for each row of ``X``, with its index and in its order; or, with ``groups``, one for
        each group, the worst first. ``attrs["held_out"]`` says what the effects are on: "X_val",
        "cross-validation", or None.

    Raises
    ------
    UnsupportedModelError
        A `TypeError`, for classifiers without ``predict_proba`` or with several labels a row, and
        for models that `InfluenceEstimator` does not take.
    ValueError
        If a fitted estimator was fitted on other rows, or groups don't match the rows.

    See Also
    --------
    InfluenceFilter : A model that finds such rows, acts on them and is fitted again.
    sklearn_dualif.InfluenceEstimator.removal_effect : What any set of rows does.

    Notes
    -----
    The columns of the table of rows:

    ``given_label``, ``suggested_label``
        The target, and what the model would say: the class that it prefers, or its prediction.
        Columns with a number at the end for several outputs.
    ``loo_probability`` (classifiers)
        Probability of the given label under the model without the row.
    ``clean_probability`` (classifiers)
        The same under the model without the row and without all suspects: rows that are confidently
        of another class by their leave-one-out probabilities [1]_. Networks are fitted again
        without the suspects, and once more without those that are suspect then; the probabilities
        of other rows are those of this last network, which was trained on them.
    ``loo_residual``, ``residual_in_spreads`` (regressors)
        Target less leave-one-out prediction; and the size of the residual without the row and the
        suspects, in units of its spread: a robust standard deviation, larger for rows of large
        leverage; 0 for a row of leverage 1, which can't be judged. Of deviances, their square root
        stands for the residual.
    ``self_influence``, ``leverage``
        As in `InfluenceEstimator`.
    ``removal_effect``
        What removing the row does to the mean held-out loss. Negative: without the row it is lower.
        In cross-validation, of a model with four fifths of the rows, where a row does more.
    ``relabel_effect`` (classifiers, not networks)
        What giving it the suggested label does; 0 where that is the given one.
    ``score``
        What the rank goes by: log odds of the suggested against the given label, or the residual
        in spreads, plus, with ``X_val``, up to 1 for what removing the row does.
    ``is_issue``
        Whether the row is probably wrong: as many rows with a score that says so as there are
        suspects (of a network, suspects that it still disputes), or, of a regression, residuals at
        a false discovery rate of .05. None if nothing is wrong, or rather few.
    ``rank``
        From 1, the worst row.
    ``reason``
        The same in words.

    The columns of the table of groups: ``n_rows``; ``n_issues``, rows with ``is_issue``;
    ``removal_effect`` of all rows of a group together; ``effect_per_row``; ``rank`` and ``reason``.
    They are ranked by ``removal_effect``: the group without which the held-out loss is lowest comes
    first.

    ``InfluenceEstimator.loo_predict_proba()`` is what cleanlab calls ``pred_probs``, out-of-sample
    probabilities from one fit: ``find_label_issues(labels, influence.loo_predict_proba())`` with
    labels 0, 1, ... takes it as it is.

    References
    ----------
    .. [1] C. Northcutt, L. Jiang and I. Chuang, "Confident Learning: Estimating Uncertainty in
       Dataset Labels", JAIR 70, 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_dualif.cleaning import find_issues
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> y[[7, 60]] = 2  # two mistakes
    >>> issues = find_issues(LogisticRegression(max_iter=1000), X, y)
    >>> issues.nsmallest(2, "rank")[["given_label", "suggested_label", "loo_probability"]].round(3)
        given_label  suggested_label  loo_probability
    7             2                0            0.000
    60            2                1            0.022
    """
    named = _names_column(groups, X)
    ranking = rank_rows(estimator, X, y, X_val, y_val, fit_params, effects=True)
    index = ranking.influence._train_index
    if groups is None:
        table = _row_table(ranking, index)
    else:
        table = group_table(ranking, X[groups] if named else groups, index)
    table.attrs["held_out"] = None if ranking.held_out is None else ranking.held_out.name
    return table


def _names_column(groups, X):
    """Return whether groups names a column of X; raise for a name that does not."""
    if not isinstance(groups, str):
        return False
    columns = list(getattr(X, "columns", []))
    if groups not in columns:
        known = f"its columns are {columns}" if columns else "X has no named columns"
        raise ValueError(
            f"groups={groups!r} is not a column of X: {known}. Name one of them, or pass one group "
            "for each row."
        )
    return True


def _row_table(ranking, index):
    import pandas as pd

    influence, evidence = ranking.influence, ranking.evidence
    n = len(ranking.score)
    columns = evidence.columns()
    columns["self_influence"] = influence.self_influence_
    columns["leverage"] = influence.leverage_
    reasons = evidence.sentences()
    if ranking.held_out is not None:
        removals = ranking.held_out.removals() if ranking.removals is None else ranking.removals
        columns["removal_effect"] = removals
        reasons = [
            f"{says}; removing it {on_loss(effect)}"
            for says, effect in zip(reasons, removals, strict=True)
        ]
    if evidence.kind == "label" and influence._engine.moves_to_optimum:
        relabels = np.zeros(n)
        rows = np.flatnonzero(evidence.disputed)
        if len(rows):
            relabels[rows] = ranking.held_out.relabels(rows, evidence.suggested[rows])
        columns["relabel_effect"] = relabels
    columns["score"] = ranking.score
    columns["is_issue"] = np.zeros(n, dtype=bool)
    columns["is_issue"][auto_rows(ranking)] = True
    rank = np.empty(n, dtype=np.intp)
    rank[ranking.order] = np.arange(1, n + 1)
    columns["rank"] = rank
    columns["reason"] = reasons
    return pd.DataFrame(columns, index=index)
