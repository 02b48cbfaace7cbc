"""The one exception type that the command lines turn into a single line and exit status 2."""

from __future__ import annotations

import difflib
from typing import Iterable


class UserError(ValueError):
    """Something the user gave cannot work.

    The message says, in one line, what was given, what was expected and what to do; several faults have a line each.
    """


def refuse(faults: Iterable[str]) -> None:
    """Raise one UserError with all of these lines, if there are any."""
    lines = list(faults)
    if lines:
        raise UserError("\n".join(lines))


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return `"; did you mean A or B?"` for the names nearest to `name`, else the list of all of them."""
    names = sorted(str(n) for n in known)
    by_lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(str(name).lower(), list(by_lower), n=limit, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(by_lower[c] for c in close)}?"
    return f"; known: {', '.join(names) or 'none'}"
