"""Images in one folder per class."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from pathlib import Path
from typing import FrozenSet, List, Sequence

from ...errors import UserError, counted, listed
from ..images.file_names import is_leftover, picture_suffixes, suffix_of
from ..loading.splits import FileSplit

log = logging.getLogger("mdistiller")

MAX_NAMED = 5  # classes or suffixes in a message


def entries(folder: Path) -> List[Path]:
    """Return the entries of `folder`, except hidden ones and leftovers of operating systems.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        return [folder / name for name in os.listdir(folder) if not is_leftover(name)]
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> UserError:
    return UserError(f"the folder {error.filename} cannot be read ({error.strerror}); fix its permissions")


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder or a link to one.

    Raises:
        UserError: it is a broken link, for example to a disk that is not mounted, or it cannot be accessed.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if os.path.islink(path):
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which cannot be reached ({error.strerror});"
                " mount the disk it leads to, or correct or remove the link"
            ) from None
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return False
        raise _unreadable(error) from None


def folders_in(folder: Path) -> List[str]:
    """Return the sorted names of folders, and of links to folders, in `folder`.

    Raises:
        UserError: see `is_folder`.
    """
    return sorted(entry.name for entry in entries(folder) if is_folder(entry))


def class_folders(folder: Path, layout: str) -> List[str]:
    """Return the sorted names of the classes: the folders in `folder`, and links to folders.

    Args:
        folder: the folder that contains the class folders.
        layout: the expected layout, for messages.

    Raises:
        UserError: `folder` is missing, or holds fewer than two classes.
    """
    if not is_folder(folder):
        raise UserError(f"{folder} is missing; {layout}")
    names = folders_in(folder)
    suffixes = picture_suffixes()
    loose = sum(suffix_of(name) in suffixes for name in {entry.name for entry in entries(folder)} - {*names})
    if len(names) < 2:
        raise UserError(f"{folder} holds {_too_few(folder, names, loose)}; {layout}")
    if loose:
        log.warning("ignored %s in %s itself, outside the class folders", counted(loose, "image"), folder)
    return names


def _too_few(folder: Path, names: List[str], loose: int) -> str:
    """Describe a folder with fewer than two class folders, and say where the classes seem to be."""
    if not names:
        return "no class folders" + (f", but {counted(loose, 'image')} outside class folders" if loose else "")
    place, inner, seen = folder, names, {os.path.realpath(folder)}
    while len(inner) == 1 and os.path.realpath(place / inner[0]) not in seen:
        place /= inner[0]
        inner = folders_in(place)
        seen.add(os.path.realpath(place))
    if "train" in inner:
        return f"a whole data set, {place}, instead of classes: set DATASET.ROOT to that folder"
    if len(inner) > 1:
        only_one = f"only one folder, {place.relative_to(folder)}, with {len(inner)} folders in it ({listed(inner)})"
        return f"{only_one}: the classes seem to be there, move them up to {folder}"
    return f"only one class, {names[0]}, but at least two are needed"


def check_same_classes(where: Path | str, train: Sequence[str], val: Sequence[str]) -> None:
    """Check that the training and the validation images have the same classes.

    Args:
        where: the path of the data set, given in the error message.
        train, val: the class names of the training and of the validation images.

    Raises:
        UserError: they differ.
    """
    more, less = sorted(set(val) - set(train)), sorted(set(train) - set(val))
    if more or less:
        wrong = [f"val has {listed(more)}, which train lacks"] if more else []
        wrong += [f"val lacks {listed(less)}, which train has"] if less else []
        raise UserError(f"the classes of {where} differ: {'; '.join(wrong)}; give both the same classes")


def find_images(folder: Path, classes: Sequence[str], companions: Sequence[str] = ()) -> FileSplit:
    """Find the images at any depth below `folder/<class>`; labels are positions in `classes`.

    A warning counts the files that are ignored because of their suffix.

    Args:
        folder: the folder that contains the class folders.
        classes: the names of the class folders.
        companions: the suffixes of other files of the data set, which the warning does not count.

    Raises:
        UserError: a class has no image, or see `is_folder`.
    """
    files: List[str] = []
    targets: List[int] = []
    empty: List[str] = []
    ignored: Counter[str] = Counter()
    suffixes = picture_suffixes()
    for label, name in enumerate(classes):
        found = images_below(folder / name, suffixes, ignored)
        if not found:
            empty.append(name)
        files += found
        targets += [label] * len(found)
    for suffix in companions:
        del ignored[suffix]
    others = _by_suffix(ignored)
    if empty:
        where = f"folder {folder / empty[0]} holds" if len(empty) == 1 else f"folders {listed(empty)} of {folder} hold"
        hint = f" (files ignored in {folder}: {others})" if others else ""
        raise UserError(f"the class {where} no image{hint}; add some, for example as JPEG or PNG")
    if others:
        log.warning(
            "ignored %s in %s that Pillow does not read as images: %s",
            *(counted(sum(ignored.values()), "file"), folder, others),
        )
    return FileSplit(files, targets)


def _by_suffix(counts: Counter[str]) -> str:
    return listed(
        [f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))]
    )


def images_below(folder: Path, suffixes: FrozenSet[str], ignored: Counter[str]) -> List[str]:
    """Return the sorted images at any depth below `folder`, following each link once; count other files by suffix."""

    def refuse(error: OSError) -> None:  # by default, os.walk ignores folders that it cannot read
        raise _unreadable(error)

    seen, found = set(), []
    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not is_leftover(name)]
        for name in names:
            path, suffix = os.path.join(place, name), suffix_of(name)
            if is_leftover(name):
                continue
            if suffix in suffixes:
                found.append(path)
            else:
                if os.path.islink(path):
                    is_folder(Path(path))  # raises if it is broken: it may lead to a folder on a disk not mounted
                ignored[suffix] += 1
    return sorted(found, key=lambda file: file.split(os.sep))
