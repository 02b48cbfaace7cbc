"""The distillers' part of the configuration: what each of them, wherever it comes from, adds to the defaults."""

from __future__ import annotations

import copy
from typing import Any, Collection, Dict, Mapping

from yacs.config import CfgNode as CN

from ...distillers import Distiller, distiller_dict
from ...distillers._plugins import own_defaults
from ...errors import UserError
from ...registry import origin
from .values import to_dict


def add_sections(defaults: CN, reserved: Collection[str]) -> None:
    """Give each registered distiller its section in `defaults`, one for all names of a class; what is there stays.

    A distiller without `DEFAULTS` gets one that takes any key. A file's own `CFG` adds keys anywhere.

    Args:
        defaults: the whole configuration's.
        reserved: sections of the library, whose names no distiller can have.

    Raises:
        UserError: a distiller has such a name, or a file's own defaults contradict those that are there.
    """
    for file, own in own_defaults():
        if own is not defaults:
            _add_keys(defaults, own, file)
    sections: Dict[Any, CN] = {d: defaults[name] for name, d in distiller_dict.items() if name in defaults}
    for name, distiller in distiller_dict.items():
        if name in reserved:
            raise UserError(f"distiller {name!r} of {origin(distiller)} has the name of a config section; rename it")
        free = distiller.DEFAULTS is Distiller.DEFAULTS
        if name not in defaults and (free or distiller.DEFAULTS):
            new = CN(new_allowed=True) if free else _section(distiller.DEFAULTS, origin(distiller))
            defaults[name] = sections.setdefault(distiller, new)


def _add_keys(section: CN, own: Mapping[str, Any], file: str, prefix: str = "CFG.") -> None:
    for key, value in own.items():
        if key not in section:
            section[key] = _section({key: value}, file)[key]
        elif isinstance(section[key], CN) and isinstance(value, dict):
            _add_keys(section[key], value, file, f"{prefix}{key}.")
        elif to_dict(section[key]) != to_dict(value):
            known = section[key]
            raise UserError(f"{file}: {prefix}{key} is {value!r}, but that key has the default {known!r}; leave it out")


def _section(defaults: Mapping[str, Any], file: str) -> CN:
    try:
        return CN(to_dict(defaults))
    except AssertionError as error:  # a value that no YAML holds
        raise UserError(f"{file}: these defaults cannot be a config section ({error})") from None


def complete(section: CN, defaults: CN) -> None:
    """Add to `section` what it lacks; names that share a section in `defaults` share a copy."""
    section.update(copy.deepcopy({key: value for key, value in defaults.items() if key not in section}))
    for key, value in defaults.items():
        if isinstance(value, CN):
            complete(section[key], value)
