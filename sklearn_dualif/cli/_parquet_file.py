"""A Parquet file: its columns as they are typed."""

from pathlib import Path

import numpy as np

from ._errors import InputError, listed, one_line


class ParquetTable:
    """A table from a Parquet file. What is written back keeps every type.

    Attributes
    ----------
    path : Path
    names : list of str
        Columns.
    n_rows : int
    line_of : None
        A Parquet file has no lines.
    """

    extension = ".parquet"
    line_of = None

    def __init__(self, path):
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise InputError(
                'Parquet files need pyarrow. Install it by pip install "sklearn-dualif[tables]".'
            ) from None
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self._table = parquet.read_table(file)
        except pyarrow.ArrowException as error:
            says = one_line(error, 120)
            raise InputError(f"{path} is no Parquet file that can be read: {says}") from None
        self.names = list(map(str, self._table.column_names))
        self.n_rows = self._table.num_rows
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InputError(f"{path} has several columns called {listed(twice)}. Rename them.")
        if not self.n_rows or len(self.names) < 2:
            raise InputError(
                f"{path} has {self.n_rows} rows and {len(self.names)} columns. Pass a table with "
                "rows, a target and at least one other column."
            )

    def series(self, name):
        """Return a column as a pandas Series."""
        return self._table.column(name).to_pandas()

    def write(self, path, kept):
        """Write the rows of a mask, with the types that they have; return 0 cells changed."""
        import pyarrow.parquet as parquet

        parquet.write_table(self._table.filter(np.asarray(kept)), path)
        return 0
