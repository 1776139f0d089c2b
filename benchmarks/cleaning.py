"""Wrong labels and targets: how many are found, and how much of what they cost is won back.

``python benchmarks/cleaning.py [classes targets scale] [--seeds N] [--only TEXT] [--json FILE]``

classes. A tenth of the training labels of digits, breast cancer and wine wrong: at random, within
   pairs of classes that the model confuses, or where a row lies near another class; and none at
   all. Around logistic regression and a perceptron, beside 20-fold held-out probabilities and,
   where it is installed, cleanlab.
targets. A tenth of the targets of diabetes shifted or swapped, around ridge regression.
scale. `find_issues` for 100,000 rows of 50 features, seconds and peak memory.

Half of the rows train, the other half tests. What is won back is the gain in accuracy over that
without wrong labels, less that with them; it is a ratio of means over the seeds, with an interval
from resampling the seeds. Nothing here asserts.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
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
MODELS = {
    "logistic": LogisticRegression(max_iter=2000),
    "perceptron": MLPClassifier((30,), alpha=10.0, solver="lbfgs", max_iter=2000, random_state=0),
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


def orders_of(model, X, labels):
    """Return what each contender holds against each row, larger is worse."""
    rows = np.arange(len(labels))
    held_out = cross_val_predict(model, X, labels, cv=20, method="predict_proba")
    influence = InfluenceEstimator(model).fit(X, labels)
    score = InfluenceFilter(influence, contamination=0.0).fit(X, labels).scores_
    return {
        "find_issues": score,
        "leave-one-out probability": -influence.loo_predict_proba()[rows, labels],
        "20-fold probability": -held_out[rows, labels],
        "training probability": -influence.predict_proba(X)[rows, labels],
        "self-influence": influence.self_influence_,
    }


def cleanlab_masks(model, X, labels):
    """Return the rows that cleanlab finds by one fit and by twenty, where it is installed."""
    if find_spec("cleanlab") is None:
        return {}
    from cleanlab.filter import find_label_issues

    one = InfluenceEstimator(model).fit(X, labels).loo_predict_proba()
    twenty = cross_val_predict(model, X, labels, cv=20, method="predict_proba")
    return {
        "cleanlab, leave-one-out": find_label_issues(labels, one, n_jobs=1),
        "cleanlab, 20-fold": find_label_issues(labels, twenty, n_jobs=1),
    }


def classes(seeds, only):
    """Return records of all runs."""
    records = []
    for table, load in TABLES.items():
        for name, plain in MODELS.items():
            if only not in f"{table} {name}":
                continue
            for seed in range(seeds):
                records += one_run(table, load, name, piped(plain), seed)
    return records


def one_run(table, load, name, model, seed):
    X, y = load(return_X_y=True)
    halves = train_test_split(X, y, test_size=0.5, random_state=seed, stratify=y)
    X_train, X_test, y_train, y_test = halves
    rng = np.random.default_rng(seed)
    clean = clone(model).fit(X_train, y_train).score(X_test, y_test)
    records = []
    for kind in NOISES:
        labels = spoilt(kind, X_train, y_train, rng)
        wrong = labels != y_train
        noisy = clone(model).fit(X_train, labels).score(X_test, y_test)
        common = {"table": table, "model": name, "noise": kind, "clean": clean, "noisy": noisy}

        def record(contender, accuracy, found, auc=np.nan, common=common, wrong=wrong, seed=seed):
            right = wrong[found].mean() if found.any() else np.nan
            values = {"seed": seed, "contender": contender, "accuracy": accuracy, "auc": auc}
            records.append({**common, **values, "found": found.mean(), "precision": right})

        def without(found, labels=labels):
            return clone(model).fit(X_train[~found], labels[~found]).score(X_test, y_test)

        for contender, score in orders_of(model, X_train, labels).items():
            found = np.zeros(len(labels), dtype=bool)
            found[np.argsort(-score, kind="stable")[: round(SHARE * len(labels))]] = True
            auc = roc_auc_score(wrong, score) if wrong.any() else np.nan
            if kind != "none":
                record(f"{contender}, a tenth dropped", without(found), found, auc)
        for options in (
            {},
            {"contamination": "auto"},
            {"contamination": "auto", "strategy": "relabel"},
            {"contamination": "auto", "strategy": "weight"},
        ):
            cleaned = InfluenceFilter(model, **options).fit(X_train, labels)
            found = ~cleaned.inlier_mask_
            words = ", ".join(f"{value}" for value in options.values()) or "default"
            record(f"InfluenceFilter, {words}", cleaned.score(X_test, y_test), found)
        for contender, found in cleanlab_masks(model, X_train, labels).items():
            record(f"{contender}, dropped", without(found), found)
    return records


def targets(seeds, only):
    """Return records of ridge regressions with wrong targets."""
    X, y = load_diabetes(return_X_y=True)
    records = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=seed)
        clean = Ridge(0.1).fit(X_train, y_train).score(X_test, y_test)
        for kind in ("none", "shifted", "swapped"):
            bad, rows = y_train.copy(), rng.choice(len(y_train), 22, replace=False)
            if kind == "shifted":
                bad[rows] += 250.0
            elif kind == "swapped":
                bad[rows] = rng.permutation(y_train)[:22]
            wrong = bad != y_train
            noisy = Ridge(0.1).fit(X_train, bad).score(X_test, y_test)
            for options in ({}, {"contamination": "auto"}, {"strategy": "weight"}):
                cleaned = InfluenceFilter(Ridge(0.1), **options).fit(X_train, bad)
                found = ~cleaned.inlier_mask_
                words = ", ".join(f"{value}" for value in options.values()) or "default"
                auc = roc_auc_score(wrong, cleaned.scores_) if wrong.any() else np.nan
                records.append(
                    {
                        "table": "diabetes",
                        "model": "ridge",
                        "noise": kind,
                        "clean": clean,
                        "noisy": noisy,
                        "seed": seed,
                        "contender": f"InfluenceFilter, {words}",
                        "accuracy": cleaned.score(X_test, y_test),
                        "auc": auc,
                        "found": found.mean(),
                        "precision": wrong[found].mean() if found.any() else np.nan,
                    }
                )
    return records


def scale(seeds, only):
    """Print what a table of 100,000 rows takes; there are no records."""
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
    return []


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
    print("| " + " | ".join([*keys, "AUC", "share", "precision", "accuracy", "won back"]) + " |")
    print("| --- " * (len(keys) + 5) + "|")
    for names, rows in together.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            means = [np.nanmean([row[k] for row in rows]) for k in ("auc", "found", "precision")]
        scores = [np.mean([row[key] for row in rows]) for key in ("clean", "noisy", "accuracy")]
        if names[2] == "none":
            won = f"{100 * (scores[2] - scores[0]):+.2f} points"
        else:
            won = "{:.2f} ({:.2f} to {:.2f})".format(*interval(rows, np.random.default_rng(0)))
        accuracy = "{:.3f}, {:.3f}: {:.3f}".format(*scores)
        print("| " + " | ".join([*names, *(f"{m:.3f}" for m in means), accuracy, won]) + " |")


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
        found = parts[name](arguments.seeds, arguments.only)
        if found:
            show(found)
        records += found
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
