"""Other libraries, and the naive form, doing the same work on a recipe's network.

Every function takes a trained float32 module and ``(X, y)`` of training and test rows as tensors,
and returns an array (n_test, n_train). Methods with a Hessian are handed the true ridge. Curvatures
there are those of the mean loss, so that scores / n are effects of removal on the test losses with
our sign; TRAK's and TracIn's scores have other units and only rank.
"""

from __future__ import annotations

import copy
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _recipes import DECAY
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

PYDVL_PYTHON = os.environ.get("PYDVL_PYTHON")
"""pyDVL needs NumPy < 2, and so an environment of its own; None: it takes no part."""


def loader(rows, size=None):
    """Return batches of at most `size` rows, in order."""
    return DataLoader(TensorDataset(*rows), batch_size=size or len(rows[1]), shuffle=False)


# The naive forms ----------------------------------------------------------------------------------


def naive_primal(module, train, test):
    """Per-row gradients and a dense Hessian from ``torch.func``, solved densely."""
    start = torch.cat([value.detach().flatten() for value in module.parameters()])

    def loss(theta, x, y):
        return cross_entropy(functional_call(module, unflatten(module, theta), x), y)

    def row_gradients(rows):
        return vmap(grad(lambda t, x, y: loss(t, x[None], y[None])), (None, 0, 0))(start, *rows)

    curvature = hessian(loss)(start, *train)
    curvature.diagonal().add_(DECAY)
    solved = torch.linalg.solve(curvature, row_gradients(train).T)
    return (row_gradients(test) @ solved / len(train[1])).numpy()


def unflatten(module, theta):
    parts, start = {}, 0
    for name, value in module.named_parameters():
        parts[name] = theta[start : start + value.numel()].view_as(value)
        start += value.numel()
    return parts


class NaiveDual:
    """The kernel form without thought: dense Jacobian rows from ``torch.func``, multiplied."""

    def __init__(self, module, rows):
        self.module, self.x = module, rows[0]
        with torch.no_grad():
            self.p = torch.softmax(module(rows[0]), 1)

    def jacobians(self, rows):
        """Return the derivatives (b, C, d) of the outputs of some rows."""
        parameters = {name: value.detach() for name, value in self.module.named_parameters()}

        def outputs(parameters, x):
            return functional_call(self.module, parameters, x[None])[0]

        parts = vmap(jacrev(outputs), (None, 0))(parameters, self.x[rows])
        return torch.cat([part.flatten(2) for part in parts.values()], 2)

    def root_rows(self, rows):
        """Return ``S^T J`` of some rows, (b C, d), S = diag(√p) − p √pᵀ."""
        p = self.p[rows]
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]
        return (root.mT @ self.jacobians(rows)).flatten(0, 1)


def naive_dual(module, train, test, block=100):
    """Scores from dense Jacobians: the kernel by blocks, its Cholesky factor, one solve a query."""
    n, classes = len(train[1]), 10
    rows = NaiveDual(module, train)
    blocks = [range(start, min(n, start + block)) for start in range(0, n, block)]
    kernel = torch.zeros(n * classes, n * classes)
    queries = loss_gradients(module, test)
    across = torch.empty(n * classes, len(queries))
    for i, mine in enumerate(blocks):
        left = rows.root_rows(mine)
        own = slice(mine.start * classes, mine.stop * classes)
        across[own] = left @ queries.T
        for theirs in blocks[: i + 1]:
            right = left if theirs is mine else rows.root_rows(theirs)
            kernel[own, theirs.start * classes : theirs.stop * classes] = left @ right.T
    kernel.diagonal().add_(DECAY * n)
    factor, failed = torch.linalg.cholesky_ex(kernel)
    if int(failed):
        raise RuntimeError("The naive kernel matrix in float32 has no Cholesky factor.")
    solved = torch.cholesky_solve(across, factor)
    own = rows.p.sqrt()
    own[torch.arange(n), train[1]] -= 1 / own[torch.arange(n), train[1]]
    return torch.einsum("nc,nct->tn", own, solved.view(n, classes, -1)).numpy()


def naive_dual_seconds(module, train, block=20):
    """Extrapolate from one block the seconds that the kernel alone takes `naive_dual`."""
    rows = NaiveDual(module, train)
    right = rows.root_rows(range(block))
    start = time.perf_counter()
    rows.root_rows(range(block, 2 * block)) @ right.T
    taken = time.perf_counter() - start
    blocks = -(-len(train[1]) // block)
    return taken * blocks * (blocks + 1) / 2


def loss_gradients(module, rows):
    """Return the gradient (n, d) of each row's loss by all parameters, in their order."""
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(parameters, x, y):
        return cross_entropy(functional_call(module, parameters, x[None]), y[None])

    parts = vmap(grad(loss), (None, 0, 0))(parameters, *rows)
    return torch.cat([part.flatten(1) for part in parts.values()], 1)


def output_gradients(module, rows):
    """Return the gradients (n C, d) of each row's C outputs, those of a row behind one another."""
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def outputs(parameters, x):
        return functional_call(module, parameters, x[None])[0]

    parts = vmap(jacrev(outputs), (None, 0))(parameters, rows[0])
    return torch.cat([part.flatten(0, 1).flatten(1) for part in parts.values()], 1)


# dattri -------------------------------------------------------------------------------------------


def _dattri_task(module):
    from dattri.task import AttributionTask

    def mean_loss(parameters, data):
        inputs, labels = data
        return cross_entropy(functional_call(module, parameters, inputs), labels)

    return AttributionTask(mean_loss, module, module.state_dict())


def _dattri_scores(attributor, train, test, size=None):
    train_batches = loader(train, size)
    attributor.cache(train_batches)
    scores = attributor.attribute(train_batches, loader(test, size))
    return scores.detach().numpy().T / len(train[1])


def dattri_explicit(module, train, test):
    """Scores by ``IFAttributorExplicit``, one batch of rows: with more it adds up inverses."""
    from dattri.algorithm.influence_function import IFAttributorExplicit

    attributor = IFAttributorExplicit(_dattri_task(module), regularization=DECAY)
    return _dattri_scores(attributor, train, test)


def dattri_ekfac(module, train, test):
    """Scores by ``IFAttributorEKFAC``, on the dense layers: it has no others."""
    from dattri.algorithm.influence_function import IFAttributorEKFAC

    attributor = IFAttributorEKFAC(_dattri_task(copy.deepcopy(module)), damping=DECAY)
    return _dattri_scores(attributor, train, test, 100)


def dattri_trak(module, train, test, dimension=512):
    """Scores by ``TRAKAttributor`` with its default dimension, on margins as in its examples."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    def outputs_of(parameters, row):
        inputs, label = row
        return functional_call(module, parameters, inputs[None]), label[None]

    def margin(parameters, row):
        z, label = outputs_of(parameters, row)
        others = z.scatter(1, label[:, None], -torch.inf)
        return (z.gather(1, label[:, None])[:, 0] - torch.logsumexp(others, 1)).sum()

    def correct_probability(parameters, row):
        return torch.exp(-cross_entropy(*outputs_of(parameters, row)))

    task = AttributionTask(margin, module, module.state_dict())
    attributor = TRAKAttributor(
        task,
        correct_probability_func=correct_probability,
        projector_kwargs={"proj_dim": dimension, "device": "cpu"},
    )
    attributor.cache(loader(train, 32))
    return attributor.attribute(loader(test, 32)).detach().numpy().T


def dattri_graddot(module, train, test, size=100):
    """Scores by ``TracInAttributor`` at the end of training: inner products of gradients."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def row_loss(parameters, row):
        inputs, label = row
        return cross_entropy(functional_call(module, parameters, inputs[None]), label[None])

    attributor = TracInAttributor(
        AttributionTask(row_loss, module, module.state_dict()),
        weight_list=torch.ones(1),
        normalized_grad=False,
    )
    attributor.projector_kwargs = None  # as an argument, None means its default projection
    scores = attributor.attribute(loader(train, size), loader(test, size))
    return scores.detach().numpy().T


def dattri_projection(kind, d, m):
    """Return a function that projects gradients (n, d): dattri's projection for processors."""
    from dattri.func.projection import random_project

    return random_project(
        torch.empty(1, d),
        feature_batch_size=1,
        proj_dim=m,
        proj_max_batch_size=32,  # only read on GPUs
        proj_type=kind,
        device="cpu",
    )


# kronfluence --------------------------------------------------------------------------------------


def kronfluence_ekfac(module, train, test):
    """Scores by EK-FAC with kronfluence's defaults, the ridge as damping."""
    return _kronfluence(module, train, test, "ekfac") / len(train[1])


def kronfluence_identity(module, train, test):
    """Scores by its strategy "identity": inner products of gradients."""
    return _kronfluence(module, train, test, "identity")


def _kronfluence(module, train, test, strategy):
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            inputs, labels = batch
            outputs = model(inputs)
            if sample:
                labels = torch.multinomial(torch.softmax(outputs.detach(), 1), 1)[:, 0]
            return cross_entropy(outputs, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    task = Classification()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            strategy,
            prepare_model(copy.deepcopy(module), task),
            task,
            cpu=True,
            disable_tqdm=True,
            output_dir=folder,
        )
        rows = TensorDataset(*train)
        analyzer.fit_all_factors(
            "factors",
            rows,
            per_device_batch_size=min(512, len(rows)),
            factor_args=FactorArguments(strategy=strategy),
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            TensorDataset(*test),
            rows,
            per_device_query_batch_size=min(100, len(test[1])),
            per_device_train_batch_size=min(256, len(rows)),
            score_args=ScoreArguments(damping_factor=DECAY),
        )
        scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    return scores.numpy()


# traker -------------------------------------------------------------------------------------------


def traker(module, train, test, dimension=512):
    """Scores of the margins by TRAK, in float32."""
    from trak import TRAKer
    from trak.projectors import BasicProjector, ProjectionType

    module = copy.deepcopy(module)
    d = sum(value.numel() for value in module.parameters())
    with tempfile.TemporaryDirectory() as folder:
        projector = BasicProjector(
            grad_dim=d,
            proj_dim=dimension,
            seed=0,
            proj_type=ProjectionType.normal,
            device="cpu",
            dtype=torch.float32,
        )
        run = TRAKer(
            model=module,
            task="image_classification",
            train_set_size=len(train[1]),
            save_dir=folder,
            device="cpu",
            projector=projector,
            proj_dim=dimension,
            use_half_precision=False,
            logging_level=50,
        )
        run.load_checkpoint(module.state_dict(), model_id=0)
        for batch in loader(train, 128):
            run.featurize(batch, num_samples=len(batch[1]))
        run.finalize_features()
        run.start_scoring_checkpoint("scores", module.state_dict(), 0, len(test[1]))
        for batch in loader(test, 128):
            run.score(batch, num_samples=len(batch[1]))
        return np.array(run.finalize_scores("scores")).T


def traker_projection(kind, d, m):
    """Return a function that projects gradients (n, d): traker's projection for processors."""
    from trak.projectors import BasicProjector

    projector = BasicProjector(d, m, seed=0, proj_type=kind, device="cpu")
    # Its entries have unit variance.
    return lambda gradients: projector.project(gradients, model_id=0) * m**-0.5


# captum -------------------------------------------------------------------------------------------


def _captum_module(module):
    """Return a copy and its checkpoint's loader: captum asks for a file and for names."""
    weights = copy.deepcopy(module.state_dict())

    def load(model, path):
        model.load_state_dict(weights)
        return 1.0

    return copy.deepcopy(module), load


def captum_naive(module, train, test):
    """Scores by ``NaiveInfluenceFunction``, all eigenvectors instead of its default of 50."""
    from captum.influence import NaiveInfluenceFunction

    module, load = _captum_module(module)
    d = sum(value.numel() for value in module.parameters())
    n = len(train[1])
    found = NaiveInfluenceFunction(
        module,
        loader(train),
        checkpoint="",
        checkpoints_load_func=load,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
        projection_dim=d,
        hessian_reg=DECAY * n,
        hessian_inverse_tol=0.0,
    )
    return found.influence(test).detach().numpy()


def captum_arnoldi(module, train, test):
    """Scores by ``ArnoldiInfluenceFunction`` with its defaults of 200 and 50 dimensions."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    module, load = _captum_module(module)
    found = ArnoldiInfluenceFunction(
        module,
        loader(train),
        checkpoint="",
        checkpoints_load_func=load,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
        hessian_reg=DECAY * len(train[1]),
    )
    return found.influence(test).detach().numpy()


def captum_tracin(module, train, test):
    """Scores by ``TracInCPFast``: gradients of the last layer at the end of training."""
    from captum.influence import TracInCPFast

    module, load = _captum_module(module)
    found = TracInCPFast(
        module,
        module[-1],
        loader(train),
        checkpoints=["end"],
        checkpoints_load_func=load,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
    )
    return found.influence(test).detach().numpy()


def captum_tracincp(states, rates, module, train, test):
    """Scores by ``TracInCP`` over checkpoints, all layers."""
    from captum.influence import TracInCP

    module = copy.deepcopy(module)

    def load(model, number):
        model.load_state_dict(states[int(number)])
        return rates[int(number)]

    found = TracInCP(
        module,
        loader(train, 100),
        checkpoints=[str(number) for number in range(len(states))],
        checkpoints_load_func=load,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
    )
    return found.influence(test).detach().numpy()


# pyDVL --------------------------------------------------------------------------------------------


def pydvl(method, module, train, test):
    """One of pyDVL's methods, in the other environment, which measures itself."""
    with tempfile.TemporaryDirectory() as folder:
        task, found = Path(folder, "task.pt"), Path(folder, "found.npz")
        torch.save({"module": module, "train": train, "test": test, "decay": DECAY}, task)
        script = Path(__file__).with_name("_pydvl.py")
        subprocess.run([PYDVL_PYTHON, script, method, task, found], check=True)
        with np.load(found) as arrays:
            return dict(arrays)
