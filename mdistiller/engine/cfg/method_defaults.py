"""Sections of the configuration that distillers add, the library's own and those of plug-ins."""

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
    """Add a section to `defaults` for each registered distiller; existing sections stay.

    All names of a class share one section. A distiller without `DEFAULTS` gets a section that accepts any key. A `CFG`
    in a plug-in's file can add keys anywhere.

    Args:
        defaults: defaults of the whole configuration.
        reserved: sections of the library; no distiller may have such a name.

    Raises:
        UserError: a distiller has a reserved name, or a plug-in's defaults contradict existing ones.
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
    """Add the missing keys of `defaults` to `section`; names that share a section share a copy of it."""
    section.update(copy.deepcopy({key: value for key, value in defaults.items() if key not in section}))
    for key, value in defaults.items():
        if isinstance(value, CN):
            complete(section[key], value)
