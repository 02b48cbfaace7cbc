"""Names of a teacher's outputs, and which of them belong to the classes of a data set.

An output or a class has one or several names: the class name, its wnid in WordNet, words. Names are compared without
case, underscores and spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import DefaultDict, Dict, List, Sequence, Set, Tuple

from ...dataset.info import DatasetInfo
from ...errors import UserError
from ...paths import find_file, read_text
from ..cfg import IMAGENET_CLASSES

KEY = "DISTILLER.TEACHER_CLASSES"
WORD_FILES = ("classes.txt", "words.txt")  # beside train/; Tiny-ImageNet has the latter
WNID = re.compile(r"n\d{8}")
LINE = re.compile(rf"(?P<wnid>{WNID.pattern})[\s,:]+(?P<words>\S.*)")

Names = Tuple[str, ...]  # of one output or class; the first one tells it from the others


def read_outputs(given: str) -> List[Names]:
    """Return the names of each of a teacher's outputs, in their order.

    Args:
        given: a value of `DISTILLER.TEACHER_CLASSES`: `imagenet`, or a text file with one line for each output. A line
            is a name, or a wnid and words; words are separated by commas.

    Raises:
        UserError: the file is missing, unreadable or empty, or has an empty line or a line twice; or timm is missing.
    """
    return _imagenet() if given == IMAGENET_CLASSES else _read_file(given)


def _imagenet() -> List[Names]:
    """Return the wnids and the words of ImageNet-1k's classes."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES as words

    try:
        from timm.data import ImageNetInfo
    except ImportError:
        # words alone would take the bird for the machine: torchvision calls n02012849, crane, a "crane bird"
        raise UserError(
            f"{KEY} {IMAGENET_CLASSES} needs timm, which knows the wnids and all words; run: pip install timm"
        ) from None
    info = ImageNetInfo()
    return [
        (info.index_to_label_name(index), word, *_words(info.index_to_description(index)))
        for index, word in enumerate(words)
    ]


def _read_file(given: str) -> List[Names]:
    expected = f"expected {IMAGENET_CLASSES}, or a text file with the name of one output of the teacher a line"
    path = find_file(given)
    if not path.is_file():
        raise UserError(f"{KEY}: no file at {given}; {expected}")
    try:
        lines = [line.strip() for line in read_text(path).lstrip("\ufeff").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{KEY}: {given} cannot be read ({reason}); {expected}") from None
    if not lines:
        raise UserError(f"{KEY}: {given} is empty; {expected}")
    first: Dict[str, int] = {}
    outputs = []
    for number, line in enumerate(lines, start=1):
        if not line:
            raise UserError(f"{KEY}: line {number} of {given} is empty; {expected}")
        names = _names(line)
        if names[0] in first:
            raise UserError(
                f"{KEY}: lines {first[names[0]]} and {number} of {given} are both {names[0]!r}; give each output a name"
                " of its own, such as its wnid"
            )
        first[names[0]] = number
        outputs.append(names)
    return outputs


def _names(line: str) -> Names:
    found = LINE.fullmatch(line)
    return (found["wnid"], *_words(found["words"])) if found else _words(line)


def _words(text: str) -> Names:
    """Return a text, and its parts between commas."""
    parts = [part.strip() for part in text.split(",")]
    return (text.strip(), *(part for part in parts if part)) if len(parts) > 1 else (text.strip(),)


def class_names(info: DatasetInfo) -> List[Names]:
    """Return the names of each class of a data set: that of its folder, and for a wnid the words of `WORD_FILES`."""
    words: Dict[str, Names] = {}
    for file in WORD_FILES:
        for line in _lines_of(info.root / file) if info.root else ():
            found = LINE.fullmatch(line.strip())
            if found:
                words.setdefault(found["wnid"], _words(found["words"]))
    return [(name, *words.get(name, ())) for name in info.classes]


def _lines_of(path: Path) -> List[str]:
    """Return the lines of a file that the user did not name; none if it cannot be read."""
    try:
        return read_text(path).lstrip("\ufeff").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def normalized(name: str) -> str:
    """Return a name without case, underscores and spaces."""
    return re.sub(r"[\s_]", "", unicodedata.normalize("NFC", name).casefold())


def find_rows(info: DatasetInfo, outputs: Sequence[Names], source: str) -> Tuple[List[int], List[str]]:
    """Return the output of each class of a data set, and the classes that have none.

    A class belongs to the output with the same first name. If there is none, the class's first name must belong to
    exactly one output. If it does not, the names of the class that occur among the outputs must have exactly one output
    in common.

    Args:
        info: the description of the data set.
        outputs: the names of each output.
        source: the origin of these names, given in error messages.

    Raises:
        UserError: several outputs belong to a class, or several classes to an output.
    """
    exact = {names[0]: row for row, names in enumerate(outputs)}
    having: DefaultDict[str, Set[int]] = defaultdict(set)
    for row, names in enumerate(outputs):
        for name in names:
            having[normalized(name)].add(row)
    rows: List[int] = []
    missing: List[str] = []
    class_of: Dict[int, str] = {}
    for name, *others in class_names(info):
        found = {exact[name]} if name in exact else having.get(normalized(name), set())
        if len(found) != 1:
            found = _common([found, *(having.get(normalized(other), set()) for other in others)])
        if not found:
            missing.append(name)
            continue
        if len(found) > 1:
            raise UserError(
                f"the class {name!r} of the data set {info.name} may be {_described(sorted(found), outputs)} in"
                f" {source}; name its folder, or a line of {KEY}, unambiguously, for example by the wnid"
            )
        (row,) = found
        if row in class_of:
            raise UserError(
                f"the classes {class_of[row]!r} and {name!r} of the data set {info.name} are both"
                f" {_described([row], outputs)} in {source}; rename one of them, or give another teacher"
            )
        class_of[row] = name
        rows.append(row)
    return rows, missing


def _common(found: Sequence[Set[int]]) -> Set[int]:
    """Return what the sets that are not empty have in common, or all of it if they have nothing in common."""
    some = [rows for rows in found if rows]
    return (set.intersection(*some) or set.union(*some)) if some else set()


def _described(rows: Sequence[int], outputs: Sequence[Names]) -> str:
    return " or ".join(f"output {row} ({', '.join(outputs[row][:2])})" for row in rows[:3])
