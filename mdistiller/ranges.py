"""What a config value may be: tests with the words for them, so that a fault is one line."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple

MAX_NUMBER = 1e18  # of a number: its square, too, is a float32


class Range(NamedTuple):
    """A condition on one value.

    Attributes:
        holds: the test; what it raises on values of other types counts as no.
        expected: what a message says after "expected".
    """

    holds: Callable[[Any], bool]
    expected: str

    def __contains__(self, value: object) -> bool:
        try:
            return bool(self.holds(value))
        except (TypeError, ValueError, OverflowError):
            return False


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float."""
    # compared, because an int may be too large for isfinite
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def above(bound: float, what: str = "a number", example: str = "") -> Range:
    """Greater than `bound`."""
    return Range(lambda value: is_number(value) and value > bound, f"{what} above {bound}{example}")


def whole(least: int, most: int, what: str = "a whole number") -> Range:
    """A whole number within bounds, both included."""
    return Range(lambda value: type(value) is int and least <= value <= most, f"{what} from {least} to {most}")


def at_least(bound: float, what: str = "", example: str = "") -> Range:
    """`bound` or more."""
    expected = f"{bound} {what} or more".replace("  ", " ")
    return Range(lambda value: is_number(value) and value >= bound, f"{expected}{example}")


def one_of(*choices: str) -> Range:
    """One of a few words."""
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Range(lambda value: value in choices, words)


def weights(*keys: str) -> Dict[str, Range]:
    """Ranges for keys that weigh a loss."""
    return dict.fromkeys(keys, Range(lambda value: is_number(value) and value >= 0, "a weight of 0 or more"))


def out_of_range(options: Any, ranges: Mapping[str, Range], section: str) -> Iterator[str]:
    """Yield `SECTION.KEY is …; expected …` for each value that its range does not hold.

    Args:
        options: a config section.
        ranges: by key, `LOSS.CE_WEIGHT` for one in a section of its own; a key that `options` lacks is passed over.
        section: the name of the section, for the lines.
    """
    for key, allowed in ranges.items():
        value = options
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if is_number(value) and abs(value) > MAX_NUMBER:
            yield f"{section}.{key} is {value!r}; expected at most {MAX_NUMBER:g}"
        elif value is not _ABSENT and value not in allowed:
            yield f"{section}.{key} is {value!r}; expected {allowed.expected}"


_ABSENT = object()
