"""Make the demo's contact sheets, data/fashion-mnist-part/*.png, from the IDX files of Fashion-MNIST."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mdistiller.cli import OneLineParser, run
from mdistiller.dataset.fashion_demo import CLASSES, FOLDER, TILE, sheet_name
from mdistiller.errors import UserError
from mdistiller.paths import SHIPPED

SHEETS = {"train": ("train", 20, 30), "test": ("t10k", 10, 20)}  # split: file prefix, rows and columns of a sheet


def read_idx(path: Path, header: int) -> np.ndarray:
    """Return the bytes after the header of an IDX file. It has 16 bytes for images and 8 bytes for labels."""
    try:
        return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)[header:]
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}); give the folder of Fashion-MNIST's four *.gz files") from error


def make_sheets(source: Path, target: Path) -> int:
    """Write one sheet per class and split, with the class's first images in file order; return their size in bytes."""
    size = 0
    for split, (prefix, rows, columns) in SHEETS.items():
        pixels = read_idx(source / f"{prefix}-images-idx3-ubyte.gz", 16)
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", 8)
        counts = np.bincount(labels, minlength=len(CLASSES))
        if len(pixels) != len(labels) * TILE * TILE or len(counts) > len(CLASSES) or counts.min() < rows * columns:
            raise UserError(
                f"{source} has {len(labels)} labels and {len(pixels)} pixels of the split {split}; expected those of"
                " Fashion-MNIST"
            )
        images = pixels.reshape(-1, TILE, TILE)
        for label in range(len(CLASSES)):
            tiles = images[labels == label][: rows * columns].reshape(rows, columns, TILE, TILE)
            sheet = target / sheet_name(split, label)
            Image.fromarray(tiles.swapaxes(1, 2).reshape(rows * TILE, columns * TILE)).save(sheet, optimize=True)
            size += sheet.stat().st_size
    return size


def main() -> None:
    parser = OneLineParser(prog="tools/make_demo_data.py", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE_FOLDER", help="folder of the four *-ubyte.gz files")
    parser.add_argument("--out", type=Path, default=SHIPPED / "data" / FOLDER, help="default: %(default)s")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{args.out}: {make_sheets(args.source, args.out) / 1e6:.2f} MB")


if __name__ == "__main__":
    run(main, interrupted="start again")
