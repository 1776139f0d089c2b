"""
The images behind a wrong prediction
====================================

A small convolutional network, trained with skorch on 500 handwritten digits, gets some of the
others wrong. Which training images did it learn that from? For each mistake,
:class:`~sklearn_dualif.InfluenceEstimator` tells what the loss on it would be without each of the
500: without the most harmful images it would be lower, without the most helpful ones higher still.

The pictures show that a mistake is no accident: somebody wrote another digit in much that way.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_dualif import InfluenceEstimator

# %%
# The network
# -----------
#
# Two convolutions and a linear layer, trained on the whole of the 500 images at a time by gradient
# descent with momentum. Two settings matter for influences:
#
# - ``weight_decay``: the effects are about the optimum that it stands for;
# - ``train_split=None``: skorch would hold a fifth of the images out, and they would have no
#   influence at all.


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def forward(self, X):
        return self.layers(X)


images, digits = load_digits(return_X_y=True)
X = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
X_train, X_test, y_train, y_test = train_test_split(
    X, digits, train_size=500, random_state=0, stratify=digits
)
torch.manual_seed(0)
net = NeuralNetClassifier(
    Digits,
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.SGD,
    optimizer__momentum=0.9,
    optimizer__weight_decay=0.03,
    lr=0.3,
    max_epochs=1000,
    batch_size=-1,
    train_split=None,
    verbose=0,
).fit(X_train, y_train)

# %%
# One fit
# -------
#
# The network is trained already, so it is wrapped frozen. Its kernel matrix has nine rows for each
# image, and most of what is in them is in a few hundred: ``solver="iterative"`` takes as many as a
# relative error of ``tol`` asks for, and says in ``solver_info_`` how far off it is.

model = InfluenceEstimator(
    FrozenEstimator(net), solver="iterative", dtype="float32", random_state=0
)
model.fit(X_train, y_train)
accuracy, info = model.score(X_test, y_test), model.solver_info_
print(f"{model.n_parameters_} parameters, test accuracy {accuracy:.1%}")
print(f"stationarity_ {model.stationarity_:.2g} (0 at an optimum, above 0.1 a warning)")
print(f"rank {info['rank']}, estimated relative error {info['relative_error']:.0e}")

# %%
# Harmful and helpful images
# --------------------------
#
# For each digit the test image that the network is most confidently wrong about, and of these the
# five with the largest loss. ``influence`` has a row for each of them and a column for each
# training image: what the removal of that image does to the loss.

probability = model.predict_proba(X_test)
loss = -np.log(probability[np.arange(len(y_test)), y_test])
worst = np.array([np.where(y_test == digit, loss, 0.0).argmax() for digit in range(10)])
worst = worst[np.argsort(-loss[worst])][:5]
effects = model.influence(X_test[worst], y_test[worst])
order = np.argsort(effects, axis=1, kind="stable")
harmful, helpful = order[:, :5], order[:, :-6:-1]

# %%
# Without the harmful ones
# ------------------------
#
# Would it help to leave the five most harmful images of a mistake out? ``removal_effect`` foretells
# the loss, and the network trained on without them, from where it was, shows it.


def loss_of_refit(group, query):
    """Return the loss on a test image after training on without some images."""
    refit = clone(net).set_params(max_epochs=100).initialize()
    refit.module_.load_state_dict(net.module_.state_dict())
    kept = np.delete(np.arange(len(X_train)), group)
    refit.partial_fit(X_train[kept], y_train[kept])
    return -np.log(refit.predict_proba(X_test[[query]])[0, y_test[query]])


rows = []
for query, group in zip(worst, harmful, strict=True):
    effect = model.removal_effect(group, X_test[[query]], y_test[[query]], order="exact")
    rows.append(
        {
            "digit": y_test[query],
            "taken for": probability[query].argmax(),
            "harmful are": " ".join(map(str, y_train[group])),
            "loss": loss[query],
            "without, foretold": loss[query] + effect[0],
            "without, trained": loss_of_refit(group, query),
        }
    )
table = pd.DataFrame(rows)
print(table.round(2).to_string(index=False))

# %%
# Have a look
# -----------
#
# What harms is for the most part the digit that the image was taken for, written in much this way.
# What helps is the true digit, written like it.

figure, axes = plt.subplots(
    5, 13, figsize=(12.5, 6.6), width_ratios=[1, 0.4, *[1] * 5, 0.4, *[1] * 5], layout="constrained"
)
for gap in axes[:, [1, 7]].flat:
    gap.set_axis_off()
for row, query in enumerate(worst):
    axes[row, 0].imshow(X_test[query, 0], cmap="gray_r")
    axes[row, 0].set_xlabel(f"{y_test[query]}, taken for {probability[query].argmax()}")
    for color, start, chosen in (("tab:red", 2, harmful[row]), ("tab:blue", 8, helpful[row])):
        for image, axis in zip(chosen, axes[row, start : start + 5], strict=True):
            axis.imshow(X_train[image, 0], cmap="gray_r")
            axis.set_xlabel(f"a {y_train[image]}: {effects[row, image]:+.2f}", color=color)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color="0.7")
axes[0, 0].set_title("Mistake", fontweight="bold")
axes[0, 4].set_title("Most harmful training images", fontweight="bold", color="tab:red")
axes[0, 10].set_title("Most helpful training images", fontweight="bold", color="tab:blue")
figure.supxlabel(
    "with each training image: what the loss on the mistake is without it, less what it is with it",
    fontsize=10,
)

path = Path(globals().get("__file__", "plot_helpful_harmful_images.py"))
path = path.with_name("helpful_harmful_images.png")
figure.savefig(path, dpi=110)
print(f"The pictures are in {path.resolve()}")
