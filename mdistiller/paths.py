"""Paths of files and folders that users give, and of those that ship with the project.

Files in `SHIPPED_FOLDERS` are found from any working directory. Any other relative path is relative to the working
directory.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Iterator, Optional

from .errors import UserError

PACKAGE = Path(__file__).resolve().parent
# an installed package contains the shipped files (see setup.py); in a clone they are beside the package
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
CONFIGS = Path("configs")
SHIPPED_FOLDERS = (CONFIGS, Path("data/fashion-mnist-part"), Path("download_ckpts/demo"))


def _root(variable: str, folder: str) -> Path:
    if os.environ.get(variable):
        return user_path(os.environ[variable])
    try:
        return Path.cwd() / folder
    except FileNotFoundError:
        raise UserError("the working directory was removed; change to another") from None


def data_root() -> Path:
    """Return the folder of the data sets: `$MDISTILLER_DATA`, or `./data` if that is not set."""
    return _root("MDISTILLER_DATA", "data")


def ckpt_root() -> Path:
    """Return the folder of the released teachers: `$MDISTILLER_CKPTS`, or `./download_ckpts` if that is not set."""
    return _root("MDISTILLER_CKPTS", "download_ckpts")


def cache_root() -> Path:
    """Return the folder for cached data-set statistics: `$MDISTILLER_CACHE`, else `mdistiller` in the user's cache.

    The user's cache is `$XDG_CACHE_HOME`, or `~/.cache` if that is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(os.environ.get("MDISTILLER_CACHE") or os.path.join(base, "mdistiller"))


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return `path` with `~`, `~user`, `$NAME` and `${NAME}` expanded. A path that exists as given is not changed.

    Raises:
        UserError: there is no variable or no user of that name.
    """
    text = os.fspath(path)
    if os.path.lexists(text):
        return Path(text)
    for braced, plain in re.findall(r"\$(?:\{([^}]*)\}|(\w+))", text):
        if not os.environ.get(braced or plain):
            raise UserError(
                f"{text!r:.200} names the environment variable {braced or plain}, which is not set or empty; set"
                " it, or give the full path"
            )
    try:
        return Path(os.path.expandvars(text)).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text!r:.200} cannot be a path ({error}); give another") from None


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, which need not exist. A string is `expanded`; a `Path` is not.

    Raises:
        UserError: see `expanded` and `validate_path`.
    """
    return validate_path(path if isinstance(path, Path) else expanded(path))


def validate_path(path: Path) -> Path:
    """Return `path`, which need not exist, unless no file can have it.

    Raises:
        UserError: the name is too long or cannot be encoded, or the path is a loop of links.
    """
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


def check_not_device(path: Path) -> None:
    """Raise an OSError if `path` is a pipe or a device. Reading one might never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "neither a file nor a folder")


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file.

    Raises:
        OSError: the file cannot be read, or is a pipe or a device.
        UnicodeDecodeError: the file is not UTF-8 text.
    """
    check_not_device(path)
    return path.read_text(encoding="utf-8")


def find_file(path: str | os.PathLike[str]) -> Path:
    """Return `path`, or the shipped file or folder of that name if only that one exists.

    Raises:
        UserError: see `user_path`.
    """
    given = user_path(path)
    if given.is_absolute() or given.exists():
        return given
    name = Path(os.path.normpath(given))
    shipped = SHIPPED / name
    return shipped if _is_shipped(name) and shipped.exists() else given


def find_config(name: str | os.PathLike[str]) -> Path:
    """Return the configuration file of that path, or the shipped configuration of that name, such as `demo/sfakd`.

    The ending `.yaml` and the folder `configs/` may be left out. Files in the working directory come first. If there is
    no such file, the path is returned as given.

    Raises:
        UserError: see `user_path`.
    """
    given = user_path(name)
    files = (given, Path(f"{given}.yaml"))
    for file in (*files, *(CONFIGS / file for file in files)):
        if file.exists() and not file.is_dir():
            return file
    return shipped_config(given) or given


def shipped_config(name: Path) -> Optional[Path]:
    """Return the shipped configuration of a name or path that `find_config` accepts, or `None` if there is none."""
    files = (name, Path(f"{name}.yaml"))
    for file in (*files, *(CONFIGS / file for file in files)):
        normal = Path(os.path.normpath(file))
        if _is_shipped(normal) and (SHIPPED / normal).is_file():
            return SHIPPED / normal
    return None


def shipped_configs() -> Iterator[str]:
    """Yield the name of each shipped configuration, such as `demo/sfakd`."""
    folder = SHIPPED / CONFIGS
    for file in sorted(folder.rglob("*.yaml")):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if not name.startswith("_"):
            yield name


def portable_path(path: str | os.PathLike[str]) -> str:
    """Return `path` in a form that does not depend on the working directory: absolute, or a shipped file's name.

    Raises:
        UserError: see `user_path`.
    """
    found = find_file(path).absolute()
    try:
        name = found.relative_to(SHIPPED)
    except ValueError:
        return str(found)
    return name.as_posix() if _is_shipped(name) else str(found)


def _is_shipped(name: Path) -> bool:
    """Return whether a relative path is a shipped folder or inside one."""
    return any(folder in (name, *name.parents) for folder in SHIPPED_FOLDERS)
