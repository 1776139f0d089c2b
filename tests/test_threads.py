"""Little work is done in one thread, and nothing else is changed by that."""

import pytest
import torch
from cases import regression, three_classes
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.influence import InfluenceEngine, _setup
from sklearn_dualif.linalg import _threads, threads_for

pytestmark = pytest.mark.skipif(
    not torch.backends.openmp.is_available(), reason="this torch can't change its threads"
)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.parametrize(("operations", "threads"), [(1e6, 1), (1e13, 2), (float("inf"), 2)])
def test_threads_go_by_the_work(operations, threads):
    with threads_for(operations):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_an_error_gives_the_threads_back():
    with pytest.raises(ZeroDivisionError), threads_for(1.0):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_torch_that_cannot_change_its_threads_is_let_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("was called"))
    with threads_for(1.0):
        pass
    monkeypatch.undo()


@pytest.mark.parametrize(("little", "threads"), [(1e10, 1), (0.0, 2)])
@pytest.mark.parametrize(
    ("estimator", "data"), [(Ridge(), regression(0)), (LogisticRegression(), three_classes(0))]
)
def test_fits(monkeypatch, estimator, data, little, threads):
    seen = []

    class Engine(InfluenceEngine):
        def __init__(self, *args, **options):
            seen.append(torch.get_num_threads())
            super().__init__(*args, **options)

    monkeypatch.setattr(_threads, "_LITTLE", little)
    monkeypatch.setattr(_setup, "InfluenceEngine", Engine)
    influence = InfluenceEstimator(estimator).fit(data.X, data.y)
    InfluenceEstimator(FrozenEstimator(influence.estimator_)).fit(data.X, data.y)
    assert seen == [threads, 2]


def test_more_rows_are_more_work():
    data = regression(0)
    few, many = (
        InfluenceEstimator(Ridge()).fit(data.X[:n], data.y[:n])._engine.problem.operations
        for n in (12, 24)
    )
    assert 0 < few < many < 1e10
