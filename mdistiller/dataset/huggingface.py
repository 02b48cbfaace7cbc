"""Data sets of Hugging Face's `datasets` library on the local disk: Parquet files, saved folders, and its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from ..errors import UserError, did_you_mean
from .folders.layout import TRAIN, VAL, check_val_fraction, hold_out
from .imagefolder import own_images
from .loading.splits import Splits, dataset_dict, of_any_size
from .options import DEFAULT_SIZE, read_options
from .tables.find import LAYOUT, Tables, find_root, library, open_tables
from .tables.split import TableSplit
from .webdataset import local_root


@dataset_dict.register("huggingface")
@of_any_size
def huggingface(cfg: CfgNode) -> Splits:
    """Find the images in the tables of `DATASET.ROOT`: a Parquet file, a folder, or a name in the library's cache.

    The tables give any row at once, so the images are distributed among processes, shuffled and resumed like files. The
    library's own shuffling and streaming are not used. Class names are those of the column's `ClassLabel`. Labels that
    are strings are classes in alphabetical order; plain numbers are their own names.

    If there is no validation part, `DATASET.VAL_FRACTION` of the training images are held out. Statistics are measured
    as for `imagefolder`.

    Raises:
        UserError: the library, a table or a column is missing, a table is damaged, or a label is out of range.
    """
    options = read_options(cfg, own_size=DEFAULT_SIZE)
    given = cfg.DATASET.ROOT
    library()
    root = find_root(local_root(given, LAYOUT), given)
    tables = open_tables(root)
    fraction = options.val_fraction
    if TRAIN not in tables:
        raise UserError(f"DATASET.ROOT {root} has no training images, only {', '.join(sorted(tables))}; {LAYOUT}")
    check_val_fraction(fraction, VAL in tables, root, "test" in tables)
    used = {part: tables[part] for part in ((TRAIN, VAL) if fraction == 0 else (TRAIN,))}
    classes, targets = _labels(used, cfg.DATASET.LABEL_COLUMN, root)
    column, place = cfg.DATASET.IMAGE_COLUMN, root.parent if root.is_file() else root
    splits = {
        part: TableSplit(_with_images(table, column, root), column, targets[part], root / part, place)
        for part, table in used.items()
    }
    train, val = hold_out(splits[TRAIN], root, classes, fraction) if fraction > 0 else (splits[TRAIN], splits[VAL])
    return own_images(cfg, options, classes, root, lambda: train, lambda: val)


def _feature(table: Any, column: str, key: str, root: Path) -> Any:
    if column not in table.features:
        raise UserError(f"{root} has no column {column!r}: set DATASET.{key}{did_you_mean(column, table.features)}")
    return table.features[column]


def _with_images(table: Any, column: str, root: Path) -> Any:
    """Return a table of the column alone, whose images are not decoded by the library.

    Raises:
        UserError: it is missing, or holds no encoded images.
    """
    datasets = library()
    feature = _feature(table, column, "IMAGE_COLUMN", root)
    encoded = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    texts = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary", "string")
    if not (encoded or texts or isinstance(feature, datasets.Image)):
        raise UserError(
            f"the column {column!r} of {root} holds {feature}; expected encoded images: set DATASET.IMAGE_COLUMN"
        )
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _labels(tables: Tables, column: str, root: Path) -> Tuple[List[str], Dict[str, Tensor]]:
    """Return class names, and labels int64 [N] by part.

    Raises:
        UserError: the column is missing, has other values than labels, an empty cell, or a label out of range.
    """
    datasets = library()
    features = {part: _feature(table, column, "LABEL_COLUMN", root) for part, table in tables.items()}
    for part, other in features.items():
        if not isinstance(other, (datasets.ClassLabel, datasets.Value)) or other.dtype != features[TRAIN].dtype:
            raise UserError(
                f"the column {column!r} of {root} holds {other} in the {part} part; expected a label in each row, of"
                " the same type in all parts: set DATASET.LABEL_COLUMN"
            )
    values: Dict[str, np.ndarray] = {}
    for part, table in tables.items():
        cells = table.select_columns([column]).with_format("arrow")[:][column]
        if cells.null_count:
            raise UserError(f"{root}: {part} row {cells.is_null().to_pylist().index(True)} has no label; remove it")
        values[part] = np.array(cells.to_pylist())
    feature = features[TRAIN]
    for part, other in features.items():
        if getattr(other, "names", None) != getattr(feature, "names", None):
            raise UserError(f"{root}: the {part} and training images have different classes; give both the same")
    if isinstance(feature, datasets.ClassLabel):
        classes = list(feature.names)
    else:
        if any(labels.dtype.kind not in "iuU" for labels in values.values()):
            raise UserError(
                f"the column {column!r} of {root} holds {feature}; expected labels: set DATASET.LABEL_COLUMN"
            )
        classes, values = _found_classes(values, column, root)
    if len(classes) < 2:
        raise UserError(f"the column {column!r} of {root} has a single class; expected at least two")
    for part, labels in values.items():
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            raise UserError(
                f"{root}: {part} row {wrong[0]} has the label {labels[wrong[0]]}; expected 0 to {len(classes) - 1}"
            )
    return classes, {part: torch.from_numpy(labels.astype(np.int64)) for part, labels in values.items()}


def _found_classes(values: Dict[str, np.ndarray], column: str, root: Path) -> Tuple[List[str], Dict[str, np.ndarray]]:
    """Return the classes of strings or numbers, which the training images determine, and the labels by part.

    Raises:
        UserError: a string is empty, a class has no training image, or numbers do not start at 0.
    """
    found = np.unique(values[TRAIN])
    for part, labels in values.items():
        strange = labels[~np.isin(labels, found)]
        if len(strange):
            raise UserError(
                f"{root}: {part} images have the class {strange[0].item()!r}, and no training image has it; give both"
                " the same classes"
            )
    if found.dtype.kind == "U":
        if "" in found:
            raise UserError(f"the column {column!r} of {root} has empty strings; give each image its class")
        return found.tolist(), {part: np.searchsorted(found, labels) for part, labels in values.items()}
    if len(found) and (found[0] != 0 or found[-1] != len(found) - 1):
        raise UserError(
            f"the column {column!r} of {root} has {len(found)} different numbers from {found[0]} to {found[-1]};"
            f" expected classes from 0 to {len(found) - 1}, each with a training image: number them so, or set"
            " DATASET.LABEL_COLUMN"
        )
    return [str(number) for number in found.tolist()], values
