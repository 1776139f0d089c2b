"""
Judge rows before retraining
============================

Some labels of a small training set are wrong. Rows that look suspicious are easy to list; whether
a network would be better off without them is another question, and the usual answer is to train it
again. :class:`~sklearn_dualif.InfluenceEstimator` around a ``Pipeline`` that ends in an
``MLPClassifier`` answers it beforehand, from the one fit that there is.

The picture at the end shows what it foretold for some groups of rows, and what training again
without them really did.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.metrics import removal_fidelity

# %%
# The data
# --------
#
# Thirteen measurements of 178 wines of three cultivars, as a frame whose index says which wine is
# which. Five of the training labels become wrong ones. Nothing below looks at ``planted`` before it
# counts what was found.

rng = np.random.default_rng(0)
X, cultivar = load_wine(return_X_y=True, as_frame=True)
X.index = cultivar.index = [f"wine {number}" for number in range(len(X))]
y = "cultivar " + cultivar.map({0: "A", 1: "B", 2: "C"})
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0, stratify=y)
planted = rng.choice(len(X_train), 5, replace=False)
truth = y_train.copy()
names = np.unique(y)
wrong = (np.searchsorted(names, truth.iloc[planted]) + rng.integers(1, 3, 5)) % 3
y_train.iloc[planted] = names[wrong]

# %%
# One fit
# -------
#
# ``alpha`` is the network's weight decay. It is what the effects rest on: without it the data alone
# say how far the parameters may move.
#
# The intercepts of an MLP have no weight decay, and those of its hidden layer next to no curvature
# either. Free to move, they would run further in the linearised network than training ever takes
# them, and ``parameters`` holds them where they are.

mlp = MLPClassifier(
    (64,), activation="tanh", solver="lbfgs", alpha=3.0, tol=1e-8, max_iter=5000, random_state=0
)
pipeline = make_pipeline(StandardScaler(), mlp)
model = InfluenceEstimator(pipeline, order="exact", parameters=["*.weight", "1.bias"])
model.fit(X_train, y_train)
before = log_loss(y_test, model.predict_proba(X_test))
print(f"{model.n_parameters_} parameters, {len(X_train)} training wines")
print(f"Test accuracy {model.score(X_test, y_test):.1%}, log loss {before:.3f}")
print(f"stationarity_ {model.stationarity_:.2g} (0 at an optimum, above 0.1 a warning)")

# %%
# Suspicious rows
# ---------------
#
# ``loo_loss_`` is the loss of each row under the network that never saw it. The table says what
# that network would call the wine, and how much probability it leaves to the given label.

suspects = np.argsort(-model.loo_loss_, kind="stable")[:8]
given = np.searchsorted(model.classes_, y_train)
rows = np.arange(len(X_train))
table = pd.DataFrame(
    {
        "given": y_train,
        "rather": model.loo_predict(),
        "P seen": model.predict_proba(X_train)[rows, given].round(2),
        "P unseen": model.loo_predict_proba()[rows, given].round(2),
        "loo_loss_": model.loo_loss_.round(2),
        "planted": np.isin(rows, planted),
    },
    index=X_train.index,
)
print(table.iloc[suspects].to_string())
found = np.isin(suspects[:5], planted).sum()
print(f"Of the five wrong labels, {found} are the first five.")

# %%
# Without them
# ------------
#
# What becomes of the test loss when the first 1, 2, ... of them leave together? ``removal_effect``
# foretells it, and fitting the whole pipeline again shows it. In both columns it is best to stop
# after the fifth: the wines that follow are odd, but right, and the network needs them.


def loss_of_refit(group):
    """Return the test loss of the pipeline trained without some rows."""
    kept = np.delete(rows, group)
    refit = clone(pipeline).fit(X_train.iloc[kept], y_train.iloc[kept])
    return log_loss(y_test, refit.predict_proba(X_test))


sizes = np.arange(1, 9)
effects = pd.DataFrame(
    {
        "foretold": [model.removal_effect(suspects[:k], X_test, y_test).mean() for k in sizes],
        "refit": [loss_of_refit(suspects[:k]) - before for k in sizes],
    },
    index=pd.Index(sizes, name="removed"),
)
print(effects.round(4).to_string())

# %%
# Any group
# ---------
#
# Random groups of a twentieth of the rows, by :func:`~sklearn_dualif.metrics.removal_fidelity`. It
# refits by itself and compares the effects on every single test wine.

fidelity = removal_fidelity(model, X_test, y_test, n_groups=20, fraction=0.05, random_state=0)
low, high = fidelity.r2_interval
print(f"R² of single wines' effects, random groups: {fidelity.r2:.2f} ({low:.2f} to {high:.2f})")

figure, axes = plt.subplots(figsize=(6.4, 6.0), layout="constrained")
axes.axline((0, 0), slope=1, color="0.8", zorder=0)
axes.axhline(0, color="0.9", zorder=0)
axes.axvline(0, color="0.9", zorder=0)
axes.plot(
    fidelity.predicted.mean(axis=1),
    fidelity.refitted.mean(axis=1),
    "o",
    color="0.65",
    label=f"random groups of {fidelity.groups.shape[1]}",
)
axes.plot(
    effects["foretold"], effects["refit"], "o", color="tab:blue", label="1, 2, ... most suspicious"
)
for size, effect in effects.iterrows():
    axes.annotate(
        f"{size}", effect, xytext=(-7, 6), textcoords="offset points", ha="center", color="tab:blue"
    )
axes.text(0.03, 0.6, "better without them", color="0.5", transform=axes.transAxes)
axes.text(0.97, 0.6, "worse", color="0.5", ha="right", transform=axes.transAxes)
axes.set(xlabel="foretold by removal_effect", ylabel="happened in a refit")
axes.set_title("Change of the test log loss without a group of rows", fontsize=11)
axes.legend(loc="upper left", frameon=False)
axes.spines[["top", "right"]].set_visible(False)

path = Path(globals().get("__file__", "plot_mlp_pipeline.py")).with_name("mlp_pipeline.png")
figure.savefig(path, dpi=120)
print(f"The picture is in {path.resolve()}")
