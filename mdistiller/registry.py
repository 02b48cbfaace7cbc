"""Names to objects. A duplicate raises; a miss lists the nearest names."""

from __future__ import annotations

from typing import Callable, Dict, TypeVar

from .errors import UserError, did_you_mean

T = TypeVar("T")


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
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is already registered as {self[name]!r}")
        super().__setitem__(name, entry)

    def __missing__(self, name: str) -> T:
        raise UnknownName(f"unknown {self.kind} {name!r}{did_you_mean(name, self)}")

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `registry[name] = entry`."""

        def add(entry: T) -> T:
            self[name] = entry
            return entry

        return add
