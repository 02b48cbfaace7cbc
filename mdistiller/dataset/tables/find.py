"""Finds the tables of a data set of the `datasets` library on the local disk, and opens them.

The library keeps tables as Arrow files, which it maps into memory, so any row can be read at once. It converts Parquet
files to Arrow files in its cache (`HF_HOME` moves it) when they are first opened.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Set, Tuple

from ...errors import UserError, listed, missing_libraries, one_line
from ..folders.layout import TRAIN, part_of

PARQUET, ARROW = ".parquet", ".arrow"
SAVED, SAVED_PARTS = "state.json", "dataset_dict.json"  # of `save_to_disk`
LEFTOVERS = (".", "cache-", "tmp")  # hidden files, and what `map`, `filter` and the like leave beside a table
LAYOUT = (
    "expected Parquet files such as train-00000.parquet and validation-00000.parquet, a folder that the datasets"
    " library saved, or the name of a data set in its cache"
)

Tables = Dict[str, Any]  # `datasets.Dataset` by part: "train", "val", "test"


def library() -> Any:
    """Return the library `datasets`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise missing_libraries("DATASET.TYPE huggingface", "datasets") from None
    return datasets


def find_root(root: Path, name: str) -> Path:
    """Return `root` if it is there, otherwise the folder of the data set `name` in the library's cache.

    Args:
        root: `DATASET.ROOT` as a path.
        name: `DATASET.ROOT` as given.

    Raises:
        UserError: there is none, or there are several versions.
    """
    if root.exists():
        return root
    cache = Path(library().config.HF_DATASETS_CACHE)
    place = cache / name.strip("/").replace("/", "___")
    found = sorted(info.parent for info in place.rglob("dataset_info.json") if info.parent.suffix != ".incomplete")
    if not found:
        raise UserError(f"DATASET.ROOT {name} is neither on the disk nor in the cache {cache}; {LAYOUT}")
    if len(found) > 1:
        raise UserError(
            f"DATASET.ROOT {name} has {len(found)} versions in the cache ({listed([str(f) for f in found])}); give one"
            " of these folders"
        )
    return found[0]


def open_tables(root: Path) -> Tables:
    """Open the tables below `root`, or in the file `root`, by part of the data set.

    The part follows from the name of a file or folder, see `part_of`; without one it is the training part.

    Raises:
        UserError: there are none, or one is damaged.
    """
    datasets = library()
    if (root / SAVED_PARTS).is_file() or (root / SAVED).is_file():
        with _reported(root, [], datasets):
            saved = datasets.load_from_disk(str(root))
        by_name = saved if isinstance(saved, dict) else {TRAIN: saved}
        tables: Tables = {}
        for name, table in by_name.items():
            part = part_of(str(name)) or TRAIN
            if part in tables:
                raise UserError(
                    f"{root} has several {part} parts, among {', '.join(map(str, by_name))}; save only the one to use"
                )
            if len(table) == 0:
                raise _no_rows(part, [root])
            tables[part] = table
        return tables
    files = _files(root)
    tables = {}
    for part, of_part in files.items():
        names = [str(file) for file in of_part]
        _check_rows(of_part, part)
        with _reported(root, of_part, datasets):
            if of_part[0].suffix == PARQUET:
                tables[part] = datasets.Dataset.from_parquet(names)
            else:
                tables[part] = datasets.concatenate_datasets([datasets.Dataset.from_file(name) for name in names])
    return tables


def _files(root: Path) -> Dict[str, List[Path]]:
    if root.is_file():
        found = [root] if root.suffix in (PARQUET, ARROW) else []
    else:
        everything = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith(LEFTOVERS))
        of_kind = ([path for path in everything if path.suffix == suffix] for suffix in (PARQUET, ARROW))
        found = next(filter(None, of_kind), [])
    if not found:
        raise UserError(f"DATASET.ROOT {root} holds no Parquet or Arrow file; {LAYOUT}")
    parts: Dict[str, List[Path]] = {}
    configurations: Dict[str, Set[Tuple[str, ...]]] = {}
    for path in found:
        inside = path.relative_to(root.parent if root.is_file() else root).with_suffix("")
        parts.setdefault(part_of(str(inside)) or TRAIN, []).append(path)
        if part_of(str(inside)):
            configurations.setdefault(part_of(str(inside)), set()).add(_before_part(inside))
    for part, places in configurations.items():
        if len(places) > 1:
            names = [str(root.joinpath(*folders)) for folders in sorted(places)]
            raise UserError(
                f"DATASET.ROOT {root} has {part} images in several folders, {listed(names)}; if these are different"
                " data sets, give one of them, otherwise move their files into one folder"
            )
    return parts


def _before_part(path: Path) -> Tuple[str, ...]:
    """Return the folders of a path before the name that tells the part; a repository may have several data sets."""
    place = next((number for number, name in enumerate(path.parts) if part_of(name)), 0)
    return path.parts[:place]


def _check_rows(files: Sequence[Path], part: str) -> None:
    """Raise a UserError if Parquet files have no rows, which the library takes for damage."""
    from pyarrow import ArrowException, parquet

    try:
        empty = all(f.suffix == PARQUET and parquet.ParquetFile(f).metadata.num_rows == 0 for f in files)
    except (OSError, ArrowException):  # reported when the file is read
        return
    if empty:
        raise _no_rows(part, files)


def _no_rows(part: str, files: Sequence[Path]) -> UserError:
    return UserError(f"the {part} part, {listed([str(f) for f in files])}, has no rows; remove it, or add images")


@contextmanager
def _reported(root: Path, files: Sequence[Path], datasets: Any) -> Iterator[None]:
    """Hide the library's progress bars, and turn its errors about unreadable files into a UserError."""
    from pyarrow import ArrowException

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except IndexError:  # the library fails on a part without rows
        raise UserError(f"{root} cannot be read (a part of it has no rows); remove that part, or add images") from None
    except (OSError, ValueError, ArrowException, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(f"{_damaged(files) or root} cannot be read ({reason}); copy it again, or remove it") from None
    finally:
        if shown:
            datasets.enable_progress_bars()


def _damaged(files: Sequence[Path]) -> str:
    """Return the first Parquet file that cannot be read, or an empty string; the library does not name it."""
    from pyarrow import ArrowException, parquet

    for file in files:
        try:
            for _ in parquet.ParquetFile(file).iter_batches():
                pass
        except (OSError, ArrowException):
            return str(file)
    return ""
