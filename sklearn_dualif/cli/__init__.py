"""The command line: a table in, its doubtful rows, a clean table and a report out."""

from ._main import main

__all__ = ["main"]
