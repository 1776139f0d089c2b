"""
Find bad rows
=============

Some labels of a training set are wrong. Which? A row's loss under the model that was trained on it
flatters the row, the wrong label included: the model has seen it. Its loss under the model that has
**not** seen it does not, and :class:`~sklearn_dualif.InfluenceEstimator` gives that loss for every row
from a single fit.

Two runs side by side: 1,797 handwritten digits with a known tenth of the labels replaced by wrong
ones, and the same digits as they are. ``make demo`` runs this file.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sklearn_dualif import InfluenceEstimator

try:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
except ImportError:
    Console = track = Table = None


def steps(jobs, title):
    """Yield jobs under a progress bar, or print a line for each without rich."""
    if track is not None:
        yield from track(jobs, description=title)
        return
    for number, job in enumerate(jobs, start=1):
        print(f"{title}: {number} of {len(jobs)}")
        yield job


def show(title, table):
    """Print a table."""
    if Console is None:
        print(f"\n{title}\n{table.to_string(index=False)}")
        return
    shown = Table(title=title, title_justify="left", title_style="bold")
    for name in table:
        numeric = pd.api.types.is_numeric_dtype(table[name])
        shown.add_column(name, justify="right" if numeric else "left")
    for row in table.astype(str).itertuples(index=False):
        shown.add_row(*row)
    console = Console()
    console.print()
    console.print(shown)


# %%
# The rows
# --------
#
# A tenth of the labels, drawn at random, becomes one of the nine other digits. Nothing below looks at
# ``planted`` before it counts what was found.

rng = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
X = images / 16.0
n_rows = len(labels)
planted = np.zeros(n_rows, dtype=bool)
planted[rng.choice(n_rows, n_rows // 10, replace=False)] = True
flipped = labels.copy()
flipped[planted] = (labels[planted] + rng.integers(1, 10, planted.sum())) % 10

# %%
# One fit instead of 1,797
# ------------------------
#
# ``loo_loss_`` is the log loss of each row under the model without it. Its mean estimates how well the
# model does on new data, so it also chooses the penalty, separately for the two runs.

runs = {"planted errors": flipped, "as they are": labels}
grid = [0.1, 1.0, 10.0]
best = {}
for name, C in steps([(name, C) for name in runs for C in grid], "Fitting"):
    model = InfluenceEstimator(LogisticRegression(C=C, max_iter=1000)).fit(X, runs[name])
    if name not in best or model.loo_loss_.mean() < best[name].loo_loss_.mean():
        best[name] = model
for name, model in best.items():
    loss = model.loo_loss_.mean()
    print(f"Digits, {name}: C = {model.estimator_.C:g}, leave-one-out log loss {loss:.3f}")

# %%
# How many are found
# ------------------
#
# Someone inspects the rows in the order of their leave-one-out loss, largest first. Beside it the order
# of the plain training loss and the mean of all random orders. A tenth of the labels is wrong, so half
# of them at most can be found in the first twentieth, and all in the first tenth.

model = best["planted errors"]
given = model.predict_proba(X)[np.arange(n_rows), flipped]
orders = {
    "leave-one-out loss": np.argsort(-model.loo_loss_, kind="stable"),
    "training loss": np.argsort(given, kind="stable"),
}
found = {name: np.cumsum(planted[order]) / planted.sum() for name, order in orders.items()}
found["random"] = np.arange(1, n_rows + 1) / n_rows

inspected = [int(share * n_rows) for share in (0.05, 0.10, 0.15, 0.20, 0.30)]
table = pd.DataFrame({"rows inspected": [f"{rows} ({rows / n_rows:.0%})" for rows in inspected]})
for name, share in found.items():
    table[name] = [f"{share[rows - 1]:.1%}" for rows in inspected]
show(f"Share of the {planted.sum()} planted errors found", table)

tenth = n_rows // 10 - 1
gain = found["leave-one-out loss"][tenth] / found["random"][tenth]
print(f"In the first tenth: {gain:.1f} times what random order finds.")

# %%
# The rows most likely wrong
# --------------------------
#
# For each row, what the model without it says: the label that it suggests, and the probability that it
# leaves to the label that was given. ``self_influence_`` is how much of the row's loss comes from
# leaving it out; it is large where the model had learned the wrong label by heart.


def suspects(name, k=12):
    """Return the k rows with the largest leave-one-out loss of a run."""
    model, given = best[name], runs[name]
    probabilities = model.loo_predict_proba()
    rows = np.argsort(-model.loo_loss_, kind="stable")[:k]
    table = pd.DataFrame(
        {
            "row": rows,
            "given": given[rows],
            "suggested": model.loo_predict()[rows],
            "P(given)": [f"{p:.1e}" for p in probabilities[rows, given[rows]]],
            "loo_loss_": model.loo_loss_[rows].round(2),
            "self_influence_": model.self_influence_[rows].round(2),
        }
    )
    if name == "planted errors":
        table["truth"] = [
            f"{labels[row]}, planted" if planted[row] else f"{labels[row]}" for row in rows
        ]
    return table


tables = {name: suspects(name) for name in runs}
for name, table in tables.items():
    show(f"Most likely wrong, digits {name}", table)

# %%
# Have a look
# -----------
#
# The planted errors are plain. Among the digits as they are nothing was planted: what comes first are the
# ones that are hard to read, and a person decides.

figure = plt.figure(figsize=(11, 8.6), layout="constrained")
pictures, curve = figure.subfigures(2, 1, height_ratios=[1.55, 1.0])
strips = pictures.subfigures(1, 2, wspace=0.06)
for strip, (name, table) in zip(strips, tables.items(), strict=True):
    strip.suptitle(f"Most likely wrong, digits {name}", fontweight="bold", fontsize=12)
    for axes, row in zip(strip.subplots(3, 4).flat, table.itertuples(), strict=True):
        axes.imshow(images[row.row].reshape(8, 8), cmap="gray_r", interpolation="nearest")
        hit = name == "planted errors" and planted[row.row]
        axes.set_title(f"given {row.given}, rather {row.suggested}", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color="tab:red" if hit else "0.6", linewidth=2.5 if hit else 1.0)
strips[0].supxlabel("red frame: planted", fontsize=9, color="tab:red")

axes = curve.subplots()
percent = 100 * np.arange(1, n_rows + 1) / n_rows
styles = {
    "leave-one-out loss": {"color": "tab:blue", "linewidth": 2.5},
    "training loss": {"color": "tab:orange", "linestyle": "--", "linewidth": 1.8},
    "random": {"color": "0.5", "linestyle": ":", "linewidth": 1.8},
}
for name, share in found.items():
    axes.plot(percent, 100 * share, label=name, **styles[name])
axes.axvline(10, color="0.8", zorder=0)
axes.set(
    xlim=(0, 30),
    ylim=(0, 104),
    xlabel="rows inspected (%)",
    ylabel="planted errors found (%)",
)
axes.set_title("Inspecting the digits with planted errors", fontweight="bold", fontsize=12)
axes.legend(title="in the order of", loc="center right", frameon=False)
axes.spines[["top", "right"]].set_visible(False)

path = Path(globals().get("__file__", "plot_find_bad_rows.py")).with_name("find_bad_rows.png")
figure.savefig(path, dpi=120)
print(f"The pictures are in {path.resolve()}")
