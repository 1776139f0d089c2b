"""Cells of text that a spreadsheet would run as a formula, made harmless.

Excel, LibreOffice and Google Sheets evaluate a cell that begins with ``=``, ``+``, ``-``, ``@``, a
tab or a line break, whatever the quotes around it [1]_. A quotation mark before it, which they
don't show, makes it text. Numbers such as -3 are left as they are.

.. [1] OWASP, "CSV Injection".
"""

import math
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# The wide forms are taken for the narrow ones by East Asian versions.
_STARTS = tuple("=+-@\t\r\n＝＋－＠")


def visible(text):
    """Return text without spaces around it, a sign in place of each control character."""
    text = text.strip()
    return text if text.isprintable() else _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def is_formula(text):
    """Tell whether a spreadsheet could take a cell for a formula."""
    return text.startswith(_STARTS) and not _is_number(text)


def harmless(value):
    """Return a value as it may be written into a cell: text that is a formula with ' before it."""
    return f"'{value}" if isinstance(value, str) and is_formula(value) else value


def harmless_frame(frame):
    """Return a data frame whose texts, column names and index a spreadsheet does not run."""
    shown = frame.rename(columns=harmless, index=harmless)
    shown.index.names = [harmless(name) for name in shown.index.names]
    for position, dtype in enumerate(shown.dtypes):
        if dtype.kind not in "biufcM":
            shown.isetitem(position, shown.iloc[:, position].map(harmless))
    return shown


def _is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
