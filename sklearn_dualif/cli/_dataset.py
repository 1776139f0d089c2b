"""From a file to what a model is fitted on: features, target, and the columns with other roles."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ._columns import column_of, texts_of
from ._csv_file import CsvTable
from ._errors import InputError, counted, listed
from ._parquet_file import ParquetTable
from ._target import Target, target_of

_PARQUET = (".parquet", ".pq")
_LEAST_ROWS = 20


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table with roles given to its columns. Rows without a target are in ``table`` only.

    Attributes
    ----------
    table : CsvTable or ParquetTable
    target : Target
    X : DataFrame
        Features of the rows with a target; floats, dates and categories. Its index is the row's
        number from 0, or the column of ``--index``.
    y : Series
        Targets.
    everything : DataFrame
        Features of all rows.
    groups, sensitive : Series or None
        Of the rows with a target; texts, categories or numbers.
    treatment : dict
        Of each column: its kind, and what there is to say.
    """

    table: object
    target: Target
    X: object
    y: object
    everything: object
    groups: object = None
    sensitive: object = None
    treatment: dict = field(default_factory=dict)

    @property
    def n_without_target(self):
        """How many rows have no target."""
        return int((~self.target.known).sum())

    def notes(self):
        """Return sentences about what was left out or taken otherwise than it stands there."""
        said = []
        if self.n_without_target:
            said.append(f"{counted(self.n_without_target, 'row')} without a target not judged")
        for name, (kind, why) in self.treatment.items():
            if why and kind != "role":
                left = " left out" if kind == "left out" else ""
                said.append(f"column {name!r}{left}: {why}")
        return said


def read_table(path, encoding=None, separator=None):
    """Return the table of a file."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a CSV or Parquet file.")
    if not path.exists():
        near = [p.name for p in path.parent.glob("*") if p.suffix.lower() in (".csv", *_PARQUET)]
        near = difflib.get_close_matches(path.name, near, n=3)
        raise InputError(
            f"there is no file {path}.{f' Did you mean {listed(near)}?' if near else ''}"
        )
    if path.suffix.lower() in _PARQUET:
        return ParquetTable(path)
    return CsvTable(path, encoding, separator)


def read_dataset(options):
    """Return the `Dataset` that the options of a call describe."""
    import pandas as pd

    table = read_table(options.data, options.encoding, options.separator)
    name = options.target
    roles = {"--target": [name], "--index": [options.index], "--drop": options.drop}
    roles |= {"--groups": [options.groups], "--sensitive": [options.sensitive]}
    roles["--keep"] = options.keep
    for option, names in roles.items():
        for wanted in names:
            _check_name(option, wanted, table)
            if option != "--target" and wanted == name:
                raise InputError(f"{option} {name!r} is the target. Name another column.")
    both = sorted(set(options.drop) & set(options.keep))
    if both:
        raise InputError(
            f"--drop and --keep both name {listed(both)}. Name a column in one of them."
        )
    target = target_of(table, name, options.task)
    if len(target.values) < _LEAST_ROWS:
        raise InputError(
            f"{table.path} has {counted(len(target.values), 'row')} with a target, and at least "
            f"{_LEAST_ROWS} are needed to judge them."
        )
    treatment = {name: ("role", "target")}
    for option, role in (("index", "index"), ("groups", "groups"), ("sensitive", "sensitive")):
        column = getattr(options, option)
        if column is not None and column not in options.keep:
            treatment[column] = ("role", role)
    treatment |= {column: ("role", "dropped") for column in options.drop}
    features = {}
    for column in table.names:
        if column in treatment:
            continue
        found = column_of(table, column)
        treatment[column] = (found.kind, found.said)
        if found.values is not None:
            features[column] = found.values
    if not features:
        raise InputError(f"{table.path} has no column left to learn from but the target {name!r}.")
    treatment = {column: treatment[column] for column in table.names}
    index = _index_of(table, options.index)
    everything = pd.DataFrame(
        {column: values.array for column, values in features.items()}, index=index
    )
    y = pd.Series(target.values, index=index[target.known], name=name)
    return Dataset(
        table,
        target,
        everything[target.known],
        y,
        everything,
        groups=_group_of(table, options.groups, target.known, index),
        sensitive=_group_of(table, options.sensitive, target.known, index),
        treatment=treatment,
    )


def _check_name(option, wanted, table):
    if wanted is None or wanted in table.names:
        return
    lower = {name.lower(): name for name in table.names}
    near = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=3)]
    remedy = f"Did you mean {listed(near)}?" if near else f"Its columns are {listed(table.names)}."
    raise InputError(f"{option} {wanted!r} is no column of {table.path}. {remedy}")


def _index_of(table, name):
    import pandas as pd

    if name is None:
        return pd.RangeIndex(table.n_rows, name="row")
    texts = texts_of(table, name)
    return pd.Index(["" if text is None else text for text in texts], name=name, dtype=object)


def _group_of(table, name, known, index):
    import pandas as pd

    if name is None:
        return None
    texts = texts_of(table, name)[known]
    texts = ["(missing)" if text is None else text for text in texts]
    return pd.Series(np.array(texts, dtype=object), index=index[known], name=name)
