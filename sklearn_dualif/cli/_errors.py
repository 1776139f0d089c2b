"""What the command line answers with one line and exit code 2."""


class InputError(ValueError):
    """The input or the call is at fault; the message says what to do about it."""


def listed(names, most=8):
    """Return names as ``'a', 'b' and 3 more``."""
    names = [repr(str(name)) for name in names]
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return ", ".join(names)


def counted(number, noun):
    """Return "1 row" or "1,200 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text, most=600):
    """Return text without line breaks and control characters, and not longer than ``most``."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"
