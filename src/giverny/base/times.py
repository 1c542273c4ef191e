"""Lengths of time as a person writes them, on the command line and in recipes."""

import re

from .errors import InputError


def seconds(text: str) -> float:
    """A time such as 90, 90s, 30m, 1.5h or 1h30m, in seconds. Raises InputError for other words and for no time at all."""
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    try:
        total = sum(float(n) * unit for n, unit in zip(found.groups() if found else (), (3600, 60, 1), strict=False) if n)
    except ValueError:
        total = 0.0
    if total <= 0:
        raise InputError("a time such as 90s, 30m or 1.5h", repr(text))
    return total
