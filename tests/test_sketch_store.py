"""Sketched rows on disk: the same answers, resumed after a kill, and never mixed up."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import relative, sparse_rows
from network_helpers import seeded
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklearn_dualif import InfluenceEstimator, TorchModel
from sklearn_dualif.exceptions import SketchStoreError
from sklearn_dualif.sketching import (
    FactorizedSketch,
    GaussianSketch,
    HadamardSketch,
    SketchStore,
    SparseSketch,
    _store,
    remove_store,
    repair_store,
)

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of seven of the digits' rows."""
    monkeypatch.setattr(_store, "_BLOCK", 7 * 10 * 80)


def sketched(model, X, y, path, n_components=80, sketch=GaussianSketch, seed=0, **options):
    sketch = sketch(n_components, store=path, random_state=seed)
    return InfluenceEstimator(model, sketch=sketch, solver="primal", **options).fit(X, y)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sketch", [GaussianSketch, SparseSketch, HadamardSketch, FactorizedSketch])
def test_answers_are_those_from_memory(digits, sketch, dtype, tmp_path):
    model, X, y, X_query, y_query = digits
    options = {"n_components": 300, "sketch": sketch, "dtype": dtype}
    stored = sketched(model, X, y, tmp_path / "a" / "b", **options)
    plain = sketched(model, X, y, None, **options)
    again = sketched(model, X, y, str(tmp_path / "a" / "b"), **options)
    for name in ("influence", "removal_effect"):
        rows = () if name == "influence" else ([3, 4],)
        answers = [getattr(each, name)(*rows, X_query, y_query) for each in (stored, plain, again)]
        assert relative(answers[0], answers[1]) < (1e-10 if dtype == "float64" else 1e-4)
        np.testing.assert_array_equal(answers[0], answers[2])
    np.testing.assert_array_equal(stored.self_influence_, again.self_influence_)


def test_linear_models_and_sparse_rows(tmp_path):
    X = sparse_rows(60, 30, 0.3)
    y = np.arange(60) % 3
    model = LogisticRegression(tol=1e-10, max_iter=1000)
    effects = [
        sketched(model, rows, y, path).influence(X[:5], y[:5])
        for rows, path in ((X, tmp_path / "x"), (X, tmp_path / "x"), (X, None))
    ]
    np.testing.assert_array_equal(effects[0], effects[1])
    assert relative(effects[0], effects[2]) < 1e-10
    other = X.copy()
    other.data[0] += 1e-9
    with pytest.raises(SketchStoreError, match="other model"):
        sketched(model, other, y, tmp_path / "x")


INTERRUPTED = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {tests!r})
from network_helpers import digits_network
from sklearn_dualif.sketching import _store
from test_sketch_store import sketched

_store._BLOCK = 7 * 10 * 80
path, stop, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
write = _store.SketchStore.write

def interrupted(self, block, values):
    if block == stop:
        if moment == "rows":
            rows = self.rows(block)
            self._map[rows] = values.numpy() / 3.0
            self._map.flush()
        if moment == "line":
            self._map[self.rows(block)] = values.numpy()
            with open(self.path / "blocks.txt", "a") as file:
                file.write(str(block) + " 12")
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, block, values)

_store.SketchStore.write = interrupted
model, X, y, _, _ = digits_network()
sketched(model, X, y, path)
"""


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The rows of a store that was written at once, as bytes."""
    path = tmp_path_factory.mktemp("whole") / "store"
    before, _store._BLOCK = _store._BLOCK, 7 * 10 * 80
    try:
        sketched(*digits[:3], path)
    finally:
        _store._BLOCK = before
    return (path / "rows.bin").read_bytes()


@pytest.mark.parametrize("moment", ["before", "rows", "line"])
@pytest.mark.parametrize("stop", [0, 5])
def test_a_killed_fit_is_taken_up_again(digits, stop, moment, tmp_path, whole):
    model, X, y, _, _ = digits
    path = tmp_path / "store"
    script = INTERRUPTED.format(tests=str(TESTS))
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(stop), moment],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    lines = (path / "blocks.txt").read_text().split("\n")
    assert len(lines) - 1 == stop
    written = []
    write = SketchStore.write

    def watched(self, block, values):
        written.append(block)
        write(self, block, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SketchStore, "write", watched)
        sketched(model, X, y, path)
    assert written == list(range(stop, 13))
    assert (path / "rows.bin").read_bytes() == whole


def test_a_kill_while_the_store_is_made_leaves_a_folder_that_serves(digits, tmp_path, whole):
    path = tmp_path / "store"
    path.mkdir()
    (path / "rows.bin").write_bytes(b"123")
    (path / "store.json.partial").write_text("{")
    sketched(*digits[:3], path)
    assert (path / "rows.bin").read_bytes() == whole


@pytest.fixture
def store(digits, tmp_path):
    path = tmp_path / "store"
    sketched(*digits[:3], path)
    return path


def test_other_models_rows_and_sketches_are_refused(digits, store):
    model, X, y, _, _ = digits
    before = {name: (store / name).read_bytes() for name in os.listdir(store)}
    moved = seeded(lambda: nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10)))
    with pytest.raises(SketchStoreError, match=r"made with other model .* Give another folder"):
        sketched(TorchModel(moved, weight_decay=1e-2), X, y, store)
    with pytest.raises(SketchStoreError, match="other X"):
        sketched(model, X + 1e-12, y, store)
    with pytest.raises(SketchStoreError, match="other seed"):
        sketched(model, X, y, store, seed=1)
    with pytest.raises(SketchStoreError, match=r"other sketch .GaussianSketch.* SparseSketch"):
        sketched(model, X, y, store, sketch=SparseSketch)
    with pytest.raises(SketchStoreError, match="other shape"):
        sketched(model, X, y, store, n_components=81)
    with pytest.raises(SketchStoreError, match=r"other dtype .float64 there, float32 here"):
        sketched(model, X, y, store, dtype="float32")
    meta = (store / "store.json").read_text()
    (store / "store.json").write_text(meta.replace(f"numpy {np.__version__}", "numpy 1.0"))
    with pytest.raises(SketchStoreError, match=r"other random numbers .numpy 1.0, torch"):
        sketched(model, X, y, store)
    (store / "store.json").write_text(meta)
    assert {name: (store / name).read_bytes() for name in os.listdir(store)} == before


def test_a_corrupt_block_is_named_and_written_again_on_request(digits, store, whole):
    model, X, y, _, _ = digits
    with open(store / "rows.bin", "r+b") as file:
        file.seek(30 * 10 * 80 * 8 + 11)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(SketchStoreError, match=re.escape("block 4 (rows 28 to 34)")) as error:
        sketched(model, X, y, store)
    assert "repair_store()" in str(error.value)
    assert repair_store(store) == [4]
    assert repair_store(store) == []
    sketched(model, X, y, store)
    assert (store / "rows.bin").read_bytes() == whole


def test_a_store_that_was_cut_short_is_found_out(digits, store, whole):
    with open(store / "rows.bin", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(SketchStoreError, match="is not what was written"):
        sketched(*digits[:3], store)
    assert repair_store(store) == list(range(2, 13))
    sketched(*digits[:3], store)
    assert (store / "rows.bin").read_bytes() == whole


def test_a_description_that_cannot_be_read(digits, store):
    (store / "store.json").write_text("{")
    with pytest.raises(SketchStoreError, match=r"store.json that cannot be read.*remove_store"):
        sketched(*digits[:3], store)


def test_places_that_cannot_be_written(digits, tmp_path, monkeypatch):
    model, X, y, _, _ = digits
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(SketchStoreError, match=r"cannot be used .* Give a folder"):
        sketched(model, X, y, file)
    with pytest.raises(SketchStoreError, match=r"cannot be used .* Give a folder"):
        sketched(model, X, y, file / "inside")
    assert file.read_text() == "mine"
    with pytest.raises(SketchStoreError, match=r"not a store and not empty .it has 'file'"):
        sketched(model, X, y, tmp_path)

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(SketchStoreError, match="Permission denied"):
        sketched(model, X, y, tmp_path / "closed")


def test_a_disk_without_room(digits, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10, 9, 1000)
    monkeypatch.setattr(_store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SketchStoreError, match=r"needs 0.000576 GB and its disk has 1e-06 GB left"):
        sketched(*digits[:3], tmp_path / "store")
    assert not (tmp_path / "store" / "store.json").exists()


def test_errors_are_builtin_ones():
    assert issubclass(SketchStoreError, ValueError)
    assert issubclass(SketchStoreError, OSError)


def test_a_size_is_needed(digits, tmp_path):
    with pytest.raises(ValueError, match=r"n_components='auto' does not know.*Give a number"):
        sketched(*digits[:3], tmp_path / "store", n_components="auto")
    assert not (tmp_path / "store").exists()


def test_the_dual_side_is_for_rows_in_memory(digits, tmp_path):
    model, X, y, _, _ = digits
    sketch = GaussianSketch(80, store=tmp_path / "store", random_state=0)
    with pytest.raises(ValueError, match=r"solver='dual' works on rows in memory.*solver='auto'"):
        InfluenceEstimator(model, sketch=sketch, solver="dual").fit(X, y)
    assert not (tmp_path / "store").exists()


def test_without_a_random_state_the_store_s_own_is_used(digits, store):
    model, X, y, X_query, y_query = digits
    effects = [
        sketched(model, X, y, store, seed=seed).influence(X_query, y_query) for seed in (None, 0)
    ]
    np.testing.assert_array_equal(*effects)


def test_stores_are_removed(store):
    (store / "notes.txt").write_text("mine")
    remove_store(store)
    assert os.listdir(store) == ["notes.txt"]
    (store / "notes.txt").unlink()
    for function in (remove_store, repair_store):
        with pytest.raises(SketchStoreError, match="There is no store at"):
            function(store)


def test_a_removed_store_takes_its_folder_along(store):
    remove_store(store)
    assert not store.exists()


def test_pickles_hold_the_path_and_not_the_rows(digits, store):
    model, X, y, X_query, y_query = digits
    found = sketched(model, X, y, store)
    plain = sketched(model, X, y, None)
    dumped = pickle.dumps(found)
    assert len(pickle.dumps(plain)) - len(dumped) > 0.8 * 90 * 10 * 80 * 8
    again = pickle.loads(dumped)
    np.testing.assert_array_equal(
        again.influence(X_query, y_query), found.influence(X_query, y_query)
    )
    remove_store(store)
    with pytest.raises(SketchStoreError, match="There is no store at"):
        pickle.loads(dumped)
    assert not store.exists()


def test_progress_is_reported(digits, tmp_path, capsys):
    sketched(*digits[:3], tmp_path / "store", verbose=1)
    shown = capsys.readouterr().out
    assert re.search(r"\[InfluenceEstimator\] sketched 5 of 13 blocks, about \d+ s left", shown)
    sketched(*digits[:3], tmp_path / "store", verbose=1)
    assert "sketched" not in capsys.readouterr().out


def test_memory_does_not_count_the_rows(digits, tmp_path):
    # The rows take 1.1 MB, twice; the matrix of the components .3 MB.
    found = sketched(*digits[:3], tmp_path / "store", memory_limit="1MB")
    assert found.sketch_info_["n_components"] == 80
