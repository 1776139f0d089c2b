"""Sketched rows on disk: seconds, memory, and a build that is killed half-way.

``python benchmarks/sketch_store.py [--rows N] [--components M] [--threads T]``

A perceptron with one output, trained on synthetic rows of 50 features, whose 13,300 derivatives
are sketched to M numbers (sparse, float32) for N rows. Each line is a process: one builds a store
and answers 100 queries, one is killed (SIGKILL) half-way through another store, one takes that up
again, and one opens it complete. Printed are seconds, the peak of resident memory (pages of the
mapped file included), and whether both stores are the same bit for bit.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import NotStationaryWarning
from sklearn_dualif.sketching import SketchStore, SparseSketch

FEATURES, WIDTH, QUERIES = 50, 256, 100
DECAY = 1e-3


def rows(n):
    """Return rows and targets of a noisy function of few features."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n, FEATURES)).astype(np.float32)
    y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2] + 0.3 * generator.standard_normal(n)
    return X, y.astype(np.float32)


def trained(X, y):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=DECAY)
    X, y = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    for _ in range(2):
        for batch in torch.randperm(len(X)).split(256):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(X[batch]), y[batch]).backward()
            optimizer.step()
    return TorchModel(module, loss="mse", weight_decay=DECAY)


def build(path, n, components, stop):
    """Fit with a store, and answer; be killed at block ``stop`` where that is one."""
    write = SketchStore.write

    def counted(self, block, values):
        if block == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, block, values)

    SketchStore.write = counted
    X, y = rows(n + QUERIES)
    model = trained(X[:n], y[:n])
    started = time.perf_counter()
    sketch = SparseSketch(components, store=path, random_state=0)
    influence = InfluenceEstimator(model, sketch=sketch, dtype="float32", order="first")
    # Two passes over the rows train it; what is measured does not depend on more.
    warnings.simplefilter("ignore", NotStationaryWarning)
    influence.fit(X[:n], y[:n])
    fitted = time.perf_counter()
    effects = influence.influence(X[n:], y[n:])
    answered = time.perf_counter()
    peak = next(
        int(line.split()[1]) / 1e3
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(
        f"fit {fitted - started:.0f} s, {QUERIES} queries {answered - fitted:.0f} s, "
        f"peak {peak:,.0f} MB, effects {effects.shape}, effective dimension "
        f"{influence.effective_dimension_:.0f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--components", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--build", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.build:
        build(options.build[0], options.rows, options.components, int(options.build[1]))
        return
    with tempfile.TemporaryDirectory() as folder:

        def child(title, name, stop=-1):
            print(f"{title}: ", end="", flush=True)
            arguments = [f"--{key}={getattr(options, key)}" for key in ("rows", "components")]
            command = [sys.executable, __file__, *arguments, f"--threads={options.threads}"]
            command += ["--build", str(Path(folder, name)), str(stop)]
            done = subprocess.run(command, check=False)
            if done.returncode == -signal.SIGKILL:
                print("killed")

        child("built at once", "whole")
        size = Path(folder, "whole", "rows.bin").stat().st_size
        blocks = len(Path(folder, "whole", "blocks.txt").read_text().splitlines())
        child(f"killed at block {blocks // 2} of {blocks}", "resumed", blocks // 2)
        child("taken up again", "resumed")
        child("opened again", "resumed")
        same = subprocess.run(
            ["cmp", *(str(Path(folder, name, "rows.bin")) for name in ("whole", "resumed"))],
            check=False,
        )
        print(f"{size / 1e9:.2f} GB each, identical: {same.returncode == 0}")


if __name__ == "__main__":
    main()
