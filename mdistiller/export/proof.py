"""The deployment proof: an export and the student it was made from, on the same images.

Shapes: `n` images, `K` classes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from ..engine.evaluation.eval_checkpoint import note_missing_folder
from ..errors import UserError
from .runner import source_runner
from .source import Source, random_pixels, val_pixels

BATCH = 64
NUM_RANDOM = 512  # images without data
TIE = 1e-4  # of an image's largest logit: two logits that are this close may change places
MAX_DIFFERENCE = 1e-3  # of the largest logit of all: what float32 may change a logit by
KEPT_BYTES = 2**29  # of images in memory; more are read again
MAX_SECONDS, MAX_RUNS, WARM_UP = 2.0, 30, 3  # of one measurement of latency

Run = Callable[[Tensor], Tensor]  # images uint8 [B, S, S, 3] to logits [B, K]


@dataclass(frozen=True)
class Proof:
    """The comparison of an export with its student.

    Attributes:
        images: a description of the images, such as "2000 validation images of cifar100".
        runtime: the name of the runtime in which the export ran.
        top1: the accuracy of the export in percent; `None` without labels.
        top1_change: the accuracy of the export less that of the student, in percentage points; `None` without labels.
        agreement: the share of images with the same top-1, in percent.
        changed: the number of images with another top-1, ties not counted.
        ties: the number of images with another top-1 whose two logits are nearly equal in the student, see `TIE`.
        difference: the largest difference of a logit.
        scale: the largest absolute logit of the student.
        finite: whether all logits of the export are finite.
        latency: the median time of a batch in ms, by its size.
        size: the size of the file in bytes.
    """

    images: str
    runtime: str
    top1: Optional[float]
    top1_change: Optional[float]
    agreement: float
    changed: int
    ties: int
    difference: float
    scale: float
    finite: bool
    latency: Dict[int, float]
    size: int

    def fault(self, exact: bool, max_drop: float) -> str:
        """Return why the export must not be used, or an empty string.

        Args:
            exact: whether the export computes in float32, so that no top-1 may change.
            max_drop: the largest loss of top-1 otherwise, in percentage points; without labels, of agreement.
        """
        if not self.finite:
            return "some logits are not finite"
        if exact and self.changed:
            return f"the top-1 class of {self.changed} images changed, ties not counted"
        if exact and self.difference > MAX_DIFFERENCE * self.scale:
            return f"logits differ by up to {self.difference:.3g}, the largest is {self.scale:.3g}"
        loss = self.loss
        if not exact and loss > max_drop:
            return f"{'agreement' if self.top1 is None else 'top-1'} fell by {loss:.2f} points, more than {max_drop:g}"
        return ""

    @property
    def loss(self) -> float:
        """The loss of top-1 in percentage points; without labels, of agreement."""
        return 100 - self.agreement if self.top1_change is None else -self.top1_change

    def lines(self) -> List[str]:
        """Return the proof for people to read."""
        change = "no labels" if self.top1 is None else f"{self.top1:.2f} ({self.top1_change:+.2f})"
        return [
            f"proof     {self.images}, run in {self.runtime}",
            f"          top-1 {change}, agreement {self.agreement:.2f} %, {self.changed} top-1 changed"
            f" (and {self.ties} ties), largest logit difference {self.difference:.2g}",
            f"latency   {', '.join(f'batch {size}: {ms:.2f} ms' for size, ms in self.latency.items())}",
        ]


class Evidence:
    """The images of a proof, with the student's logits.

    Args:
        source: the student and its description.
        use_data: whether to use the student's validation set; otherwise random images without labels are used.

    Raises:
        UserError: the validation set cannot be read.
    """

    def __init__(self, source: Source, use_data: bool = True) -> None:
        self._source, self._use_data = source, use_data
        self._kept: Optional[List[Tuple[Tensor, Optional[Tensor]]]] = None
        kept: List[Tuple[Tensor, Optional[Tensor]]] = []
        logits, num_bytes = [], 0
        run = source_runner(source).run
        if use_data:
            note_missing_folder(source.cfg, source.checkpoint)
        try:
            for pixels, target in self._read():
                logits.append(run(pixels))
                num_bytes += pixels.numel()
                kept = [*kept, (pixels, target)] if num_bytes <= KEPT_BYTES else []
        except UserError as error:
            if not use_data:
                raise
            raise UserError(
                f"the proof needs the validation images: {error.faults[0]} (-d DATASET and DATASET.ROOT say where they"
                " are; --no-data proves on random images)"
            ) from None
        self.logits = torch.cat(logits)
        if num_bytes <= KEPT_BYTES:
            self._kept = kept
        data = f"validation images of {source.cfg.DATASET.TYPE}"
        what = data if use_data else "images of random pixels, without data"
        self.images = f"{len(self.logits)} {what}"

    def __iter__(self) -> Iterator[Tuple[Tensor, Optional[Tensor]]]:
        """Yield `(images uint8 [B, S, S, 3], labels int64 [B] or None)`."""
        return iter(self._kept) if self._kept is not None else self._read()

    def _read(self) -> Iterator[Tuple[Tensor, Optional[Tensor]]]:
        if self._use_data:
            yield from val_pixels(self._source, BATCH)[1]
        else:
            yield from ((pixels, None) for pixels in random_pixels(self._source, NUM_RANDOM, BATCH))

    def prove(self, run: Run, runtime: str, size: int, timed: Optional[Run] = None) -> Proof:
        """Compare an export with the student on all images.

        Args:
            run: the function that runs the export in its own runtime.
            runtime: the name of that runtime.
            size: the size of the file in bytes.
            timed: the function whose latency is measured; by default nothing is measured.
        """
        found, labels = [], []
        for pixels, target in self:
            found.append(run(pixels).float())
            if target is not None:
                labels.append(target)
        proof = compare(self.logits, torch.cat(found), torch.cat(labels) if labels else None)
        latency = {} if timed is None else {n: median_ms(timed, next(iter(self))[0], n) for n in (1, BATCH)}
        return replace(proof, images=self.images, runtime=runtime, latency=latency, size=size)


def compare(expected: Tensor, found: Tensor, labels: Optional[Tensor]) -> Proof:
    """Compare logits `[n, K]` of the student and of its export; `labels` are int64 [n] or `None`."""
    before, after = expected.argmax(1), found.argmax(1)
    gap = expected.max(1).values - expected.gather(1, after[:, None])[:, 0]
    other = before != after
    tied = other & (gap <= TIE * expected.abs().max(1).values)
    accuracies = [] if labels is None else [100 * float((top == labels).double().mean()) for top in (before, after)]
    return Proof(
        images="",
        runtime="",
        top1=accuracies[1] if accuracies else None,
        top1_change=accuracies[1] - accuracies[0] if accuracies else None,
        agreement=100 * float((~other).double().mean()),
        changed=int((other & ~tied).sum()),
        ties=int(tied.sum()),
        difference=float((found - expected).abs().max()),
        scale=float(expected.abs().max()),
        finite=bool(found.isfinite().all()),
        latency={},
        size=0,
    )


def median_ms(run: Run, pixels: Tensor, batch_size: int) -> float:
    """Return the median time of a batch in ms, the conversion of its bytes to floats included."""
    batch = pixels[torch.arange(batch_size) % len(pixels)]
    for _ in range(WARM_UP):
        run(batch)
    times: List[float] = []
    while len(times) < MAX_RUNS and (len(times) < 3 or sum(times) < MAX_SECONDS):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
