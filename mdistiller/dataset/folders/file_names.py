"""Which names in a data folder are pictures, and which are left there by systems and programs."""

from __future__ import annotations

import os
from typing import Dict, FrozenSet, Tuple

from PIL import Image

# Pillow names them, but EPS would be run as a program by Ghostscript, and the others hold no picture that it decodes
NOT_PICTURES = ("EPS", "BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
MPO = "MPO"  # a JPEG with further pictures behind it, as phones write; opened by Pillow's JPEG reader
NO_SUFFIX = "without a suffix"

# thumbnails, bins and notes of Synology and QNAP, of macOS, of Windows, of Linux and Jupyter; in lower case
LEFTOVERS = frozenset(
    [
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
        *("lost+found", "__pycache__"),
    ]
)  # hidden ones, such as .DS_Store, .thumbnails and .ipynb_checkpoints, need not be named


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that a system leaves: neither picture nor class."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def picture_suffixes() -> FrozenSet[str]:
    """Return the suffixes of the formats that the installed Pillow reads, in lower case with their dot."""
    kinds: Dict[str, str] = Image.registered_extensions()
    readable = (*picture_formats(), MPO)
    return frozenset(suffix for suffix, kind in kinds.items() if kind in readable)


def picture_formats() -> Tuple[str, ...]:
    """Return Pillow's names of the formats that a picture may have, whatever its suffix, in the order to try."""
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in NOT_PICTURES)


def suffix_of(name: str) -> str:
    """Return a file name's suffix, in lower case with its dot, or `NO_SUFFIX`."""
    return os.path.splitext(name)[1].lower() or NO_SUFFIX
