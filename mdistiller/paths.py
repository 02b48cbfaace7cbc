"""Where data, checkpoints and caches live: an environment variable, else the working directory, else the clone."""

from __future__ import annotations

import os
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent


def _root(variable: str, folder: str) -> Path:
    if os.environ.get(variable):
        return Path(os.environ[variable]).expanduser()
    here = Path.cwd() / folder
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
    return Path(os.environ.get("MDISTILLER_CACHE") or os.path.join(base, "mdistiller")).expanduser()


def find_file(path: str | os.PathLike[str]) -> Path:
    """Return `path` as it stands, or below the clone when only that exists (so that configs work from anywhere)."""
    given = Path(path).expanduser()
    in_clone = CLONE / given
    return in_clone if not given.exists() and not given.is_absolute() and in_clone.exists() else given
