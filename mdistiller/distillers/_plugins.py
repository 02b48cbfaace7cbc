"""Distillers from elsewhere: pasted into this folder, named in a configuration's `PLUGINS`, or installed.

Such a file may also register models (`mdistiller.models.register_model`).

A file written for MDistiller or one of its forks runs as it is. Its classes need not register themselves, and its
relative imports (`from ._base import Distiller`, `from .KD import kd_loss`) mean this folder wherever it lies.
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

GROUP = "mdistiller.distillers"  # of entry points
PACKAGE = __name__.rpartition(".")[0]

_adopted: Dict[str, ModuleType] = {}  # by name


def adopt(module: ModuleType) -> None:
    """Register the distillers that `module`, or a module below it, defines and that no `@register` names.

    Such a class gets its own name and the same in capitals, MDistiller's spelling; a leading `_` keeps it to itself.
    """
    for entry in list(vars(module).values()):
        if not inspect.isclass(entry) or not issubclass(entry, Distiller) or entry in distiller_dict.values():
            continue
        if f"{entry.__module__}.".startswith(f"{module.__name__}.") and not entry.__name__.startswith("_"):
            if "channels_last" not in vars(entry):
                entry.channels_last = False
            for name in dict.fromkeys((entry.__name__, entry.__name__.upper())):
                distiller_dict[name] = entry
    _adopted[module.__name__] = module


def own_defaults() -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Yield `(file, defaults by section)` of each file that has a `CFG` of its own, as in MDistiller's cfg.py."""
    for module in _adopted.values():
        defaults = vars(module).get("CFG")
        if isinstance(defaults, dict):
            yield origin(module), defaults


def import_pasted(name: str) -> None:
    """Import a module of this folder.

    Raises:
        UserError: it cannot be imported, or defines a name that another file has.
    """
    with _registering(f"{PACKAGE}.{name}", f"mdistiller/distillers/{name}.py", "fix it, or move it elsewhere"):
        adopt(importlib.import_module(f"{PACKAGE}.{name}"))


def load_installed() -> None:
    """Import what installed packages offer under the entry-point group; one that is broken costs a warning."""
    found: Any = metadata.entry_points()
    points = found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ())  # Python before 3.10
    for module in sorted({point.value.partition(":")[0].strip() for point in points}):
        try:
            _load_module(module, "fix it, or uninstall it")
        except UserError as error:
            logging.getLogger("mdistiller").warning("installed distillers left out: %s", error)


def plugin_list(given: Any, source: str, folder: Optional[Path] = None) -> List[str]:
    """Return the entries of `PLUGINS`: modules as they stand, files with the path under which they were found.

    Args:
        given: a list of texts, or a single one.
        source: where it was given, for messages.
        folder: where relative paths are looked for before the working directory.

    Raises:
        UserError: it is neither.
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
    """Load the files (`….py`) and modules (`my_package.my_distiller`) of a configuration, each once.

    Raises:
        UserError: one does not exist, cannot be imported, or defines a name that another file has.
    """
    for plugin in plugins:
        if is_file(plugin):
            _load_file(find_file(plugin))
        else:
            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())  # last: a folder of the user's must not stand before what is installed
            _load_module(plugin, "fix it, or take it out of PLUGINS")


def is_file(plugin: str) -> bool:
    """Whether an entry of `PLUGINS` names a file, not a module."""
    return plugin.endswith(".py")


def _load_file(given: Path) -> None:
    """Import a file as if it lay in this folder, with the files beside it in reach of its relative imports."""
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
        with _registering(name, str(given), "fix it, or take it out of PLUGINS"):
            sys.modules[name] = module
            spec.loader.exec_module(module)
            adopt(module)
    finally:
        folders.remove(str(path.parent))


def _load_module(name: str, remedy: str) -> None:
    with _registering(name, name, remedy):
        try:
            adopt(_import(name))
        except ImportError as error:
            spec = None if "." in name else importlib.util.find_spec(name)
            if "no known parent package" not in str(error) or spec is None or spec.origin is None:
                raise
            _load_file(Path(spec.origin))  # a module of no package that imports as if it lay here


def _import(name: str) -> ModuleType:
    """Import a module; a relative import that its own package cannot serve is answered from this folder."""
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
def _registering(module: str, what: str, remedy: str) -> Iterator[None]:
    """Turn what an import raises into one line, and take back what the module had registered by then."""
    registries: Tuple[Registry[Any], ...] = (distiller_dict, head_dict, *FAMILIES)
    before = [set(registry) for registry in registries]
    try:
        yield
    except (Exception, SystemExit) as error:
        sys.modules.pop(module, None)
        for registry, known in zip(registries, before):
            for name in set(registry) - known:
                # a model's constructor may come from another module, so its `__module__` says nothing
                if registry in FAMILIES or registry[name].__module__ == module:
                    del registry[name]
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what} cannot be imported ({_reason(error)}); {remedy}") from error


def _reason(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f", {frames[-1].filename} line {frames[-1].lineno}" if frames and frames[-1].filename != __file__ else ""
    return f"{type(error).__name__}: {error}{place}"


def build_distiller(name: str, student: nn.Module, teacher: Optional[nn.Module], cfg: Any, num_data: int) -> Distiller:
    """Return the distiller `name`.

    Args:
        name: a key of `distiller_dict`.
        student, teacher: as `Distiller` takes them.
        cfg: the resolved configuration.
        num_data: training images, for a class that asks for them, as MDistiller's CRD.

    Raises:
        UserError: it reads a config key that nothing defines, or refuses the pair.
    """
    distiller_class: Any = distiller_dict[name]
    asked = inspect.signature(distiller_class).parameters.get("num_data")
    needs_count = asked is not None and asked.default is inspect.Parameter.empty
    try:
        distiller = distiller_class(student, teacher, cfg, *([num_data] if needs_count else []))
    except AttributeError as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        # yacs' own miss, not one of the code's: its last frame looks a key up
        if not frames or frames[-1][0].f_code is not CfgNode.__getattr__.__code__:
            raise
        file = origin(distiller_class)
        if frames[-1][0].f_locals["self"] is cfg:
            raise UserError(
                f"distiller {name} reads the config section {error}, which nothing defines; begin its class with"
                f' @register("{error}"), or give it in a CFG of its own in {file}'
            ) from error
        raise UserError(
            f"distiller {name} reads the config key {error}, which nothing defines; give it a value in the"
            f" configuration, or a default in {file}"
        ) from error
    if isinstance(distiller.head, Head):
        distiller.student.get_classifier()  # evaluation asks the student's own classifier too
    return distiller
