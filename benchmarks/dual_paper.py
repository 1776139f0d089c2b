r"""The first experiment of Sun & Valaee, "Extending Kernel Trick to Influence Functions", remade.

``python benchmarks/dual_paper.py [--threads N] [--repeats K] [--only TEXT] [--json FILE]``

A linearised ReLU network with three hidden layers of 1,024 in NTK parametrisation (standard
deviation 2 of the weights and 0.1 of the biases), 200 MNIST images a class, as many for testing;
cross-entropy, and a ridge of 1e-2 on the mean loss that pulls to the initial parameters. 10 to 90 %
of one class are removed together, and the parameters compared with those of retraining on the rest.
They report relative errors of the parameters from 6.6e-5 to 6e-4, at 1.2 to 4.8 seconds a removal
on two GPUs, the kernel not counted.

In NTK parametrisation a layer computes :math:`2 W a / \sqrt{d} + 0.1 b` with standard normal W and
b. Its linearisation is a network of its own, in the *changes* of W and b, which start at zero: that
is how it is written here, so that a weight decay pulls to the initial parameters. Retraining is
Newton's method with conjugate gradients on the kernel, in float64, which shares nothing with the
package; what it finds is kept, for it takes minutes.
"""

from __future__ import annotations

import time
import warnings
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from _exact import Heads, kernel, taken
from _recipes import kept, mnist
from _run import Job, claim, main
from torch import nn
from torch.nn.functional import cross_entropy

from sklearn_dualif import InfluenceEstimator, TorchModel, linearize

DECAY = 1e-2
WEIGHT_STD, BIAS_STD = 2.0, 0.1
# Of first-order effects; exact removals come nearer, see `InfluenceEstimator`.
TOL = 3e-2
FRACTIONS = tuple(percent / 100 for percent in range(10, 100, 10))
REMOVED_CLASS = 0
THEIR_ERRORS = (6.6e-5, 6e-4)
THEIR_SECONDS = (1.2, 4.8)


class LinearizedNetwork(nn.Module):
    """A ReLU network's linearisation at random parameters, in their changes (NTK parametrisation).

    Parameters
    ----------
    widths : sequence of int
        Of the inputs, the hidden layers and the outputs.
    """

    def __init__(self, widths):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.moves = nn.ModuleList()
        for index, (before, after) in enumerate(pairwise(widths)):
            self.register_buffer(f"weight{index}", draw(after, before) * WEIGHT_STD / before**0.5)
            self.register_buffer(f"bias{index}", draw(after) * BIAS_STD)
            move = nn.Linear(before + 1, after, bias=False, dtype=torch.float64)
            nn.init.zeros_(move.weight)
            self.moves.append(move)

    def start(self, index):
        """Return the weight and the bias of a layer at the initial parameters."""
        return getattr(self, f"weight{index}"), getattr(self, f"bias{index}")

    @staticmethod
    def inputs_of(a):
        """Return what a layer's changes are multiplied by, (n, d + 1)."""
        ones = a.new_full((len(a), 1), BIAS_STD)
        return torch.cat([a * (WEIGHT_STD / a.shape[1] ** 0.5), ones], 1)

    def forward(self, x):
        a, moved = x, 0.0
        last = len(self.moves) - 1
        for index, move in enumerate(self.moves):
            weight, bias = self.start(index)
            moved = move(self.inputs_of(a)) + (moved @ weight.T if index else 0.0)
            z = a @ weight.T + bias
            if index < last:
                moved, a = moved * (z > 0), torch.relu(z)
        return z + moved

    def heads(self, x):
        """Return the derivatives of the outputs by the changes, as `_exact.Heads`."""
        inputs, gates, a = [], [], x
        last = len(self.moves) - 1
        for index in range(last + 1):
            weight, bias = self.start(index)
            inputs.append(self.inputs_of(a))
            z = a @ weight.T + bias
            gates.append((z > 0).to(x))
            a = torch.relu(z)
        outputs = self.moves[-1].out_features
        sensitivities = [torch.eye(outputs, dtype=x.dtype).expand(len(x), -1, -1)]
        for index in range(last, 0, -1):
            weight, _ = self.start(index)
            sensitivities.insert(0, (sensitivities[0] @ weight) * gates[index - 1][:, None])
        layers = list(zip(inputs, sensitivities, strict=True))
        return Heads(layers, len(x), outputs)

    def changes(self, heads, alpha):
        """Return the changes ``J^T alpha`` (d,) of all layers, alpha (n, C)."""
        parts = [(torch.einsum("nc,nco->no", alpha, e).T @ a) for a, e in heads.layers]
        return torch.cat([part.flatten() for part in parts])

    def write(self, changes):
        """Take changes (d,) as the parameters."""
        nn.utils.vector_to_parameters(changes, self.parameters())
        return self


class Experiment:
    """The rows, the network, and retraining."""

    def __init__(self, small):
        self.per_class = 6 if small else 200
        widths = (784, 12, 12, 12, 10) if small else (784, 1024, 1024, 1024, 10)
        self.small = small
        X, y = mnist()
        order = np.random.default_rng(0).permutation(len(y))
        of_class = [order[y[order] == label] for label in range(10)]
        m = self.per_class
        train, test = (
            np.random.default_rng(1).permutation(np.concatenate([rows[part] for rows in of_class]))
            for part in (slice(0, m), slice(m, 2 * m))
        )
        self.X, self.X_test = (torch.from_numpy(X[rows]).double() for rows in (train, test))
        self.y, self.y_test = (torch.from_numpy(y[rows]) for rows in (train, test))
        self.network = LinearizedNetwork(widths)
        self.heads = self.network.heads(self.X)
        with torch.no_grad():
            self.start = self.network(self.X)

    @property
    def n(self):
        return len(self.y)

    def removed(self, fraction):
        """Return the rows that go: a share of one class."""
        rows = np.flatnonzero(self.y.numpy() == REMOVED_CLASS)
        return rows[: round(fraction * len(rows))]

    def retrained(self):
        """Return the dual variables of all optima and the seconds they took.

        "full" (n, C) with all rows, "without" (n_fractions, n, C), "seconds" (n_fractions,).
        """
        return self._retrain() if self.small else kept("dual-paper", self._retrain)

    def _retrain(self):
        solver = NewtonCG(dense_kernel(self.heads), self.start, self.y)
        everything = np.ones(self.n, dtype=bool)
        full, z = solver.optimum(everything, torch.zeros_like(self.start), self.start)
        without, seconds = [], []
        for fraction in FRACTIONS:
            stays = everything.copy()
            stays[self.removed(fraction)] = False
            begun = time.perf_counter()
            without.append(solver.optimum(stays, full, z)[0])
            seconds.append(time.perf_counter() - begun)
        return {
            "full": full.numpy(),
            "without": torch.stack(without).numpy(),
            "seconds": np.array(seconds),
        }

    def changes(self, alpha):
        return self.network.changes(self.heads, torch.as_tensor(alpha))

    def trained(self):
        """Return the network at the optimum with all rows."""
        return self.network.write(self.changes(self.retrained()["full"]))

    def start_norm(self):
        """Return the squared norm of the initial parameters in NTK parametrisation."""
        total = 0.0
        for index, move in enumerate(self.network.moves):
            weight, bias = self.network.start(index)
            scale = WEIGHT_STD / (move.in_features - 1) ** 0.5
            total += float((weight / scale).square().sum() + (bias / BIAS_STD).square().sum())
        return total

    def start_products(self, changes):
        """Return the inner product of the initial parameters with changes (d,)."""
        total, begin = 0.0, 0
        for index, move in enumerate(self.network.moves):
            weight, bias = self.network.start(index)
            scale = WEIGHT_STD / weight.shape[1] ** 0.5
            initial = torch.cat([weight / scale, bias[:, None] / BIAS_STD], 1).flatten()
            total += float(initial @ changes[begin : begin + move.weight.numel()])
            begin += move.weight.numel()
        return total


def dense_kernel(heads):
    """Return the tangent kernel (n C, n C) of all rows."""
    size = heads.rows * heads.each
    matrix = torch.empty(size, size, dtype=torch.float64)
    for rows in torch.arange(heads.rows).split(100):
        own = slice(int(rows[0]) * heads.each, (int(rows[-1]) + 1) * heads.each)
        matrix[own] = kernel(taken(heads, rows), heads)
    return matrix


class NewtonCG:
    r"""Minimise :math:`\sum_i \ell_i(z_i) + \rho/2\, \alpha^\top K \alpha` over some of the rows.

    Outputs are :math:`z = z_0 + K \alpha`; at the optimum :math:`\rho \alpha = -r(z)`. With the
    root :math:`S = \mathrm{diag}(\sqrt p) - p \sqrt p^\top` of the curvature, a Newton step is
    :math:`-(g - S M^{-1} S^\top K g)/\rho`, :math:`g = r + \rho \alpha`, its system solved by
    conjugate gradients.
    """

    def __init__(self, matrix, start, y):
        self.matrix, self.start, self.y = matrix, start, y
        self.targets = nn.functional.one_hot(y, start.shape[1]).double()

    def _times(self, values):
        return (self.matrix @ values.flatten()).view_as(values)

    @staticmethod
    def _root(p):
        return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]

    def optimum(self, stays, alpha, z, tolerance=1e-12, steps=60):
        """Return the dual variables and outputs (n, C) of the optimum over the rows that stay."""
        stays = torch.from_numpy(stays)[:, None]
        ridge = DECAY * int(stays.sum())
        best = float("inf")
        for _ in range(steps):
            p = torch.softmax(z, 1)
            gradient = (p - self.targets) * stays
            residual = gradient + ridge * alpha
            error = float(residual.norm() / (self.targets * stays).norm())
            if error <= tolerance or (error < 1e-9 and error > best / 2):
                return alpha, z
            best = min(best, error)
            root = self._root(p) * stays[:, :, None]
            target = (root.mT @ self._times(residual)[:, :, None])[..., 0]
            solved = self._solve(root, ridge, target, min(1e-3, error))
            step = -(residual - (root @ solved[:, :, None])[..., 0]) / ridge
            moved = self._times(step)
            size = self._line_search(stays, ridge, alpha, z, step, moved)
            alpha, z = alpha + size * step, z + size * moved
        raise RuntimeError(f"Newton's method stopped at relative gradient {error:.1e}.")

    def _solve(self, root, ridge, target, tolerance):
        """Solve ``(ridge I + S^T K S) x = target`` by conjugate gradients."""
        x, rest, direction = torch.zeros_like(target), target.clone(), target
        product = (rest * rest).sum()
        for _ in range(2000):
            if rest.norm() <= tolerance * target.norm():
                break
            image = self._times((root @ direction[:, :, None])[..., 0])
            image = ridge * direction + (root.mT @ image[:, :, None])[..., 0]
            size = product / (direction * image).sum()
            x, rest = x + size * direction, rest - size * image
            product, before = (rest * rest).sum(), product
            direction = rest + product / before * direction
        return x

    def _line_search(self, stays, ridge, alpha, z, step, moved):
        along = ridge * float((alpha * moved).sum())
        square = ridge * float((step * moved).sum())
        gradient = (torch.softmax(z, 1) - self.targets) * stays
        slope = float((gradient * moved).sum()) + along
        loss = partial(cross_entropy, target=self.y, reduction="none")
        before, size = loss(z), 1.0
        while size > 1e-8:
            change = float(((loss(z + size * moved) - before) * stays[:, 0]).sum())
            change += size * along + 0.5 * size**2 * square
            if change <= 1e-4 * size * slope or abs(slope) < 1e-10:
                return size
            size /= 2
        return 1.0


def removals(experiment, network, order):
    """Fit once, remove every share, and return changes of the parameters and of test losses."""
    begun = time.perf_counter()
    estimator = InfluenceEstimator(
        TorchModel(network, weight_decay=DECAY),
        order=order,
        solver="iterative",
        dtype="float32",
        tol=TOL,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        estimator.fit(experiment.X.numpy(), experiment.y.numpy())
    fitted = time.perf_counter()
    changes, seconds = [], []
    for fraction in FRACTIONS:
        start = time.perf_counter()
        changes.append(estimator.parameter_change(experiment.removed(fraction)))
        seconds.append(time.perf_counter() - start)
    return {
        "changes": np.stack(changes),
        "each": np.array(seconds),
        "fit": np.array(fitted - begun),
        "rank": np.array(estimator.solver_info_["rank"]),
    }


def check_linearization(experiment):
    """Return the difference of the outputs from those of `linearize`, relative to their change."""
    network = experiment.network
    layers = []
    for index in range(len(network.moves)):
        weight, bias = network.start(index)
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        layers += [layer, nn.ReLU()]
    base = nn.Sequential(*layers[:-1])
    expansion = linearize(base)
    named = dict(expansion.named_parameters())
    with torch.no_grad():
        for index, move in enumerate(network.moves):
            scale = WEIGHT_STD / (move.in_features - 1) ** 0.5
            named[f"{2 * index}.weight"] += move.weight[:, :-1] * scale
            named[f"{2 * index}.bias"] += move.weight[:, -1] * BIAS_STD
        x = experiment.X_test[:100]
        ours, theirs = network(x), expansion(x)
        return float((ours - theirs).norm() / (ours - base(x)).norm())


NEWTON, EXACT = "ours, order='newton'", "ours, order='exact'"
FIRST = "ours, order='first'"


def job(small):
    experiment = Experiment(small)
    network = experiment.trained()

    def check(results):
        truth = experiment.retrained()
        full = experiment.changes(truth["full"])
        start, product = experiment.start_norm(), experiment.start_products
        figures = {
            "outputs of the network against linearize(), relative": check_linearization(experiment),
            "seconds of a retraining from the optimum with all rows, kernel not counted": (
                f"{truth['seconds'].min():.1f} to {truth['seconds'].max():.1f}"
            ),
        }
        agreements = {}
        changes = [experiment.changes(alpha) - full for alpha in truth["without"]]
        for name, result in results.items():
            errors, of_change = [], []
            for found, true in zip(result["changes"], changes, strict=True):
                gap = float((torch.from_numpy(found) - true).norm())
                after = full + true
                size = start + 2 * product(after) + float(after @ after)
                errors.append(gap / size**0.5)
                of_change.append(gap / float(true.norm()))
            agreements[name] = {
                "smallest error": min(errors),
                "largest error": max(errors),
                "largest error, of the change": max(of_change),
                "seconds a removal": float(result["each"].mean()),
                "all seconds / removals": float(result["fit"] + result["each"].sum())
                / len(FRACTIONS),
            }
            figures[f"{name}: error of the change at {', '.join(map(str, FRACTIONS))}"] = " ".join(
                f"{value:.1e}" for value in of_change
            )
            figures[f"{name}: rank, seconds of the fit"] = (
                f"{int(result['rank'])}, {float(result['fit']):.1f}"
            )
        return agreements, figures

    def claims(found):
        claims = []
        for name in (NEWTON, EXACT):
            if (of := found.agreements.get(name)) is None:
                continue
            low, high = THEIR_ERRORS
            claims += [
                claim(
                    f"{name}: smallest and largest relative error of the parameters",
                    f"{of['smallest error']:.1e}, {of['largest error']:.1e}",
                    f"≤ {low:.1e}, {high:.0e} (theirs)",
                    of["smallest error"] <= low and of["largest error"] <= high,
                ),
                claim(
                    f"{name}: seconds a removal, kernel and factorisation counted",
                    f"{of['all seconds / removals']:.1f}",
                    f"theirs {THEIR_SECONDS[0]} to {THEIR_SECONDS[1]}, not counted",
                    None,
                ),
            ]
        return claims

    contenders = {
        NEWTON: partial(removals, experiment, network, "newton"),
        EXACT: partial(removals, experiment, network, "exact"),
        FIRST: partial(removals, experiment, network, "first"),
    }
    n, percents = experiment.n, f"{FRACTIONS[0]:.0%} to {FRACTIONS[-1]:.0%}"
    return Job(
        f"Sun & Valaee's first experiment: {n:,} rows, {percents} of one class removed; errors "
        "relative to the retrained parameters",
        contenders,
        baseline=NEWTON,
        check=check,
        claims=claims,
        apart=True,
    )


PARTS = {"all": [job]}


if __name__ == "__main__":
    main(__doc__, __file__, PARTS, repeats=1)
