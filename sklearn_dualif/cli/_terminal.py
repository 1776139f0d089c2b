"""Text for the terminal: short, and with nothing in it that a terminal would obey."""

import math

from ._errors import one_line


def say(lines):
    """Print lines, with a question mark for each control character."""
    for line in lines:
        print("".join(c if c.isprintable() else "?" for c in line))


def pairs(facts, indent=""):
    """Return lines of names and values, the values in one column."""
    width = max(len(name) for name, _ in facts)
    return [f"{indent}{name:<{width}}  {one_line(value, 300)}" for name, value in facts]


def grid(rows, header, longest=24, indent="  "):
    """Return lines of a table of values, numbers to the right."""
    texts = [[short(value, longest) for value in row] for row in rows]
    names = [short(name, longest) for name in header]
    widths = [max(map(len, column)) for column in zip(names, *texts, strict=True)]
    right = [all(isinstance(row[k], (int, float)) for row in rows) for k in range(len(names))]
    lines = []
    for cells in (names, *texts):
        aligned = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, right, strict=True)
        ]
        lines.append(f"{indent}{'  '.join(aligned)}".rstrip())
    return lines


def short(value, longest=24):
    """Return a value in a few characters."""
    if isinstance(value, float):
        if math.isnan(value):
            return "missing"
        return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"
    return one_line(value, longest)
