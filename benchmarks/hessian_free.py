"""Hessian-free scores: inner products of gradients, at the end of training and over checkpoints.

``python benchmarks/hessian_free.py [pairs checkpoints cost] [--threads N] [--repeats K]
[--only TEXT] [--json FILE]``

pairs. Scores of all pairs of a test and a training row for jobs B and D of ``networks.py``, beside
   dattri's GradDot, kronfluence's identity strategy and per-row gradients from ``torch.func``.
checkpoints. Sums over checkpoints (TracIn) for an MLP on the digits, beside captum's.
cost. Seconds a pair of rows and parameters as rows and parameters grow.

Every run of a contender is in a process of its own, which gives its seconds and its peak memory.
Nothing here asserts: each part prints its table, and of each target whether it was met.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from importlib.util import find_spec

import _peers
import _recipes
import numpy as np
import torch
from _recipes import DECAY, linear_datamodeling_score
from _run import Job, main
from networks import as_tensors, at_most

from sklearn_dualif import InfluenceEstimator, TorchModel

OURS = "ours, identity"
EACH = "naive: a gradient of each row"
GRADDOT = "dattri GradDot"
KRONFLUENCE = "kronfluence identity"
PACKAGES = {GRADDOT: "dattri", KRONFLUENCE: "kronfluence"}


def scores_of(train, test, module, **options):
    """Return our scores (n_test, n_train)."""
    estimator = InfluenceEstimator(
        TorchModel(module, weight_decay=DECAY), curvature="identity", dtype="float32", **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return estimator.fit(*train).influence(*test)


def each_row(module, train, test):
    """Return the products of explicit gradients."""
    return (_peers.loss_gradients(module, test) @ _peers.loss_gradients(module, train).T).numpy()


def largest_difference(results, exact):
    """Return each contender's largest difference from `exact`, over its largest entry."""
    top = np.abs(exact).max()
    return {
        name: {"largest difference": float(np.abs(result["effects"] - exact).max() / top)}
        for name, result in results.items()
    }


# All pairs ----------------------------------------------------------------------------------------


def pairs_job(recipe_of, title, small):
    recipe = recipe_of(small)
    module = recipe.module()
    rows = as_tensors(recipe.train), as_tensors(recipe.test)
    contenders = {
        OURS: partial(scores_of, recipe.train, recipe.test, module),
        GRADDOT: partial(_peers.dattri_graddot, module, *rows),
        KRONFLUENCE: partial(_peers.kronfluence_identity, module, *rows),
        EACH: partial(each_row, module, *rows),
    }
    skipped = {
        name: f"{package} is not installed"
        for name, package in PACKAGES.items()
        if find_spec(package) is None
    }

    def check(results):
        double = copy.deepcopy(module).double()
        train, test = ((part[0].double(), part[1]) for part in rows)
        exact = 0.0
        parts = zip(train[0].split(200), train[1].split(200), strict=True)
        right = _peers.loss_gradients(double, test)
        exact = np.hstack([(right @ _peers.loss_gradients(double, p).T).numpy() for p in parts])
        agreements = largest_difference(results, exact)
        retrained = recipe.retrained_losses()
        score = linear_datamodeling_score(_recipes.added_up(recipe, exact), retrained)
        return agreements, {f"LDS on {recipe.n_halves} halves": score}

    def claims(found):
        return [
            at_most(f"seconds / {GRADDOT}", lambda: found.ratios[OURS], 0.1, ".3f"),
            at_most(
                f"seconds / {KRONFLUENCE}",
                lambda: found.seconds[OURS] / found.seconds[KRONFLUENCE],
                1.0,
            ),
            at_most("peak MB", lambda: found.megabytes[OURS], 1000, ".0f"),
        ]

    return Job(
        f"{title}: inner products of gradients, {recipe.n_test} × {recipe.n_train:,}",
        {name: work for name, work in contenders.items() if name not in skipped},
        baseline=GRADDOT,
        check=check,
        claims=claims,
        apart=True,
        skipped=skipped,
    )


# Checkpoints --------------------------------------------------------------------------------------

CAPTUM = "captum TracInCP"


def trajectory(X, y, width, n_states=4, steps=50, rate=0.5):
    """Train an MLP by full-batch descent; return it, its states and the learning rates."""
    torch.manual_seed(0)
    module = _recipes.mlp(X.shape[1], width, width, 10)
    states, rates = [], []
    for number in range(n_states):
        rates.append(rate / (1 + number))
        optimizer = torch.optim.SGD(module.parameters(), lr=rates[-1])
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(X), y).backward()
            optimizer.step()
        states.append(copy.deepcopy(module.state_dict()))
    return module.eval(), states, rates


def checkpoints_job(small):
    recipe = _recipes.digits_mlp(small)
    train, test = as_tensors(recipe.train), as_tensors(recipe.test)
    module, states, rates = trajectory(*train, 8 if small else 128)
    pairs = list(zip(states, rates, strict=True))
    ours = partial(scores_of, recipe.train, recipe.test, module)
    contenders = {
        OURS: partial(ours, checkpoints=pairs),
        CAPTUM: partial(_peers.captum_tracincp, states, rates, module, train, test),
    }
    skipped = {} if find_spec("captum") else {CAPTUM: "captum is not installed"}

    def check(results):
        exact = 0.0
        for state, rate in pairs:
            double = copy.deepcopy(module)
            double.load_state_dict(state)
            double.double()
            left, right = (
                _peers.loss_gradients(double, (part[0].double(), part[1])) for part in (test, train)
            )
            exact = exact + rate * (left @ right.T).numpy()
        return largest_difference(results, exact), {}

    def claims(found):
        return [
            at_most(
                "largest difference from gradients row by row in float64",
                lambda: found.agreements[OURS]["largest difference"],
                1e-5,
                ".1e",
            ),
            at_most(f"seconds / {CAPTUM}", lambda: found.ratios[OURS], 1.0),
        ]

    return Job(
        f"TracIn over {len(states)} checkpoints of an MLP, {recipe.n_test} × {recipe.n_train:,}",
        {name: work for name, work in contenders.items() if name not in skipped},
        baseline=CAPTUM,
        check=check,
        claims=claims,
        apart=True,
        skipped=skipped,
    )


# Cost ---------------------------------------------------------------------------------------------

ROWS = (2000, 4000, 8000)
WIDTHS = (128, 256, 512)


def mean_scores(n, width):
    """Return scores for the mean loss of 100 rows, of an MLP with random rows."""
    torch.manual_seed(0)
    module = _recipes.mlp(256, width, width, 10)
    X, y = torch.randn(n, 256).numpy(), torch.randint(10, (n,)).numpy()
    estimator = InfluenceEstimator(
        TorchModel(module, classes=list(range(10))), curvature="identity", dtype="float32"
    )
    return estimator.fit(X, y, X_val=X[:100], y_val=y[:100]).influence_


def cost_job(small):
    sizes = [(n, 256) for n in ROWS] + [(4000, width) for width in WIDTHS if width != 256]

    def name(n, width):
        return f"{n:,} rows, {_parameters(width):,} parameters"

    def check(results):
        return {}, {}

    def claims(found):
        def growth(small_size, large_size, by):
            seconds = found.seconds[name(*large_size)] / found.seconds[name(*small_size)]
            return np.log(seconds) / np.log(by)

        return [
            at_most(
                "exponent of seconds in rows",
                lambda: growth((ROWS[0], 256), (ROWS[-1], 256), ROWS[-1] / ROWS[0]),
                1.1,
            ),
            at_most(
                "exponent of seconds in parameters",
                lambda: growth(
                    (4000, WIDTHS[0]),
                    (4000, WIDTHS[-1]),
                    _parameters(WIDTHS[-1]) / _parameters(WIDTHS[0]),
                ),
                1.1,
            ),
        ]

    return Job(
        "Scores for the mean of 100 losses, a fit and influence_",
        {name(n, w): partial(mean_scores, 50 if small else n, w) for n, w in sizes},
        baseline=name(ROWS[0], 256),
        check=check,
        claims=claims,
        apart=True,
    )


def _parameters(width):
    return 257 * width + (width + 1) * width + (width + 1) * 10


PARTS = {
    "pairs": [
        partial(pairs_job, _recipes.digits_mlp, "B. MLP on the digits"),
        partial(pairs_job, _recipes.mnist_cnn, "D. CNN on MNIST"),
    ],
    "checkpoints": [checkpoints_job],
    "cost": [cost_job],
}

if __name__ == "__main__":
    main(__doc__, __file__, PARTS, repeats=3)
