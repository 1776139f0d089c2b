"""The folder that is written: all of it or nothing.

Files are written into a hidden folder beside their place, or inside an existing one, and moved at
the end. Whatever happens before that leaves no trace.
"""

import os
import shutil
import tempfile
from pathlib import Path

from ._errors import InputError, listed


class OutputFolder:
    """Where an audit's files go; a context in which `staged` can be written to.

    Parameters
    ----------
    path : Path
    names : list of str
        Files that will be written.
    overwrite : bool
        Whether files of these names may be replaced. Others are never touched.

    Attributes
    ----------
    path : Path
    staged : Path
        Folder in which to write the files.
    """

    def __init__(self, path, names, overwrite=False):
        self.path, self.names = Path(path), names
        self._check(overwrite)

    def _check(self, overwrite):
        path = self.path
        if path.exists() and not path.is_dir():
            raise InputError(f"--out {path} is a file. Name a folder.")
        if not path.parent.is_dir():
            raise InputError(f"--out {path}: there is no folder {path.parent}. Make it first.")
        there = [name for name in self.names if os.path.lexists(path / name)]
        folders = [name for name in there if (path / name).is_dir()]
        if folders:
            raise InputError(f"--out {path} has folders called {listed(folders)}. Name another.")
        if there and not overwrite:
            raise InputError(
                f"--out {path} has {listed(there)} already. Name another folder, or pass "
                "--overwrite to replace them."
            )

    def __enter__(self):
        exists = self.path.is_dir()
        where = self.path if exists else self.path.parent
        try:
            self.staged = Path(tempfile.mkdtemp(prefix=".sklearn-dualif-", dir=where))
        except OSError as error:
            raise InputError(
                f"--out {self.path} cannot be written ({error.strerror}). Name another folder."
            ) from None
        return self

    def publish(self):
        """Move what was written to its place."""
        self._check(overwrite=True)
        if self.path.is_dir():
            for name in self.names:
                os.replace(self.staged / name, self.path / name)
        else:
            # mkdtemp keeps others out.
            mask = os.umask(0)
            os.umask(mask)
            self.staged.chmod(0o777 & ~mask)
            self.staged.rename(self.path)

    def __exit__(self, *_):
        shutil.rmtree(self.staged, ignore_errors=True)
