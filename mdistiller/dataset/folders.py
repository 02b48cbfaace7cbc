"""Images that lie in a folder per class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Sequence

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import UserError
from .splits import FileSplit


def entries(folder: Path) -> List[Path]:
    """Return what lies in `folder`.

    Raises:
        UserError: it may not be read.
    """
    try:
        return [folder / name for name in os.listdir(folder)]
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> UserError:
    return UserError(f"the folder {error.filename} cannot be read ({error.strerror}); mend its permissions")


def class_folders(folder: Path, layout: str) -> List[str]:
    """Return the sorted names of the folders in `folder`, but for hidden ones; a link to a folder is one.

    Raises:
        UserError: there is no `folder`, or none in it; the message ends in `layout`, which says what is expected.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; {layout}")
    names = sorted(entry.name for entry in entries(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no class folders; {layout}")
    return names


def check_same_classes(root: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """Refuse a data set whose two splits differ in their class folders."""
    more, less = sorted(set(val) - set(train)), sorted(set(train) - set(val))
    if more or less:
        wrong = [f"val has {_listed(more)}, which train lacks"] if more else []
        wrong += [f"val lacks {_listed(less)}, which train has"] if less else []
        raise UserError(f"the classes of {root} differ: {'; '.join(wrong)}; give both the same class folders")


def _listed(names: List[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def find_images(folder: Path, classes: Sequence[str]) -> FileSplit:
    """Return the images at any depth below `folder/<class>`; labels are positions in `classes`.

    Raises:
        UserError: a class has none; all such are named.
    """
    files: List[str] = []
    targets: List[int] = []
    empty: List[str] = []
    for label, name in enumerate(classes):
        found = _images(folder / name)
        if not found:
            empty.append(name)
        files += found
        targets += [label] * len(found)
    if empty:
        where = f"folder {folder / empty[0]} holds" if len(empty) == 1 else f"folders {_listed(empty)} of {folder} hold"
        raise UserError(f"the class {where} no image; add some ({' '.join(IMG_EXTENSIONS)})")
    return FileSplit(files, targets)


def _images(folder: Path) -> List[str]:
    """Return the images at any depth below `folder`, sorted, each linked folder once; hidden ones are no images."""

    def refuse(error: OSError) -> None:  # by itself, os.walk passes over what it may not read
        raise _unreadable(error)

    seen, found = set(), []
    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        shown = [name for name in names if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")]
        found += [os.path.join(place, name) for name in shown]
    return sorted(found, key=lambda file: file.split(os.sep))
