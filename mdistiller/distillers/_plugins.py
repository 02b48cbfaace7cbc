"""Distillers that users add: pasted into this folder, named in a configuration's `PLUGINS`, or installed.

Such a file may also register models (`mdistiller.models.register_model`).

A file written for MDistiller or one of its forks runs unchanged. Its classes need no `@register`. Its relative imports
(`from ._base import Distiller`, `from .KD import kd_loss`) refer to this folder, no matter where the file is.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
import traceback
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from torch import nn
from yacs.config import CfgNode

from ..errors import UserError
from ..models import FAMILIES
from ..paths import find_file
from ..registry import Registry, origin
from ._base import Distiller, distiller_dict
from .heads import Head, head_dict

ENTRY_POINT_GROUP = "mdistiller.distillers"
PACKAGE = __name__.rpartition(".")[0]
# The modules of this library with a distiller. Others in this folder were pasted.
LIBRARY = (
    *("_base", "AT", "CATKD", "CRD", "CTKD", "DIST", "DKD", "FitNet", "KD", "KDSVD", "MLKD", "NST", "OFD", "PKT"),
    *("RKD", "RLD", "ReviewKD", "SFAKD", "SP", "SimKD", "VID", "WTTM"),
)

adopted_modules: Dict[str, ModuleType] = {}  # by name


def adopt(module: ModuleType) -> None:
    """Register the distillers that `module` or one of its submodules defines without `@register`.

    Each class is registered by its name and by its name in capitals, as MDistiller does. A class whose name starts with
    `_` is not registered.
    """
    for entry in list(vars(module).values()):
        if not inspect.isclass(entry) or not issubclass(entry, Distiller) or entry in distiller_dict.values():
            continue
        if f"{entry.__module__}.".startswith(f"{module.__name__}.") and not entry.__name__.startswith("_"):
            if "channels_last" not in vars(entry):
                entry.channels_last = False
            entry.section = entry.__name__
            for name in dict.fromkeys((entry.__name__, entry.__name__.upper())):
                distiller_dict[name] = entry
    adopted_modules[module.__name__] = module


def own_defaults() -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Yield `(file, defaults by section)` for each plug-in file that defines `CFG`, as MDistiller's cfg.py does."""
    for module in adopted_modules.values():
        defaults = vars(module).get("CFG")
        if isinstance(defaults, dict):
            yield origin(module), defaults


def unread_sections(method: str) -> Tuple[str, ...]:
    """Return the names of the config sections that a method does not read: those of all others.

    A distiller of a user's own may read any section, so for it there are none.
    """
    distiller = distiller_dict.get(method)
    if distiller is None or distiller.__module__ not in [f"{PACKAGE}.{name}" for name in LIBRARY]:
        return ()
    return tuple(name for name in distiller_dict if name != method)


def import_pasted(name: str) -> None:
    """Import a module of this folder.

    Raises:
        UserError: the import fails, or the module defines a name that is already registered.
    """
    with _import_errors(f"{PACKAGE}.{name}", f"mdistiller/distillers/{name}.py", "fix it, or move it elsewhere"):
        adopt(importlib.import_module(f"{PACKAGE}.{name}"))


def load_installed() -> None:
    """Import the distillers of installed packages; log a warning for each module that cannot be imported."""
    found: Any = metadata.entry_points()
    if hasattr(found, "select"):
        points = found.select(group=ENTRY_POINT_GROUP)
    else:  # before Python 3.10
        points = found.get(ENTRY_POINT_GROUP, ())
    for module in sorted({point.value.partition(":")[0].strip() for point in points}):
        try:
            _load_module(module, "fix it, or uninstall it")
        except UserError as error:
            logging.getLogger("mdistiller").warning("installed distillers left out: %s", error)


def plugin_list(given: Any, source: str, folder: Optional[Path] = None) -> List[str]:
    """Return the entries of `PLUGINS` as a list; files in `folder` get its path.

    Args:
        given: a list of strings, or one string.
        source: where the value was given, for messages.
        folder: the folder to search for relative paths before the working directory.

    Raises:
        UserError: `given` is neither.
    """
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) and entry for entry in entries):
        raise UserError(
            f"PLUGINS in {source} is {given!r}; expected files and modules, as [mine.py, my_package.my_distiller]"
        )
    if folder is None:
        return list(entries)
    return [str(folder / e) if is_file(e) and (folder / e).is_file() else e for e in entries]


def load(plugins: List[str]) -> None:
    """Load the plug-ins of a configuration; those that are already loaded are skipped.

    Args:
        plugins: files (`….py`) and modules (`my_package.my_distiller`).

    Raises:
        UserError: a plug-in does not exist, cannot be imported, or defines a name that is already registered.
    """
    for plugin in plugins:
        if is_file(plugin):
            _load_file(find_file(plugin))
        else:
            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())  # last, so that a user's folder does not shadow an installed package
            _load_module(plugin, "fix it, or remove it from PLUGINS")


def is_file(plugin: str) -> bool:
    """Whether an entry of `PLUGINS` is a file and not a module."""
    return plugin.endswith(".py")


def _load_file(given: Path) -> None:
    """Import a file as a module of this package; its relative imports also find the files in its own folder."""
    path = Path(os.path.realpath(given))
    if not path.is_file():
        raise UserError(
            f"PLUGINS: no file at {given}; give it relative to the configuration or to the working directory"
        )
    name = f"{PACKAGE}.{path.stem.replace('.', '_')}"
    if name in sys.modules:
        other = origin(sys.modules[name])
        if Path(other).resolve() != path:
            raise UserError(f"PLUGINS: {given} has the name of {other}; rename one of them")
        adopt(sys.modules[name])
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    folders = sys.modules[PACKAGE].__path__
    folders.append(str(path.parent))
    try:
        with _import_errors(name, str(given), "fix it, or remove it from PLUGINS"):
            sys.modules[name] = module
            spec.loader.exec_module(module)
            adopt(module)
    finally:
        folders.remove(str(path.parent))


def _load_module(name: str, remedy: str) -> None:
    with _import_errors(name, name, remedy):
        try:
            adopt(_import(name))
        except ImportError as error:
            spec = None if "." in name else importlib.util.find_spec(name)
            if "no known parent package" not in str(error) or spec is None or spec.origin is None:
                raise
            _load_file(Path(spec.origin))  # a top-level module with relative imports, written for this folder


def _import(name: str) -> ModuleType:
    """Import a module; a relative import that its own package lacks resolves to this folder."""
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            package, _, missing = (error.name or "").rpartition(".")
            ours = f"{PACKAGE}.{missing}"
            if not package or not name.startswith(f"{package}.") or importlib.util.find_spec(ours) is None:
                raise
            sys.modules[f"{package}.{missing}"] = importlib.import_module(ours)


@contextmanager
def _import_errors(module: str, what: str, remedy: str) -> Iterator[None]:
    """Turn an error of an import into a UserError of one line, and remove what the module has registered so far."""
    registries: Tuple[Registry[Any], ...] = (distiller_dict, head_dict, *FAMILIES)
    before = [set(registry) for registry in registries]
    try:
        yield
    except (Exception, SystemExit) as error:
        sys.modules.pop(module, None)
        for registry, known in zip(registries, before):
            for name in set(registry) - known:
                # a model's constructor may be from another module, so `__module__` does not identify the plug-in
                if registry in FAMILIES or registry[name].__module__ == module:
                    del registry[name]
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what} cannot be imported ({_reason(error)}); {remedy}") from error


def _reason(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f", {frames[-1].filename} line {frames[-1].lineno}" if frames and frames[-1].filename != __file__ else ""
    return f"{type(error).__name__}: {error}{place}"


def build_distiller(
    name: str, student: nn.Module, teacher: Optional[nn.Module], cfg: CfgNode, num_data: int
) -> Distiller:
    """Build the distiller `name`.

    Args:
        name: a key of `distiller_dict`.
        student, teacher: see `Distiller`.
        cfg: the resolved configuration.
        num_data: number of training images, for a constructor that requires it, such as that of MDistiller's CRD.

    Raises:
        UserError: the distiller reads an undefined config key, or does not support this pair of models.
    """
    distiller_class: Any = distiller_dict[name]
    parameter = inspect.signature(distiller_class).parameters.get("num_data")
    needs_num_data = parameter is not None and parameter.default is inspect.Parameter.empty
    try:
        distiller = distiller_class(student, teacher, cfg, *([num_data] if needs_num_data else []))
    except AttributeError as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        # an undefined config key if the error comes from yacs' key lookup; otherwise a bug of the distiller
        if not frames or frames[-1][0].f_code is not CfgNode.__getattr__.__code__:
            raise
        file = origin(distiller_class)
        if frames[-1][0].f_locals["self"] is cfg:
            raise UserError(
                f"distiller {name} reads the config section {error}, which nothing defines; decorate its class with"
                f' @register("{error}"), or define the section in a CFG in {file}'
            ) from error
        raise UserError(
            f"distiller {name} reads the config key {error}, which nothing defines; give it a value in the"
            f" configuration, or a default in {file}"
        ) from error
    if isinstance(distiller.head, Head):
        distiller.student.get_classifier()  # fails here rather than in evaluation, which uses it as a probe
    return distiller
