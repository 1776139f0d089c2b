"""Sketched rows on disk: written in blocks, checked when opened, read through a memory map.

A store is a folder of three files. ``rows.bin`` holds the rows. ``store.json`` says what they are
rows of. ``blocks.txt`` has a line for each block that is complete, with a checksum of its bytes: it
is appended only once the rows are on the disk, so that whatever stopped a writer, a block is either
listed and whole or written again.
"""

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch

from ..exceptions import SketchStoreError

# To be raised by whatever changes the files or the numbers of a projection.
_FORMAT = 1
_BLOCK = 2**24
_META, _ROWS, _BLOCKS = "store.json", "rows.bin", "blocks.txt"
_FILES = (_META, _ROWS, _BLOCKS)
_PARTIAL = ".partial"


class SketchStore:
    """Rows (n, C, m) of a sketch in a folder.

    Parameters
    ----------
    path : str or Path
        The folder; made where there is none.
    identity : dict of str to str
        What the rows depend on, by the name that a caller knows it by.
    shape : (int, int, int)
        ``n``, ``C`` and ``m``.
    dtype : torch.dtype
        Of the rows.

    Raises
    ------
    SketchStoreError
        A `ValueError` and an `OSError`, if the folder holds a store of something else, or other
        files, or a block that is not what was written, or cannot be written to.
    """

    def __init__(self, path, identity, shape, dtype):
        self.path = Path(path)
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self._made_of = {
            "format": _FORMAT,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            **identity,
        }
        try:
            self._open()
        except OSError as error:
            if isinstance(error, SketchStoreError):
                raise
            raise SketchStoreError(
                f"store={str(path)!r} cannot be used ({error.strerror or error}). Give a folder "
                "that can be written to."
            ) from error

    @property
    def n_blocks(self):
        """How many blocks there are."""
        return -(-self.shape[0] // _block_rows(self.shape))

    def rows(self, block):
        """Return the rows of a block as a slice."""
        return _rows_of(block, self.shape)

    @property
    def missing(self):
        """Blocks that are still to be written."""
        return [block for block in range(self.n_blocks) if block not in self._sums]

    @property
    def values(self):
        """The rows as a tensor that reads from the disk."""
        return torch.from_numpy(self._map)

    def _open(self):
        self.path.mkdir(parents=True, exist_ok=True)
        meta = self.path / _META
        others = [
            e.name for e in self.path.iterdir() if e.name.removesuffix(_PARTIAL) not in _FILES
        ]
        if meta.exists():
            self._check(_description(self.path))
        elif others:
            raise SketchStoreError(
                f"store={str(self.path)!r} is not a store and not empty (it has {others[0]!r}). "
                "Give a folder of its own."
            )
        else:
            self._create(meta)
        self._map = np.memmap(self.path / _ROWS, self.dtype, "r+", shape=self.shape)
        self._sums = _listed(self.path)
        self._verify()

    def _create(self, meta):
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        free = shutil.disk_usage(self.path).free
        if size > free:
            raise SketchStoreError(
                f"store={str(self.path)!r} needs {size / 1e9:.3g} GB and its disk has "
                f"{free / 1e9:.3g} GB left. Free some, lower n_components, or use dtype='float32'."
            )
        with open(self.path / _ROWS, "wb") as file:
            file.truncate(size)
            # Claimed now, so that no block fails half-way.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, size))
        (self.path / _BLOCKS).touch()
        # Last, and at once: a folder with it is a store.
        _replace(meta, json.dumps(self._made_of, indent=1))

    def _check(self, found):
        for name, value in self._made_of.items():
            if found.get(name) != value:
                raise SketchStoreError(
                    f"store={str(self.path)!r} was made with other {name} ({found.get(name)} "
                    f"there, {value} here), and its rows are not those that are asked for. Give "
                    "another folder, or remove_store() this one."
                )

    def _verify(self):
        for block, checksum in self._sums.items():
            if zlib.crc32(self._map[self.rows(block)]) != checksum:
                rows = self.rows(block)
                raise SketchStoreError(
                    f"store={str(self.path)!r}: block {block} (rows {rows.start} to "
                    f"{rows.stop - 1}) is not what was written. repair_store() forgets such "
                    "blocks, and the next fit writes them again."
                )

    def write(self, block, values):
        """Put the rows of a block on the disk, and list it."""
        rows = self.rows(block)
        self._map[rows] = values.cpu().numpy()
        self._map.flush()
        checksum = zlib.crc32(self._map[rows])
        with open(self.path / _BLOCKS, "a", encoding="ascii") as file:
            file.write(f"{block} {checksum}\n")
            file.flush()
            os.fsync(file.fileno())
        self._sums[block] = checksum

    def __reduce__(self):
        # Opened, and so checked, again.
        identity = {
            name: value
            for name, value in self._made_of.items()
            if name not in ("format", "shape", "dtype")
        }
        return _reopened, (self.path, identity, self.shape, self.dtype)


def _reopened(path, identity, shape, dtype):
    """Return a store that is there; rows cannot be written without the model."""
    return SketchStore(_existing(path), identity, shape, dtype)


def repair_store(path):
    """Forget the blocks of a store that are not what was written.

    The next fit with the store writes them again.

    Parameters
    ----------
    path : str or Path
        The folder.

    Returns
    -------
    list of int
        The blocks that were forgotten.

    Raises
    ------
    SketchStoreError
        If there is no store.
    """
    path = _existing(path)
    made_of, sums = _description(path), _listed(path)
    shape = tuple(made_of["shape"])
    values = np.memmap(path / _ROWS, np.dtype(made_of["dtype"]), "r+", shape=shape)
    kept = {
        block: checksum
        for block, checksum in sums.items()
        if zlib.crc32(values[_rows_of(block, shape)]) == checksum
    }
    _replace(path / _BLOCKS, "".join(f"{block} {value}\n" for block, value in kept.items()))
    return sorted(set(sums) - set(kept))


def remove_store(path):
    """Delete a store, and its folder if nothing else is in it.

    Parameters
    ----------
    path : str or Path
        The folder.

    Raises
    ------
    SketchStoreError
        If there is no store.
    """
    path = _existing(path)
    for name in _FILES:
        (path / name).unlink(missing_ok=True)
        (path / f"{name}{_PARTIAL}").unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()


def _existing(path):
    path = Path(path)
    if not (path / _META).exists():
        raise SketchStoreError(f"There is no store at {str(path)!r}.")
    return path


def _block_rows(shape):
    """Return the rows of a block, whatever the batch size."""
    return max(1, _BLOCK // (shape[1] * shape[2]))


def _rows_of(block, shape):
    size = _block_rows(shape)
    return slice(block * size, min(shape[0], (block + 1) * size))


def _description(path):
    try:
        return json.loads((path / _META).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SketchStoreError(
            f"store={str(path)!r} has a {_META} that cannot be read ({error}). remove_store() it."
        ) from error


def _listed(path):
    """Return the checksums of complete blocks; an unfinished line is no line."""
    sums = {}
    for line in (path / _BLOCKS).read_text(encoding="ascii").split("\n")[:-1]:
        block, checksum = line.split()
        sums[int(block)] = int(checksum)
    return sums


def _replace(path, text):
    """Write a file that is there whole or not at all."""
    partial = path.with_name(path.name + _PARTIAL)
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def stored_seed(path):
    """Return the seed of the sketch that a store is of; None where there is no store."""
    path = Path(path)
    return _description(path).get("seed") if (path / _META).exists() else None
