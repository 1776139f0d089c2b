"""Pictures: what is drawn is what was computed, and errors are plain."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from helpers import relative
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.datasets import load_diabetes, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.preprocessing import scale

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.inspection import (
    FidelityDisplay,
    InfluenceDisplay,
    NeighborsDisplay,
    RemovalCurveDisplay,
    SelfInfluenceDisplay,
)
from sklearn_dualif.metrics import leave_one_out_effects, removal_curve, removal_fidelity, validate
from sklearn_dualif.objectives import DemographicParity

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _on_paper():
    import matplotlib.pyplot as plt

    with plt.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


@cache
def wine():
    X, y = load_wine(return_X_y=True, as_frame=True)
    X = pd.DataFrame(scale(X), columns=X.columns, index=[f"bottle {row}" for row in X.index])
    y = pd.Series(y.to_numpy(), index=X.index)
    influence = InfluenceEstimator(LogisticRegression()).fit(X[::2], y[::2])
    return influence, X[1::2], y[1::2]


@cache
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    influence = InfluenceEstimator(Ridge(0.1)).fit(X[::2], y[::2])
    return influence, X[1::2], y[1::2]


@cache
def images():
    X, y = load_digits(return_X_y=True)
    X, model = X / 16, LogisticRegression(max_iter=1000)
    return InfluenceEstimator(model).fit(X[:150], y[:150]), X[150:153], y[150:153]


def texts(annotations):
    return [text.get_text() for text in annotations]


def overlaps(display):
    """Return how many pairs of names cover each other."""
    from matplotlib.text import Text

    display.figure_.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in display.labels_]
    return sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# Influence against leverage


def test_influence_is_drawn_against_leverage():
    influence, X, y = diabetes()
    display = InfluenceDisplay.from_estimator(influence, X, y, n_labels=4)
    frame = display.frame()
    assert_allclose(frame["influence"], influence.influence(X, y).mean(0), rtol=1e-8)
    X_train, y_train = load_diabetes(return_X_y=True)
    X_train, y_train = X_train[::2], y_train[::2]
    row = int(display.labels_[0].get_text())
    kept = np.delete(np.arange(len(y_train)), row)
    refit = Ridge(0.1).fit(X_train[kept], y_train[kept])
    change = np.mean((refit.predict(X) - y) ** 2) - np.mean((influence.predict(X) - y) ** 2)
    assert frame["influence"][row] == pytest.approx(change, rel=1e-6)
    drawn = np.concatenate([points.get_offsets() for points in display.points_])
    assert drawn.shape == (len(y_train), 2)
    assert_allclose(np.sort(drawn[:, 0]), np.sort(influence.leverage_))
    helping, hurting = (points.get_offsets()[:, 1] for points in display.points_)
    assert (helping > 0).all()
    assert (hurting <= 0).all()
    largest = np.argsort(-np.abs(frame["influence"].to_numpy()))[:4]
    assert texts(display.labels_) == [str(row) for row in largest]
    areas = np.concatenate([points.get_sizes() for points in display.points_])
    own = pd.Series(frame["self_influence"].to_numpy(), index=frame["leverage"])
    assert_array_equal(np.argsort(areas), np.argsort(own[drawn[:, 0]].to_numpy()))


def test_leverages_are_those_of_a_textbook():
    influence_module = pytest.importorskip("statsmodels.stats.outliers_influence")
    from statsmodels.api import OLS

    X, y = load_diabetes(return_X_y=True)
    design = np.column_stack([np.ones(len(y)), X])
    textbook = influence_module.OLSInfluence(OLS(y, design).fit())
    display = InfluenceDisplay.from_estimator(InfluenceEstimator(LinearRegression()).fit(X, y))
    frame = display.frame()
    assert_allclose(frame["leverage"], textbook.hat_matrix_diag, rtol=1e-8)
    # Cook's distance, from leverage and self-influence: e'^2 - e^2 with e' = e / (1 - h).
    h, own = frame["leverage"], frame["self_influence"]
    squared = own / (1 / (1 - h) ** 2 - 1)
    p, variance = design.shape[1], (textbook.results.resid**2).sum() / (len(y) - design.shape[1])
    cook = squared * h / (p * variance * (1 - h) ** 2)
    assert_allclose(cook, textbook.cooks_distance[0], rtol=1e-6)


def test_words_say_what_the_effects_are_on():
    influence, X, y = wine()
    display = InfluenceDisplay.from_estimator(influence, X, y, n_labels=3)
    assert "held-out loss" in display.ax_.get_ylabel()
    said = texts(display.ax_.get_legend().get_texts())
    assert said == [
        "removing it raises the held-out loss: it helps",
        "removing it lowers the held-out loss: it hurts",
    ]
    assert all(name.startswith("bottle ") for name in texts(display.labels_))
    assert overlaps(display) == 0
    assert "training loss" in InfluenceDisplay.from_estimator(influence).ax_.get_ylabel()
    display = InfluenceDisplay.from_estimator(influence, X, objective="prediction")
    assert "held-out prediction" in display.ax_.get_ylabel()
    assert "helps" not in display.ax_.get_legend().get_texts()[0].get_text()
    again = InfluenceEstimator(LogisticRegression()).fit(
        influence._X_train, influence._y_train, X_val=X, y_val=y
    )
    display = InfluenceDisplay.from_estimator(again)
    assert "held-out loss" in display.ax_.get_ylabel()
    assert_allclose(display.influence, influence.influence(X, y).mean(0), rtol=1e-8)


def test_an_aggregate_is_named():
    X, y = load_wine(return_X_y=True)
    influence = InfluenceEstimator(LogisticRegression()).fit(scale(X[:130]), y[:130])
    display = InfluenceDisplay.from_estimator(
        influence, scale(X[:130]), objective=DemographicParity(np.arange(130) % 2)
    )
    assert "demographic parity" in display.ax_.get_ylabel()


def test_many_rows_are_pixels_and_none_is_left_out():
    rng = np.random.default_rng(0)
    numbers = rng.random(30_000), rng.standard_normal(30_000), rng.random(30_000)
    display = InfluenceDisplay.from_predictions(*numbers, n_labels=5)
    assert sum(len(points.get_offsets()) for points in display.points_) == 30_000
    assert all(points.get_rasterized() for points in display.points_)
    assert len(display.labels_) == 5
    few = InfluenceDisplay.from_predictions(*(values[:50] for values in numbers))
    assert not any(points.get_rasterized() for points in few.points_)


def test_numbers_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"influence has shape \(2,\) and leverage \(3,\)"):
        InfluenceDisplay.from_predictions([0, 0, 0], [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"influence has values that are not finite.*row 1"):
        InfluenceDisplay.from_predictions([0, 0], [1, np.nan], [1, 2])
    with pytest.raises(ValueError, match="names has 1 entries for 2 rows"):
        InfluenceDisplay.from_predictions([0, 0], [1, 2], [1, 2], names=["a"])
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"n_labels={wrong} must be a whole number"):
            InfluenceDisplay.from_predictions([0, 0], [1, 2], [1, 2], n_labels=wrong)
    influence, X, y = wine()
    with pytest.raises(ValueError, match="y was given without X"):
        InfluenceDisplay.from_estimator(influence, y=y)
    with pytest.raises(ValueError, match="objective was given without X"):
        InfluenceDisplay.from_estimator(influence, objective="prediction")
    scores = InfluenceEstimator(Ridge(), curvature="identity").fit(X, y)
    with pytest.raises(ValueError, match="curvature='identity' gives scores"):
        InfluenceDisplay.from_estimator(scores)


@pytest.mark.parametrize(
    "display",
    [
        InfluenceDisplay,
        SelfInfluenceDisplay,
        RemovalCurveDisplay,
        FidelityDisplay,
        NeighborsDisplay,
    ],
)
def test_what_is_no_fitted_influence_estimator(display):
    queries = () if display is SelfInfluenceDisplay else ([[0.0]], [0])
    with pytest.raises(TypeError, match="needs a fitted InfluenceEstimator; got Ridge"):
        display.from_estimator(Ridge(), *queries)
    with pytest.raises(NotFittedError):
        display.from_estimator(InfluenceEstimator(Ridge()), *queries)


# Self-influence


def test_rows_are_ranked_by_self_influence():
    influence, _, _ = wine()
    display = SelfInfluenceDisplay.from_estimator(influence, n_labels=3)
    own = influence.self_influence_
    lower, upper = np.percentile(own, [25, 75])
    assert display.threshold_ == pytest.approx(upper + 3 * (upper - lower))
    assert_array_equal(display.above_, np.argsort(-own)[: (own > display.threshold_).sum()])
    names = influence._train_index[display.above_[:3]]
    assert texts(display.labels_) == list(names)
    n_above = len(display.above_)
    assert f"{n_above} rows above the line" in display.ax_.get_title()
    assert "3 named" in display.ax_.get_title()
    frame = display.frame()
    assert_allclose(frame["self_influence"], np.sort(own)[::-1])
    assert_allclose(own[frame["position"]], frame["self_influence"])
    assert frame["above"].sum() == n_above
    drawn = np.concatenate([line.get_ydata() for line in display.ax_.lines[:2]])
    assert_allclose(np.sort(drawn), np.sort(own))


def test_the_line_may_be_put_anywhere():
    display = SelfInfluenceDisplay.from_predictions([3.0, 1.0, 2.0], threshold=2.5, names="abc")
    assert texts(display.labels_) == ["a"]
    assert "1 row above" in display.ax_.get_title()
    assert SelfInfluenceDisplay.from_predictions([1.0, 1.0]).above_.size == 0
    for wrong in ("mean", np.nan, None, True):
        with pytest.raises(ValueError, match=r"threshold=.* must be a finite number"):
            SelfInfluenceDisplay.from_predictions([1.0, 2.0], threshold=wrong)


def test_displays_draw_on_given_axes():
    import matplotlib.pyplot as plt

    influence, X, y = wine()
    figure, axes = plt.subplots(1, 2)
    one = SelfInfluenceDisplay.from_estimator(influence, ax=axes[0])
    two = InfluenceDisplay.from_estimator(influence, X, y, ax=axes[1])
    assert one.ax_ is axes[0]
    assert two.ax_ is axes[1]
    assert one.figure_ is two.figure_ is figure


def test_displays_draw_in_a_part_of_a_figure():
    import matplotlib.pyplot as plt

    influence, X, y = wine()
    figure = plt.figure(figsize=(12, 5), layout="constrained")
    part, other = figure.subfigures(1, 2)
    display = InfluenceDisplay.from_estimator(influence, X, y, ax=part.subplots())
    assert display.figure_ is figure
    assert NeighborsDisplay.from_estimator(influence, X[:1], y[:1], fig=other).figure_ is figure


# Removal curves


def test_removal_curves():
    influence, X, y = wine()
    options = {"fractions": [0.2, 0.0, 0.1], "n_repeats": 2, "random_state": 0}
    curve = removal_curve(influence, X, y, scoring="neg_log_loss", **options)
    display = RemovalCurveDisplay.from_estimator(influence, X, y, scoring="neg_log_loss", **options)
    assert_allclose(display.lines_["ranking"].get_xdata(), [0, 10, 20])
    assert_allclose(display.lines_["ranking"].get_ydata(), curve.score[[1, 2, 0]])
    assert_allclose(display.lines_["training loss"].get_ydata(), curve.training_loss[[1, 2, 0]])
    assert_allclose(display.lines_["random"].get_ydata(), curve.random_mean[[1, 2, 0]])
    assert "neg log loss" in display.ax_.get_ylabel()
    assert display.band_ is not None
    pd.testing.assert_frame_equal(display.frame(), curve.frame())
    single = removal_curve(influence, X, y, **{**options, "n_repeats": 1})
    assert RemovalCurveDisplay.from_predictions(single, score_name="accuracy").band_ is None
    with pytest.raises(TypeError, match="curve is a list, not a RemovalCurve"):
        RemovalCurveDisplay.from_predictions([1, 2])


# Agreement with refits


def test_fidelity_of_what_was_computed():
    influence, X, y = wine()
    rows = leave_one_out_effects(influence, X, y, rows=5, random_state=0)
    groups = removal_fidelity(influence, X, y, n_groups=4, random_state=0)
    for found, kind in ((rows, "single rows"), (groups, "groups of rows")):
        display = FidelityDisplay.from_predictions(found)
        (points,) = display.points_
        assert_allclose(points.get_xdata(), found.predicted.ravel())
        assert_allclose(points.get_ydata(), found.refitted.ravel())
        assert display.slope == found.slope
        assert set(display.frame()["kind"]) == {kind}
        slope = np.polyfit(found.predicted.ravel(), found.refitted.ravel(), 1)[0]
        (x0, x1), (y0, y1) = display.slope_.get_data()
        assert (y1 - y0) / (x1 - x0) == pytest.approx(slope, rel=1e-6)


def test_fidelity_of_a_validation_and_from_an_estimator():
    influence, X, y = wine()
    found = validate(influence, X, y, n_refits=9, random_state=0)
    display = FidelityDisplay.from_estimator(influence, X, y, n_refits=9, random_state=0)
    frame = display.frame()
    assert frame["kind"].value_counts().to_dict() == {
        "groups of rows": 4 * len(y),
        "single rows": 4 * len(y),
    }
    # Both kinds in units of their typical size, where the slope is that of the verdict.
    sizes = frame.groupby("kind")["refitted"].apply(lambda values: np.sqrt((values**2).mean()))
    assert_allclose(sizes, 1.0)
    slope = np.polyfit(frame["predicted"], frame["refitted"], 1)[0]
    assert slope == pytest.approx(found.slope, rel=1e-6)
    assert "held-out loss" in display.ax_.get_xlabel()
    assert "typical" in display.ax_.get_xlabel()
    assert f"slope {found.slope:.2f}" in texts(display.ax_.get_legend().get_texts())[-1]


def test_fidelity_of_arrays():
    rng = np.random.default_rng(0)
    predicted = rng.standard_normal((20, 3))
    refitted = 0.5 * predicted + 0.1 * rng.standard_normal((20, 3))
    display = FidelityDisplay.from_predictions(predicted, refitted, random_state=0)
    assert display.slope == pytest.approx(np.polyfit(predicted.ravel(), refitted.ravel(), 1)[0])
    low, high = display.slope_interval
    assert low < display.slope < high
    assert display.band_ is not None
    flat = FidelityDisplay.from_predictions(predicted[:, 0], refitted[:, 0], random_state=0)
    assert len(flat.frame()) == 20
    two = FidelityDisplay.from_predictions([1.0, 2.0], [1.0, 2.0])
    assert two.band_ is None
    assert two.slope == pytest.approx(1.0)
    many = FidelityDisplay.from_predictions(rng.random((50, 100)), rng.random((50, 100)))
    assert many.points_[0].get_rasterized()
    assert FidelityDisplay.from_predictions([1.0, 2.0], [0.5, 0.5]).slope_ is None


def test_fidelity_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="refitted is missing"):
        FidelityDisplay.from_predictions([1.0, 2.0])
    with pytest.raises(ValueError, match=r"predicted has shape \(2,\) and refitted \(3,\)"):
        FidelityDisplay.from_predictions([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="not finite"):
        FidelityDisplay.from_predictions([1.0, np.inf], [1.0, 2.0])
    influence, X, y = wine()
    groups = removal_fidelity(influence, X, y, n_groups=3, random_state=0)
    with pytest.raises(ValueError, match="refitted was given beside a RemovalFidelity"):
        FidelityDisplay.from_predictions(groups, [1.0])


def test_a_validation_without_refits(digits):
    from network_helpers import not_at_the_optimum

    model, X, y, X_query, y_query = (*digits[:3], *digits[3:5])
    with not_at_the_optimum():
        influence = InfluenceEstimator(model).fit(X, y)
    with pytest.raises(ValueError, match="made no comparison with refits"):
        FidelityDisplay.from_estimator(influence, X_query, y_query)


# Neighbors


def test_neighbors_are_the_rows_whose_removal_matters_most():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    X, y = X[:40], y[:40]
    influence = InfluenceEstimator(Ridge(0.1)).fit(X[:30], y[:30])
    queries, targets = X[30:32], y[30:32]
    display = NeighborsDisplay.from_estimator(influence, queries, targets, k=3)
    before = (influence.predict(queries) - targets) ** 2
    changes = np.empty((2, 30))
    for row in range(30):
        refit = Ridge(0.1).fit(X[:30].drop(row), y[:30].drop(row))
        changes[:, row] = (refit.predict(queries) - targets) ** 2 - before
    frame = display.frame()
    for query, values in zip(["30", "31"], changes, strict=True):
        for kind, order in (("raises", np.argsort(-values)), ("lowers", np.argsort(values))):
            part = frame[(frame["query"] == query) & (frame["kind"] == kind)]
            assert part["position"].tolist() == order[:3].tolist()
            assert relative(part["effect"].to_numpy(), values[order[:3]]) < 1e-6
    assert frame["bmi"].tolist() == X["bmi"].iloc[frame["position"]].tolist()
    assert frame["target"].tolist() == y.iloc[frame["position"]].tolist()
    assert display.axes_.shape == (2, 1)


def test_neighbors_as_images():
    influence, X, y = images()
    display = NeighborsDisplay.from_estimator(influence, X, y, k=2, image_shape=(8, 8))
    assert display.axes_.shape == (3, 5)
    frame = display.frame()
    first = frame["position"].iloc[0]
    image = influence._X_train[first].reshape(8, 8)
    shown = display.axes_[0, 1].get_images()[0].get_array()
    assert_allclose(shown, (image - image.min()) / np.ptp(image))
    assert display.axes_[0, 1].get_xlabel().startswith(f"{first}: ")
    for shape in ((8, 8, 1), (1, 8, 8)):
        NeighborsDisplay.from_estimator(influence, X, y, k=1, image_shape=shape)


def test_colour_images_keep_their_colours():
    rng = np.random.default_rng(0)
    X = rng.random((5, 12)) / 2
    display = NeighborsDisplay.from_predictions(
        rng.standard_normal((1, 5)), X[:1], X, image_shape=(3, 2, 2), k=1
    )
    shown = display.axes_[0, 0].get_images()[0].get_array()
    assert_allclose(shown, np.moveaxis(X[0].reshape(3, 2, 2), 0, -1))
    bytes_ = np.full((1, 12), 51, dtype=np.uint8)
    display = NeighborsDisplay.from_predictions([[1.0]], bytes_, bytes_, image_shape=(2, 2, 3), k=1)
    assert_allclose(display.axes_[0, 0].get_images()[0].get_array(), 0.2)


def test_fewer_neighbors_where_fewer_have_the_sign():
    X = np.arange(6.0).reshape(3, 2)
    display = NeighborsDisplay.from_predictions([[0.0, 2.0, 1.0]], X[:1], X, k=2)
    frame = display.frame()
    assert frame[["position", "kind"]].to_numpy().tolist() == [[1, "raises"], [2, "raises"]]
    assert frame.columns[-2:].tolist() == ["x0", "x1"]
    NeighborsDisplay.from_predictions([[0.0, 2.0, 1.0]], X[:1], X, k=2, image_shape=(1, 2))


@pytest.mark.parametrize("kind", ["sparse", "texts", "images", "frame"])
def test_neighbors_of_every_kind_of_rows(kind):
    X = {
        "sparse": sparse.csr_array(np.eye(4)),
        "texts": ["a text", "another", "a\nthird", "x" * 200],
        "images": np.zeros((4, 1, 3, 3)),
        "frame": pd.DataFrame({"city": ["Rome", "Oslo", None, "Bern"], "age": [1, 2, 3, 4]}),
    }[kind]
    effects = np.array([[1.0, -1.0, 0.5, -0.5]])
    display = NeighborsDisplay.from_predictions(effects, X[:1], X, y_train=list("abcd"), k=2)
    assert display.frame()["target"].tolist() == ["a", "c", "b", "d"]
    cells = display.axes_[0, 0].tables[0].get_celld()
    assert cells[0, 0].get_text().get_text() == "row"
    display.figure_.canvas.draw()


def test_neighbors_take_a_place_in_a_figure():
    import matplotlib.pyplot as plt

    influence, X, y = wine()
    figure, axes = plt.subplots(1, 2, layout="constrained")
    display = NeighborsDisplay.from_estimator(influence, X[:1], y[:1], features=["hue"], ax=axes[0])
    assert display.figure_ is figure
    own = plt.figure()
    display.plot(fig=own)
    assert display.figure_ is own
    with pytest.raises(ValueError, match="fig and ax were both given"):
        display.plot(fig=own, ax=axes[1])


def test_neighbors_that_cannot_be_drawn():
    influence, X, y = wine()
    with pytest.raises(ValueError, match="X has 89 queries, and a picture shows 12 at most"):
        NeighborsDisplay.from_estimator(influence, X, y)
    with pytest.raises(ValueError, match=r"X has 13 queries, .* Row i alone is X\[\[i\]\]"):
        NeighborsDisplay.from_estimator(influence, X.iloc[0], y.iloc[0])
    with pytest.raises(ValueError, match="effects has shape"):
        NeighborsDisplay.from_estimator(
            influence, X[:4], objective=DemographicParity([0, 1, 0, 1], favorable=1)
        )
    with pytest.raises(ValueError, match=r"image_shape=\(8, 8\) has 64 values and a row of X 13"):
        NeighborsDisplay.from_estimator(influence, X[:1], y[:1], image_shape=(8, 8))
    for wrong in ((13,), (0, 13), (2, 2, 2), (6.5, 2)):
        with pytest.raises(ValueError, match=r"image_shape=.* must be \(height, width\)"):
            NeighborsDisplay.from_estimator(influence, X[:1], y[:1], image_shape=wrong)
    with pytest.raises(ValueError, match="features has 'colour', which is no column"):
        NeighborsDisplay.from_estimator(influence, X[:1], y[:1], features=["colour"])
    with pytest.raises(ValueError, match="feature_names has 1 names and X 13 columns"):
        NeighborsDisplay.from_estimator(influence, X[:1], y[:1], feature_names=["a"])
    with pytest.raises(ValueError, match="k=-1 must be a whole number"):
        NeighborsDisplay.from_estimator(influence, X[:1], y[:1], k=-1)
