"""One of pyDVL's influence functions, run in an environment of its own (NumPy < 2).

``python benchmarks/_pydvl.py METHOD TASK FOUND``: the task is a file of ``torch.save`` with the
module, the rows and the ridge; what is found is an .npz with the effects, the seconds and the bytes
of peak memory, a small run of the same having come first.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from _measure import peak_growth
from pydvl.influence.torch import (
    ArnoldiInfluence,
    DirectInfluence,
    EkfacInfluence,
    NystroemSketchInfluence,
)
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

METHODS = {
    "direct": lambda module, decay: DirectInfluence(module, cross_entropy, decay),
    "ekfac": lambda module, decay: EkfacInfluence(
        module, update_diagonal=True, hessian_regularization=decay
    ),
    "nystroem": lambda module, decay: NystroemSketchInfluence(
        module, cross_entropy, decay, rank=100
    ),
    "arnoldi": lambda module, decay: ArnoldiInfluence(module, cross_entropy, decay, rank=50),
}


def effects(method, module, train, test, decay):
    """Return the effects of removal (n_test, n_train)."""
    batches = DataLoader(TensorDataset(*train), batch_size=min(500, len(train[1])))
    influence = METHODS[method](module, decay).fit(batches)
    blocks = []
    # In blocks: it would hold the gradients of all rows at once.
    for queries in torch.arange(len(test[1])).split(100):
        factors = influence.influence_factors(*(part[queries] for part in test))
        parts = [
            influence.influences_from_factors(factors, *(part[rows] for part in train)).detach()
            for rows in torch.arange(len(train[1])).split(200)
        ]
        blocks.append(torch.cat(parts, 1))
    return torch.cat(blocks).numpy() / len(train[1])


def main(method, task, found):
    torch.manual_seed(0)
    task = torch.load(task, weights_only=False)
    module, decay = task["module"], task["decay"]
    few = [tuple(part[:60] for part in task[name]) for name in ("train", "test")]
    tiny = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(few[0][0][0].numel(), 10))
    if method != "direct":
        effects(method, tiny, *few, decay)
    taken = {}

    def work():
        start = time.perf_counter()
        taken["effects"] = effects(method, module, task["train"], task["test"], decay)
        taken["seconds"] = time.perf_counter() - start

    grown = peak_growth(work)
    np.savez(found, **taken, bytes=grown)


if __name__ == "__main__":
    main(*sys.argv[1:])
