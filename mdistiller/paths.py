"""Where files and folders are: as given, relative to the working directory, and what ships with the project.

Only shipped files (`SHIPPED_FOLDERS`) are found from any working directory. Any other relative path is one of the
working directory.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Iterator, Optional

from .errors import UserError

PACKAGE = Path(__file__).resolve().parent
# an installed package holds them (see setup.py); in a clone they are beside the package
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
CONFIGS = Path("configs")
SHIPPED_FOLDERS = (CONFIGS, Path("data/fashion-mnist-part"), Path("download_ckpts/demo"))


def _root(variable: str, folder: str) -> Path:
    if os.environ.get(variable):
        return usable(os.environ[variable])
    try:
        return Path.cwd() / folder
    except FileNotFoundError:
        raise UserError("the working directory was removed; change to another") from None


def data_root() -> Path:
    """Folder of the data sets: `$MDISTILLER_DATA`, else `./data`."""
    return _root("MDISTILLER_DATA", "data")


def ckpt_root() -> Path:
    """Folder of the released teachers: `$MDISTILLER_CKPTS`, else `./download_ckpts`."""
    return _root("MDISTILLER_CKPTS", "download_ckpts")


def cache_root() -> Path:
    """Folder for what was measured once: `$MDISTILLER_CACHE`, else `~/.cache/mdistiller`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return usable(os.environ.get("MDISTILLER_CACHE") or os.path.join(base, "mdistiller"))


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave with `~`, `~user`, `$NAME` and `${NAME}` replaced, unless it exists as given.

    Raises:
        UserError: no variable or no user of that name.
    """
    text = os.fspath(path)
    if os.path.lexists(text):
        return Path(text)
    for braced, plain in re.findall(r"\$(?:\{([^}]*)\}|(\w+))", text):
        if not os.environ.get(braced or plain):
            raise UserError(
                f"{text!r:.200} names the environment variable {braced or plain}, which is not set or empty; set"
                " it, or give the path in full"
            )
    try:
        return Path(os.path.expandvars(text)).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text!r:.200} cannot be a path ({error}); give another") from None


def usable(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave; nothing need be there. A text is `expanded`, a `Path` is taken as it stands.

    Raises:
        UserError: nothing can be there: a name that is too long or not text, a circle of links; or see `expanded`.
    """
    return possible(path if isinstance(path, Path) else expanded(path))


def possible(path: Path) -> Path:
    """Return `path` if something could be there; see `usable`."""
    if "\0" in str(path):  # Python's own message depends on its version
        raise UserError(f"{str(path)!r:.200} cannot be a path (embedded null byte); give another")
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
        raise UserError(f"{str(path)!r:.200} cannot be a path ({reason}); give another") from None
    return path


def check_ends(path: Path) -> None:
    """Raise an OSError if `path` is a pipe or a device, whose end may never come."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "neither a file nor a folder")


def text_of(path: Path) -> str:
    """Return the text (UTF-8) of a file.

    Raises:
        OSError: it cannot be read; see `check_ends`.
        UnicodeDecodeError: it is not UTF-8 text.
    """
    check_ends(path)
    return path.read_text(encoding="utf-8")


def find_file(path: str | os.PathLike[str]) -> Path:
    """Return `path` as it stands (`usable`), or the shipped file or folder of that name when only that exists.

    Raises:
        UserError: see `usable`.
    """
    given = usable(path)
    if given.is_absolute() or given.exists():
        return given
    name = Path(os.path.normpath(given))
    shipped = SHIPPED / name
    return shipped if _is_shipped(name) and shipped.exists() else given


def find_config(name: str | os.PathLike[str]) -> Path:
    """Return the configuration file of a path or of a shipped configuration's name, as `demo/sfakd`.

    Both may lack `.yaml`, and the latter `configs/`. What is in the working directory comes first. The path as it
    stands is returned when there is neither.

    Raises:
        UserError: see `usable`.
    """
    given = usable(name)
    files = (given, Path(f"{given}.yaml"))
    for file in (*files, *(CONFIGS / file for file in files)):
        if file.exists() and not file.is_dir():
            return file
    return shipped_config(given) or given


def shipped_config(name: Path) -> Optional[Path]:
    """Return the shipped configuration of that name or path, as `find_config` takes it; `None` if there is none."""
    files = (name, Path(f"{name}.yaml"))
    for file in (*files, *(CONFIGS / file for file in files)):
        normal = Path(os.path.normpath(file))
        if _is_shipped(normal) and (SHIPPED / normal).is_file():
            return SHIPPED / normal
    return None


def shipped_configs() -> Iterator[str]:
    """Yield the name of each shipped configuration, as `demo/sfakd`."""
    folder = SHIPPED / CONFIGS
    for file in sorted(folder.rglob("*.yaml")):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if not name.startswith("_"):
            yield name


def anywhere(path: str | os.PathLike[str]) -> str:
    """Return `path` so that it means the same in every working directory: absolute, or the name of a shipped file.

    Raises:
        UserError: see `usable`.
    """
    found = find_file(path).absolute()
    try:
        name = found.relative_to(SHIPPED)
    except ValueError:
        return str(found)
    return name.as_posix() if _is_shipped(name) else str(found)


def _is_shipped(name: Path) -> bool:
    """Whether a relative path is in a shipped folder, or is one."""
    return any(folder in (name, *name.parents) for folder in SHIPPED_FOLDERS)
