"""
Rows that were planted, and rows that were moved
================================================

Two attacks on a classifier of handwritten digits, and what influence does about each. **Poisoning**
plants rows with wrong labels in the training set: the rows whose removal would lower the loss on
clean validation rows most are the ones to look at. **Evasion** moves a query until the model errs:
with the loss on moved rows as the target, influence tells which training rows make the model
easy to fool, and ``trim_for`` drops them.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.objectives import AdversarialLoss

X, y = load_digits(return_X_y=True)
X = X / 16.0
order = np.random.default_rng(0).permutation(len(y))
X, y = X[order], y[order]
X_train, y_train = X[:800], y[:800]
X_val, y_val = X[800:1200], y[800:1200]
X_test, y_test = X[1200:], y[1200:]
model = LogisticRegression(C=1.0, tol=1e-6, max_iter=2000)
clean = model.fit(X_train, y_train).score(X_test, y_test)

# %%
# Poisoning
# ---------
#
# The attacker relabels 80 of the 160 training rows that show a 3 or an 8, each as the other.

generator = np.random.default_rng(1)
pair = np.flatnonzero(np.isin(y_train, (3, 8)))
planted = generator.choice(pair, 80, replace=False)
poisoned = y_train.copy()
poisoned[planted] = 11 - y_train[planted]

attacked = InfluenceEstimator(model).fit(X_train, poisoned, X_val=X_val, y_val=y_val)
ranking = np.argsort(attacked.influence_)  # most harmful first
found = np.cumsum(np.isin(ranking, planted))
budgets = np.arange(0, 161, 20)
restored = []
for budget in budgets:
    kept = np.setdiff1d(np.arange(len(y_train)), ranking[:budget])
    restored.append(model.fit(X_train[kept], poisoned[kept]).score(X_test, y_test))
print(f"test accuracy: clean {clean:.3f}, poisoned {restored[0]:.3f}")
for budget, accuracy in zip(budgets[1:5], restored[1:5], strict=True):
    print(f"  without the {budget} most harmful rows, {found[budget - 1]} planted: {accuracy:.3f}")

# %%
# Evasion
# -------
#
# Every pixel of a test image may change by a tenth of black. The rows are moved against the fitted
# model ("pgd") and held there; a training row's influence on their loss says whether the model
# would withstand them better without it. The rows to drop are found on validation images; the
# model that comes out is attacked anew.

eps = 0.1
fitted = InfluenceEstimator(model).fit(X_train, y_train)
attack = AdversarialLoss(eps, method="pgd")
trimming = fitted.trim_for(attack, X_val, y_val, step=8, max_removed=80, max_loss=0.02)
print(f"\n{trimming}")


def accuracy_under_attack(estimator, eps, steps=10):
    """Return the accuracy on test rows that are moved against a linear model itself."""
    moved = X_test.copy()
    for _ in range(steps):
        error = estimator.predict_proba(moved) - np.eye(10)[y_test]
        moved += 2.5 * eps / steps * np.sign(error @ estimator.coef_)
        moved = np.clip(moved, X_test - eps, X_test + eps)
    return np.mean(estimator.predict(moved) == y_test)


strengths = np.linspace(0.0, 0.2, 9)
trimmed, original = trimming.estimator, fitted.estimator_
generator = np.random.default_rng(2)
kept = np.setdiff1d(np.arange(800), generator.choice(800, len(trimming.rows), replace=False))
fewer = LogisticRegression(C=1.0, tol=1e-6, max_iter=2000).fit(X_train[kept], y_train[kept])
curves = {
    name: [accuracy_under_attack(estimator, strength) for strength in strengths]
    for name, estimator in (
        ("as fitted", original),
        ("random rows dropped", fewer),
        ("trimmed", trimmed),
    )
}
for name, curve in curves.items():
    print(f"{name:>20}: accuracy {curve[0]:.3f}, attacked with eps {eps}: {curve[4]:.3f}")

# %%
# Left: accuracy comes back as planted rows go. Right: what the trimmed model withstands, and what
# it gives up on rows that nobody moved.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.axhline(clean, color="gray", linestyle=":", label="clean labels")
left.plot(budgets, restored, "o-", label="most harmful rows dropped")
left.set(xlabel="rows dropped", ylabel="test accuracy", title="Poisoning")
left.legend(loc="lower left")
other = left.twinx()
other.plot(np.arange(1, 161), found[:160], color="C1", alpha=0.5)
other.set_ylabel("planted rows among them", color="C1")
for name, curve in curves.items():
    right.plot(strengths, curve, "o-", markersize=3, label=name)
right.axvline(eps, color="gray", linestyle=":")
right.set(xlabel="largest change of a pixel", ylabel="test accuracy", title="Evasion")
right.legend()
path = Path(globals().get("__file__", "plot_poisoning_and_evasion.py"))
path = path.with_name("poisoning_and_evasion.png")
figure.savefig(path, dpi=100)
print(f"The pictures are in {path.resolve()}")
