"""The demo set that ships with the repository: a part of Fashion-MNIST (Xiao et al., 2017; MIT license)."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from .. import paths
from ..errors import UserError
from .info import DatasetInfo
from .loading.splits import ArraySplit, Splits, dataset_dict
from .options import read_options

FOLDER = "fashion-mnist-part"
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
TILE = 28  # px, the side of an image in a sheet
SIZE = 32  # px, its side after zero-padding
# Over all pixels of the 6,000 training images after padding to 32×32, by mdistiller.dataset.images.stats.measure.
MEAN = (0.2197, 0.2197, 0.2197)
STD = (0.3326, 0.3326, 0.3326)


def sheet_name(split: str, label: int) -> str:
    """Return the file name of a contact sheet: `split` is "train" or "test"."""
    words = CLASSES[label].lower().replace("/", "-").replace(" ", "-")
    return f"{split}-{label}-{words}.png"


@dataset_dict.register("fashion_demo")
def fashion_demo(cfg: CfgNode) -> Splits:
    """Read the contact sheets: grayscale tiles, row by row, become RGB images of 32×32 px with a margin of zeros.

    They are in `DATASET.ROOT` if set, otherwise in `fashion-mnist-part/` of the data folder or among the shipped files.

    Raises:
        UserError: a sheet is missing or damaged.
    """
    options = read_options(cfg, own_size=SIZE)
    mean, std = options.statistics or (MEAN, STD)
    folder = _folder(cfg.DATASET.ROOT)
    info = DatasetInfo("fashion_demo", CLASSES, options.input_size, mean, std, folder)
    return Splits(_read(folder, "train"), _read(folder, "test"), info, options=options)


def _folder(root: str) -> Path:
    if root:
        return paths.find_file(root)
    folder = paths.data_root() / FOLDER
    return folder if folder.is_dir() else paths.SHIPPED / "data" / FOLDER


def _read(folder: Path, split: str) -> ArraySplit:
    sheets: List[np.ndarray] = [_tiles(folder / sheet_name(split, label)) for label in range(len(CLASSES))]
    targets = [label for label, tiles in enumerate(sheets) for _ in tiles]
    margin = (SIZE - TILE) // 2
    gray = np.pad(np.concatenate(sheets), ((0, 0), (margin, margin), (margin, margin)))
    return ArraySplit(np.repeat(gray[..., None], 3, axis=3), targets)


def _tiles(sheet: Path) -> np.ndarray:
    try:
        with Image.open(sheet) as image:
            pixels = np.asarray(image)
        rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
        return pixels.reshape(rows, TILE, columns, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError is Pillow's for a broken PNG
        reason = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise UserError(
            f"the demo's contact sheet {sheet} is {reason}; restore data/{FOLDER}/ from the repository"
        ) from error
