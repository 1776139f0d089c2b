"""A CSV file: its cells as text, and its rows as they stand in the file.

Cells are kept as text, so that ``007`` and ``1.50`` can be written back as they were. So are the
lines of each row: what is not changed is written back byte for byte, quotes and line ends included.
"""

import csv
import io
from collections import Counter
from pathlib import Path

from ._cells import harmless, is_formula, visible
from ._errors import InputError, counted, listed, one_line

SEPARATORS = (",", ";", "\t", "|")

_MOST_COLUMNS = 10_000
_LONGEST_CELL = 10_000_000
_NAMES = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}


class CsvTable:
    """A table from a CSV file.

    Attributes
    ----------
    path : Path
    names : list of str
        Columns. One without a name is called "column 3".
    cells : list of tuple of str
        Texts of each column.
    line_of : list of int
        Line of the file that each row begins in, from 1.
    n_rows : int
    """

    extension = ".csv"

    def __init__(self, path, encoding=None, separator=None):
        self.path = Path(path)
        text, self._encoding = _decoded(self.path, encoding)
        self._lines = list(io.StringIO(text, newline=""))
        if not text.strip():
            raise InputError(f"{path} is empty. Pass a table with a header and rows.")
        self._separator = separator or _separator_of(self._lines, self.path)
        header, records, self._spans = self._parsed()
        self._header = header
        self.names = [visible(name) or f"column {k}" for k, name in enumerate(header, start=1)]
        _check_names(self.names, self.path)
        self.line_of = [start + 1 for start, _ in self._spans[1:]]
        self.n_rows = len(records)
        self.cells = list(zip(*records, strict=True))

    def _parsed(self):
        """Return header, records and the lines (from, to) of both."""
        reader = csv.reader(self._lines, delimiter=self._separator)
        header, records, spans, start = None, [], [], 0
        limit = csv.field_size_limit(_LONGEST_CELL)
        try:
            for record in reader:
                span, start = (start, reader.line_num), reader.line_num
                if not record:
                    continue  # a blank line
                spans.append(span)
                if header is None:
                    header = record
                    self._check_width(header)
                elif len(record) != len(header):
                    raise InputError(
                        f"line {span[0] + 1} of {self.path} has {counted(len(record), 'cell')} and "
                        f"its header {len(header)}. Look for a missing or unquoted separator there."
                    )
                else:
                    records.append(record)
        except csv.Error as error:
            raise InputError(
                f"line {reader.line_num} of {self.path} is no CSV ({error}). Look for a quotation "
                "mark without its pair."
            ) from None
        finally:
            csv.field_size_limit(limit)
        if not records:
            raise InputError(f"{self.path} has a header and no rows. Pass a table with rows.")
        return header, records, spans

    def _check_width(self, header):
        if len(header) > _MOST_COLUMNS:
            raise InputError(
                f"{self.path} has {len(header):,} columns, and at most {_MOST_COLUMNS:,} are read. "
                "Write a table with the columns that matter."
            )
        if len(header) == 1:
            guessed = self._encoding in ("utf-8", "utf-8-sig")
            encoding = "" if guessed else f", or another encoding than {self._encoding}"
            raise InputError(
                f"{self.path} has one column only, {one_line(header[0], 60)!r}, when cells are "
                f"separated by {_NAMES.get(self._separator, repr(self._separator))}. Name the "
                f"right one with --separator{encoding}."
            )

    def write(self, path, kept):
        """Write the rows of a mask, as they stand in the file; return the number of cells changed.

        Only rows with a formula in them are written anew.
        """
        n_changed = 0
        with open(path, "w", encoding=self._encoding, newline="") as file:
            for position, (start, stop) in enumerate(self._spans):
                if position and not kept[position - 1]:
                    continue
                cells = self._header
                if position:
                    cells = [column[position - 1] for column in self.cells]
                formulas = sum(map(is_formula, cells))
                lines = "".join(self._lines[start:stop])
                if formulas:
                    n_changed += formulas
                    end = lines[len(lines.rstrip("\r\n")) :]
                    writer = csv.writer(file, delimiter=self._separator, lineterminator=end)
                    writer.writerow([harmless(cell) for cell in cells])
                else:
                    file.write(lines)
        return n_changed


def _decoded(path, encoding):
    """Return the text of a file and its encoding."""
    raw = path.read_bytes()
    if encoding is None:
        encoding = "utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8"
        for mark, name in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
            if raw.startswith(mark):
                raise InputError(f"{path} looks like UTF-16. Pass --encoding {name}.")
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise InputError(
            f"--encoding {encoding} is not known. Names are utf-8, cp1252, latin-1, utf-16, …"
        ) from None
    except UnicodeError as error:
        raise InputError(_undecodable(path, raw, encoding, error)) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"line {line} of {path} has a NUL byte, so that it is no CSV in {encoding}. Write it "
            "as UTF-8 text, or name its encoding with --encoding."
        )
    return text, encoding


def _undecodable(path, raw, encoding, error):
    start = getattr(error, "start", 0)
    line = raw[:start].count(b"\n") + 1
    says = f"line {line} of {path} is not {encoding} (byte 0x{raw[start]:02x})"
    begin = max(raw.rfind(b"\n", 0, start), start - 15) + 1
    sample = raw[begin : start + 15].splitlines()[0]
    try:
        guess = one_line(sample.decode("cp1252"), 40)
    except UnicodeError:
        return f"{says}. Name the encoding that it has with --encoding, or convert it to UTF-8."
    return f"{says}. With --encoding cp1252 it reads {guess!r}: pass that or the one that it has."


def _separator_of(lines, path):
    """Return the separator that gives the first rows the same number of cells, and the most."""
    found = {}
    for separator in SEPARATORS:
        try:
            rows = csv.reader(lines[:50], delimiter=separator)
            widths = [len(row) for row in rows if row]
        except csv.Error:
            continue
        same = sum(width == widths[0] for width in widths) / len(widths) if widths else 0.0
        found[separator] = (widths[0] > 1 and same >= 0.5, widths[0]) if widths else (False, 0)
    if not found:
        raise InputError(
            f"{path} begins with a cell of more than {csv.field_size_limit():,} characters. Look "
            "for a quotation mark without its pair."
        )
    return max(found, key=found.get)


def _check_names(names, path):
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise InputError(f"{path} has several columns called {listed(twice)}. Rename all but one.")
