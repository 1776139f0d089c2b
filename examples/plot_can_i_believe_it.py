"""
Can I believe these numbers?
============================

:class:`~sklearn_dualif.InfluenceEstimator` foretells what a model would do without some of its
rows. Two questions come before anyone acts on that. Are the effects those of real refits? And is
the ranking of rows that they give worth more than a simpler one?

Here a multinomial logistic regression learns 600 handwritten digits of which a tenth got a wrong
label: the one that a reader in a hurry might have given, the second guess of a model. The answer is
two pictures, next to each other, and a page to hand on.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.inspection import FidelityDisplay, NeighborsDisplay, RemovalCurveDisplay, report
from sklearn_dualif.metrics import removal_curve, validate

images, digits = load_digits(return_X_y=True)
images = images / 16
X_train, X_rest, y_train, y_rest = train_test_split(
    images, digits, train_size=600, random_state=0, stratify=digits
)
X_val, X_test, y_val, y_test = train_test_split(X_rest, y_rest, train_size=400, random_state=0)

model = LogisticRegression(C=0.5, max_iter=1000)
hasty = model.fit(X_val, y_val).predict_proba(X_train)
hasty[np.arange(600), y_train] = 0.0
planted = np.random.default_rng(0).choice(600, 60, replace=False)
noisy = y_train.copy()
noisy[planted] = hasty[planted].argmax(axis=1)

# %%
# One fit, two checks
# -------------------
#
# ``validate`` refits the model without ten groups of rows and without ten single rows.
# ``removal_curve`` refits it without the most harmful rows, as the validation digits rank them, and
# scores it on others.

influence = InfluenceEstimator(model).fit(X_train, noisy, X_val=X_val, y_val=y_val)
validation = validate(influence, X_val[:100], y_val[:100], random_state=0)
print(validation)
curve = removal_curve(
    influence,
    X_test,
    y_test,
    ranking=np.argsort(influence.influence_),
    fractions=[0.0, 0.025, 0.05, 0.1, 0.15, 0.2],
    random_state=0,
)
print(curve.frame().round(3).to_string(index=False))

# %%
# Have a look
# -----------
#
# Left: on the dashed line, what was foretold is what happened. Right: every point is a model fitted
# again without some rows.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
FidelityDisplay.from_predictions(validation, target="held-out loss", ax=left)
RemovalCurveDisplay.from_predictions(curve, score_name="test accuracy", ax=right)
path = Path(globals().get("__file__", "plot_can_i_believe_it.py"))
path = path.with_name("can_i_believe_it.png")
figure.savefig(path, dpi=110)
print(f"The picture is in {path.resolve()}")

# %%
# The rows behind mistakes
# ------------------------
#
# Of each digit the test image that the model is most wrong about, and of these the three with the
# largest loss: each with the training digits whose removal would raise that loss most, and those
# whose removal would lower it. Under each training digit are its row, its label and the effect.

loss = -np.log(influence.predict_proba(X_test)[np.arange(len(y_test)), y_test])
worst = np.array([np.where(y_test == digit, loss, 0.0).argmax() for digit in range(10)])
worst = worst[np.argsort(-loss[worst])][:3]
neighbors = NeighborsDisplay.from_estimator(
    influence, X_test[worst], y_test[worst], image_shape=(8, 8)
)
neighbors.figure_.savefig(path.with_name("can_i_believe_it_neighbors.png"), dpi=110)

# %%
# A page for a colleague
# ----------------------
#
# ``report`` writes verdict, rows, pictures and settings to one file that needs nothing else. What
# is known already is not computed again.

page = report(
    influence,
    path.with_name("can_i_believe_it.html"),
    X_val,
    y_val,
    validation=validation,
    image_shape=(8, 8),
    title="600 digits, some labels wrong",
)
print(f"{page.stat().st_size / 1000:.0f} kB in {page.resolve()}")
