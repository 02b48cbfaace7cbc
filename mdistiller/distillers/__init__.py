"""Distillers by name.

Importing this package imports, and so registers, every module in this folder whose name does not start with `_`.
Installed packages add distillers through an entry point of the group `mdistiller.distillers`. A configuration adds
others through `PLUGINS`.
"""

from __future__ import annotations

import pkgutil
from typing import Any, Mapping

from . import _plugins
from ._base import Distiller, Vanilla, distiller_dict, register
from ._common import blank_outputs, image_size
from .heads import DeployedStudent, Head, head_dict

__all__ = [
    "DeployedStudent",
    "Distiller",
    "Head",
    "Vanilla",
    "blank_outputs",
    "distiller_dict",
    "has_teacher",
    "head_dict",
    "image_size",
    "register",
]

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
    if not _module.name.startswith("_"):
        _plugins.import_pasted(_module.name)
_plugins.load_installed()


def has_teacher(section: Mapping[str, Any]) -> bool:
    """Return whether a run had a teacher.

    Args:
        section: the section `DISTILLER` of its configuration. A method that is not registered here, of a plug-in that
            is not loaded, counts as one with a teacher.
    """
    method = distiller_dict.get(str(section.get("TYPE")))
    return bool(section.get("TEACHER")) and (method is None or method.needs_teacher)
