"""Influence on networks beside the same work done by others.

``python benchmarks/networks.py [A B C D scaling] [--threads N] [--repeats K] [--only TEXT]
[--json FILE] [--plot FILE]``

A. Softmax regression on the digits, 650 parameters: checked against leave-one-out refits.
B. An MLP on the digits, 300,000 parameters: loss effects of all single rows and of random halves,
   checked against retraining on halves.
C. An MLP on MNIST, 1.86 million parameters, 4,000 training rows.
D. A CNN on MNIST, stopped far from stationary: as B.
scaling. Seconds as the rows double and as the width doubles.

Every run of a contender is in a process of its own, which gives its seconds and its peak memory; a
small run of the same comes first, so that imports and thread pools are in neither figure. The
networks' recipes are in ``_recipes.py``, the others' calls in ``_peers.py``, the float64 answers
that errors are relative to in ``_exact.py``. Retraining and these answers are kept in a folder of
the system's temporary one, and take minutes the first time. pyDVL needs an environment of its own,
whose Python the variable PYDVL_PYTHON names. A contender that is not installed is named and left
out. Nothing here asserts: each part prints its table, and of each target whether it was met.
"""

from __future__ import annotations

import json
import time
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import _peers
import _recipes
import numpy as np
import torch
from _measure import agreement
from _recipes import DECAY, added_up, kept, linear_datamodeling_score
from _refits import leave_one_out_softmax, softmax_optimum
from _run import Job, claim, main

from sklearn_dualif import InfluenceEstimator, TorchModel

# Contenders ---------------------------------------------------------------------------------------


def influence_of(recipe, module, order, solver, **options):
    """Return a fitted estimator of a recipe's network in float32."""
    estimator = InfluenceEstimator(
        TorchModel(module, weight_decay=DECAY),
        order=order,
        solver=solver,
        dtype="float32",
        random_state=0,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the training stopped early is known
        return estimator.fit(*recipe.train)


def ours(recipe, module, order, solver="auto", linear=False, **options):
    """Fit and return effects (n_test, n_train), with what the solver says of itself."""
    start = time.perf_counter()
    estimator = influence_of(recipe, module, order, solver, **options)
    fitted = time.perf_counter()
    objective = None
    if linear:
        from sklearn_dualif.objectives import Loss

        objective = Loss(linear=True)
    effects = estimator.influence(*recipe.test, objective=objective)
    return {"effects": effects, "info": said_by(estimator, fitted - start)}


def halves_of(recipe, module, order, solver="auto", **options):
    """Fit and return the loss effects (n_halves, n_judged) of removing all rows but a half."""
    start = time.perf_counter()
    estimator = influence_of(recipe, module, order, solver, **options)
    fitted = time.perf_counter()
    queries = tuple(part[: max(1, recipe.n_judged)] for part in recipe.test)
    effects = []
    for number in range(max(1, recipe.n_halves)):
        removed = np.setdiff1d(np.arange(recipe.n_train), recipe.half(number))
        effects.append(estimator.removal_effect(removed, *queries))
    taken = (time.perf_counter() - fitted) / len(effects)
    return {
        "halves": np.stack(effects),
        "info": said_by(estimator, fitted - start, seconds_a_half=taken),
    }


def said_by(estimator, fit_seconds, **more):
    """Return as JSON how the fit was done, what the solver reports, and seconds."""
    info = dict(getattr(estimator, "solver_info_", {}))
    return json.dumps(
        {"solver": estimator.solver_, "fit_seconds": fit_seconds, **info, **more}, default=_plain
    )


def _plain(value):
    return np.asarray(value).tolist()


def naive(recipe, module, form):
    return form(module, as_tensors(recipe.train), as_tensors(recipe.test))


def as_tensors(rows):
    return tuple(torch.from_numpy(part) for part in rows)


PEERS = {
    "kronfluence EK-FAC": ("kronfluence", _peers.kronfluence_ekfac),
    "dattri explicit": ("dattri", _peers.dattri_explicit),
    "dattri EK-FAC": ("dattri", _peers.dattri_ekfac),
    "dattri TRAK 512": ("dattri", _peers.dattri_trak),
    "traker 512": ("trak", _peers.traker),
    "captum Naive": ("captum", _peers.captum_naive),
    "captum Arnoldi": ("captum", _peers.captum_arnoldi),
    "captum TracIn, last layer": ("captum", _peers.captum_tracin),
    "pyDVL Direct": ("pyDVL", partial(_peers.pydvl, "direct")),
    "pyDVL EK-FAC": ("pyDVL", partial(_peers.pydvl, "ekfac")),
    "pyDVL Nyström 100": ("pyDVL", partial(_peers.pydvl, "nystroem")),
    "pyDVL Arnoldi 50": ("pyDVL", partial(_peers.pydvl, "arnoldi")),
}
EKFAC = "kronfluence EK-FAC"
NAIVE = "naive: dense Jacobians"


def peers(recipe, module, names):
    """Return the contenders by name, and of those that can't take part why."""
    contenders, skipped = {}, {}
    for name in names:
        package, function = PEERS[name]
        if package == "pyDVL":
            here = bool(_peers.PYDVL_PYTHON) and Path(_peers.PYDVL_PYTHON).exists()
            reason = "skipped, PYDVL_PYTHON names no Python"
        else:
            here, reason = find_spec(package) is not None, f"skipped, {package} is not installed"
        if here:
            train, test = as_tensors(recipe.train), as_tensors(recipe.test)
            contenders[name] = partial(function, module, train, test)
        else:
            skipped[name] = reason
    return contenders, skipped


# Probes -------------------------------------------------------------------------------------------


def multiply_rate(size=4096, repeats=5):
    """Float32 multiplications and additions a second of a square matrix product."""
    a, b, out = (torch.rand(size, size) for _ in range(3))
    return 2 * size**3 / fastest(lambda: torch.mm(a, b, out=out), repeats)


def fastest(work, repeats):
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def assembly(recipe, module, small):
    """Rates of assembling kernel columns, and of a matrix product right before and after.

    "Low rank": the outputs of all training rows against 256 single heads at a time, as a partial
    Cholesky factorization asks for them, 4,096 in all. "Whole": heads against heads of as many
    rows as give 4,096 columns. Heads are the C − 1 root-weighted outputs of a row.
    """
    from _exact import softmax_root

    from sklearn_dualif.kernels import Network, TangentFeatures

    X, y = as_tensors(recipe.train)
    network = Network(module, dict.fromkeys(dict(module.named_parameters()), 1.0), X, dtype=X.dtype)
    features = TangentFeatures(network, X)
    root = softmax_root(features.outputs.double(), y)[1].float()
    outputs, heads = features.heads(), features.heads(root)
    n, each = heads.shape
    n_rows = min(n, -(-4096 // each))
    some = features.take(slice(0, n_rows)).heads(root[:n_rows])
    order = torch.randperm(n * each, generator=torch.Generator().manual_seed(0))
    panels = [heads.picked(positions) for positions in order[: n_rows * each].split(256)]
    work = {
        LOW_RANK: (lambda: [outputs.gram(panel) for panel in panels], outputs.shape[1], 1),
        WHOLE: (lambda: heads.gram(some), each, each),
    }
    found, product = {}, [multiply_rate(256 if small else 4096)]
    rates = {}
    for name, (assemble, mine, theirs) in work.items():
        flops = 0.0
        for layer in module:
            if isinstance(layer, torch.nn.Linear):
                products = 2.0 * n * n_rows * each / theirs
                flops += products * (mine * theirs * layer.out_features + layer.in_features + 1)
        rates[name] = flops / fastest(assemble, 1 if small else 3)
    product.append(multiply_rate(256 if small else 4096))
    rate = float(np.mean(product))
    found[RATE] = rate / 1e9
    for name in work:
        found[f"{name}, GFLOP/s"] = rates[name] / 1e9
        found[name] = rates[name] / rate
    return found


class Stopwatch:
    """Seconds spent in some functions, those of labelled ones that they call left out."""

    def __init__(self):
        self.seconds = {}
        self._inner = [0.0]

    def watch(self, label, owner, name):
        """Time a method under a label; one that is not there is passed over."""
        if (function := vars(owner).get(name)) is None:
            return

        def timed(*args, **kwargs):
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                own = taken - self._inner.pop()
                self.seconds[label] = self.seconds.get(label, 0.0) + own
                self._inner[-1] += taken

        setattr(owner, name, timed)


def shares_of_fit(recipe, module, small):
    """Shares of a first-order fit's seconds, medians of three: derivatives, kernel, and so on."""
    from sklearn_dualif.curvature import KernelDual, TangentCurvature
    from sklearn_dualif.influence._low_rank import LowRankTangent
    from sklearn_dualif.kernels import Heads, Network, TangentFeatures
    from sklearn_dualif.linalg import RandomPivots

    watch = Stopwatch()
    for label, owner, names in (
        ("capture", TangentFeatures, ("heads",)),
        ("capture", Network, ("__init__", "outputs", "derivatives")),
        ("capture", Heads, ("mixed",)),
        ("assembly", Heads, ("gram", "diagonal_blocks")),
        ("factorisation", RandomPivots, ("grow",)),
        ("factorisation", LowRankTangent, ("_build",)),
        ("factorisation", TangentCurvature, ("_factorize", "_diagonalize")),
        ("factorisation", KernelDual, ("_invert",)),
    ):
        for name in names:
            watch.watch(label, owner, name)
    fits = []
    for _ in range(1 if small else 3):
        watch.seconds.clear()
        start = time.perf_counter()
        influence_of(recipe, module, "first", "auto")
        total = time.perf_counter() - start
        fits.append({label: taken / total for label, taken in watch.seconds.items()})
    shares = {label: float(np.median([fit[label] for fit in fits])) for label in fits[0]}
    shown = {f"fit, first order: share of {label}": share for label, share in shares.items()}
    return {**shown, OVERHEAD: 1.0 - sum(shares.values())}


OVERHEAD = "fit, first order: share of the rest"
RATE = "float32 matrix product, GFLOP/s"
LOW_RANK = "assembly for low rank / matrix product"
WHOLE = "assembly of the whole kernel / matrix product"


def target(text, goal, measure):
    """A claim from ``measure() -> (shown, met)``; not measured where a contender is missing."""
    try:
        shown, met = measure()
    except KeyError:
        return claim(text, "not measured", goal, None)
    return claim(text, shown, goal, met)


def at_most(text, value, bound, form=".2f"):
    def measure():
        number = value()
        return format(number, form), number <= bound

    return target(text, f"≤ {bound:g}", measure)


def at_least(text, value, bound, form=".3f"):
    def measure():
        number = value()
        return format(number, form), number >= bound

    return target(text, f"≥ {bound:g}", measure)


def probes_of(recipe, module, small):
    return {
        "kernel assembly": partial(assembly, recipe, module, small),
        "shares of the fit": partial(shares_of_fit, recipe, module, small),
    }


def probe_targets(found):
    return [
        at_least(LOW_RANK, lambda: found.figures[LOW_RANK], 0.5, ".2f"),
        at_least(WHOLE, lambda: found.figures[WHOLE], 0.5, ".2f"),
        at_most(OVERHEAD, lambda: found.figures[OVERHEAD], 0.1, ".2f"),
    ]


def info_figures(results):
    """Return what the solvers of our contenders said, as lines."""
    figures = {}
    for name, result in results.items():
        if "info" not in result:
            continue
        shown = []
        for key, value in json.loads(str(result["info"])).items():
            if isinstance(value, float):
                value = f"{value:.3g}"
            if isinstance(value, int | str):
                shown.append(f"{key} {value}")
            elif isinstance(value, dict):
                inner = ", ".join(
                    f"{k} {v:.3g}" for k, v in value.items() if isinstance(v, int | float)
                )
                shown.append(f"{key} ({inner})")
        figures[name] = ", ".join(shown)
    return figures


def relative_error(effects, exact):
    return float(np.linalg.norm(effects - exact) / np.linalg.norm(exact))


# A. Softmax regression ----------------------------------------------------------------------------


def softmax_job(small):
    recipe = _recipes.digits_softmax(small)
    module = recipe.module()
    rows = np.random.default_rng(0).choice(recipe.n_train, 5 if small else 100, replace=False)
    newton, first, exact = (f"ours, order={order!r}" for order in ("newton", "first", "exact"))
    names = [
        "dattri explicit",
        "pyDVL Direct",
        "captum Naive",
        EKFAC,
        "pyDVL EK-FAC",
        "dattri EK-FAC",
        "captum Arnoldi",
        "pyDVL Arnoldi 50",
        "pyDVL Nyström 100",
        "traker 512",
        "dattri TRAK 512",
        "captum TracIn, last layer",
    ]
    theirs, skipped = peers(recipe, module, names)

    def check(results):
        refits = kept("A-leave-one-out", partial(leave_one_out, recipe, module, rows))
        agreements = {}
        for name, result in results.items():
            effects = result["effects"][:, rows]
            fixed = agreement(effects, refits["fixed"])
            agreements[name] = agreement(effects, refits["retrained"]) | {
                f"{key}, ridge not rescaled": fixed[key] for key in ("pearson", "spearman")
            }
        return agreements, info_figures(results)

    def claims(found):
        agreements = found.agreements
        best = {
            key: max(
                (of[key] for name, of in agreements.items() if not name.startswith("ours")),
                default=0.0,
            )
            for key in ("pearson", "spearman")
        }
        return [
            at_most("newton: seconds / dattri explicit's", lambda: found.ratios[newton], 1.0),
            target(
                "newton: Pearson and Spearman",
                "≥ the best of the others",
                lambda: (
                    f"{agreements[newton]['pearson']:.5f} and {agreements[newton]['spearman']:.5f}"
                    f", theirs {best['pearson']:.5f} and {best['spearman']:.5f}",
                    all(agreements[newton][key] >= best[key] for key in best),
                ),
            ),
            target(
                "newton: slope, either way",
                "1 ± .03",
                lambda: (
                    f"{agreements[newton]['slope']:.4f} and {agreements[newton]['slope back']:.4f}",
                    all(
                        abs(agreements[newton][key] - 1) <= 0.03 for key in ("slope", "slope back")
                    ),
                ),
            ),
            target(
                "exact: rms error",
                "≤ 1e-3",
                lambda: (
                    f"{agreements[exact]['rms error']:.1e}",
                    agreements[exact]["rms error"] <= 1e-3,
                ),
            ),
        ]

    return Job(
        f"A. Softmax regression on the digits: loss effects, {recipe.n_test} × {recipe.n_train}, "
        f"fit and query; agreement with {len(rows)} refits",
        {
            newton: partial(ours, recipe, module, "newton"),
            first: partial(ours, recipe, module, "first"),
            exact: partial(ours, recipe, module, "exact"),
            "naive: dense Hessian": partial(naive, recipe, module, _peers.naive_primal),
            **theirs,
        },
        baseline="dattri explicit",
        check=check,
        claims=claims,
        apart=True,
        limits={exact: 600},
        skipped=skipped,
    )


def leave_one_out(recipe, module, rows):
    """Effects of leaving rows out, retrained by the recipe and with the total ridge as it was.

    The recipe's ridge is on the mean loss: a row that goes takes its share of the total along. The
    others' methods have no such share and see the total ridge as it was.
    """
    (X, y), (X_test, y_test) = recipe.train, recipe.test
    X, X_test = (np.c_[part, np.ones(len(part))].astype(float) for part in (X, X_test))
    theta = np.c_[module[0].weight.detach().numpy(), module[0].bias.detach().numpy()]
    n = recipe.n_train
    optimum = softmax_optimum(X, y, DECAY * n, theta.astype(float))
    effects = partial(leave_one_out_softmax, X, y)
    queries = (optimum, rows, X_test, y_test)
    return {
        "retrained": effects(DECAY * (n - 1), *queries),
        "fixed": effects(DECAY * n, *queries),
    }


# B and D. Networks that are retrained on halves ---------------------------------------------------

FIRST, NEWTON, LINEAR = "ours, order='first'", "ours, order='newton'", "ours, newton, linear target"
KFAC = "ours, curvature='kfac'"
GROUP_NEWTON, GROUP_EXACT = "ours, halves by 'newton'", "ours, halves by 'exact'"


def our_contenders(recipe, module, **options):
    return {
        FIRST: partial(ours, recipe, module, "first", **options),
        NEWTON: partial(ours, recipe, module, "newton", **options),
        LINEAR: partial(ours, recipe, module, "newton", linear=True, **options),
        KFAC: partial(ours, recipe, module, "first", curvature="kfac"),
    }


def group_contenders(recipe, module, **options):
    return {
        GROUP_NEWTON: partial(halves_of, recipe, module, "newton", **options),
        GROUP_EXACT: partial(halves_of, recipe, module, "exact", **options),
    }


def as_good_as_ekfac(quality):
    """Return the target of the curvature by layers: no worse than the other one of that kind."""

    def measure():
        own, theirs = quality[KFAC]["LDS"], quality[EKFAC]["LDS"]
        return f"{own:.3f}, theirs {theirs:.3f}", own >= theirs

    return target("kfac: LDS", f"≥ {EKFAC}'s", measure)


def check_against_retraining(recipe, results, exact=()):
    """Return the quality of the results by contender, and figures.

    ``exact`` has effects in float64 by order, to compare with.
    """
    exact = dict(exact)
    retrained = recipe.retrained_losses()
    base = recipe.losses(recipe.module())[: recipe.n_judged]
    agreements = {}
    for name, result in results.items():
        if "halves" in result:
            change = retrained - base
            agreements[name] = {
                "LDS": linear_datamodeling_score(result["halves"], retrained),
                "pearson": agreement(result["halves"], change)["pearson"],
            }
            continue
        effects = result["effects"]
        agreements[name] = {"LDS": linear_datamodeling_score(added_up(recipe, effects), retrained)}
        order = {FIRST: "first", NEWTON: "newton"}.get(name)
        if order in exact:
            agreements[name]["relative error"] = relative_error(effects, exact[order])
    return agreements, info_figures(results)


def mlp_job(small):
    recipe = _recipes.digits_mlp(small)
    module = recipe.module()
    theirs, skipped = peers(
        recipe,
        module,
        [
            EKFAC,
            "pyDVL EK-FAC",
            "dattri EK-FAC",
            "pyDVL Nyström 100",
            "pyDVL Arnoldi 50",
            "captum Arnoldi",
            "traker 512",
            "dattri TRAK 512",
            "captum TracIn, last layer",
        ],
    )

    def check(results):
        from _exact import exact_effects

        exact = exact_effects(recipe)
        agreements, figures = check_against_retraining(recipe, results, exact)
        for order, effects in exact.items():
            score = linear_datamodeling_score(added_up(recipe, effects), recipe.retrained_losses())
            figures[f"LDS of the float64 answer, {order}"] = score
        return agreements, figures

    def claims(found):
        ratios, quality = found.ratios, found.agreements
        return [
            at_most("first: seconds / EK-FAC's", lambda: ratios[FIRST], 0.25),
            at_most(
                "first: relative error against float64",
                lambda: quality[FIRST]["relative error"],
                1e-3,
                ".1e",
            ),
            at_least("first: LDS", lambda: quality[FIRST]["LDS"], 0.64),
            target(
                "first: LDS above EK-FAC's",
                "higher",
                lambda: (
                    f"{quality[FIRST]['LDS']:.3f}, theirs {quality[EKFAC]['LDS']:.3f}",
                    quality[FIRST]["LDS"] > quality[EKFAC]["LDS"],
                ),
            ),
            at_most("first: peak MB", lambda: found.megabytes[FIRST], 1500, ".0f"),
            at_most("newton: seconds / EK-FAC's", lambda: ratios[NEWTON], 0.6),
            at_least("newton, evaluated: LDS", lambda: quality[NEWTON]["LDS"], 0.64),
            as_good_as_ekfac(quality),
            at_least("newton, linear target: LDS", lambda: quality[LINEAR]["LDS"], 0.66),
            at_least("halves by newton: LDS", lambda: quality[GROUP_NEWTON]["LDS"], 0.73),
            at_least("halves by exact: LDS", lambda: quality[GROUP_EXACT]["LDS"], 0.76),
            *probe_targets(found),
        ]

    return Job(
        f"B. MLP on the digits, 64-512-512-10: loss effects, {recipe.n_test} × {recipe.n_train}, "
        f"fit and query; LDS on {recipe.n_halves} halves and {recipe.n_judged} test rows",
        {
            **our_contenders(recipe, module),
            **theirs,
            **group_contenders(recipe, module),
            NAIVE: partial(naive, recipe, module, _peers.naive_dual),
        },
        baseline=EKFAC,
        check=check,
        claims=claims,
        apart=True,
        repeats={NAIVE: 1, GROUP_NEWTON: 1, GROUP_EXACT: 1},
        limits={NAIVE: 3600, **dict.fromkeys(theirs, 1800)},
        skipped=skipped,
        probes=probes_of(recipe, module, small),
    )


def cnn_job(small):
    recipe = _recipes.mnist_cnn(small)
    module = recipe.module()
    names = [EKFAC, "traker 512", "dattri TRAK 512", "dattri EK-FAC", "captum TracIn, last layer"]
    theirs, skipped = peers(recipe, module, names)

    def claims(found):
        ratios, quality = found.ratios, found.agreements
        return [
            at_most("first: seconds / EK-FAC's", lambda: ratios[FIRST], 0.5),
            at_least("first: LDS", lambda: quality[FIRST]["LDS"], 0.41),
            as_good_as_ekfac(quality),
            at_most("newton, linear target: seconds / EK-FAC's", lambda: ratios[LINEAR], 1.0),
            at_least("newton, linear target: LDS", lambda: quality[LINEAR]["LDS"], 0.40),
            at_least("halves by exact: LDS", lambda: quality[GROUP_EXACT]["LDS"], 0.55),
        ]

    return Job(
        f"D. CNN on MNIST: loss effects, {recipe.n_test} × {recipe.n_train:,}, fit and query, "
        f"tol=1e-2; LDS on {recipe.n_halves} halves and {recipe.n_judged} test rows",
        {
            **our_contenders(recipe, module, tol=1e-2),
            **theirs,
            **group_contenders(recipe, module, tol=1e-2),
            NAIVE: partial(naive, recipe, module, _peers.naive_dual),
        },
        baseline=EKFAC,
        check=partial(check_against_retraining, recipe),
        claims=claims,
        apart=True,
        repeats={NAIVE: 1, GROUP_NEWTON: 1, GROUP_EXACT: 1},
        limits={NAIVE: 3600, **dict.fromkeys(theirs, 1800)},
        skipped=skipped,
    )


# C. A larger MLP ----------------------------------------------------------------------------------


def large_job(small):
    recipe = _recipes.mnist_mlp(small)
    module = recipe.module()
    theirs, skipped = peers(recipe, module, [EKFAC, "pyDVL EK-FAC"])

    def check(results):
        # The float64 answer would take a matrix of 36,000 rows: what ours estimates is shown.
        agreements = {}
        for name in set(results) & {FIRST, NEWTON}:
            error = json.loads(str(results[name]["info"]))["relative_error"]
            agreements[name] = {"estimated relative error": error}
        figures = info_figures(results)
        if NAIVE in results:
            hours = float(results[NAIVE]["hours"])
            figures["naive: dense Jacobians, hours for the kernel, extrapolated from a block"] = (
                hours
            )
        return agreements, figures

    def claims(found):
        def seconds(name, bound):
            def measure():
                allowed = bound * 140 / found.figures[RATE]
                shown = f"{found.seconds[name]:.1f}, {allowed:.0f} allowed here"
                return shown, found.seconds[name] <= allowed

            return measure

        return [
            target("first: seconds", "≤ 60 at 140 GFLOP/s", seconds(FIRST, 60)),
            target("newton: seconds", "≤ 150 at 140 GFLOP/s", seconds(NEWTON, 150)),
            at_most("first: peak MB", lambda: found.megabytes[FIRST], 8000, ".0f"),
            at_most(
                "first: estimated relative error",
                lambda: found.agreements[FIRST]["estimated relative error"],
                1e-2,
                ".1e",
            ),
            *probe_targets(found),
        ]

    def naive_hours():
        return {"hours": _peers.naive_dual_seconds(module, as_tensors(recipe.train)) / 3600}

    return Job(
        f"C. MLP on MNIST, 784-1024-1024-10: loss effects, {recipe.n_test} × {recipe.n_train:,}, "
        "fit and query, tol=1e-2",
        {
            FIRST: partial(ours, recipe, module, "first", tol=1e-2),
            NEWTON: partial(ours, recipe, module, "newton", tol=1e-2),
            **theirs,
            NAIVE: naive_hours,
        },
        baseline=FIRST,
        check=check,
        claims=claims,
        apart=True,
        repeats={NAIVE: 1, **dict.fromkeys(theirs, 1)},
        limits={NAIVE: 600, **dict.fromkeys(theirs, 1200)},
        skipped=skipped,
        probes=probes_of(recipe, module, small),
    )


# Scaling ------------------------------------------------------------------------------------------


def scaling_job(by, sizes, small):
    def recipe_of(size):
        rows, width = (size, 512) if by == "rows" else (1000, size)
        return _recipes.scaled_mlp(rows, width, small)

    def work(size):
        recipe = recipe_of(size)
        return partial(ours, recipe, recipe.module(), "first", tol=1e-2)

    contenders = {f"{by} {size:,}": work(size) for size in sizes}

    def check(results):
        return {}, info_figures(results)

    def claims(found):
        seconds = list(found.seconds.values())
        if by == "rows" or len(seconds) < 2:
            return []
        ratio = seconds[-1] / seconds[0]
        text = f"seconds: width {sizes[-1]:,} / width {sizes[0]:,}"
        return [claim(text, f"{ratio:.1f}", "hardly grows", None)]

    fixed = "784-512-512-10" if by == "rows" else "784-width-width-10, 1,000 rows"
    return Job(
        f"Scaling with the {by}: MLP on MNIST, {fixed}, first order, 100 queries, tol=1e-2",
        contenders,
        baseline=f"{by} {sizes[0]:,}",
        check=check,
        claims=claims,
        apart=True,
    )


def draw(record, file):
    """Draw the scaling curves on doubly logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = record["parts"].get("scaling", [])
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axis, curve, label in zip(axes, curves, ("training rows", "width"), strict=False):
        sizes = [float(name.split()[-1].replace(",", "")) for name in curve["seconds"]]
        seconds = [float(np.median(taken)) for taken in curve["seconds"].values()]
        axis.loglog(sizes, seconds, "o-")
        axis.set(xlabel=label, ylabel="seconds, fit and 100 queries", xticks=sizes)
        axis.set_xticks([], minor=True)
        axis.set_xticklabels([f"{size:.0f}" for size in sizes])
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


PARTS = {
    "A": [softmax_job],
    "B": [mlp_job],
    "C": [large_job],
    "D": [cnn_job],
    "scaling": [
        partial(scaling_job, "rows", (500, 1000, 2000, 4000)),
        partial(scaling_job, "width", (128, 256, 512, 1024, 2048, 4096)),
    ],
}


if __name__ == "__main__":
    main(__doc__, __file__, PARTS, repeats=1, plot=draw)
