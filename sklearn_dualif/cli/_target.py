"""The target: classes or numbers, and why one or the other."""

from dataclasses import dataclass

import numpy as np

from ._columns import as_numbers, texts_of
from ._errors import InputError, counted, listed

_MOST_CODES = 10
_MOST_CLASSES = 200
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Target:
    """A target column.

    Attributes
    ----------
    name : str
    task : {"classification", "regression"}
    why : str
        Why it is that.
    known : (n,) bool array
        Rows that have a target.
    values : (n_known,) array
        Their targets: numbers, or whole numbers or texts for classes.
    """

    name: str
    task: str
    why: str
    known: np.ndarray
    values: np.ndarray

    @property
    def classes(self):
        """Distinct targets."""
        return np.unique(self.values)


def target_of(table, name, task=None):
    """Return the `Target` of a table; ``task`` None decides by the values."""
    texts = texts_of(table, name)
    known = np.array([text is not None for text in texts])
    if not known.any():
        raise InputError(f"the target {name!r} is empty in all {counted(len(texts), 'row')}.")
    texts = texts[known]
    distinct, codes, counts = np.unique(texts.astype(str), return_inverse=True, return_counts=True)
    numbers = as_numbers(distinct, counts)[codes]
    are_numbers = np.isfinite(numbers)
    whole = are_numbers.all() and (numbers == np.round(numbers)).all()
    n_distinct = len(np.unique(numbers if are_numbers.all() else texts))
    why = "as --task says"
    if task is None:
        task, why = _decided(name, texts, are_numbers, whole, n_distinct)
    if task == "regression":
        if not are_numbers.all():
            raise InputError(_no_numbers(table, name, known, texts, are_numbers))
        values = numbers
    else:
        values = numbers.astype(np.int64) if whole else texts.astype(str)
    if n_distinct < 2:
        raise InputError(
            f"the target {name!r} is {texts[0]!r} in every row: there is nothing to learn. Name "
            "another column with --target."
        )
    if task == "classification" and n_distinct > min(_MOST_CLASSES, max(2, len(texts) // 5)):
        raise InputError(
            f"the target {name!r} has {n_distinct:,} classes in {counted(len(texts), 'row')}: too "
            f"many to learn. {'Pass --task regression, or n' if are_numbers.all() else 'N'}ame "
            "another column with --target."
        )
    return Target(name, task, why, known, values)


def _decided(name, texts, are_numbers, whole, n_distinct):
    """Return the task and why."""
    if whole and n_distinct <= _MOST_CODES:
        return "classification", f"{n_distinct} distinct whole numbers"
    if are_numbers.all():
        return "regression", f"{n_distinct:,} distinct numbers"
    if are_numbers.mean() >= _NEARLY_ALL and n_distinct > _MOST_CODES:
        odd = texts[~are_numbers]
        raise InputError(
            f"the target {name!r} has numbers but for {counted(len(odd), 'value')}, "
            f"{listed(dict.fromkeys(odd), 3)}. Correct them, or pass --task classification."
        )
    return "classification", f"{n_distinct:,} distinct texts"


def _no_numbers(table, name, known, texts, are_numbers):
    first = int(np.flatnonzero(~are_numbers)[0])
    row = int(np.flatnonzero(known)[first])
    where = f"row {row}" if table.line_of is None else f"line {table.line_of[row]}"
    return (
        f"--task regression needs numbers, and the target {name!r} is {texts[first]!r} in {where}. "
        "Correct or empty it, or pass --task classification."
    )
