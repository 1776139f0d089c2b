"""Random projections of gradients: how good, how fast and how large they are.

``python benchmarks/projection.py [lds speed dimension error] [--threads N] [--repeats K]
[--only TEXT] [--json FILE] [--plot FILE]``

lds. The protocol of arXiv:2602.10449 on 4,000 MNIST images: linear datamodeling scores of a softmax
   regression and an MLP over sizes of the sketch and ridges, plain and debiased, beside the exact
   Jacobians.
speed. Rows a second from a network and its rows to projected gradients, and of the projection
   alone, beside dattri's and traker's on the processor.
dimension. What a row costs each sketch as the parameters grow from ten thousand to ten million.
error. Errors of sketched first-order effects against the size of the sketch over the effective
   dimension, and how often the error that the package states holds.

Every run of a contender is in a process of its own, which gives its seconds and its peak memory.
Recipes are in ``_recipes.py``, the others' calls in ``_peers.py``. Retraining is kept in a folder
of the system's temporary one. ``--plot`` draws the curves of "dimension". Nothing here asserts:
each part prints its table, and of each target whether it was met.
"""

from __future__ import annotations

import math
import time
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import _peers
import _recipes
import numpy as np
import torch
from _measure import peak_growth
from _recipes import DECAY, added_up, linear_datamodeling_score
from _run import Job, claim, main
from networks import as_tensors, at_least, influence_of, target
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, eigsh

from sklearn_dualif.kernels import Network, TangentFeatures
from sklearn_dualif.sketching import (
    GaussianSketch,
    HadamardSketch,
    RademacherSketch,
    SketchedSpectrum,
    SparseSketch,
)

SKETCHES = {
    "Gaussian": GaussianSketch,
    "Rademacher": RademacherSketch,
    "sparse": SparseSketch,
    "Hadamard": HadamardSketch,
}


def output_heads(module, X, y):
    """Return the `Heads` of each row's outputs in float32."""
    return _tangent_features(module, X).heads()


def loss_heads(module, X, y):
    """Return the `Heads` of each row's loss, one a row, in float32."""
    features = _tangent_features(module, X)
    slope = torch.softmax(features.outputs, 1)
    slope[torch.arange(len(y)), y] -= 1.0
    return features.heads(slope[:, :, None].float())


def _tangent_features(module, X):
    penalties = dict.fromkeys(dict(module.named_parameters()), 1.0)
    return TangentFeatures(Network(module, penalties, X, dtype=torch.float32), X)


def projected(heads, projection):
    """Return the projections (n h, m) of heads, those of a row behind one another."""
    return heads.sketched(projection).flatten(0, 1) * projection.scale


def measured(work):
    """Return what `work` returns, its seconds and the bytes that it takes."""
    kept = {}

    def timed():
        start = time.perf_counter()
        kept["result"] = work()
        kept["seconds"] = time.perf_counter() - start

    grown = peak_growth(timed)
    return kept["result"], kept["seconds"], grown


# Linear datamodeling scores -----------------------------------------------------------------------

SIZES = (64, 256, 1024, 4096)
FACTORS = (0.1, 1.0, 10.0, 100.0)
EXACT = "exact Jacobians"
FORMS = {"plain": False, "debiased": True}


def predictions(recipe, module, sketch):
    """Return the halves' predicted losses by factor of the ridge, and effective dimensions."""
    found = {"dimensions": []}
    for factor in FACTORS:
        ridge = factor * DECAY * recipe.n_train
        estimator = influence_of(
            recipe, module, "first", "auto", tol=1e-2, sketch=sketch, ridge=ridge
        )
        found[f"{factor:g}"] = added_up(recipe, estimator.influence(*recipe.test))
        info = estimator.sketch_info_ or {"effective_dimension": math.nan}
        found["dimensions"].append(info["effective_dimension"])
    return found


def sketched_name(form, m):
    return f"{form}, m = {m:,}"


def lds_job(recipe_of, title, small):
    recipe = recipe_of(small)
    module = recipe.module()
    contenders = {
        sketched_name(form, m): partial(
            predictions, recipe, module, GaussianSketch(m, debias=debias, random_state=0)
        )
        for form, debias in FORMS.items()
        for m in SIZES
    }
    contenders[EXACT] = partial(predictions, recipe, module, None)
    columns = {factor: f"LDS, λ × {factor:g}" for factor in FACTORS}

    def check(results):
        retrained = recipe.retrained_losses()
        agreements = {
            name: {
                column: linear_datamodeling_score(result[f"{factor:g}"], retrained)
                for factor, column in columns.items()
            }
            for name, result in results.items()
        }
        return agreements, dimension_figures(results)

    def claims(found):
        best = max(score for of in found.agreements.values() for score in of.values())
        own = columns[1.0]

        def enough(form, score):
            for m in SIZES:
                if score(found.agreements[sketched_name(form, m)]) >= 0.95 * best:
                    return f"m = {m:,}", None
            return f"none up to {SIZES[-1]:,}", None

        return [
            claim("best LDS", f"{best:.3f}", "", None),
            *(
                target(f"{form}, {text}: 95 % of it with", "", partial(enough, form, score))
                for form in FORMS
                for text, score in (
                    ("the best λ of each m", lambda of: max(of.values())),
                    ("λ × 1", lambda of: of[own]),
                )
            ),
        ]

    return Job(
        f"LDS on {recipe.n_halves} halves and {recipe.n_judged} test rows: {title} on "
        f"{recipe.n_train:,} MNIST images, first order, {len(FACTORS)} ridges",
        contenders,
        baseline=EXACT,
        check=check,
        claims=claims,
        apart=True,
        limits={EXACT: 3600},
    )


def dimension_figures(results):
    """Return the effective dimensions by ridge, as the largest debiased sketch tells them."""
    name = sketched_name("debiased", SIZES[-1])
    if name not in results:
        return {}
    dimensions = results[name]["dimensions"]
    return {
        f"effective dimension d_λ, λ × {factor:g}": f"{dimension:.0f}"
        for factor, dimension in zip(FACTORS, dimensions, strict=True)
    }


# Rows a second ------------------------------------------------------------------------------------

COMPONENTS = 2048
ROWS = 2000
# What the others' dense gradients take at once.
GRADIENT_BYTES = 2**32

PEERS = {
    "dattri, normal": ("dattri", partial(_peers.dattri_projection, "normal")),
    "dattri, rademacher": ("dattri", partial(_peers.dattri_projection, "rademacher")),
    "traker, normal": ("trak", partial(_peers.traker_projection, "normal")),
    "traker, rademacher": ("trak", partial(_peers.traker_projection, "rademacher")),
}
CUSTOMARY = "traker, normal"
# Rows of a batch where traker is run as its documentation does: the projection is drawn anew for
# each.
BATCH = 128


def rows_at_once(d, n):
    return max(1, min(n, GRADIENT_BYTES // (4 * d)))


class Derivatives(NamedTuple):
    """What is projected.

    Attributes
    ----------
    title : str
    ours, theirs : callable
        Give `Heads`, and dense gradients, of a module's rows.
    per_row : int
        Gradients a row.
    """

    title: str
    ours: object
    theirs: object
    per_row: int = 1


LOSSES = Derivatives("loss gradients", loss_heads, _peers.loss_gradients)
OUTPUTS = Derivatives("Jacobian rows (ten outputs)", output_heads, _peers.output_gradients, 10)


def our_projections(derivatives, module, X, y, sketch, alone):
    """Project each row's gradients; alone: time only what follows the derivatives."""
    if alone:
        heads = derivatives.ours(module, X, y)
        projection = sketch.projection(heads.network.n_penalized)
        result, seconds, grown = measured(partial(projected, heads, projection))
        return {"projected": result, "seconds": seconds, "bytes": grown}
    heads = derivatives.ours(module, X, y)
    return {"projected": projected(heads, sketch.projection(heads.network.n_penalized))}


def their_projections(derivatives, module, X, y, projection_of, m, alone=False, at_once=None):
    """Project each row's gradients, in the largest batches unless told otherwise.

    Alone: time only what follows gradients.
    """
    d = sum(value.numel() for value in module.parameters())
    if alone:
        gradients = derivatives.theirs(module, (X, y))
        result, seconds, grown = measured(lambda: projection_of(d, m)(gradients))
        return {"projected": result, "seconds": seconds, "bytes": grown}
    project, parts = projection_of(d, m), []
    at_once = at_once or rows_at_once(d, len(y) * derivatives.per_row)
    for rows in torch.arange(len(y)).split(max(1, at_once // derivatives.per_row)):
        parts.append(project(derivatives.theirs(module, (X[rows], y[rows]))))
    return {"projected": torch.cat(parts)}


def speed_job(recipe_of, title, derivatives, alone, small):
    recipe = recipe_of(small)
    module = recipe.module()
    d = sum(value.numel() for value in module.parameters())
    n = min(ROWS, recipe.n_train)
    if alone:
        n = rows_at_once(d, n)
    m = 16 if small else COMPONENTS
    n_rows = max(1, n // derivatives.per_row)
    n = n_rows * derivatives.per_row
    X, y = (part[:n_rows] for part in as_tensors(recipe.train))
    contenders = {
        f"ours, {name}": partial(
            our_projections, derivatives, module, X, y, sketch(m, random_state=0), alone
        )
        for name, sketch in SKETCHES.items()
    }
    skipped = {}
    for name, (package, projection_of) in PEERS.items():
        if find_spec(package) is None:
            skipped[name] = f"skipped, {package} is not installed"
            continue
        theirs = partial(their_projections, derivatives, module, X, y, projection_of, m)
        contenders[name] = partial(theirs, alone)
        if name == CUSTOMARY and not alone:
            contenders[f"{name}, {BATCH} rows at a time"] = partial(theirs, at_once=BATCH)

    def check(results):
        few = slice(0, min(100, n_rows))
        gradients = derivatives.theirs(module, (X[few], y[few])).double()
        products = (gradients @ gradients.T).numpy()
        sizes = np.sqrt(np.diag(products))
        agreements = {}
        for name, result in results.items():
            values = result["projected"][: len(gradients)].astype(float)
            error = (values @ values.T - products) / np.outer(sizes, sizes)
            agreements[name] = {"rms error of cosines": float(np.sqrt((error**2).mean()))}
        return agreements, {"m^-½, for comparison": m**-0.5}

    def claims(found):
        def rates():
            return {name: n / seconds for name, seconds in found.seconds.items()}

        def compared(name, rivals):
            of = rates()
            fastest = max(of[rival] for rival in rivals if rival in of)
            return of[name] / fastest

        normal = [name for name in PEERS if name.endswith("normal")]
        return [
            *(
                claim(f"{name}: rows a second", f"{of:,.1f}", "", None)
                for name, of in rates().items()
            ),
            at_least(
                "ours, Gaussian / the faster normal one of theirs",
                lambda: compared("ours, Gaussian", normal),
                2.0,
                ".2f",
            ),
            *(
                at_least(
                    f"ours, {name} / the fastest of theirs",
                    partial(compared, f"ours, {name}", list(PEERS)),
                    2.0,
                    ".2f",
                )
                for name in list(SKETCHES)[1:]
            ),
        ]

    work = "the projection alone" if alone else "derivatives and projection"
    return Job(
        f"{n:,} {derivatives.title} to m = {m:,}, {title}, {d:,} parameters, float32: {work}",
        contenders,
        baseline=CUSTOMARY,
        check=check,
        claims=claims,
        apart=True,
        limits=dict.fromkeys(PEERS, 3600),
        skipped=skipped,
    )


# Dimension ----------------------------------------------------------------------------------------

# Width of a network with two hidden layers as wide as its inputs, by parameters.
WIDTHS = {1e4: 68, 1e5: 221, 1e6: 704, 1e7: 2233}
WIDE_ROWS = 1000
EACH_ROW, ONE_ROW = "milliseconds a row", "seconds of one row alone"


def dimension_name(sketch, d):
    return f"{sketch}, d = 1e{math.log10(d):.0f}"


def cost(sketch, width, n):
    """Project random rows' gradients, then one alone, which hardly more than draws the numbers."""
    torch.manual_seed(0)
    module = _recipes.mlp(width, width, width, 10)
    X, y = torch.randn(n, width), torch.randint(10, (n,))
    one, heads = loss_heads(module, X[:1], y[:1]), loss_heads(module, X, y)
    projection = sketch.projection(heads.network.n_penalized)
    # All rows first: the one row's memory, freed, would be theirs.
    _, seconds, grown = measured(partial(projected, heads, projection))
    _, of_one, _ = measured(partial(projected, one, projection))
    return {
        "seconds": seconds,
        "bytes": grown,
        EACH_ROW: 1e3 * seconds / n,
        ONE_ROW: of_one,
    }


def dimension_job(small):
    m = 16 if small else COMPONENTS
    contenders = {
        dimension_name(name, d): partial(
            cost, sketch(m, random_state=0), *((4, 3) if small else (width, WIDE_ROWS))
        )
        for name, sketch in SKETCHES.items()
        for d, width in WIDTHS.items()
    }

    def check(results):
        return {
            name: {key: float(result[key]) for key in (EACH_ROW, ONE_ROW)}
            for name, result in results.items()
        }, {}

    def claims(found):
        def growth(name):
            each = [found.agreements[dimension_name(name, d)][EACH_ROW] for d in WIDTHS]
            slope = np.polyfit(np.log(list(WIDTHS)), np.log(each), 1)[0]
            return f"{slope:.2f}", None

        return [
            target(f"{name}: exponent of a row's cost in d", "about 1", partial(growth, name))
            for name in SKETCHES
        ]

    return Job(
        f"One gradient a row to m = {m:,} as the parameters grow, "
        f"{WIDE_ROWS:,} rows, float32: the projection alone",
        contenders,
        baseline=dimension_name("Gaussian", min(WIDTHS)),
        check=check,
        claims=claims,
        apart=True,
    )


def draw(record, file):
    """Draw what a row costs, and the memory, on doubly logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for found in record["parts"].get("dimension", []):
        for sketch in SKETCHES:
            names = {d: dimension_name(sketch, d) for d in WIDTHS}
            names = {d: name for d, name in names.items() if name in found["seconds"]}
            each = [found["agreements"][name][EACH_ROW] for name in names.values()]
            axes[0].loglog(list(names), each, "o-", label=sketch)
            memory = [found["megabytes"][name] for name in names.values()]
            axes[1].loglog(list(names), memory, "o-")
    axes[0].legend()
    for axis, label in zip(axes, ("milliseconds a row", "peak MB"), strict=True):
        axis.set(xlabel="parameters", ylabel=label)
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


# Error --------------------------------------------------------------------------------------------

MULTIPLES = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
SHOWN = MULTIPLES.index(2.0)
TRIALS = 200


class Gradients(NamedTuple):
    r"""Training gradients in the coordinates of their curvature's singular vectors.

    With the thin decomposition :math:`S^\top J = U s V^\top` of the root-weighted Jacobian and
    :math:`g_i = J_i^\top S_i c_i`: ``rows`` is :math:`s V^\top` (r, d), ``squares`` :math:`s^2`,
    and ``units`` (n, r) has the :math:`U_i^\top c_i`, of length :math:`\sqrt{g^\top F^+ g}`,
    scaled to length 1.
    """

    rows: torch.Tensor
    squares: np.ndarray
    units: np.ndarray

    @classmethod
    def of(cls, recipe):
        module = recipe.module().double()
        X, y = as_tensors(recipe.train)
        dual = _peers.NaiveDual(module, (X.double(), y))
        n, d = len(y), sum(value.numel() for value in module.parameters())
        jacobian = dual.root_rows(slice(None)).reshape(-1, d).numpy()
        U, s, Vt = np.linalg.svd(jacobian, full_matrices=False)
        U, s, Vt = (part[..., s > 1e-10 * s[0]] for part in (U, s, Vt.T))
        own = dual.p.sqrt().numpy()
        own[np.arange(n), y] -= 1 / own[np.arange(n), y]
        units = np.einsum("ncr,nc->nr", U.reshape(n, -1, len(s)), own)
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        return cls(torch.from_numpy(s[:, None] * Vt.T), s**2, units)

    def ridge(self, dimension):
        """Return the ridge at which the effective dimension is ``dimension``."""

        def above(log):
            return float((self.squares / (self.squares + math.exp(log))).sum()) - dimension

        return math.exp(brentq(above, *np.log(self.squares[0] * np.array([1e-20, 1e3]))))


class Trial(NamedTuple):
    """How a sketch errs.

    Attributes
    ----------
    percentile, largest : float
        95th percentile and maximum of the errors over pairs of gradients.
    norm : float
        The largest error over any two vectors.
    stated : float
        What the package says that the largest one stays below.
    slope : float
        Sum of the sketched values of single gradients, over that of the exact ones.
    """

    percentile: float
    largest: float
    norm: float
    stated: float
    slope: float


def trial(gradients, ridge, projection, debias):
    """Return the `Trial` of one projection."""
    m = projection.n_components
    rows = projection(gradients.rows).numpy()
    gram = rows.T @ rows
    spectrum = SketchedSpectrum(np.linalg.eigvalsh(gram), m, projection.ambient)
    sketched = spectrum.sketched_ridge(ridge) if debias else ridge
    if sketched is None:
        sketched, stated = ridge, math.nan
    else:
        seen = math.sqrt(spectrum.ridge(sketched) / ridge)
        bias = (seen - 1) / (seen + 1)
        stated = bias + spectrum.error(sketched)
    gram[np.diag_indices(m)] += sketched
    half = solve_triangular(cholesky(gram, lower=True), rows.T, lower=True)
    shares = gradients.squares / (gradients.squares + ridge)
    units = gradients.units
    seen_units = half @ units.T
    sketched_values, values = seen_units.T @ seen_units, (units * shares) @ units.T
    error = np.abs(sketched_values - values)

    def difference(v):
        return half.T @ (half @ v) - shares * v

    size = len(shares)
    start = np.random.default_rng(0).standard_normal(size)
    operator = LinearOperator((size, size), matvec=difference, dtype=float)
    norm = eigsh(operator, k=1, tol=1e-3, v0=start, return_eigenvectors=False)[0]
    pairs = error[np.triu_indices(len(error))]
    return Trial(
        percentile=float(np.quantile(pairs, 0.95)),
        largest=float(pairs.max()),
        norm=abs(float(norm)),
        stated=stated,
        slope=float(sketched_values.trace() / values.trace()),
    )


def trials_of(recipe, sketch, debias, dimension, n_trials):
    """Return the trials, an array (multiples, trials, 5), and the ridge over the model's own."""
    gradients = Gradients.of(recipe)
    ridge, d = gradients.ridge(dimension), gradients.rows.shape[1]
    found = [
        [
            trial(
                gradients,
                ridge,
                sketch(math.ceil(multiple * dimension), random_state=seed).projection(d),
                debias,
            )
            for seed in range(n_trials)
        ]
        for multiple in MULTIPLES
    ]
    return {"trials": np.array(found), "factor": ridge / (DECAY * recipe.n_train)}


def error_job(recipe_of, title, dimension, small):
    recipe = recipe_of(small)
    module = recipe.module()  # trained before the contenders' time is taken
    d = sum(value.numel() for value in module.parameters())
    dimension, n_trials = (4, 2) if small else (dimension, TRIALS)
    contenders = {
        f"{name}, {form}": partial(trials_of, recipe, sketch, debias, dimension, n_trials)
        for name, sketch in SKETCHES.items()
        for form, debias in FORMS.items()
    }

    def check(results):
        agreements = {}
        for name, result in results.items():
            percentile, largest, norm, stated, slopes = np.moveaxis(result["trials"], 2, 0)
            errors = percentile.mean(1)
            exponent = np.polyfit(np.log(MULTIPLES), np.log(errors), 1)[0]
            agreements[name] = {
                **{f"m = {x:g} d_λ": error for x, error in zip(MULTIPLES, errors, strict=True)},
                "exponent": float(exponent),
                f"slope, m = {MULTIPLES[SHOWN]:g} d_λ": float(slopes[SHOWN].mean()),
                "pairs covered": float((largest <= stated).mean(1).min()),
                "all covered": float((norm <= stated).mean(1).min()),
            }
        factors = {float(result["factor"]) for result in results.values()}
        return agreements, {"λ / the model's own": factors.pop()}

    def claims(found):
        def exponents():
            of = {name: found.agreements[f"{name}, plain"]["exponent"] for name in SKETCHES}
            shown = ", ".join(f"{value:.2f} {name}" for name, value in of.items())
            if MULTIPLES[-1] * dimension > d / 2:
                # The rows of the Hadamard matrix run out, so that its error falls faster.
                del of["Hadamard"]
            return shown, all(abs(value + 0.5) <= 0.1 for value in of.values())

        def coverage(form, what):
            of = {name: found.agreements[f"{name}, {form}"][what] for name in SKETCHES}
            shown = ", ".join(f"{value:.3f} {name}" for name, value in of.items())
            return shown, min(of.values()) >= 0.95

        return [
            target(
                "plain: exponent of the 95th percentile in m",
                "-.5 ± .1 (Hadamard: where m stays below d / 2)",
                exponents,
            ),
            *(
                target(
                    f"{form}: share of trials that the stated error covers, {of}",
                    "≥ .95",
                    partial(coverage, form, what),
                )
                for form in FORMS
                for of, what in (
                    ("pairs of gradients", "pairs covered"),
                    ("any vectors", "all covered"),
                )
            ),
        ]

    return Job(
        f"95th percentile of the error of g'F⁻¹g over pairs of {recipe.n_train} gradients, "
        f"{title}, d_λ = {dimension}, {n_trials} sketches of each size",
        contenders,
        baseline="Gaussian, debiased",
        check=check,
        claims=claims,
        apart=True,
    )


PARTS = {
    "lds": [
        partial(lds_job, _recipes.lds_softmax, "softmax regression"),
        partial(lds_job, _recipes.lds_mlp, "MLP 784-128-64-10"),
    ],
    "speed": [
        partial(speed_job, recipe_of, title, derivatives, alone)
        for recipe_of, title in (
            (_recipes.lds_mlp, "MLP 784-128-64-10"),
            (_recipes.mnist_mlp, "MLP 784-1024-1024-10"),
        )
        for derivatives, alone in ((LOSSES, False), (LOSSES, True), (OUTPUTS, False))
    ],
    "dimension": [dimension_job],
    "error": [
        partial(error_job, recipe_of, f"{title} on the digits", dimension)
        for recipe_of, title, dimension in (
            (_recipes.error_softmax, "softmax regression", 50),
            (_recipes.error_softmax, "softmax regression", 20),
            (_recipes.error_mlp, "MLP 64-32-10", 50),
            (_recipes.error_cnn, "CNN", 50),
        )
    ],
}


if __name__ == "__main__":
    main(__doc__, __file__, PARTS, repeats=1, plot=draw)
