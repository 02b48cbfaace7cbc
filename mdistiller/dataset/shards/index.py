"""The index of a folder of shards: classes, checksums, and the place and label of each image.

Shards are tar files in the format of the `webdataset` library. The files of a sample have the same name up to the first
dot. What follows the dot is the field: `cls` is the label, a number as text, and the picture's field is the suffix of
its format, such as `jpg`. Other fields are ignored.

The library streams shards from start to end, and shuffles within a window. Here an index of all places is made once, so
that images are read in any order, as if they were files. Tar files are not compressed, so the standard library finds
the places.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ...atomic_files import replace_text
from ...download import sha256_of
from ...errors import UserError, one_line
from ..images.file_names import picture_suffixes

INDEX = "index.json"
FORMAT = {"format": "mdistiller.shards", "version": 1}
LABEL = "cls"  # the field of the label
MAX_LABEL_LENGTH = 20  # characters
REMEDY = "make it again with tools/make_shards.py"


@dataclass(frozen=True)
class Shard:
    """A tar file and the images in it, in their order.

    Attributes:
        file: the name of the tar file in its folder.
        bytes: the size of the tar file in bytes.
        sha256: the SHA-256 checksum of the tar file, hexadecimal.
        names: the names of the pictures in the tar file.
        labels: the labels of the pictures, from 0 on.
        offsets, sizes: the offsets of the pictures' contents in the tar file and the sizes of these contents, in bytes.
    """

    file: str
    bytes: int
    sha256: str
    names: Sequence[str]
    labels: Sequence[int]
    offsets: Sequence[int]
    sizes: Sequence[int]


Shards = Dict[str, List[Shard]]  # by part, "train" or "val"


def scan_shard(path: Path, num_classes: int) -> Shard:
    """Read the headers and labels of a tar file.

    Raises:
        UserError: it is not a tar file, is truncated or compressed; or a sample has no label or picture, several
            pictures, or a label out of range.
    """
    samples: Dict[str, Dict[str, Tuple[str, int, int]]] = {}
    labels: Dict[str, int] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, _, field = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                sample = samples.setdefault(folder + slash + stem, {})
                if field.lower() in sample:
                    raise UserError(f"{path}: {member.name} is there twice; give each sample a name of its own")
                sample[field.lower()] = (member.name, member.offset_data, member.size)
                if field.lower() == LABEL:
                    content = tar.extractfile(member)
                    text = b"" if content is None else content.read(MAX_LABEL_LENGTH + 1)
                    labels[folder + slash + stem] = _label(text, num_classes, f"{path}: {member.name}")
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut header for the end
                raise tarfile.ReadError("unexpected end of data")
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"the shard {path} cannot be read ({one_line(error)}); expected a complete tar file that is not compressed"
        ) from None
    suffixes = {suffix[1:] for suffix in picture_suffixes()}
    rows = [(*_picture(sample, suffixes, f"{path}: {key}"), labels[key]) for key, sample in samples.items()]
    if not rows:
        raise UserError(f"the shard {path} holds no samples; remove it")
    names, offsets, sizes, in_order = zip(*rows)
    return Shard(path.name, path.stat().st_size, sha256_of(path), names, in_order, offsets, sizes)


def _label(text: bytes, num_classes: int, where: str) -> int:
    is_number = re.fullmatch(rb"\s*\d+\s*", text) and len(text) <= MAX_LABEL_LENGTH
    label = int(text) if is_number else -1
    if not 0 <= label < num_classes:
        raise UserError(f"{where} is {text.decode(errors='replace')!r}; expected a label, 0 to {num_classes - 1}")
    return label


def _picture(sample: Dict[str, Tuple[str, int, int]], suffixes: Any, where: str) -> Tuple[str, int, int]:
    pictures = sorted(suffixes & set(sample))
    if len(pictures) != 1 or LABEL not in sample:
        raise UserError(f"{where} has the fields {', '.join(sorted(sample))}; expected one picture and {LABEL}")
    return sample[pictures[0]]


def write_index(folder: Path, classes: Sequence[str], shards: Shards) -> None:
    """Write the index of the shards in `folder`; an existing index is replaced atomically."""
    content = {**FORMAT, "classes": list(classes), **{part: [asdict(s) for s in of] for part, of in shards.items()}}
    replace_text(folder / INDEX, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_index(folder: Path) -> Tuple[List[str], Shards]:
    """Return classes and shards of a folder.

    Raises:
        UserError: there is no index, it is damaged, or it is of another format.
    """
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; make shards and their index with tools/make_shards.py, or the index of existing shards"
            " with its option --index"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); {REMEDY}") from None
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in FORMAT.items()):
        raise UserError(f"{path} is not an index of version {FORMAT['version']}; {REMEDY}")
    try:
        classes = content["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("it has no class names")
        if len(set(classes)) < max(2, len(classes)):
            raise ValueError("it needs two different class names or more, each once")
        names = {field.name for field in fields(Shard)}
        shards = {
            part: [_checked({name: entry[name] for name in names}, len(classes)) for entry in content.get(part, [])]
            for part in ("train", "val")
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is damaged ({reason}); {REMEDY}") from None
    return classes, shards


def _checked(entry: Dict[str, Any], num_classes: int) -> Shard:
    """Return a shard of the index, with arrays for lists of numbers.

    Raises:
        TypeError, ValueError, OverflowError: a value is impossible.
    """
    name = entry["file"]
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
        raise ValueError(f"a shard is called {name!r}")
    columns = {key: np.array(entry[key]) for key in ("labels", "offsets", "sizes")}
    for key, column in columns.items():
        if column.dtype.kind not in "iu" and column.size:
            raise ValueError(f"the {key} of {name} are not whole numbers")
    columns = {key: column.astype(np.int64) for key, column in columns.items()}
    if {column.shape for column in columns.values()} != {(len(entry["names"]),)} or not len(entry["names"]):
        raise ValueError(f"the entries of {name} have different lengths")
    if columns["labels"].min() < 0 or columns["labels"].max() >= num_classes:
        wrong = next(label for label in columns["labels"].tolist() if not 0 <= label < num_classes)
        raise ValueError(f"a label in {name} is {wrong}, expected 0 to {num_classes - 1}")
    ends = columns["offsets"] + columns["sizes"]
    if columns["offsets"].min() < 0 or columns["sizes"].min() < 0 or ends.max() > entry["bytes"]:
        raise ValueError(f"an image of {name} is outside it")
    if not all(isinstance(value, str) for value in (*entry["names"], entry["sha256"])):
        raise ValueError(f"a name in {name} is not a string")
    return Shard(**{**entry, **columns})
