"""Where data, checkpoints and caches live: an environment variable, else the working directory, else the clone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .errors import UserError

CLONE = Path(__file__).resolve().parent.parent


def _root(variable: str, folder: str) -> Path:
    if os.environ.get(variable):
        return usable(os.environ[variable])
    try:
        here = Path.cwd() / folder
    except FileNotFoundError:
        raise UserError("the working directory was removed; change to another") from None
    return here if here.is_dir() or not (CLONE / folder).is_dir() else CLONE / folder


def data_root() -> Path:
    """Folder of the data sets: `$MDISTILLER_DATA`, else `./data`, else `data/` of the clone."""
    return _root("MDISTILLER_DATA", "data")


def ckpt_root() -> Path:
    """Folder of the teachers: `$MDISTILLER_CKPTS`, else `./download_ckpts`, else `download_ckpts/` of the clone."""
    return _root("MDISTILLER_CKPTS", "download_ckpts")


def cache_root() -> Path:
    """Folder for what was measured once: `$MDISTILLER_CACHE`, else `~/.cache/mdistiller`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return usable(os.environ.get("MDISTILLER_CACHE") or os.path.join(base, "mdistiller"))


def usable(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, `~` expanded; nothing need be there.

    Raises:
        UserError: nothing can be there: a name that is too long or no text, a circle of links, an unknown user's home.
    """
    try:
        given = Path(path).expanduser()
        given.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
        raise UserError(f"{os.fspath(path)!r:.200} cannot be a path ({reason}); give another") from None
    return given


def check_ends(path: Path) -> None:
    """Raise an OSError if `path` is a pipe or a device, whose end may never come."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "neither a file nor a folder")


def text_of(path: Path) -> str:
    """Return the text (UTF-8) of a file.

    Raises:
        OSError: it cannot be read; see `check_ends`.
        UnicodeDecodeError: it is no text.
    """
    check_ends(path)
    return path.read_text(encoding="utf-8")


def find_file(path: str | os.PathLike[str]) -> Path:
    """Return `path` as it stands, or below the clone when only that exists (so that configs work from anywhere).

    Raises:
        UserError: see `usable`.
    """
    given = usable(path)
    in_clone = CLONE / given
    return in_clone if not given.exists() and not given.is_absolute() and in_clone.exists() else given
