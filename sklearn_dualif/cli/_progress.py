"""What is being done, on stderr: one line that is overwritten, or one a step where it is a file."""

import sys
import time
from contextlib import contextmanager


class Progress:
    """Says which step is running.

    Parameters
    ----------
    n_steps : int
    quiet : bool
        Say nothing.
    """

    def __init__(self, n_steps, quiet=False):
        self.n_steps, self.quiet, self.n_done = n_steps, quiet, 0
        self.started = time.perf_counter()
        self._overwrites = sys.stderr.isatty()

    @property
    def seconds(self):
        """Time since the start."""
        return time.perf_counter() - self.started

    @contextmanager
    def step(self, title):
        """Show a step while it runs."""
        self.n_done += 1
        if self.quiet:
            yield
            return
        line = f"[{self.n_done}/{self.n_steps}] {title}"
        began = time.perf_counter()
        if self._overwrites:
            print(f"{line} …", end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            if self._overwrites:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        if not self._overwrites:
            taken = time.perf_counter() - began
            print(f"{line} ({taken:.1f} s)", file=sys.stderr, flush=True)
