r"""What all sketches share: their settings, and the projection that they stand for.

A projection is a random matrix ``P`` (m, d) with ``E[P^T P] = I``. It is never stored: its columns
come in *panels* of fixed width, and each panel's numbers are drawn from a seed of its own, so that
they depend on the random state alone and not on how rows are batched.

Rows of ``P`` are known up to the common factor ``m^{-1/2}``. Where they are *nested*, the first
rows of a larger projection are those of a smaller one, and what they were applied to is reused.
"""

from abc import ABC, abstractmethod
from numbers import Integral, Real
from os import PathLike

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, Options

from ._store import stored_seed

PANEL = 4096
"""Columns of a panel."""
_ROWS_AT_ONCE = 4096
_KEPT_PANELS = 2**24


class Projection(ABC):
    """A random matrix ``P`` (m, d).

    Parameters
    ----------
    n_components, n_features : int
        ``m`` and ``d``.
    seed : int
        Decides every number.

    Attributes
    ----------
    scale : float
        What the rows that are drawn are multiplied by.
    nested : bool
        Whether the first rows of a larger projection are those of a smaller one.
    factorized : bool
        Whether it is one of layers, with factors.
    ambient : int or None
        Dimension that rows are drawn from without replacement; None: they are independent.
    """

    nested = False
    factorized = False
    ambient = None

    def __init__(self, n_components, n_features, seed):
        self.n_components = n_components
        self.n_features = n_features
        self.seed = seed
        self._kept = {}

    @abstractmethod
    def __call__(self, values):
        """Return ``values P^T`` (n, m) for a dense (n, d) tensor."""

    @abstractmethod
    def transposed(self, values):
        """Return ``P^T values`` (d, k) for an (m, k) tensor."""

    def generator(self, *key):
        """Return the generator of random numbers that a key names."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return np.random.Generator(np.random.SFC64(sequence))

    def __getstate__(self):
        return {**vars(self), "_kept": {}}

    def __repr__(self):
        return (
            f"<{type(self).__name__} of {self.n_features} features to {self.n_components} "
            "components>"
        )


class PanelProjection(Projection):
    """A projection whose columns come a panel at a time.

    Attributes
    ----------
    dense : bool
        Whether panels are matrices, so that they can be applied to the factors of derivatives.
    row_major : bool
        Whether panels prefer results with the components last in memory.
    """

    nested = True
    dense = False
    row_major = True

    @property
    def n_panels(self):
        """How many panels there are."""
        return -(-self.n_features // PANEL)

    @property
    def scale(self):
        """What the rows of the panels are multiplied by."""
        return self.n_components**-0.5

    def columns(self, index):
        """Return the first column of a panel and the one after its last."""
        return index * PANEL, min(self.n_features, (index + 1) * PANEL)

    def panel(self, index, first, like):
        """Return the rows of a panel from ``first`` on, in the precision and place of a tensor."""
        key = index, first, like.dtype, like.device
        if key in self._kept:
            return self._kept[key]
        panel = self._panel(index, first, like)
        if self.keeps_panels:
            self._kept[key] = panel
        return panel

    @property
    def keeps_panels(self):
        """Whether the whole matrix stays in memory; else a panel lasts until the next one."""
        return self.n_components * self.n_features <= _KEPT_PANELS

    @abstractmethod
    def _panel(self, index, first, like):
        """Make what `panel` returns: something with ``add`` and ``add_transposed``."""

    def zeros(self, n, h, first, like):
        """Return room for the projections (n, h, m - first) of heads, laid out for the panels."""
        m = self.n_components - first
        if self.row_major:
            return like.new_zeros(n, h, m)
        return like.new_zeros(m, n, h).permute(1, 2, 0)

    def __call__(self, values):
        result = self.zeros(len(values), 1, 0, values)
        for index in range(self.n_panels):
            start, stop = self.columns(index)
            panel = self.panel(index, 0, values)
            for rows in gen_batches(len(values), _ROWS_AT_ONCE):
                panel.add(result[rows], values[rows, None, start:stop])
        return result[:, 0].contiguous() * self.scale

    def transposed(self, values):
        result = values.new_zeros(self.n_features, values.shape[1])
        for index in range(self.n_panels):
            start, stop = self.columns(index)
            self.panel(index, 0, values).add_transposed(result[start:stop], values)
        return result * self.scale


class Sketch(BaseEstimator, ABC):
    """A kind of random projection, and how large it is to be."""

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left"), Options(str, {"auto"})],
        "eps": [Interval(Real, 0, 1, closed="neither")],
        "debias": ["boolean"],
        "store": [str, PathLike, None],
        "random_state": ["random_state"],
    }

    def __init__(self, n_components="auto", *, eps=0.1, debias=True, store=None, random_state=None):
        self.n_components = n_components
        self.eps = eps
        self.debias = debias
        self.store = store
        self.random_state = random_state

    def check(self):
        """Raise for settings that cannot be meant."""
        self._validate_params()
        if self.store is not None and self.n_components == "auto":
            raise ValueError(
                f"store={str(self.store)!r} is of a sketch of one size, which n_components='auto' "
                "does not know beforehand. Give a number."
            )

    def seed(self):
        """Return the integer that decides every number of a projection."""
        if self.store is not None and self.random_state is None:
            stored = stored_seed(self.store)
            if stored is not None:
                return int(stored)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def projection(self, n_features, n_components=None, seed=None):
        """Return the projection of vectors of a length.

        Parameters
        ----------
        n_features : int
            Length of the vectors.
        n_components : int or None
            Length of their projections; None: the sketch's own.
        seed : int or None
            None: drawn from ``random_state``.

        Returns
        -------
        Projection
            Call it on an (n, d) tensor for its (n, m) projections.
        """
        self.check()
        size = self.n_components if n_components is None else n_components
        if size == "auto":
            raise ValueError(
                f"n_components='auto' of {type(self).__name__} is decided on a model's rows; give "
                "a number for a projection of vectors of any origin."
            )
        seed = self.seed() if seed is None else seed
        return self._projection(int(size), int(n_features), seed)

    def for_layers(self, layers, n_components, seed):
        """Return the projection of the parameters of some layers; see `Layer`."""
        n_features = sum(layer.size for layer in layers)
        return self.projection(n_features, n_components, seed)

    @abstractmethod
    def _projection(self, n_components, n_features, seed):
        """Make the projection."""
