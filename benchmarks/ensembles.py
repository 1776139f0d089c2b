"""Flipped labels found by Hessian-free scores of one network, and of ensembles of five.

``python benchmarks/ensembles.py [--splits N] [--jobs N]``

Scikit-learn's digits scaled to [0, 1], 1,000 training rows of which 20 % have another label, drawn
evenly, and 700 clean validation rows, for each of several splits. A perceptron of 48 hidden units
is trained on the former; rows are ranked by their score for the mean loss of the latter, most
harmful first. Shown is the area under the ROC curve, mean and standard error over splits: that of
single members, their mean within a split, and that of the ensemble.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from _run import markdown
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from sklearn_dualif import InfluenceEnsemble, InfluenceEstimator

MODELS = {
    "Adam, the defaults": {},
    "L-BFGS, alpha=1": {"solver": "lbfgs", "alpha": 1.0},
    "L-BFGS, alpha=3": {"solver": "lbfgs", "alpha": 3.0},
}


def data(split):
    """Return training rows, their labels, which of these are wrong, and validation rows."""
    X, y = load_digits(return_X_y=True)
    X, X_val, y, y_val = train_test_split(
        X / 16.0, y, train_size=1000, test_size=700, stratify=y, random_state=split
    )
    rng = np.random.default_rng(split)
    flipped = rng.random(len(y)) < 0.2
    y = np.where(flipped, (y + rng.integers(1, 10, len(y))) % 10, y)
    return X, y, flipped, X_val, y_val


def areas(influence, kind, split, jobs):
    """Return the mean area of the members and that of the ensemble."""
    X, y, flipped, X_val, y_val = data(split)
    ensemble = InfluenceEnsemble(influence, kind=kind, n_jobs=jobs, random_state=split)
    ensemble.fit(X, y, X_val=X_val, y_val=y_val)
    draws = ensemble.estimators_samples_ or [np.arange(len(y))] * len(ensemble.estimators_)
    singles = []
    for model, drawn in zip(ensemble.estimators_, draws, strict=True):
        rows, first = np.unique(drawn, return_index=True)
        single = clone(influence).set_params(estimator=model)
        single.fit(X[drawn], y[drawn], X_val=X_val, y_val=y_val)
        singles.append(roc_auc_score(flipped[rows], -single.influence_[first]))
    return np.mean(singles), roc_auc_score(flipped, -ensemble.influence_)


def shown(values):
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # not all are trained to the end
    header = ["perceptron", "scores", "kind", "one member", "five", "gain", "splits better"]
    rows, started = [], time.perf_counter()
    for name, params in MODELS.items():
        for scores, normalize in (("inner products", False), ("cosines", True)):
            for kind in ("seed", "bootstrap", "dropout"):
                model = MLPClassifier((48,), random_state=0, **params)
                influence = InfluenceEstimator(model, curvature="identity", normalize=normalize)
                found = [areas(influence, kind, s, options.jobs) for s in range(options.splits)]
                one, five = np.array(found).T
                better = f"{(five > one).sum()} of {len(one)}"
                rows.append([name, scores, kind, *map(shown, (one, five, five - one)), better])
    print(markdown(header, rows))
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
