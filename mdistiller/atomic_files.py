"""Atomic writes: a file is written under a temporary name beside its target, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Optional

from .errors import UserError


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and similar errors within a `with` block into a UserError about `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # when a write fails, torch.save raises a RuntimeError about its own position, in the context of the OSError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write to {path} ({cause.strerror or cause}); earlier files are unchanged: free some space,"
            " fix the permissions, or choose another folder"
        ) from None


def replace(path: Path, fill: Callable[[BinaryIO], Any], previous: Optional[Path] = None) -> None:
    """Replace the file at `path` by what `fill(file)` writes. After a failure, all files are as before.

    Args:
        fill: a function that writes the content to an open binary file.
        previous: the path to keep the old file under. Between the two renames only `previous` exists.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with writing_to(path):
            with partial.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(partial, path)
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`, in UTF-8; see `replace`."""
    replace(path, lambda file: file.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, such as renames, to the disk."""
    if os.name != "posix":  # only POSIX systems can open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not support this
            raise
    finally:
        os.close(handle)
