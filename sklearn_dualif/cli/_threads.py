"""How many threads the linear algebra may use."""

from contextlib import contextmanager


@contextmanager
def limited(n_threads):
    """Limit the threads of BLAS, OpenMP and torch, and lift the limit afterwards.

    The matrices of a table are long and narrow, and the libraries' threads wait for each other: on
    two cores, two threads each took twice as long as one.
    """
    from threadpoolctl import threadpool_limits

    from ..linalg import torch_threads

    with torch_threads(n_threads), threadpool_limits(n_threads):
        yield
