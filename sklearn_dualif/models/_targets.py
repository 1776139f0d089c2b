"""How targets become what a loss compares outputs with."""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import check_array, column_or_1d, compute_class_weight

from ..kernels import as_tensor


class RegressionTargets(NamedTuple):
    """Numbers, one column an output.

    Attributes
    ----------
    n_outputs : int
    valid : str
        "real", "nonnegative" or "positive": what the loss allows.
    """

    n_outputs: int
    valid: str = "real"
    classes = None

    def encode(self, y):
        """Return targets (n, n_outputs)."""
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        y = y.reshape(-1, 1) if y.ndim == 1 else y
        if y.shape[1] != self.n_outputs:
            raise ValueError(
                f"y has {y.shape[1]} outputs but the fitted model has {self.n_outputs}. Pass "
                "targets with the columns that the model was fitted on."
            )
        if (self.valid == "positive" and y.min() <= 0) or (
            self.valid == "nonnegative" and y.min() < 0
        ):
            raise ValueError(
                f"y has the value {y.min():.6g}, but this model's deviance needs {self.valid} "
                "targets. Drop or correct those rows."
            )
        return as_tensor(y)

    def freeze(self, y, sample_weight):
        """Return these targets with what depends on the training rows held fixed."""
        return self

    def weigh(self, y, sample_weight):
        """Return the loss weights of rows."""
        return as_tensor(sample_weight)


class ClassTargets(NamedTuple):
    """Class labels.

    Attributes
    ----------
    classes : (n_classes,) array
    coding : {"index", "binary", "signed"}
        A class index; 0 and 1; or -1 and 1. The last two one column for two classes and one
        against the rest for each of more.
    class_weight : dict, "balanced", None or (n_classes,) array
        As scikit-learn takes it; an array, in the order of ``classes``, once it is fixed.
    weigh_rest : bool
        Whether a one-versus-rest problem weighs its negatives by their own class too.
    weighted_balance : bool
        Whether "balanced" counts rows by their sample weight.
    """

    classes: np.ndarray
    coding: str
    class_weight: object
    weigh_rest: bool = True
    weighted_balance: bool = False

    def freeze(self, y, sample_weight):
        """Return these targets with the class weights of the training rows held fixed."""
        if isinstance(self.class_weight, np.ndarray):
            return self
        present = np.intersect1d(self.classes, y)
        factors = np.ones(len(self.classes))
        if self.class_weight is not None:
            weights = sample_weight if self.weighted_balance else None
            class_weight = self.class_weight
            if isinstance(class_weight, dict):
                class_weight = {c: v for c, v in class_weight.items() if c in present}
            factors[self._positions(present)] = compute_class_weight(
                class_weight, classes=present, y=np.asarray(y), sample_weight=weights
            )
        return self._replace(class_weight=factors)

    def index(self, y):
        """Return the position of each label in ``classes``."""
        y = column_or_1d(y, warn=True)
        known = np.isin(y, self.classes)
        if not known.all():
            raise ValueError(
                f"y contains the label {y[~known].tolist()[0]!r}, which the model was not fitted "
                f"on. Known classes: {np.asarray(self.classes).tolist()}. Correct the label, or "
                "refit with rows of that class."
            )
        return self._positions(y)

    def _positions(self, labels):
        """Return where known labels stand in ``classes``, which need not be sorted."""
        order = np.argsort(self.classes)
        return order[np.searchsorted(self.classes, labels, sorter=order)]

    def encode(self, y):
        """Return class indices (n,), or codes (n, 1) or (n, n_classes)."""
        index = self.index(y)
        if self.coding == "index":
            return torch.from_numpy(index.astype(np.int64))
        codes = self._hits(index).astype(np.float64)
        return as_tensor(codes if self.coding == "binary" else 2.0 * codes - 1.0)

    def _hits(self, index):
        if len(self.classes) <= 2:
            return (index == 1)[:, None]
        return index[:, None] == np.arange(len(self.classes))

    def weigh(self, y, sample_weight):
        """Return sample weight times class weight, (n,), or (n, n_classes)."""
        index = self.index(y)
        if self.weigh_rest or len(self.classes) <= 2:
            return as_tensor(sample_weight * self.class_weight[index])
        factors = np.where(self._hits(index), self.class_weight, 1.0)
        return as_tensor(sample_weight[:, None] * factors)


class MultilabelTargets(NamedTuple):
    """Indicators of several labels.

    Attributes
    ----------
    n_outputs : int
    coding : {"signed", "binary"}
        -1 and 1, or 0 and 1.
    """

    n_outputs: int
    coding: str = "signed"
    classes = None

    def encode(self, y):
        """Return indicators (n, n_outputs)."""
        y = check_array(y, dtype=np.float64, input_name="y")
        return as_tensor(np.where(y > 0, 1.0, -1.0 if self.coding == "signed" else 0.0))

    def freeze(self, y, sample_weight):
        """Return these targets with what depends on the training rows held fixed."""
        return self

    def weigh(self, y, sample_weight):
        """Return the loss weights of rows."""
        return as_tensor(sample_weight)


class NoisyTargets(NamedTuple):
    """Regression targets with a known noise variance in each training row."""

    n_outputs: int
    noise: np.ndarray
    classes = None

    def encode(self, y):
        """Return targets (n, n_outputs)."""
        return RegressionTargets(self.n_outputs).encode(y)

    def freeze(self, y, sample_weight):
        """Return these targets, whose noise is already fixed."""
        return self

    def weigh(self, y, sample_weight):
        """Return weights inversely proportional to the noise, 1 at its mean."""
        if np.ptp(self.noise) == 0:
            return as_tensor(sample_weight)
        if len(self.noise) != len(sample_weight):
            raise ValueError(
                f"The Gaussian process was fitted with one noise level for each of "
                f"{len(self.noise)} rows, but {len(sample_weight)} rows were given. Pass the rows "
                "that it was fitted on."
            )
        return as_tensor(sample_weight * self.noise.mean() / self.noise)


def class_codes(y):
    """Return the class index (n,) of each row from encoded class labels, whatever their coding."""
    if y.ndim == 1:
        return y
    return (y[:, 0] > 0).long() if y.shape[1] == 1 else y.argmax(1)


def plain_targets(targets, y):
    """Return encoded targets without the coding of their loss.

    Class indices (n,), indicators 0 and 1 (n, n_outputs) of several labels a row, or numbers
    (n, n_outputs).

    Parameters
    ----------
    targets : Targets
        What encoded them.
    y : tensor
        Encoded targets.
    """
    if targets.classes is not None:
        return class_codes(y)
    return (y > 0).to(y) if isinstance(targets, MultilabelTargets) else y
