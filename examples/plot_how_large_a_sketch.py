"""
How large a sketch has to be
============================

A random projection of every gradient to ``m`` numbers makes influences cheap, and wrong by some
amount. Not the number of parameters decides how wrong, but the **effective dimension** of the
curvature at the model's ridge: the number of directions that the training rows determine.

On handwritten digits this example draws that dimension over ridges, the error of sketches against
``m`` over the effective dimension, and what becomes of queries unlike anything in the training set.
"""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.exceptions import InfluenceWarning
from sklearn_dualif.inspection import EffectiveDimensionDisplay
from sklearn_dualif.sketching import GaussianSketch, HadamardSketch, SparseSketch

X, y = load_digits(return_X_y=True)
X = X / 16.0
X_train, y_train, X_test, y_test = X[:400], y[:400], X[400:500], y[400:500]
model = LogisticRegression(tol=1e-8, max_iter=1000)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")

# %%
# The effective dimension
# -----------------------
#
# The model has 650 parameters. At its own ridge the 400 rows determine 100 combinations of them,
# and a sketch needs more components than that. A larger ridge would make do with less.

sizes = [25, 50, 100, 200, 400, 800]
display = EffectiveDimensionDisplay.from_estimator(
    model, X_train, y_train, n_components=sizes[1::2], ax=left
)
left.set_title("How many directions the rows determine")
exact = InfluenceEstimator(model, order="first").fit(X_train, y_train)
dimension = exact.effective_dimension_ - 9  # the intercepts are not sketched
print(f"effective dimension at the model's ridge: {dimension:.0f}")

# %%
# The error
# ---------
#
# Self-influence, relative to the exact one: the mean over the training rows (lines), which says
# whether sizes are right, for the plain and the debiased form; and how far single effects on test
# losses are off. Left of the effective dimension the debiased form does not exist: the estimator
# warns, says how many components would do, and answers with the plain form. From 1.5 times that
# dimension on it is right on average, and what is left falls with the square root of ``m``.


def sketched(sketch, debias=True):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_components=.* is fewer", InfluenceWarning)
        influence = InfluenceEstimator(
            model, order="first", sketch=sketch.set_params(debias=debias)
        )
        return influence.fit(X_train, y_train)


expected = exact.influence(X_test, y_test)
ratio = np.array(sizes) / dimension
for kind, marker in ((GaussianSketch, "o"), (SparseSketch, "s"), (HadamardSketch, "^")):
    errors = []
    for size in sizes:
        found = sketched(kind(size, random_state=0)).influence(X_test, y_test)
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    middle.plot(ratio, errors, marker=marker, label=f"{kind.__name__}: error of effects")
means = {}
for name, debias, style in (("debiased", True, "-"), ("plain", False, "--")):
    means[name] = [
        np.mean(
            sketched(GaussianSketch(size, random_state=0), debias).self_influence_
            / exact.self_influence_
        )
        for size in sizes
    ]
    middle.plot(ratio, means[name], style, color="0.3", label=f"self-influence, {name}")
middle.axvline(1.0, color="0.7", linewidth=1)
middle.set(xscale="log", xlabel="components / effective dimension", ylabel="relative to exact")
middle.set_xticks(ratio, [f"{value:.2g}" for value in ratio])
middle.minorticks_off()
middle.set_ylim(0.0, 1.6)
middle.set_title("Sizes are right on average, single effects later")
middle.legend(fontsize=7)

# %%
# Queries from elsewhere
# ----------------------
#
# An image of noise has a gradient that is mostly new to the model. Removing training rows cannot
# move the model along what is new, so that its effects are small; a sketch scatters them.
# ``leakage`` foretells by how much, for each query: the dots are what ten sketches did.

noise = np.random.default_rng(0).uniform(0.0, 1.0, (10, 64)) * np.linspace(1.0, 6.0, 10)[:, None]
queries = np.vstack([X_test[:10], noise])
truth = exact.influence(queries, objective="prediction")
seen = [sketched(GaussianSketch(400, random_state=seed)) for seed in range(10)]
scatter = np.sqrt(
    np.mean(
        [(each.influence(queries, objective="prediction") - truth) ** 2 for each in seen], (0, 2)
    )
)
predicted = np.mean([each.leakage(queries) for each in seen], 0)
size_of_effects = np.sqrt(np.mean(truth**2, 1))
for rows, label in ((slice(0, 10), "digits"), (slice(10, 20), "noise")):
    right.scatter(predicted[rows], scatter[rows], label=f"{label}: scatter of sketches")
    right.scatter(
        predicted[rows], size_of_effects[rows], marker="x", label=f"{label}: true effects"
    )
limits = [0.7 * predicted.min(), 1.4 * predicted.max()]
right.plot(limits, limits, color="0.7", zorder=0)
right.set(xscale="log", yscale="log", xlabel="leakage", ylabel="root mean square over rows")
right.set_title("How far a sketch scatters each query")
right.legend(fontsize=7)

# %%
# Which size it takes to have effects within a tenth (in the units of ``sketch_info_``), the sketch
# finds out by itself, and here it finds that the exact form is smaller.

auto = InfluenceEstimator(model, sketch=GaussianSketch(random_state=0)).fit(X_train, y_train)
print(f"n_components: {auto.sketch_info_['n_components']}, exact: {auto.sketch_info_['exact']}")

path = Path(globals().get("__file__", "plot_how_large_a_sketch.py"))
path = path.with_name("how_large_a_sketch.png")
figure.savefig(path, dpi=90)
print(f"The pictures are in {path.resolve()}")
