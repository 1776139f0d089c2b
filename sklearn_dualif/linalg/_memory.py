"""How much memory a factorization may take."""

import os
import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SHARE = 0.6


def parse_bytes(limit):
    """Return a memory limit in bytes from a number, a string like "4GB", or None (free share)."""
    if limit is None:
        return int(_SHARE * _available_bytes())
    if isinstance(limit, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)i?B?\s*", limit, flags=re.IGNORECASE)
        try:
            value = float(match.group(1)) * _UNITS[match.group(2).upper()]
        except (AttributeError, ValueError):
            raise ValueError(
                f"memory_limit={limit!r} is not a size. Give bytes as a number or a string such as "
                "'500MB' or '4GB', or None for a share of what the machine has free."
            ) from None
    else:
        value = limit
    if isinstance(value, bool) or not value > 0:
        raise ValueError(f"memory_limit={limit!r} must be positive; pass None for no own limit.")
    return int(min(value, 2**62))


def _available_bytes():
    """Return the memory that the operating system says is free for new work."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 10**9
