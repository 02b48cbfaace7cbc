"""The teacher's vectors by image and augmented form, so that no forward pass of it is done twice.

An image of a set that is augmented by padding, cropping and mirroring has finitely many forms (162 with 4 pixels of
padding, 81 without mirroring). Where a method reads only vectors of the teacher, its logits or its pooled feature, they
are kept: row `index · num_variants + variant` of a table. Rows are computed when an epoch first needs them, some steps
ahead.

Shapes: `B` batch, `N` classes, `C` channels of the pooled feature.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
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
# The teacher is given images by sixteens. From 16 on, an output's last bits do not depend on how many there are (seen
# with oneDNN), hence not on what was known before, nor on where a resumed run began; and a GPU tunes few sizes.
MULTIPLE = 16
PIXELS = 256 * 32**2  # that a GPU is given at a time; a CPU's caches hold 64 small images
MEMORY_SHARE = 0.5  # of what is free, that a table may take
ABOUT = "about.json"
FORMAT = {"format": "mdistiller.teacher_vectors", "version": 1}

Say = Callable[[str], None]
Table = Union[MemoryTable, FileTable]


class CachedTeacher(nn.Module):
    """Stands for the teacher: answers from the table for the batch at hand, runs the teacher for other images.

    Args:
        teacher: in evaluation mode.
        widths: values of `logits` and of `pooled`, of those that the table has, in its columns' order.
        table: of the vectors.
        precision: in which the teacher runs.
        say: takes a line for the user.
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
        """Return `(logits [B, N], feats)` with `pooled_feat [B, C]` alone, and only what the table has."""
        if image is not self._image:
            return self.teacher(image)
        parts = dict(zip(self.widths, self._vectors.split(list(self.widths.values()), dim=1)))
        return parts.get("logits"), {"pooled_feat": parts["pooled"]} if "pooled" in parts else {}

    def serve(self, loader: Loader, batches: Iterator[Batch], start_step: int = 0) -> Iterator[Batch]:
        """Pass on the batches of an epoch, each with the teacher's vectors at hand.

        Args:
            loader: `batches` are its own, of this epoch from number `start_step` (from 0) on.
        """
        assert loader.num_variants is not None
        draws = loader.draws()
        keys = draws.order * loader.num_variants + loader.variants(draws)
        ahead: List[Tuple[Tensor, Batch]] = []
        for batch, part in zip(batches, loader.slices(start_step)):
            ahead.append((keys[part], batch))
            if len(ahead) == STEPS_AHEAD:
                yield from self._ready(ahead)
                ahead = []
        yield from self._ready(ahead)
        if self.table.damaged:
            self._say(f"teacher cache: {self.table.damaged} of its vectors were damaged, and computed again")
            self.table.damaged = 0

    def _ready(self, ahead: List[Tuple[Tensor, Batch]]) -> Iterator[Batch]:
        wanted = []
        for keys, batch in ahead:
            rows = self.table.missing(keys).nonzero().squeeze(1)
            if len(rows):
                wanted.append((keys[rows], batch["image"].index_select(0, rows.to(batch["image"].device))))
        if wanted:
            keys, images = (torch.cat(tensors) for tensors in zip(*wanted))
            self.table.write(keys, self._run(images))
        if ahead:
            vectors = self.table.read(torch.cat([keys for keys, _ in ahead]))
            for (_, batch), self._vectors in zip(ahead, vectors.split([len(keys) for keys, _ in ahead])):
                self._image = batch["image"]
                yield batch
        self._image = None

    @torch.no_grad()
    def _run(self, images: Tensor) -> Tensor:
        filled = torch.cat([images, images.new_zeros(-len(images) % MULTIPLE, *images.shape[1:])])
        size = 64 if images.device.type == "cpu" else max(64, PIXELS // images.shape[2:].numel())
        vectors = []
        for part in filled.split(size):
            with self.precision.autocast():
                logits, feats = self.teacher(part.contiguous(memory_format=torch.channels_last))
            kinds = {"logits": logits, "pooled": feats.get("pooled_feat")}
            vectors.append(torch.cat([kinds[kind].float() for kind in self.widths], dim=1))
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
    """Return the teacher with the table that `TEACHER_CACHE` asks for; `None`, after a line that says why, without one.

    Args:
        choice: `memory`, or a folder.
        teacher: as the steps are to run it.
        widths: values of each kind of vector that the method reads.
        loader: of the training images, with countable forms.
        precision: of the teacher; its vectors are kept in float32, or in float16 where it runs with fewer bits.
        about: what else they depend on, plain values by name; the teacher's `name` among them.
        say: takes a line for the user.
    """
    assert loader.num_variants is not None
    rows, values = loader.num_images * loader.num_variants, sum(widths.values())
    dtype = torch.float32 if precision.dtype is None else torch.float16
    size = rows * values * dtype.itemsize
    shape = f"{loader.num_images:,} images × {loader.num_variants} forms × {values} values = {gib(size)}"
    if choice == "memory":
        free = available_memory(loader.device)
        tables = distributed.get_local_world_size() if loader.device.type == "cpu" else 1
        if tables * size > MEMORY_SHARE * free:
            say(
                f"teacher cache: none, {shape} is more than half of the {gib(free)} that are free; the teacher runs in"
                " each step (with a folder as TEACHER_CACHE the table is on disk)"
            )
            return None
        each = " of each process" if distributed.get_world_size() > 1 else ""
        say(f"teacher cache: {shape} at most, in memory{each}")
        return CachedTeacher(teacher, widths, MemoryTable(rows, values, dtype, loader.device), precision, say)
    about = {**FORMAT, **about, "widths": widths, "rows": rows, "dtype": str(dtype).split(".")[-1]}
    name = f"{about['name']}-{digest(about)[:12]}"
    try:
        folder = expanded(choice) / name
        sizes = {FileTable.VECTORS: size, FileTable.CHECKSUMS: 4 * rows}
        state = distributed.run_on_main(lambda: _prepare(folder, about, sizes))
        table = FileTable(folder, rows, values, dtype, loader.device)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        say(f"teacher cache: none, {Path(choice, name)}: {reason}; the teacher runs in each step")
        return None
    say(f"teacher cache: {shape} at most, {folder}: {state}, {100 * table.filled():.1f} % known")
    return CachedTeacher(teacher, widths, table, precision, say)


def _prepare(folder: Path, about: Dict[str, Any], sizes: Dict[str, int]) -> str:
    """Have `folder` hold files of these sizes, in bytes; return what was found there, in words.

    A new folder is made beside its place and renamed, an old one renamed before it goes: other processes never see, or
    lose, half a table.
    """
    if _is_whole(folder, about, sizes):
        return "found"
    state = "damaged, made anew" if folder.exists() else _neighbours(folder, about)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(sizes.values()), free_disk(folder.parent)
    if needed > free:
        raise OSError(f"{gib(needed)} do not fit on a disk with {gib(free)} free")
    with TemporaryDirectory(prefix=".", dir=folder.parent) as beside:
        made = Path(beside, "new")
        made.mkdir()
        for name, size in sizes.items():
            with open(made / name, "wb") as file:
                reserve(file, size)
        (made / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if not _is_whole(folder, about, sizes):  # which another process may have made meanwhile
            if folder.exists():
                os.rename(folder, Path(beside, "old"))
            with suppress(OSError):  # lost to another process by a moment: its folder is as good
                os.rename(made, folder)
    return state


def _is_whole(folder: Path, about: Dict[str, Any], sizes: Dict[str, int]) -> bool:
    files = {folder / name: size for name, size in sizes.items()}
    return _read(folder / ABOUT) == about and all(p.is_file() and p.stat().st_size == files[p] for p in files)


def _neighbours(folder: Path, about: Dict[str, Any]) -> str:
    """Say in what the tables beside a new one differ from it."""
    others = [_read(path) for path in sorted(folder.parent.glob(f"[!.]*/{ABOUT}"))]
    differing = [[key for key in sorted(about) if other.get(key) != about[key]] for other in others]
    nearest = min(differing, key=len, default=[])
    return f"new ({len(others)} beside it of other {', '.join(nearest)}, not used)" if others else "new"


def _read(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def digest(about: Dict[str, Any]) -> str:
    """Return a fingerprint of plain values, hexadecimal."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Return a fingerprint of a model's class and its parameters and buffers, hexadecimal."""
    state = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # a module's extra state may be anything
            continue
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
