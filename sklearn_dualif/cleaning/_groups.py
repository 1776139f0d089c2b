"""A table of groups of training rows: what each, removed together, does to held-out losses."""

import numpy as np
from sklearn.utils.validation import _num_samples

from ..exceptions import UnsupportedOptionError
from ._held_out import on_loss
from ._selection import auto_rows


def group_table(ranking, groups, index):
    """Return a data frame of groups, the worst first.

    Parameters
    ----------
    ranking : Ranking
        Of the training rows.
    groups : array-like (n,)
        A group of each training row. A missing value is a group of its own.
    index : Index or None
        Of the training rows: groups with an index have the same.
    """
    import pandas as pd

    if ranking.held_out is None:
        raise UnsupportedOptionError(
            "groups are ranked by what their removal does to held-out losses, and a network's are "
            "known on validation rows only. Pass X_val and y_val."
        )
    n = len(ranking.score)
    if np.ndim(groups) != 1 or _num_samples(groups) != n:
        raise ValueError(
            f"groups has shape {np.shape(groups)} and X {n} rows. Give one group for each row."
        )
    if index is not None and isinstance(groups, pd.Series) and not groups.index.equals(index):
        raise ValueError(
            "groups is a Series whose index is not that of X. Give the rows the same order and "
            "index, or pass groups.to_numpy()."
        )
    groups = groups if hasattr(groups, "dtype") else np.asarray(groups, dtype=object)
    codes, labels = pd.factorize(groups, sort=True, use_na_sentinel=False)
    if len(labels) < 2:
        raise ValueError(
            f"groups has one group only, {labels.tolist()[0]!r}, and removing it leaves no rows. "
            "Give at least two groups."
        )
    issues = np.zeros(n, dtype=bool)
    issues[auto_rows(ranking)] = True
    members = [np.flatnonzero(codes == group) for group in range(len(labels))]
    effects = np.array([_mean(ranking.held_out.group(rows)) for rows in members])
    sizes = np.bincount(codes)
    n_issues = np.bincount(codes, weights=issues).astype(np.intp)
    table = pd.DataFrame(
        {
            "n_rows": sizes,
            "n_issues": n_issues,
            "removal_effect": effects,
            "effect_per_row": effects / sizes,
            "reason": [
                f"removing its {size} rows {on_loss(effect)}; {issue} of them look wrong"
                for size, effect, issue in zip(sizes, effects, n_issues, strict=True)
            ],
        },
        index=pd.Index(labels, name=getattr(groups, "name", None) or "group"),
    )
    table = table.iloc[np.argsort(effects, kind="stable")]
    table.insert(4, "rank", np.arange(1, len(labels) + 1))
    return table


def _mean(effects):
    return effects.mean() if len(effects) else np.nan
