"""Writes shards and their index from an image folder, and the index of shards that exist already."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterator, List, Sequence

from tqdm import tqdm

from ...errors import UserError, missing_libraries
from ..folders.layout import TRAIN, VAL, find_parts, part_of
from ..images.file_names import suffix_of
from ..loading.image_check import check_images
from ..loading.splits import FileSplit
from .index import LABEL, Shards, scan_shard, write_index

log = logging.getLogger("mdistiller")

COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.I)
LAYOUT = "expected an image folder with train/<class>/<image> and val/<class>/<image>"


def make_shards(
    source: Path,
    out: Path,
    images_per_shard: int = 10_000,
    val_fraction: float = 0.0,
    corrupt: str = "refuse",
    num_workers: int = 2,
) -> Shards:
    """Write the images of a folder to shards, byte by byte and in the order in which `imagefolder` numbers them.

    The same images give the same files, because members have no dates or owners; but Python 3.8 fills fields of their
    headers that later versions leave empty. `out` is created atomically, after all shards are complete.

    Args:
        source: an image folder, `train/<class>/*` and `val/<class>/*`.
        out: a folder that does not exist yet, or is empty.
        images_per_shard: the largest number of images in a tar file.
        val_fraction: the fraction of `train/` to write to validation shards if there is no `val/`.
        corrupt: how to treat images that cannot be read: "refuse", "skip" or "unchecked"; see `DATASET.CORRUPT`.
        num_workers: the number of processes that check the images.

    Returns:
        The content of the index, by part.

    Raises:
        UserError: the library `webdataset` is missing, the folder has another layout, an image cannot be used, `out`
            already exists, or the disk is full.
    """
    tar_writer = _tar_writer()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists; give another folder, or remove it first")
    classes, find_train, find_val = find_parts(source, val_fraction, LAYOUT)
    parts: Dict[str, Any] = {}
    for part, find, role in ((TRAIN, find_train, "training"), (VAL, find_val, "validation")):
        parts[part] = check_images(find(), corrupt, num_workers, role)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
            new = Path(beside, out.name)
            new.mkdir()
            shards = {
                part: [
                    scan_shard(path, len(classes)) for path in _write(new, part, split, images_per_shard, tar_writer)
                ]
                for part, split in parts.items()
            }
            write_index(new, classes, shards)
            os.replace(new, out)
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({error.strerror or error}); nothing was kept: free some space, fix the"
            " permissions, or give another folder"
        ) from None
    return shards


def _tar_writer() -> Any:
    try:
        from webdataset import TarWriter
    except ImportError:
        raise missing_libraries("tools/make_shards.py", "webdataset") from None
    return TarWriter


def _write(folder: Path, part: str, split: FileSplit, images_per_shard: int, tar_writer: Any) -> Iterator[Path]:
    """Write the images of a split; yield each shard when it is complete."""
    bar = tqdm(total=len(split), desc=f"writing {part}", unit="image", delay=2, disable=None, leave=False)
    with bar:
        for number, start in enumerate(range(0, len(split), images_per_shard)):
            shard = folder / f"{part}-{number:06d}.tar"
            with shard.open("wb") as file:
                writer = tar_writer(file, user="", group="", mode=0o644, mtime=0, encoder=False)
                for index in range(start, min(start + images_per_shard, len(split))):
                    writer.write(_sample(split, index))
                    bar.update()
                writer.close()
                file.flush()
                os.fsync(file.fileno())
            yield shard


def _sample(split: FileSplit, index: int) -> Dict[str, Any]:
    path = split.path(index)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the image {path} cannot be read ({error.strerror}); fix its permissions") from None
    return {"__key__": f"{index:09d}", suffix_of(path.name)[1:]: content, LABEL: b"%d" % int(split.targets[index])}


def index_shards(folder: Path, classes_file: Path) -> Shards:
    """Write the index of the shards in a folder; a former index is replaced.

    A tar file whose name contains `val`, `valid` or `validation` as a word has validation images; `test` is left out.

    Args:
        folder: the folder that contains the tar files.
        classes_file: a text file with one class name a line, in label order.

    Raises:
        UserError: a file is missing or damaged; see `scan_shard`.
    """
    classes = _class_names(classes_file)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with shards")
    shards: Shards = {TRAIN: [], VAL: []}
    files = sorted(path for path in folder.iterdir() if COMPRESSED.search(path.name) or path.suffix.lower() == ".tar")
    for path in files:
        if path.suffix != ".tar":
            raise UserError(f"{path} is not a plain .tar file; expected shards without compression: unpack or rename")
    for path in tqdm(files, desc="reading shards", unit="shard", delay=2, disable=None, leave=False):
        part = part_of(path.stem) or TRAIN
        if part in shards:
            shards[part].append(scan_shard(path, len(classes)))
    if not shards[TRAIN]:
        raise UserError(f"{folder} holds no training shards; expected files such as train-000000.tar")
    write_index(folder, classes, shards)
    return shards


def _class_names(file: Path) -> List[str]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the class names {file} cannot be read ({error})") from None
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"{file} has {len(set(names))} different names in {len(names)} lines; expected one class name per line,"
            " all different, and at least two"
        )
    return names


def in_words(shards: Shards) -> Sequence[str]:
    """Return a line on each part: number of images, shards and bytes."""
    return [
        f"{part}: {sum(len(shard.names) for shard in of):,} images in {len(of)} shards,"
        f" {sum(shard.bytes for shard in of) / 1e6:,.1f} MB"
        for part, of in shards.items()
    ]
