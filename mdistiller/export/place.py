"""Where an export goes: its path, and the temporary folder in which it is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Optional

from ..errors import UserError
from ..paths import user_path

CARD = "card.md"


def target_file(student: Path, kind: str, suffix: str, output: str | os.PathLike[str] | None, overwrite: bool) -> Path:
    """Return the path of the file to write.

    Args:
        student: the path of the student's checkpoint.
        kind: the name of the default folder, such as `onnx-int8`.
        suffix: the suffix of the file, such as `.onnx`.
        output: a file or folder, or `None` for the default beside the checkpoint.
        overwrite: whether the file may exist.

    Raises:
        UserError: it has another suffix, or exists.
    """
    name = "student" + suffix
    if output is None:
        target = student.parent / "export" / kind / name
    else:
        target = user_path(output)
        if target.is_dir() or not target.suffix:
            target = target / name
        elif target.suffix != suffix:
            raise UserError(f"--output {target} ends in {target.suffix}; this --format writes {suffix}")
    for file in (target, target.with_name(CARD)):
        if (file.exists() or file.is_symlink()) and (file.is_dir() or not overwrite):
            raise UserError(f"{file} exists; give --overwrite, or another --output")
    return target


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target, and remove it with all that was created if the block fails."""
    created = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    folder: Optional[Path] = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
        yield folder
        created = []
    except OSError as error:
        raise UserError(
            f"cannot write to {target} ({error.strerror or error}); free some space, fix the permissions, or give"
            " another --output"
        ) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for empty in created:
            with suppress(OSError):
                empty.rmdir()
