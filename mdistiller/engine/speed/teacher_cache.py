"""A cache of the teacher's output vectors by image and augmented form, so that no forward pass is repeated.

Padding, cropping and flipping give each image finitely many forms: 162 with 4 pixels of padding, 81 without flipping. A
method that reads only the teacher's logits or pooled features can take them from a table, in row
`index · num_variants + variant`. Rows are computed when an epoch first needs them, some steps ahead.

Shapes: `B` batch, `N` classes, `C` channels of the pooled feature.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from ... import distributed
from ...dataset.loading.loader import Batch, Loader
from ...paths import expanded
from .memory import available_memory, free_disk, gib, reserve
from .precision import Precision
from .vector_table import FileTable, MemoryTable

STEPS_AHEAD = 16
# The teacher's batches have a multiple of 16 images. From 16 images on, the last bits of an output do not depend on the
# batch size (seen with oneDNN), and so not on which rows are missing or where a resumed run starts. It also leaves few
# sizes for a GPU to tune.
BATCH_MULTIPLE = 16
MAX_BATCH_PIXELS = 256 * 32**2  # on a GPU; a CPU gets 64 images at a time, which fit its caches if they are small
MAX_MEMORY_SHARE = 0.5  # of the available memory
ABOUT = "about.json"
FORMAT = {"format": "mdistiller.teacher_vectors", "version": 1}

Say = Callable[[str], None]
Table = Union[MemoryTable, FileTable]


class CachedTeacher(nn.Module):
    """Replaces the teacher: looks up the current batch in a table, and runs the teacher for any other images.

    Args:
        teacher: in evaluation mode.
        widths: number of values of `logits` and `pooled` in a row of the table, in the order of its columns; outputs
            that the method does not read are left out.
        table: of the vectors.
        precision: in which the teacher runs.
        say: receives lines for the user.
    """

    def __init__(
        self, teacher: nn.Module, widths: Dict[str, int], table: Table, precision: Precision, say: Say
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.widths = widths
        self.table = table
        self.precision = precision
        self._say = say
        self._image: Optional[Tensor] = None
        self._vectors = torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("teacher"), name)

    def forward(self, image: Tensor) -> Tuple[Optional[Tensor], Dict[str, Tensor]]:
        """Return `(logits [B, N], {"pooled_feat": [B, C]})`; for the current batch, only what the table contains."""
        if image is not self._image:
            return self.teacher(image)
        parts = dict(zip(self.widths, self._vectors.split(list(self.widths.values()), dim=1)))
        return parts.get("logits"), {"pooled_feat": parts["pooled"]} if "pooled" in parts else {}

    @contextmanager
    def part_in_use(self, image: Tensor, rows: slice) -> Iterator[None]:
        """Within a `with` block, make `image` the current batch: those rows of the batch that `serve` yielded last."""
        whole = self._image, self._vectors
        if self._image is not None:
            self._image, self._vectors = image, self._vectors[rows]
        try:
            yield
        finally:
            self._image, self._vectors = whole

    def serve(self, loader: Loader, batches: Iterator[Batch], start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch. While a batch is in use, `forward` looks up its vectors.

        Args:
            loader: the source of `batches`.
            batches: of the loader's current epoch, from step `start_step` (from 0) on.
        """
        ahead: List[Tuple[Tensor, Batch]] = []
        for batch, keys in zip(batches, loader.variant_indices(start_step)):
            ahead.append((keys, batch))
            if len(ahead) == STEPS_AHEAD:
                yield from self._look_up(ahead)
                ahead = []
        yield from self._look_up(ahead)
        if self.table.damaged:
            self._say(f"teacher cache: {self.table.damaged} vectors were damaged, and were computed again")
            self.table.damaged = 0

    def _look_up(self, ahead: List[Tuple[Tensor, Batch]]) -> Iterator[Batch]:
        """Compute what the table lacks for some batches, then yield each batch with its vectors in `self._vectors`."""
        missing = []
        for keys, batch in ahead:
            rows = self.table.missing(keys).nonzero().squeeze(1)
            if len(rows):
                missing.append((keys[rows], batch["image"].index_select(0, rows.to(batch["image"].device))))
        if missing:
            keys, images = (torch.cat(tensors) for tensors in zip(*missing))
            self.table.write(keys, self._run_teacher(images))
        if ahead:
            vectors = self.table.read(torch.cat([keys for keys, _ in ahead]))
            for (_, batch), self._vectors in zip(ahead, vectors.split([len(keys) for keys, _ in ahead])):
                self._image = batch["image"]
                yield batch
        self._image = None

    @torch.no_grad()
    def _run_teacher(self, images: Tensor) -> Tensor:
        padded = torch.cat([images, images.new_zeros(-len(images) % BATCH_MULTIPLE, *images.shape[1:])])
        batch_size = 64 if images.device.type == "cpu" else max(64, MAX_BATCH_PIXELS // images.shape[2:].numel())
        vectors = []
        for part in padded.split(batch_size):
            with self.precision.autocast():
                logits, feats = self.teacher(part.contiguous(memory_format=torch.channels_last))
            outputs = {"logits": logits, "pooled": feats.get("pooled_feat")}
            vectors.append(torch.cat([outputs[name].float() for name in self.widths], dim=1))
        return torch.cat(vectors)[: len(images)]


def open_cache(
    choice: str,
    teacher: nn.Module,
    widths: Dict[str, int],
    loader: Loader,
    precision: Precision,
    about: Dict[str, Any],
    say: Say,
) -> Optional[CachedTeacher]:
    """Return the teacher with a table for its vectors. If there cannot be one, say why and return `None`.

    Args:
        choice: the value of `TEACHER_CACHE`: `memory`, or a folder.
        teacher: in the form in which training steps run it.
        widths: number of values of each vector that the method reads, by name.
        loader: of the training images, which have finitely many forms.
        precision: of the teacher. The table stores float32, or float16 if the teacher runs in a lower precision.
        about: what else the vectors depend on, as plain values by name, including the teacher's `name`.
        say: receives lines for the user.
    """
    assert loader.num_variants is not None
    rows, values = loader.num_indices * loader.num_variants, sum(widths.values())
    dtype = torch.float32 if precision.dtype is None else torch.float16
    size = rows * values * dtype.itemsize
    shape = f"{loader.num_indices:,} images × {loader.num_variants} forms × {values} values = {gib(size)}"
    table: Table
    if choice == "memory":
        available = available_memory(loader.device)
        num_tables = distributed.get_local_world_size() if loader.device.type == "cpu" else 1
        if num_tables * size > MAX_MEMORY_SHARE * available:
            say(
                f"teacher cache: none, {shape} is more than half of the {gib(available)} that are free; the teacher"
                " runs in each step (set TEACHER_CACHE to a folder to keep the table on disk)"
            )
            return None
        table = MemoryTable(rows, values, dtype, loader.device)
        each = " of each process" if distributed.get_world_size() > 1 else ""
        say(f"teacher cache: {shape} at most, in memory{each}")
    else:
        about = {**FORMAT, **about, "widths": widths, "rows": rows, "dtype": str(dtype).split(".")[-1]}
        folder = expanded(choice) / f"{about['name']}-{digest(about)[:12]}"
        sizes = {FileTable.VECTORS: size, FileTable.CHECKSUMS: 4 * rows}
        try:
            state = distributed.run_on_main(lambda: prepare_folder(folder, about, sizes))
            table = FileTable(folder, rows, values, dtype, loader.device)
        except OSError as error:
            say(f"teacher cache: none, {folder}: {error.strerror or error}; the teacher runs in each step")
            return None
        say(f"teacher cache: {shape} at most, {folder}: {state}, {100 * table.filled():.1f} % known")
    return CachedTeacher(teacher, widths, table, precision, say)


def prepare_folder(folder: Path, about: Dict[str, Any], sizes: Dict[str, int]) -> str:
    """Create the files of a table in `folder`, unless it has them; return for the user what was found there.

    Renames replace the folder in one step, so that other processes never see half a table.

    Args:
        folder: of the table.
        about: what identifies the table.
        sizes: of the files by name, in bytes.

    Raises:
        OSError: the disk has too little room, or the folder cannot be written.
    """
    if _is_complete(folder, about, sizes):
        return "found"
    state = "damaged, made anew" if folder.exists() else _compare_with_others(folder, about)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(sizes.values()), free_disk(folder.parent)
    if needed > free:
        raise OSError(f"{gib(needed)} do not fit on a disk with {gib(free)} free")
    with TemporaryDirectory(prefix=".", dir=folder.parent) as beside:
        new = Path(beside, "new")
        new.mkdir()
        for name, size in sizes.items():
            with open(new / name, "wb") as file:
                reserve(file, size)
        (new / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if not _is_complete(folder, about, sizes):  # another process may have created it in the meantime
            if folder.exists():
                os.rename(folder, Path(beside, "old"))
            with suppress(OSError):  # another process was faster; its folder is equally good
                os.rename(new, folder)
    return state


def _is_complete(folder: Path, about: Dict[str, Any], sizes: Dict[str, int]) -> bool:
    files = {folder / name: size for name, size in sizes.items()}
    right_sizes = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
    return right_sizes and _read_about(folder / ABOUT) == about


def _compare_with_others(folder: Path, about: Dict[str, Any]) -> str:
    """Return for the user how a new table differs from the most similar one beside it."""
    others = [_read_about(path) for path in sorted(folder.parent.glob(f"[!.]*/{ABOUT}"))]
    differing = [[key for key in sorted({*about, *other}) if other.get(key) != about.get(key)] for other in others]
    nearest = min(differing, key=len, default=[])
    return f"new ({len(others)} beside it of other {', '.join(nearest)}, not used)" if others else "new"


def _read_about(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def digest(about: Dict[str, Any]) -> str:
    """Return a hexadecimal SHA-256 digest of plain values."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Return a hexadecimal SHA-256 digest of a model's class, parameters and buffers."""
    state = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # a module's extra state may have any type
            continue
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
