"""
Which score finds wrong labels
==============================

A fifth of the training labels of handwritten digits are wrong. Rankings of the rows look for them
around the same small network: its plain training loss, inner products of gradients (IP) and their
cosines, those over checkpoints of the training (TracIn), averages over five networks, and the loss
that Newton's leave-one-out gives each row. The example reports what wins here, whichever it is.
"""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neural_network import MLPClassifier

from sklearn_dualif import CheckpointRecorder, InfluenceEnsemble, InfluenceEstimator
from sklearn_dualif.exceptions import InfluenceWarning

# The networks stop early on purpose, before they know the wrong labels by heart.
warnings.simplefilter("ignore", ConvergenceWarning)
warnings.simplefilter("ignore", InfluenceWarning)

X, y = load_digits(return_X_y=True)
X = X / 16.0
generator = np.random.default_rng(0)
order = generator.permutation(len(y))
X_train, y_train = X[order[:1000]], y[order[:1000]].copy()
X_val, y_val = X[order[1000:1300]], y[order[1000:1300]]
wrong = np.zeros(len(y_train), dtype=bool)
wrong[generator.choice(len(y_train), 200, replace=False)] = True
y_train[wrong] = (y_train[wrong] + generator.integers(1, 10, wrong.sum())) % 10

perceptron = MLPClassifier((48,), alpha=0.01, max_iter=60, random_state=0)

# %%
# Scores
# ------
#
# A low score for the mean validation loss marks a row that hurts; a large loss of its own marks one
# that the network does not believe. All are turned so that larger is more suspicious.

suspicion = {}
scores = InfluenceEstimator(perceptron, curvature="identity")
scores.fit(X_train, y_train, X_val=X_val, y_val=y_val)
suspicion["IP"] = -scores.influence_
cosines = InfluenceEstimator(perceptron, curvature="identity", normalize=True)
cosines.fit(X_train, y_train, X_val=X_val, y_val=y_val)
suspicion["cosines"] = -cosines.influence_
probability = scores.predict_proba(X_train)[np.arange(len(y_train)), y_train]
suspicion["plain loss"] = -np.log(np.clip(probability, 1e-12, None))

# %%
# TracIn needs the training's course: a perceptron is trained by ``partial_fit`` and recorded.

recorder = CheckpointRecorder()
trained = MLPClassifier((48,), alpha=0.01, random_state=0)
for epoch in range(60):
    trained.partial_fit(X_train, y_train, classes=np.arange(10))
    if epoch % 10 == 9:
        recorder.record(trained)
tracin = InfluenceEstimator(FrozenEstimator(trained), curvature="identity", checkpoints=recorder)
tracin.fit(X_train, y_train, X_val=X_val, y_val=y_val)
suspicion["TracIn"] = -tracin.influence_

# %%
# Ensembles average the scores of networks that were trained from other seeds, and of one network
# with some hidden units masked.

for kind, title in (("seed", "cosines, five seeds"), ("dropout", "cosines, five dropout masks")):
    ensemble = InfluenceEnsemble(cosines, n_estimators=5, kind=kind, random_state=0)
    ensemble.fit(X_train, y_train, X_val=X_val, y_val=y_val)
    suspicion[title] = -ensemble.influence_

# %%
# The Newton form says what loss a row would have had the network never seen it; its effect on the
# validation loss is beside.

influence = InfluenceEstimator(perceptron, ridge=1.0)
influence.fit(X_train, y_train, X_val=X_val, y_val=y_val)
suspicion["Newton: leave-one-out loss"] = influence.loo_loss_
suspicion["Newton: effect on validation loss"] = -influence.influence_

areas = {name: roc_auc_score(wrong, values) for name, values in suspicion.items()}
ranking = sorted(areas, key=areas.get, reverse=True)
print("area under the curve of 200 wrong labels among 1,000:")
for name in ranking:
    worst = np.argsort(-suspicion[name])[:200]
    print(f"{areas[name]:.3f}  {name:<34} {wrong[worst].sum():3d} of the first 200 are wrong")
print(f"\nbest here: {ranking[0]}")

# %%
# Labels that are wrong at random are easy: a network that has not yet learned them by heart gives
# them a large loss, with or without the row. Scores for the validation loss answer another
# question, which rows hurt, and wrong labels that hurt little come late there.

figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
for name in ranking:
    false, true, _ = roc_curve(wrong, suspicion[name])
    ax.plot(false, true, label=f"{areas[name]:.3f} {name}")
ax.set(xlabel="right labels looked at", ylabel="wrong labels found", xlim=(-0.01, 0.6))
ax.legend(loc="lower right", title="area under the curve")
path = Path(globals().get("__file__", "plot_noisy_labels.py"))
path = path.with_name("noisy_labels.png")
figure.savefig(path, dpi=100)
print(f"The pictures are in {path.resolve()}")
