"""Distillers by name.

Importing this package imports, and so registers, every module in this folder whose name does not start with `_`.
Installed packages add distillers through an entry point of the group `mdistiller.distillers`. A configuration adds
others through `PLUGINS`.
"""

from __future__ import annotations

import pkgutil

from . import _plugins
from ._base import Distiller, Vanilla, distiller_dict, register
from .heads import DeployedStudent, Head, head_dict

__all__ = ["DeployedStudent", "Distiller", "Head", "Vanilla", "distiller_dict", "head_dict", "register"]

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
    if not _module.name.startswith("_"):
        _plugins.import_pasted(_module.name)
_plugins.load_installed()
