"""Names to objects. A duplicate raises; a miss lists the nearest names."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, TypeVar

from .errors import UserError, did_you_mean

T = TypeVar("T")


def origin(entry: Any) -> str:
    """Return the file that defines a class or a function, alone or first in a tuple, else what it prints as."""
    if isinstance(entry, tuple) and entry:
        entry = entry[0]
    try:
        return inspect.getfile(entry)
    except (TypeError, OSError):
        return repr(entry)


class UnknownName(UserError, KeyError):
    """A name that no registry entry has."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class Registry(Dict[str, T]):
    """A dictionary whose entries are added once and whose misses are helpful.

    Args:
        kind: what the entries are, in the singular ("distiller"), for messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __setitem__(self, name: str, entry: T) -> None:
        self.check_new(name, entry)
        super().__setitem__(name, entry)

    def check_new(self, name: str, entry: Any) -> None:
        """Raise a UserError if there is an entry of that name; `entry` is the new one."""
        if name in self:
            places = f"{origin(self[name])} and {origin(entry)}"
            raise UserError(f"{self.kind} {name!r} is defined twice, in {places}; rename one of them")

    def __missing__(self, name: str) -> T:
        raise UnknownName(f"unknown {self.kind} {name!r}{did_you_mean(name, self)}")

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `registry[name] = entry`."""

        def add(entry: T) -> T:
            self[name] = entry
            return entry

        return add
