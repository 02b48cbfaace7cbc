"""The folder of a table of vectors: created atomically, with a file that describes the contents of the table."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterable

from ...errors import counted
from .memory import free_disk, gib, reserve

ABOUT = "about.json"
PREFIX = ".table-"  # of a folder in which a table is being made
MAX_AGE = 24 * 3600  # seconds; a folder that has been in the making for longer is of a process that was killed


def prepare_folder(folder: Path, about: Dict[str, Any], sizes: Dict[str, int], limit_gb: float = 0.0) -> str:
    """Create the files of a table in `folder`, unless it has them; return for the user what was found there.

    Renames replace the folder in one step, so that other processes never see half a table.

    Args:
        folder: the folder of the table.
        about: the description that identifies the table.
        sizes: the sizes of the files in bytes, by file name.
        limit_gb: the largest size of this table and those beside it together, in GiB; 0 for no limit.

    Raises:
        OSError: the disk has too little room, the limit is too small, or the folder cannot be written.
    """
    if _is_complete(folder, about, sizes):
        return "found"
    state = "damaged, made again" if folder.exists() else _compare_with_others(folder, about)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_remains(folder.parent)
    needed, free = sum(sizes.values()), free_disk(folder.parent)
    others = _size_of_others(folder, sizes) if limit_gb else 0
    if limit_gb and needed + others > limit_gb * 2**30:
        beside_it = f" beside {gib(others)} of other tables" if others else ""
        raise OSError(f"{gib(needed)}{beside_it} do not fit TEACHER_CACHE_GB {limit_gb:g}")
    if needed > free:
        raise OSError(f"{gib(needed)} do not fit on a disk with {gib(free)} free")
    with TemporaryDirectory(prefix=PREFIX, dir=folder.parent) as beside:
        new = Path(beside, "new")
        new.mkdir()
        for name, size in sizes.items():
            with open(new / name, "wb") as file:
                reserve(file, size)
        (new / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if not _is_complete(folder, about, sizes):  # another process may have created it in the meantime
            if folder.exists():
                os.rename(folder, Path(beside, "old"))
            with suppress(OSError):  # another process was faster; its folder is equally good
                os.rename(new, folder)
    return state


def _size_of_others(folder: Path, names: Iterable[str]) -> int:
    """Return the bytes of the tables beside `folder`, and of those in the making."""
    files = [path for name in names for path in folder.parent.glob(f"*/{name}") if path.parent != folder]
    files += [path for name in names for path in folder.parent.glob(f"{PREFIX}*/*/{name}")]
    return sum(path.stat().st_size for path in files)


def _remove_remains(parent: Path) -> None:
    """Remove what killed processes left of tables that they were making."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > MAX_AGE:
                shutil.rmtree(path)


def _is_complete(folder: Path, about: Dict[str, Any], sizes: Dict[str, int]) -> bool:
    files = {folder / name: size for name, size in sizes.items()}
    right_sizes = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
    return right_sizes and _read_about(folder / ABOUT) == about


def _compare_with_others(folder: Path, about: Dict[str, Any]) -> str:
    """Return for the user how a new table differs from the most similar one beside it."""
    others = [_read_about(path) for path in sorted(folder.parent.glob(f"[!.]*/{ABOUT}"))]
    differing = [[key for key in sorted({*about, *other}) if other.get(key) != about.get(key)] for other in others]
    nearest = min(differing, key=len, default=[])
    if not others:
        return "new"
    return f"new ({counted(len(others), 'other table')} not used; the most similar differs in {', '.join(nearest)})"


def _read_about(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
