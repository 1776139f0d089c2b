"""Wrong labels and targets: how many are found, and how much of what they cost is won back.

``python benchmarks/cleaning.py [classes targets scale] [--seeds N] [--only TEXT] [--json FILE]``

classes. A tenth of the training labels of digits, breast cancer and wine wrong: at random, within
   pairs of classes that the model confuses, or where a row lies near another class; and none at
   all. Around logistic regression and a perceptron, beside 5-fold and 20-fold held-out
   probabilities and, where it is installed, cleanlab.
targets. A tenth of the targets of diabetes shifted or swapped, around ridge regression, likewise.
scale. `find_issues` for 100,000 rows of 50 features, seconds and peak memory.

Half of the rows train, the other half tests. What is won back is the gain in accuracy over that
without wrong labels, less that with them; it is a ratio of means over the seeds, with an interval
from resampling the seeds. "accuracy" is without wrong labels, with them, and cleaned (of
regressions R²). Nothing here asserts.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.cleaning import InfluenceFilter, find_issues

SHARE = 0.1
TABLES = {"digits": load_digits, "breast cancer": load_breast_cancer, "wine": load_wine}
NOISES = ("none", "random", "pairs", "near")
LBFGS = {"solver": "lbfgs", "max_iter": 2000, "random_state": 0}
MODELS = {
    "logistic": LogisticRegression(max_iter=2000),
    "perceptron, alpha=1": MLPClassifier((30,), alpha=1.0, **LBFGS),
    "perceptron, alpha=0.01": MLPClassifier((30,), alpha=0.01, **LBFGS),
}


def piped(model):
    return make_pipeline(StandardScaler(), model)


def spoilt(kind, X, y, rng):
    """Return labels a tenth of which are wrong."""
    n, n_classes = len(y), y.max() + 1
    k = round(SHARE * n)
    if kind == "none":
        return y.copy()
    judge = piped(LogisticRegression(C=0.1, max_iter=2000))
    others = cross_val_predict(judge, X, y, method="predict_proba")
    others[np.arange(n), y] = 0.0
    noisy, rows = y.copy(), rng.choice(n, k, replace=False)
    if kind == "random":
        noisy[rows] = (y[rows] + rng.integers(1, n_classes, k)) % n_classes
    elif kind == "pairs":
        partner = np.array([others[y == label].mean(0).argmax() for label in range(n_classes)])
        noisy[rows] = partner[y[rows]]
    else:
        chance = np.sqrt(others.max(1) + 1e-6)
        rows = rng.choice(n, k, replace=False, p=chance / chance.sum())
        noisy[rows] = others[rows].argmax(1)
    return noisy


def held_out(folds, model, X, labels):
    return cross_val_predict(model, X, labels, cv=folds, method="predict_proba")


def orders_of(model, X, labels):
    """Return the rows' orders by contender, and rows that cleanlab finds, where it is installed.

    Both as dicts to (values, seconds). In an order larger values are worse.
    """
    influence = InfluenceEstimator(model)
    orders, masks = {}, {}
    for name, work in {
        "leave-one-out": lambda: influence.fit(X, labels).loo_predict_proba(),
        "5-fold": partial(held_out, 5, model, X, labels),
        "20-fold": partial(held_out, 20, model, X, labels),
        "training": lambda: clone(model).fit(X, labels).predict_proba(X),
    }.items():
        probabilities, seconds = timed(work)
        given = probabilities[np.arange(len(labels)), labels]
        orders[f"{name} probability"] = -given, seconds
        if name != "training" and find_spec("cleanlab") is not None:
            from cleanlab.filter import find_label_issues

            masks[f"cleanlab, {name}"] = find_label_issues(labels, probabilities, n_jobs=1), seconds
    orders["self-influence"] = influence.self_influence_, orders["leave-one-out probability"][1]
    return orders, masks


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def classes(seeds, only):
    """Yield the records of each run."""
    for table, load in TABLES.items():
        for name, plain in MODELS.items():
            if only not in f"{table} {name}":
                continue
            for seed in range(seeds):
                yield one_run(table, load, name, piped(plain), seed)


def one_run(table, load, name, model, seed):
    X, y = load(return_X_y=True)
    halves = train_test_split(X, y, test_size=0.5, random_state=seed, stratify=y)
    rng = np.random.default_rng(seed)
    records = []
    for kind in NOISES:
        labels = spoilt(kind, halves[0], halves[2], rng)
        run = Run(
            {"table": table, "model": name, "noise": kind, "seed": seed}, model, halves, labels
        )
        orders, masks = orders_of(model, halves[0], labels)
        for options in OPTIONS if name == "logistic" else OPTIONS[:1]:
            orders["find_issues"] = run.clean(options)
        for contender, (found, seconds) in masks.items():
            run.drop(f"{contender}, dropped", found, seconds)
        if kind != "none":
            for contender, (score, seconds) in orders.items():
                found = np.zeros(len(labels), dtype=bool)
                found[np.argsort(-score, kind="stable")[: round(SHARE * len(labels))]] = True
                run.drop(f"{contender}, a tenth dropped", found, seconds, score)
        records += run.records
    return records


OPTIONS = (
    {"contamination": "auto"},
    {"contamination": "auto", "strategy": "relabel"},
    {"contamination": "auto", "strategy": "weight"},
    {"contamination": 0.05},
)


class Run:
    """One training set with wrong targets: who finds them, and what that wins back."""

    def __init__(self, common, model, halves, noisy):
        self.model, self.noisy = model, noisy
        self.X, self.X_test, y, self.y_test = halves
        self.wrong = noisy != y
        accuracies = {"clean": self.accuracy(self.X, y), "noisy": self.accuracy(self.X, noisy)}
        self.common, self.records = {**common, **accuracies}, []

    def accuracy(self, X, y):
        return clone(self.model).fit(X, y).score(self.X_test, self.y_test)

    def drop(self, contender, found, seconds, score=None):
        """Record what a model without the rows found is worth."""
        accuracy = self.accuracy(self.X[~found], self.noisy[~found])
        self.record(contender, accuracy, found, seconds, score)

    def clean(self, options):
        """Record what `InfluenceFilter` does; return its scores and seconds."""
        cleaned = InfluenceFilter(self.model, **options)
        _, seconds = timed(partial(cleaned.fit, self.X, self.noisy))
        name = "InfluenceFilter, " + ", ".join(str(value) for value in options.values())
        accuracy, found = cleaned.score(self.X_test, self.y_test), ~cleaned.inlier_mask_
        self.record(name, accuracy, found, seconds, cleaned.scores_)
        return cleaned.scores_, seconds

    def record(self, contender, accuracy, found, seconds, score=None):
        ranked = score is not None and self.wrong.any()
        values = {
            "contender": contender,
            "accuracy": accuracy,
            "auc": roc_auc_score(self.wrong, score) if ranked else np.nan,
            "found": found.mean(),
            "precision": self.wrong[found].mean() if found.any() else np.nan,
            "seconds": seconds,
        }
        self.records.append({**self.common, **values})


def targets(seeds, only):
    """Yield the records of ridge regressions with wrong targets, a seed at a time."""
    X, y = load_diabetes(return_X_y=True)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        halves = train_test_split(X, y, test_size=0.5, random_state=seed)
        truth, records = halves[2], []
        for kind in ("none", "shifted", "swapped"):
            bad, rows = truth.copy(), rng.choice(len(truth), 22, replace=False)
            if kind == "shifted":
                bad[rows] += 250.0
            elif kind == "swapped":
                bad[rows] = rng.permutation(truth)[:22]
            common = {"table": "diabetes", "model": "ridge", "noise": kind, "seed": seed}
            run = Run(common, Ridge(0.1), halves, bad)
            for options in (*OPTIONS[:1], *OPTIONS[2:]):
                run.clean(options)
            if find_spec("cleanlab") is not None:
                from cleanlab.regression.learn import CleanLearning

                judge = CleanLearning(Ridge(0.1), seed=seed)
                found, seconds = timed(partial(judge.find_label_issues, run.X, bad))
                score = -found["label_quality"].to_numpy()
                run.drop("cleanlab, dropped", found["is_label_issue"].to_numpy(), seconds, score)
            records += run.records
        yield records


def scale(seeds, only):
    """Print what a table of 100,000 rows takes; yield no records."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100_000, 50))
    y = (X @ rng.standard_normal(50) / 3 + rng.logistic(size=100_000) > 0).astype(int)
    wrong = rng.random(100_000) < 0.05
    y[wrong] = 1 - y[wrong]
    start, cpu = time.perf_counter(), time.process_time()
    find_issues(LogisticRegression(), X, y)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"find_issues, 100,000 x 50: {seconds:.0f} s, {cpu:.0f} s of processors, {peak:.2f} GB")
    yield []


MEASURES = ("seconds", "AUC", "share", "precision", "accuracy", "won back")


def interval(rows, rng):
    """Return what is won back, and an interval of .95 from resampling the seeds."""
    gain = np.array([row["accuracy"] - row["noisy"] for row in rows])
    cost = np.array([row["clean"] - row["noisy"] for row in rows])
    if cost.mean() <= 0:
        return np.nan, np.nan, np.nan
    draws = rng.integers(0, len(rows), (2000, len(rows)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = gain[draws].mean(1) / cost[draws].mean(1)
    ratios = ratios[~np.isnan(ratios)]  # a draw of seeds may have lost nothing
    ends = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
    return gain.mean() / cost.mean(), *ends


def show(records):
    """Print one line for each table, model, noise and contender."""
    keys = ("table", "model", "noise", "contender")
    together = {}
    for record in records:
        together.setdefault(tuple(record[key] for key in keys), []).append(record)
    print("| " + " | ".join([*keys, *MEASURES]) + " |")
    print("| --- " * (len(keys) + len(MEASURES)) + "|")
    for names, rows in together.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            means = [np.nanmean([row[k] for row in rows]) for k in ("auc", "found", "precision")]
            seconds = np.median([row["seconds"] for row in rows])
        scores = [np.mean([row[key] for row in rows]) for key in ("clean", "noisy", "accuracy")]
        if names[2] == "none":
            won = f"{100 * (scores[2] - scores[0]):+.2f} points"
        else:
            won = "{:.2f} ({:.2f} to {:.2f})".format(*interval(rows, np.random.default_rng(0)))
        accuracy = "{:.3f}, {:.3f}: {:.3f}".format(*scores)
        shown = [f"{seconds:.2f}", *(f"{m:.3f}" for m in means), accuracy, won]
        print("| " + " | ".join([*names, *shown]) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="classes, targets, scale; none: all")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="tables and models whose names have this text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parts = {"classes": classes, "targets": targets, "scale": scale}
    unknown = set(arguments.parts) - set(parts)
    if unknown:
        parser.error(f"no part {sorted(unknown)}; choose of {list(parts)}")
    warnings.simplefilter("ignore", UserWarning)
    records = []
    for name in arguments.parts or parts:
        found = []
        for run in parts[name](arguments.seeds, arguments.only):
            found += run
            if arguments.json:
                arguments.json.write_text(json.dumps(records + found, indent=1))
        if found:
            show(found)
        records += found


if __name__ == "__main__":
    main()
