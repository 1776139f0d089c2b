"""How many threads the linear algebra may use."""

from contextlib import contextmanager


@contextmanager
def limited(n_threads):
    """Limit the threads of BLAS, OpenMP and torch, and lift the limit afterwards.

    The matrices of a table are long and narrow, and the libraries' threads wait for each other: on
    two cores, two threads each took twice as long as one.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)
