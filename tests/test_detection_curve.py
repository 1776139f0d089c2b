"""How soon bad rows are found: against counting, over all orders of ties."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sklearn_dualif.metrics import detection_curve


def counted(order, bad):
    """Return the shares of bad rows found after 0, 1, ... rows of an order."""
    found = [0]
    for row in order:
        found.append(found[-1] + (row in bad))
    return np.array(found) / len(bad)


def test_without_ties_it_counts():
    scores = np.array([0.1, 3.0, -2.0, 5.0, 0.0])
    curve = detection_curve(scores, [3, 0])
    assert np.allclose(curve.found, counted([3, 1, 0, 4, 2], {0, 3}))
    assert np.allclose(curve.inspected, [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert curve.area == pytest.approx(np.trapezoid(curve.found, curve.inspected))
    assert [curve.precision_at(k) for k in (1, 2, 3, 5)] == pytest.approx([1, 1 / 2, 2 / 3, 2 / 5])


def test_ties_are_the_mean_over_all_orders():
    scores = np.array([1.0, 2.0, 1.0, 1.0, 0.0, 0.0])
    bad = {0, 3, 4}
    orders = [
        (1, *middle, *last) for middle in permutations([0, 2, 3]) for last in permutations([4, 5])
    ]
    expected = np.mean([counted(order, bad) for order in orders], axis=0)
    curve = detection_curve(scores, sorted(bad))
    assert np.allclose(curve.found, expected)
    assert curve.precision_at(2) == pytest.approx(expected[2] * 3 / 2)


def test_the_same_scores_are_chance():
    curve = detection_curve(np.zeros(10), [0, 1])
    assert curve.area == pytest.approx(0.5)
    assert np.allclose([curve.precision_at(k) for k in (1, 4, 10)], 0.2)


def test_the_area_is_that_of_the_roc_curve():
    rng = np.random.default_rng(0)
    bad = rng.random(200) < 0.2
    scores = np.round(rng.normal(size=200) + bad, 1)
    curve = detection_curve(scores, bad)
    share = bad.mean()
    assert curve.area == pytest.approx(share / 2 + (1 - share) * roc_auc_score(bad, scores))
    assert curve.best_area == pytest.approx(1 - share / 2)
    assert detection_curve(bad.astype(float), bad).area == pytest.approx(curve.best_area)
    assert curve.n_bad == bad.sum()
    assert "array" not in repr(curve)


def test_the_frame_has_a_line_for_each_row_inspected():
    frame = detection_curve([3.0, 2.0, 1.0], [0]).frame()
    assert frame["n_inspected"].tolist() == [0, 1, 2, 3]
    assert frame["found"].tolist() == [0, 1, 1, 1]
    assert np.isnan(frame["precision"][0])
    assert frame["precision"].tolist()[1:] == [1, 1 / 2, 1 / 3]


@pytest.mark.parametrize(
    ("scores", "bad", "message"),
    [
        (np.zeros((2, 3)), [0], r"scores has shape \(2, 3\)"),
        ([], [0], r"scores has shape \(0,\)"),
        ([1.0, np.nan], [0], r"score of row 1 is nan"),
        ([1.0, 2.0], [], r"names 0 of 2 rows"),
        ([1.0, 2.0], [0, 1], r"names 2 of 2 rows"),
        ([1.0, 2.0], [2], r"Row 2 is out of range"),
        ([1.0, 2.0, 3.0], [0, 0, 1], r"named twice"),
        ([1.0, 2.0], [True], r"one entry for each"),
    ],
)
def test_what_makes_no_curve(scores, bad, message):
    with pytest.raises(ValueError, match=message):
        detection_curve(scores, bad)


@pytest.mark.parametrize("k", [0, 4, 1.0, True, None])
def test_numbers_of_rows(k):
    with pytest.raises(ValueError, match=r"k=.* from 1 to 3"):
        detection_curve([3.0, 2.0, 1.0], [0]).precision_at(k)
