"""Build data/tin32-dev, the images of the studies, from Tiny-ImageNet: 100 of its classes, at 32×32 pixels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Tuple

from PIL import Image
from tqdm import tqdm

from mdistiller.atomic_files import writing_to
from mdistiller.cli import OneLineParser, run
from mdistiller.dataset.loading.splits import FileSplit, ImageSplit
from mdistiller.dataset.tiny_imagenet import tiny_imagenet
from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import UserError
from mdistiller.paths import data_root

CLASSES = Path(__file__).with_name("tin32_classes.txt").read_text().split()  # WordNet IDs, sorted
SIDE = 32  # px
QUALITY = 75  # of the JPEG files


def make_images(root: str, target: Path) -> int:
    """Write the images of CLASSES below `target`, as train/<class>/*.JPEG and val/<class>/*.JPEG; return their number.

    Args:
        root: the folder that tiny-imagenet-200.zip unpacks to; if empty, the default of `DATASET.TYPE tiny_imagenet`.
        target: the folder to write, which must not exist.

    Raises:
        UserError: `target` exists or cannot be written, Tiny-ImageNet has another layout, or it lacks one of CLASSES.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it, or give another folder with --output")
    splits = tiny_imagenet(load_cfg(None, ["DATASET.ROOT", root]))
    missing = sorted(set(CLASSES) - set(splits.info.classes))
    if missing:
        raise UserError(f"{splits.info.root} lacks {len(missing)} of {len(CLASSES)} classes, such as {missing[0]}")
    part = target.with_name(f"{target.name}.part")
    with writing_to(part):
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir(parents=True, exist_ok=True)
    names = splits.info.classes
    count = resize(splits.train, names, part / "train") + resize(splits.val, names, part / "val")
    os.replace(part, target)
    return count


def resize(split: ImageSplit, names: Tuple[str, ...], folder: Path) -> int:
    """Write the images of CLASSES at SIDE × SIDE pixels, a folder for each class; return their number."""
    assert isinstance(split, FileSplit)
    chosen = [index for index, label in enumerate(split.targets.tolist()) if names[label] in CLASSES]
    for index in tqdm(chosen, desc=folder.name):
        file = folder / names[split.targets[index]] / split.path(index).name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = split.load(index).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=QUALITY)
    return len(chosen)


def main() -> None:
    parser = OneLineParser(prog="tools/make_tin32.py", description=__doc__)
    parser.add_argument("--source", default="", metavar="DIR", help="default: data/tiny-imagenet-200")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: data/tin32-dev")
    args = parser.parse_args()
    target = args.output or data_root() / "tin32-dev"
    print(f"{target}: {make_images(args.source, target)} images")


if __name__ == "__main__":
    run(main, interrupted="start again")
