"""Distillers by name. Every module of this folder whose name does not begin with `_` is imported, hence registered."""

from __future__ import annotations

import importlib
import pkgutil

from ._base import Distiller, Vanilla, distiller_dict, register
from .heads import DeployedStudent, Head, head_dict

__all__ = ["DeployedStudent", "Distiller", "Head", "Vanilla", "distiller_dict", "head_dict", "register"]

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
