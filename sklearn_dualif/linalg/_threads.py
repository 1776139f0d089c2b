"""How many threads torch works in."""

from contextlib import contextmanager

import torch

# Operations that take one thread some tenths of a second.
_LITTLE = 1e10


@contextmanager
def torch_threads(number):
    """Let torch work in so many threads here."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for(operations):
    """Let torch work in one thread where there is little to do.

    NumPy's linear algebra, in which scikit-learn fits, keeps its threads awake for a while. Torch's
    would wait for the same processors longer than they could save.
    """
    # Other builds of torch can't change the number of threads once they have worked.
    if operations > _LITTLE or not torch.backends.openmp.is_available():
        yield
        return
    with torch_threads(1):
        yield
