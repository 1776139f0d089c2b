"""
The table of ``make demo``
==========================

Writes the tumours of scikit-learn's breast cancer data as a CSV file, with 28 of the 569 diagnoses
swapped, and counts afterwards how many of these an audit has found:

    python examples/demo_table.py write demo/tumours.csv
    sklearn-dualif audit demo/tumours.csv --target diagnosis --index patient --out demo/audit
    python examples/demo_table.py count demo/audit/issues.csv
"""

import csv
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

N_SWAPPED = 28


def swapped(n_rows):
    """Return the positions of the diagnoses to swap."""
    return np.random.default_rng(0).choice(n_rows, N_SWAPPED, replace=False)


def write(path):
    """Write the table."""
    data = load_breast_cancer()
    labels = data.target.copy()
    wrong = swapped(len(labels))
    labels[wrong] = 1 - labels[wrong]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", *data.feature_names, "diagnosis"])
        for number, (row, label) in enumerate(zip(data.data, labels, strict=True)):
            writer.writerow([f"P{number:03d}", *row.tolist(), data.target_names[label]])
    print(f"{path}: {len(labels)} tumours, of which {N_SWAPPED} have the wrong diagnosis")


def count(path):
    """Say how many of the swapped diagnoses are among the issues."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    issues = {number for number, row in enumerate(rows) if row["is_issue"] == "True"}
    found = issues & set(swapped(len(rows)).tolist())
    print(
        f"Of the {len(issues)} suspects {len(found)} are among the {N_SWAPPED} diagnoses that were "
        f"swapped. Open {Path(path).with_name('report.html')} in a browser."
    )


if __name__ == "__main__":
    {"write": write, "count": count}[sys.argv[1]](sys.argv[2])
