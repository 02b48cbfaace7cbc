"""Allowed ranges of config values, each with the words that describe it in an error message."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple

MAX_NUMBER = 1e18  # the square of a larger number overflows float32


class Range(NamedTuple):
    """A condition on one value.

    Attributes:
        holds: the condition. A TypeError, ValueError or OverflowError that it raises counts as `False`.
        expected: the text that follows "expected" in an error message.
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
    # not math.isfinite, which fails on very large ints
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def above(bound: float, what: str = "a number", example: str = "") -> Range:
    """Return the range of numbers greater than `bound`."""
    return Range(lambda value: is_number(value) and value > bound, f"{what} above {bound}{example}")


def whole(minimum: int, maximum: int, what: str = "a whole number") -> Range:
    """Return the range of whole numbers from `minimum` to `maximum`, both included."""
    return Range(
        lambda value: type(value) is int and minimum <= value <= maximum, f"{what} from {minimum} to {maximum}"
    )


def at_least(bound: float, what: str = "", example: str = "") -> Range:
    """Return the range of numbers of at least `bound`."""
    expected = f"{bound} {what} or more".replace("  ", " ")
    return Range(lambda value: is_number(value) and value >= bound, f"{expected}{example}")


def one_of(*choices: str) -> Range:
    """Return the range of the given words."""
    words = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Range(lambda value: value in choices, words)


YES_NO_OR_NONE = Range(lambda value: value is None or isinstance(value, bool), "True, False, or None to infer")


WEIGHT = Range(lambda value: is_number(value) and value >= 0, "a weight of 0 or more")


def weights(*keys: str) -> Dict[str, Range]:
    """Return the range of a loss weight for each of `keys`, which are the weights of all losses."""
    return dict.fromkeys(keys, WEIGHT)


def no_weight(options: Any, ranges: Mapping[str, Range], section: str) -> Iterator[str]:
    """Yield a line if all loss weights are 0, so that nothing would be learned; see `out_of_range`."""
    keys = [key for key, allowed in ranges.items() if allowed is WEIGHT]
    if keys and all(_value(options, key) == 0 for key in keys):
        names = " and ".join(f"{section}.{key}" for key in keys)
        yield f"{names} {'are' if len(keys) > 1 else 'is'} 0; set {'one' if len(keys) > 1 else 'it'} above 0"


def out_of_range(options: Any, ranges: Mapping[str, Range], section: str) -> Iterator[str]:
    """Yield `SECTION.KEY is …; expected …` for each value outside its range.

    Args:
        options: a config section.
        ranges: ranges by key, such as `LOSS.CE_WEIGHT` for a nested one. Keys that `options` lacks are skipped.
        section: the name of the section, for the messages.
    """
    for key, allowed in ranges.items():
        value = _value(options, key)
        if is_number(value) and abs(value) > MAX_NUMBER:
            yield f"{section}.{key} is {value!r}; expected at most {MAX_NUMBER:g}"
        elif value is not _ABSENT and value not in allowed:
            yield f"{section}.{key} is {value!r}; expected {allowed.expected}"


_ABSENT = object()


def _value(options: Any, key: str) -> Any:
    """Return the value of a key such as `LOSS.CE_WEIGHT` in a config section, or `_ABSENT`."""
    for part in key.split("."):
        options = options.get(part, _ABSENT) if isinstance(options, dict) else _ABSENT
    return options
