"""What is said when something cannot be done: what was wanted, what was given, what to do.

Every error that a user can cause is an `InputError`. Doors (command line, web) print its text and nothing else; anything
that is not an `InputError` is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A request that cannot be carried out as given.

    wanted: what would have been accepted; given: what came instead; remedy: what the user can do about it.
    """

    def __init__(self, wanted: str, given: str, remedy: str = "") -> None:
        self.wanted, self.given, self.remedy = wanted, given, remedy
        super().__init__(f"wanted {wanted}; given {given}" + (f". {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return (type(self), (self.wanted, self.given, self.remedy))


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint that names the closest spelling, or lists the choices: '' when there are none."""
    known = sorted(choices)
    close = get_close_matches(name, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == name.lower()]
    if close:
        return f"did you mean {close[0]!r}? (choices: {', '.join(known)})"
    return f"choices: {', '.join(known)}" if known else ""


def choose(name: str, choices: Iterable[str], what: str) -> str:
    """`name` if it is one of `choices`, else an InputError that names the nearest spelling."""
    known = list(choices)
    if name not in known:
        raise InputError(f"a known {what}", repr(name), nearest(name, known))
    return name
