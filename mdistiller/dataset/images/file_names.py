"""File names in a data folder: images, and leftovers of operating systems and programs."""

from __future__ import annotations

import os
from typing import Dict, FrozenSet, Tuple

from PIL import Image

# Ghostscript would execute EPS as a program; Pillow registers the others but cannot decode an image from them.
NOT_PICTURES = ("EPS", "BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
MPO = "MPO"  # a JPEG followed by further images, from phones; Pillow's JPEG reader opens it
NO_SUFFIX = "without a suffix"

# Files and folders of Synology and QNAP, macOS, Windows, Linux and Jupyter, in lower case.
LEFTOVERS = frozenset(
    [
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
        *("lost+found", "__pycache__"),
    ]
)  # hidden ones, such as .DS_Store and .ipynb_checkpoints, are ignored anyway


def is_leftover(name: str) -> bool:
    """Return whether a file or folder is hidden or a leftover, hence neither an image nor a class."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def picture_suffixes() -> FrozenSet[str]:
    """Return the suffixes of all formats that the installed Pillow reads, in lower case with a dot."""
    kinds: Dict[str, str] = Image.registered_extensions()
    readable = (*picture_formats(), MPO)
    return frozenset(suffix for suffix, kind in kinds.items() if kind in readable)


def picture_formats() -> Tuple[str, ...]:
    """Return Pillow's names of the accepted formats, in the order in which it tries them."""
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in NOT_PICTURES)


def suffix_of(name: str) -> str:
    """Return the suffix of a file name, in lower case with a dot, or `NO_SUFFIX`."""
    return os.path.splitext(name)[1].lower() or NO_SUFFIX
