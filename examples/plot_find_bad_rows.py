"""
Find bad rows
=============

Some labels of a training set are wrong. Which? A model that was trained on them has seen the wrong
ones too, and flatters what it has seen. What would it say of a row had it never seen that row?
:class:`~sklearn_dualif.InfluenceEstimator` answers for every row from a single fit.

Two runs side by side: 1,797 handwritten digits with a known tenth of the labels replaced by wrong
ones, and the same digits as they are. For a table of your own, ``sklearn-dualif audit`` does it all
from the command line: see :doc:`/command_line`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sklearn_dualif import InfluenceEstimator

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
except ImportError:
    Console = track = None


def steps(jobs, title):
    """Yield jobs under a progress bar; without rich, print a line for each."""
    if track is not None:
        yield from track(jobs, description=title)
        return
    for number, job in enumerate(jobs, start=1):
        print(f"{title}: {number} of {len(jobs)}")
        yield job


def show(title, table):
    """Print a table of strings."""
    if Console is None:
        print(f"\n{title}\n{table.to_string(index=False)}\n")
        return
    shown = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    shown.collapse_padding = True
    for name in table:
        shown.add_column(name, justify="right")
    for row in table.itertuples(index=False):
        shown.add_row(*row)
    Console().print(shown)


# %%
# The rows
# --------
#
# A tenth of the labels, drawn at random, becomes one of the nine other digits. Nothing below looks
# at ``planted`` before it counts what was found.

rng = np.random.default_rng(0)
images, truth = load_digits(return_X_y=True)
X = images / 16.0
n_rows = len(truth)
planted = np.zeros(n_rows, dtype=bool)
planted[rng.choice(n_rows, n_rows // 10, replace=False)] = True
flipped = truth.copy()
flipped[planted] = (truth[planted] + rng.integers(1, 10, planted.sum())) % 10
runs = {"with planted errors": flipped, "as they are": truth}

# %%
# One fit instead of 1,797
# ------------------------
#
# ``loo_loss_`` is the log loss of each row under the model without it. Its mean says how well the
# model does on new rows, so it also chooses the penalty of each run.

models = {}
for name, C in steps([(name, C) for name in runs for C in (0.1, 1.0, 10.0)], "Fitting"):
    model = InfluenceEstimator(LogisticRegression(C=C, max_iter=1000)).fit(X, runs[name])
    if name not in models or model.loo_loss_.mean() < models[name].loo_loss_.mean():
        models[name] = model
for name, model in models.items():
    loss = model.loo_loss_.mean()
    print(f"Digits {name}: C = {model.estimator_.C:g}, leave-one-out log loss {loss:.3f}")

# %%
# How many are found
# ------------------
#
# Someone inspects the rows with the largest leave-one-out loss first. Beside that the order of the
# training loss, and the average of all random orders. With a tenth of the labels wrong, no order
# finds more than half of them in the first twentieth of the rows, or all before the first tenth.
#
# The two losses find about the same here: the penalty keeps a model of 650 parameters from learning
# 179 wrong labels by heart.


def given_label(probabilities, labels):
    """Return the probability of each row's given label."""
    return probabilities[np.arange(n_rows), labels]


model = models["with planted errors"]
orders = {
    "leave-one-out loss": np.argsort(-model.loo_loss_, kind="stable"),
    "training loss": np.argsort(given_label(model.predict_proba(X), flipped), kind="stable"),
}
found = {name: np.cumsum(planted[order]) / planted.sum() for name, order in orders.items()}
found["random"] = np.arange(1, n_rows + 1) / n_rows

marks = [int(share * n_rows) for share in (0.05, 0.10, 0.15, 0.20, 0.30)]
table = pd.DataFrame({"rows inspected": [f"{rows} ({rows / n_rows:.0%})" for rows in marks]})
for name, share in found.items():
    table[name] = [f"{share[rows - 1]:.1%}" for rows in marks]
show(f"Share of the {planted.sum()} planted errors found, in the order of", table)

tenth = n_rows // 10
gain = found["leave-one-out loss"][tenth - 1] / found["random"][tenth - 1]
print(f"In the first tenth, leave-one-out loss finds {gain:.1f} times what random order does.")

# %%
# The rows most likely wrong
# --------------------------
#
# For each row: the given label, the one that the model without the row suggests, and the
# probability that it leaves to the given one, next to what the model says that was trained on the
# row. ``self_influence_`` is the step between the two, in loss.
#
# Among the digits as they are, this step is what matters. The model would stand by many of these
# labels because it knows them by heart; without them it disagrees.


def suspects(name, k=12):
    """Return the k rows with the largest leave-one-out loss of a run."""
    model, labels = models[name], runs[name]
    rows = np.argsort(-model.loo_loss_, kind="stable")[:k]
    seen = given_label(model.predict_proba(X), labels)
    unseen = given_label(model.loo_predict_proba(), labels)
    return pd.DataFrame(
        {
            "row": rows,
            "given": labels[rows],
            "rather": model.loo_predict()[rows],
            "P seen": [f"{p:.2%}" for p in seen[rows]],
            "P unseen": [f"{p:.2%}" for p in unseen[rows]],
            "loo_loss_": [f"{loss:.2f}" for loss in model.loo_loss_[rows]],
            "self_influence_": [f"{effect:.2f}" for effect in model.self_influence_[rows]],
            "truth": truth[rows],
        }
    )


tables = {name: suspects(name) for name in runs}
for name, table in tables.items():
    columns = table if name == "with planted errors" else table.drop(columns="truth")
    show(f"Most likely wrong, digits {name}", columns.astype(str))

# %%
# Have a look
# -----------
#
# The planted errors are plain to see. Among the digits as they are nothing was planted: the first
# ones are those that are hard to read, and a person decides.

figure = plt.figure(figsize=(12, 10.5), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1.75, 1.0], hspace=0.03)
strips = top.subfigures(1, 2, wspace=0.05)
for strip, (name, table) in zip(strips, tables.items(), strict=True):
    strip.suptitle(f"Most likely wrong, digits {name}", fontweight="bold", fontsize=12)
    for axes, (_, row) in zip(strip.subplots(3, 4).flat, table.iterrows(), strict=True):
        axes.imshow(images[row["row"]].reshape(8, 8), cmap="gray_r")
        axes.set_title(f"{row['given']}? rather {row['rather']}", fontsize=10)
        axes.set_xlabel(f"{row['P seen']} → {row['P unseen']}", fontsize=8)
        axes.set(xticks=[], yticks=[])
        wrong = row["given"] != row["truth"]
        axes.spines[:].set(color="tab:red" if wrong else "0.6", linewidth=2.5 if wrong else 1.0)
strips[0].supxlabel("red: planted", fontsize=9, color="tab:red")
strips[1].supxlabel("P of the given label, seen → unseen", fontsize=9)

left, right = bottom.subplots(1, 2)
percent = 100 * np.arange(1, n_rows + 1) / n_rows
styles = {
    "leave-one-out loss": {"color": "tab:blue", "linewidth": 2.5},
    "training loss": {"color": "tab:orange", "linestyle": "--", "linewidth": 1.8},
    "random": {"color": "0.5", "linestyle": ":", "linewidth": 1.8},
}
for name, share in found.items():
    left.plot(percent, 100 * share, label=name, **styles[name])
left.axvline(10, color="0.85", zorder=0)
left.set(xlim=(0, 30), ylim=(0, 104), xlabel="rows inspected (%)", ylabel="errors found (%)")
left.set_title("Finding the planted errors", fontweight="bold", fontsize=12)
left.legend(title="in the order of", loc="center right", frameon=False)

model = models["as they are"]
seen = given_label(model.predict_proba(X), truth)
unseen = given_label(model.loo_predict_proba(), truth)
right.plot([0, 1], [0, 1], color="0.85", zorder=0)
right.plot(seen, unseen, ".", color="0.6", markersize=4, label="all rows")
first = tables["as they are"]["row"]
right.plot(seen[first], unseen[first], "o", color="tab:blue", label="most likely wrong")
right.set(xlabel="P of the given label, row seen", ylabel="P of the given label, row unseen")
right.set_title("A model flatters what it has seen", fontweight="bold", fontsize=12)
right.legend(loc="upper left", frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)

path = Path(globals().get("__file__", "plot_find_bad_rows.py")).with_name("find_bad_rows.png")
figure.savefig(path, dpi=120)
print(f"The pictures are in {path.resolve()}")
