"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Optional

from .errors import UserError


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and their like, met while `path` is written, into a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer complains of its own position when the file below it has failed
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write to {path} ({cause.strerror or cause}); what was saved before is as it was: free some space,"
            " fix the permissions, or set LOG.PREFIX to another folder"
        ) from None


def replace(path: Path, fill: Callable[[BinaryIO], Any], previous: Optional[Path] = None) -> None:
    """Put a new file at `path`, of what `fill(file)` writes; after a failure everything is as it was.

    Args:
        previous: where the file that was at `path` goes. Between the two renames only `previous` is there.

    Raises:
        UserError: it cannot be written.
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
    """`replace` with a text, in UTF-8."""
    replace(path, lambda file: file.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(handle)
