"""Registries of objects by name. A duplicate name is an error; an unknown name lists the nearest ones."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, TypeVar

from .errors import UserError, did_you_mean

T = TypeVar("T")


def origin(entry: Any) -> str:
    """Return the file that defines a class or function, or the first entry of a tuple; otherwise its `repr`."""
    if isinstance(entry, tuple) and entry:
        entry = entry[0]
    try:
        return inspect.getfile(entry)
    except (TypeError, OSError):
        return repr(entry)


class UnknownName(UserError, KeyError):
    """A name that is not in the registry."""

    def __str__(self) -> str:  # KeyError prints the repr
        return str(self.args[0])


class Registry(Dict[str, T]):
    """A dictionary that refuses to replace an entry and lists the nearest names for an unknown one.

    Args:
        kind: the kind of entry in the singular, such as "distiller", for messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __setitem__(self, name: str, entry: T) -> None:
        self.check_new(name, entry)
        super().__setitem__(name, entry)

    def check_new(self, name: str, entry: Any) -> None:
        """Raise a UserError if `name` is taken; `entry` is the new entry, for the message."""
        if name in self:
            places = f"{origin(self[name])} and {origin(entry)}"
            raise UserError(f"{self.kind} {name!r} is defined twice, in {places}; rename one of them")

    def __missing__(self, name: str) -> T:
        raise UnknownName(f"unknown {self.kind} {name!r}{did_you_mean(name, self)}")

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its object as `name`."""

        def add(entry: T) -> T:
            self[name] = entry
            return entry

        return add
