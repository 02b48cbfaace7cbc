"""A cache of the teacher's output vectors by image and augmented form, so that no forward pass is repeated.

Padding, cropping and flipping give each image finitely many forms: 162 with 4 pixels of padding, 81 without flipping.
With any other augmentation, `DATASET.VIEWS` fixes their number. A method that reads only the teacher's logits or pooled
features can take them from a table, in row `index · num_variants + variant`. Rows are computed some steps before an
epoch first needs them.

Shapes: `B` batch, `N` classes, `C` channels of the pooled feature.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from ... import distributed
from ...dataset.loading.loader import Batch, Loader
from ...paths import expanded
from .memory import available_memory, gib
from .precision import Precision
from .table_folder import prepare_folder
from .top_logits import TopLogits
from .vector_table import FileTable, MemoryTable

STEPS_AHEAD = 16
MAX_PIXELS_AHEAD = STEPS_AHEAD * 256 * 32**2  # of the batches that wait, 50 MB; fewer steps with large images
# The teacher's batches have a multiple of 16 images. From 16 images on, the last bits of an output do not depend on the
# batch size (seen with oneDNN), and so not on which rows are missing or where a resumed run starts. It also leaves few
# sizes for a GPU to tune.
BATCH_MULTIPLE = 16
MAX_BATCH_PIXELS = 256 * 32**2  # on a GPU; a CPU gets 64 images at a time, which fit its caches if they are small
MAX_MEMORY_SHARE = 0.5  # of the available memory
FORMAT = {"format": "mdistiller.teacher_vectors", "version": 1}

Say = Callable[[str], None]
Table = Union[MemoryTable, FileTable]


class CachedTeacher(nn.Module):
    """Replaces the teacher: looks up the current batch in a table, and runs the teacher for any other images.

    Args:
        teacher: the teacher, in evaluation mode.
        widths: the number of values of `logits` and `pooled` in a row of the table, in the order of its columns;
            outputs that the method does not read are left out.
        table: the table of the vectors.
        precision: the precision in which the teacher runs.
        say: a function that receives lines for the user.
        top: the encoding of the logits in the table; `None` to store all of them, as they are.
    """

    def __init__(
        self,
        teacher: nn.Module,
        widths: Dict[str, int],
        table: Table,
        precision: Precision,
        say: Say,
        top: Optional[TopLogits] = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.widths = widths
        self.table = table
        self.precision = precision
        self._say = say
        self._top = top
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
        logits = parts.get("logits")
        if self._top is not None and logits is not None:
            logits = self._top.decode(logits)
        return logits, {"pooled_feat": parts["pooled"]} if "pooled" in parts else {}

    @contextmanager
    def micro_batch_in_use(self, image: Tensor, rows: slice) -> Iterator[None]:
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
            loader: the loader that yields `batches`.
            batches: the batches of the loader's current epoch, from step `start_step` (from 0) on.
        """
        ahead: List[Tuple[Tensor, Batch]] = []
        for batch, keys in zip(batches, loader.variant_indices(start_step)):
            ahead.append((keys, batch))
            if len(ahead) == STEPS_AHEAD or len(ahead) * batch["image"][:, 0].numel() >= MAX_PIXELS_AHEAD:
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
            logits = logits.float() if self._top is None else self._top.encode(logits.float())
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
    limit_gb: float = 0.0,
    top: Optional[TopLogits] = None,
) -> Optional[CachedTeacher]:
    """Return the teacher with a table for its vectors. If there cannot be one, say why and return `None`.

    Args:
        choice: the value of `TEACHER_CACHE`: `memory`, or a folder.
        teacher: the teacher, in the form in which training steps run it.
        widths: the number of values of each vector that the method reads, by name.
        loader: the loader of the training images, which have finitely many forms, or fixed views.
        precision: the teacher's precision. The table stores float32, or float16 if the teacher's precision is lower.
        about: everything else that the vectors depend on, as plain values by name, including the teacher's `name`.
        say: a function that receives lines for the user.
        limit_gb: the largest size of all tables in this machine's memory, or in the folder, in GiB; 0 for no limit.
        top: the encoding of the logits in the table; `None` to store all of them, as they are.
    """
    assert loader.num_variants is not None
    if top is not None:
        widths, about = {**widths, "logits": top.width}, {**about, "top_logits": top.number}
    rows, values = loader.num_indices * loader.num_variants, sum(widths.values())
    dtype = torch.float32 if precision.dtype is None else torch.float16
    size = rows * values * dtype.itemsize
    forms = "forms" if loader.views is None else "views"
    shape = f"{loader.num_indices:,} images × {loader.num_variants} {forms} × {values} values = {gib(size)}"
    table: Table
    if choice == "memory":
        available = available_memory(loader.device)
        num_tables = distributed.get_local_world_size() if loader.device.type == "cpu" else 1
        if limit_gb and num_tables * size > limit_gb * 2**30:
            say(
                f"teacher cache: none, {shape} does not fit TEACHER_CACHE_GB {limit_gb:g}; the teacher runs in each"
                " step"
            )
            return None
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
        about = json.loads(json.dumps(about))  # as it is read back: a tuple becomes a list
        folder = expanded(choice) / f"{about['name']}-{digest(about)[:12]}"
        sizes = {FileTable.VECTORS: size, FileTable.CHECKSUMS: 4 * rows}
        try:
            state = distributed.run_on_main(lambda: prepare_folder(folder, about, sizes, limit_gb))
            table = FileTable(folder, rows, values, dtype, loader.device)
        except OSError as error:
            say(f"teacher cache: none, {folder}: {error.strerror or error}; the teacher runs in each step")
            return None
        say(f"teacher cache: {shape} at most, {folder}: {state}, {100 * table.filled():.1f} % known")
    return CachedTeacher(teacher, widths, table, precision, say, top)


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
