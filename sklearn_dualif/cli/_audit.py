"""An audit: a model is fitted and checked, and every row of the table judged by it."""

import warnings
from dataclasses import dataclass, field

import numpy as np

from ..cleaning import find_issues
from ..exceptions import InfluenceWarning, UnsupportedOptionError
from ..metrics import validate
from ._errors import InputError, counted, listed, one_line
from ._fairness import check_sensitive, fairness_of
from ._fitted import choose, evenly, fitted, held_out_scores, is_no_better, parse_model

STEPS = 6
_MOST_QUERIES = 2000
_MOST_GROUPS = 1000


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes
    ----------
    dataset : Dataset
    chosen : Chosen
        The model, and which rows were held out to check it.
    influence : InfluenceEstimator
        Fitted on all rows with a target.
    scores, guess : dict
        On held-out rows, of the model and of a guess.
    validation : Validation or None
        None where it could not be made; ``notes`` say why.
    judged : DataFrame
        Issues of the rows with a target, as the report shows them.
    issues : DataFrame
        Of all rows.
    groups : DataFrame or None
        Issues of groups.
    fairness : Fairness or None
    notes : list of str
        What a user should know.
    """

    dataset: object
    chosen: object
    influence: object
    scores: dict
    guess: dict
    validation: object
    judged: object
    issues: object
    groups: object = None
    fairness: object = None
    notes: list = field(default_factory=list)

    @property
    def kept(self):
        """Mask (n_rows,) of the rows that are no issues."""
        return ~self.issues["is_issue"].to_numpy(dtype=bool)


def audit(dataset, options, progress):
    """Return the `Audit` of a dataset."""
    favorable, y, seed = None, dataset.y, options.random_state
    if dataset.sensitive is not None:
        favorable = check_sensitive(dataset.sensitive, dataset.target, options.favorable)
    if dataset.groups is not None:
        _check_groups(dataset.groups, options.model)
    model = parse_model(options.model, options.trust)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with progress.step("choosing the model"):
            chosen = choose(dataset, model, seed)
        X, train, held_out = chosen.X, chosen.train, chosen.held_out
        with progress.step("fitting it on four fifths of the rows"):
            checked = fitted(chosen, y, train)
            unseen = X.iloc[held_out], y.iloc[held_out]
            scores, guess = held_out_scores(checked, *unseen, dataset.target.task)
        notes = dataset.notes()
        if is_no_better(checked, *unseen, dataset.target.task):
            few = f"as far as {counted(len(held_out), 'held-out row')} tell"
            notes.insert(0, f"{few}, the model is no better than a guess and judges nothing")
        with progress.step("comparing predicted effects with refits"):
            queries = evenly(held_out, _MOST_QUERIES)
            validation = _validated(checked, X.iloc[queries], y.iloc[queries], seed, notes)
        fairness = None
        if favorable is not None:
            if not hasattr(checked, "predict_proba"):
                raise InputError(f"--sensitive needs probabilities, which {chosen.name} has not.")
            with progress.step(f"comparing groups of {dataset.sensitive.name}"):
                fairness = fairness_of(checked, chosen, y, dataset.sensitive, favorable)
            if fairness.left_out:
                few = listed(fairness.left_out)
                notes.append(f"{dataset.sensitive.name!r}: too few rows to compare {few}")
        with progress.step("judging every row"):
            influence = fitted(chosen, y)
            judged = find_issues(influence, X, y)
            mark(judged, options.contamination, dataset.target.task)
        groups = None
        if dataset.groups is not None:
            groups = _judged_groups(influence, X, y, dataset.groups)
    said = [warning.message for warning in caught]
    said = dict.fromkeys(one_line(w) for w in said if isinstance(w, InfluenceWarning))
    return Audit(
        dataset=dataset,
        chosen=chosen,
        influence=influence,
        scores=scores,
        guess=guess,
        validation=validation,
        judged=judged,
        issues=of_all_rows(judged, dataset, fairness),
        groups=groups,
        fairness=fairness,
        notes=[*notes, *said],
    )


def mark(issues, contamination, task):
    """Let ``is_issue`` be the worst share of the rows, in place of the estimated number.

    As with `InfluenceFilter`, rows whose own label the model prefers are not among them, nor is the
    best row of a class.
    """
    if contamination == "auto":
        return
    order = issues["rank"].to_numpy().argsort()
    disputed = np.ones(len(issues), dtype=bool)
    if task == "classification":
        given = issues["given_label"].to_numpy()
        disputed = given != issues["suggested_label"].to_numpy()
    rows = order[disputed[order]][: round(contamination * len(issues))]
    if task == "classification":
        _, best = np.unique(given[order[::-1]], return_index=True)
        rows = rows[~np.isin(rows, order[::-1][best])]
    marked = np.zeros(len(issues), dtype=bool)
    marked[rows] = True
    issues["is_issue"] = marked


def of_all_rows(judged, dataset, fairness=None):
    """Return the issues of all rows of the table with their lines, empty without a target."""
    table, known = dataset.table, dataset.target.known
    issues = judged.copy()
    if fairness is not None:
        for name, effects in fairness.effects.items():
            issues.insert(issues.columns.get_loc("score"), name, effects)
    if not known.all():
        whole = [name for name, dtype in issues.dtypes.items() if dtype.kind in "iu"]
        issues = issues.astype(dict.fromkeys(whole, "Int64"))
        issues.index = np.flatnonzero(known)
        issues = issues.reindex(range(table.n_rows))
        issues["is_issue"] = issues["is_issue"].eq(True)
        issues.loc[~known, "reason"] = "no target, not judged"
        issues.index = dataset.everything.index
    if table.line_of is not None:
        issues.insert(0, "line", table.line_of)
    return issues


def _validated(influence, X, y, seed, notes):
    try:
        return validate(influence, X, y, random_state=seed)
    except ValueError as error:
        notes.append(f"predicted effects were not compared with refits: {one_line(error)}")
        return None


def _check_groups(groups, model):
    if not 2 <= groups.nunique() <= _MOST_GROUPS:
        raise InputError(
            f"--groups {groups.name!r} has {counted(groups.nunique(), 'group')}, and 2 to "
            f"{_MOST_GROUPS:,} can be judged. Name a column of sites, annotators or months."
        )
    if model == "mlp":
        raise InputError(
            "--groups are judged by what a refit without them would do to rows that are held out, "
            "which takes several networks. Pass --model logistic or ridge."
        )


def _judged_groups(influence, X, y, groups):
    try:
        return find_issues(influence, X, y, groups=groups)
    except UnsupportedOptionError:
        raise InputError("--groups are not judged by networks. Leave it out.") from None
