"""
Influence against leverage
==========================

A row far from the others has high *leverage*: it can pull a regression its way. Whether it does
depends on its target. A row with both, leverage and a target that the others would not have
predicted, is *influential*: the model says something else without it.

Regression diagnostics have drawn the two against each other since Cook (1977). Here the picture
comes from :class:`~sklearn_dualif.InfluenceEstimator` around a pipeline on a frame, and its numbers
are compared with a refit.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import CenteredNorm
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator

# %%
# The data
# --------
#
# Ten measurements of 442 patients, and how far their diabetes had progressed a year later. The
# frame's index says who is who; it comes back in the tables below.

X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X = X.rename(index="patient {}".format)
y.index = X.index
X_train, X_rest, y_train, y_rest = train_test_split(X, y, test_size=0.4, random_state=0)
X_val, X_test, y_val, y_test = train_test_split(X_rest, y_rest, test_size=0.5, random_state=0)

# %%
# One fit
# -------
#
# ``influence_`` is what the removal of each training patient does to the mean squared error over
# the validation patients: above zero the patient helps, below zero it hurts.

pipeline = make_pipeline(StandardScaler(), LinearRegression())
model = InfluenceEstimator(pipeline).fit(X_train, y_train, X_val=X_val, y_val=y_val)
print(f"R² over the test patients: {model.score(X_test, y_test):.2f}")
print(f"helpful: {(model.influence_ > 0).mean():.0%} of {len(X_train)} training patients")

# %%
# Leverage, surprise, and what becomes of them
# --------------------------------------------
#
# ``leverage_`` and the residual from ``loo_predict`` come with the fit. ``transform`` gives what
# each removal does to each prediction; its squares, summed over the training patients, are Cook's
# distance but for a factor.
#
# It takes both to be influential. The patient on the far right has the most leverage and an
# ordinary target, and most of the surprising ones are on the left, where none of them can pull the
# model far.

n_parameters = model.effective_dimension_
residual = y_train - model.predict(X_train)
variance = (residual**2).sum() / (len(y_train) - n_parameters)
cook = (model.transform(X_train) ** 2).sum(axis=0) / (n_parameters * variance)
surprise = y_train - model.loo_predict()

figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained")
dots = left.scatter(
    model.leverage_,
    surprise,
    s=15 + 5000 * cook,
    c=model.influence_,
    cmap="RdBu",
    norm=CenteredNorm(),
    edgecolors="0.4",
    linewidths=0.6,
    zorder=2,
)
figure.colorbar(dots, ax=left, label="influence_ on the validation error")
left.axhline(0, color="0.85", zorder=0)
left.set_ylim(-185, 185)
left.set_xlim(0, 0.24)
leverages = np.linspace(0.005, 0.24, 300)
for distance, style in ((0.01, ":"), (0.03, "--")):
    contour = np.sqrt(distance * n_parameters * variance / leverages)
    left.plot(leverages, contour, style, color="0.45", label=f"Cook's distance {distance}")
    left.plot(leverages, -contour, style, color="0.45")
largest = np.argsort(-cook)[:4]
offsets = [(16, 10), (-14, 44), (22, 32), (18, 0)]  # points, by leverage: clear of lines and dots
for position, offset in zip(largest[np.argsort(model.leverage_[largest])], offsets, strict=True):
    left.annotate(
        X_train.index[position],
        (model.leverage_[position], surprise.iloc[position]),
        xytext=offset,
        textcoords="offset points",
        va="center",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
    )
left.set(xlabel="leverage_", ylabel="target − leave-one-out prediction")
left.set_title("Area: effect of a removal on the predictions", fontsize=11)
left.legend(loc="lower right", frameon=False, fontsize=9)

# %%
# Remove, and compare with a refit
# --------------------------------
#
# The patients who hurt the validation error most, removed together. The refit keeps the fitted
# scaler, as the effects do. They agree to rounding: for squared loss one Newton step is exact.
#
# The test patients had no part in the choice. What the first removal gains is gained there too; of
# what twenty gain over the validation patients, hardly any is. ``removal_effect`` says that as
# well, without a refit.

scaler, regression = model.estimator_
Z_train = scaler.transform(X_train)


def mean_squared_error(fitted, X, y):
    """Return the error of a regression on patients."""
    return np.mean((y - fitted.predict(scaler.transform(X))) ** 2)


rows = []
for count in (1, 5, 20):
    group = np.argsort(model.influence_)[:count]
    kept = np.setdiff1d(np.arange(len(y_train)), group)
    refit = LinearRegression().fit(Z_train[kept], y_train.iloc[kept])
    row = {("", "removed"): count}
    for name, X_some, y_some in (("validation", X_val, y_val), ("test", X_test, y_test)):
        before = mean_squared_error(regression, X_some, y_some)
        row[name, "error"] = before
        row[name, "removal_effect"] = model.removal_effect(group, X_some, y_some).mean()
        row[name, "refit"] = mean_squared_error(refit, X_some, y_some) - before
    rows.append(row)
table = pd.DataFrame(rows)
table.columns = pd.MultiIndex.from_tuples(table.columns)
print(table.round(2).to_string(index=False))

foretold = model.output_change(group, X_test)[:, 0]
happened = refit.predict(scaler.transform(X_test)) - model.predict(X_test)
print(f"largest difference from the refit's predictions: {np.abs(foretold - happened).max():.0e}")

right.axline((0, 0), slope=1, color="0.85", zorder=0)
right.plot(foretold, happened, "o", markersize=5, alpha=0.7)
right.set(xlabel="foretold by output_change", ylabel="happened in a refit")
right.set_title(f"Test predictions after the removal of {count} patients", fontsize=11)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)

path = Path(globals().get("__file__", "plot_influence_diagnostics.py"))
path = path.with_name("influence_diagnostics.png")
figure.savefig(path, dpi=120)
print(f"The picture is in {path.resolve()}")

# %%
# Who stands behind a prediction
# ------------------------------
#
# ``explain`` lists for each query the training rows whose removal would change it most: here for
# the two test patients with the largest errors, and how far their prediction would move.

worst = (y_test - model.predict(X_test)).abs().nlargest(2).index
explanation = model.explain(X_test.loc[worst], k=3)
print(explanation.round(2).to_string(index=False))
