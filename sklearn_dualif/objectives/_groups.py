"""Groups of query rows, as the caller labels them."""

from typing import NamedTuple

import numpy as np
import torch


class Groups(NamedTuple):
    """Rows by group.

    Attributes
    ----------
    labels : list
        Of the groups, as they first occur.
    codes : (n,) tensor
        Position of each row's label.
    """

    labels: list
    codes: torch.Tensor

    @classmethod
    def of(cls, values, name):
        """Return the groups of labels (n,) given as the parameter ``name``."""
        values = np.asarray(values, dtype=object)
        if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
            raise ValueError(
                f"{name} must have one label a row, (n_queries,); got shape {values.shape}. "
                "Combine several features into one label first."
            )
        values = values.ravel().tolist()
        missing = [row for row, value in enumerate(values) if _is_missing(value)]
        if missing:
            raise ValueError(
                f"{name} has no value for row {missing[0]} ({values[missing[0]]!r}), {len(missing)}"
                " missing in all. Leave those rows out of the query rows, or give them a label of "
                "their own."
            )
        labels = list(dict.fromkeys(values))
        position = {label: code for code, label in enumerate(labels)}
        return cls(labels, torch.tensor([position[value] for value in values], dtype=torch.long))

    def position(self, label, name):
        """Return the position of a label, as the parameter ``name`` gave it."""
        if label not in self.labels:
            raise ValueError(f"{name}={label!r} is not among the groups {self.labels}.")
        return self.labels.index(label)

    def means(self, kept, what):
        """Return weights (n, g) whose sums over rows are means over each group's kept rows.

        Parameters
        ----------
        kept : (n,) bool tensor
            Rows that count.
        what : str
            What rows that are kept are called; a group without any is an error.
        """
        members = torch.nn.functional.one_hot(self.codes, len(self.labels)) * kept[:, None]
        counts = members.sum(0)
        if bool((counts == 0).any()):
            label = self.labels[int((counts == 0).nonzero()[0])]
            raise ValueError(
                f"The group {label!r} has no rows {what}, so its mean over them does not exist. "
                "Pass query rows with some, or leave the group out."
            )
        return members.to(torch.float64) / counts

    def check_length(self, n_rows, name):
        """Raise unless there is a label for each of the query rows."""
        if len(self.codes) != n_rows:
            raise ValueError(
                f"{name} has {len(self.codes)} labels, but the objective is evaluated on {n_rows} "
                "rows. Give one label for each query row, in their order; for other rows make "
                "another objective and pass it as objective=."
            )


def _is_missing(value):
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value
