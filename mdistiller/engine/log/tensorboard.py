"""TensorBoard event files: appended to by a run, and truncated where a resumed run continues.

tensorboardX's SummaryWriter writes in a thread. On a full disk the thread dies and the writer waits for it forever.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Iterator, List, Tuple

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from ...atomic_files import replace


class EventFile:
    """A new event file in `folder`. It is open only during a write."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        # TensorBoard sorts files by the second, and a run may be resumed within it
        now = time.time_ns()
        self.path = folder / f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        self._waiting: List[bytes] = []
        self._add(Event(wall_time=now / 1e9, file_version="brain.Event:2"))
        self.flush()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a scalar; `flush` writes it."""
        self._add(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def _add(self, event: Event) -> None:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self._waiting.append(length + _checksum(length) + content + _checksum(content))

    def flush(self) -> None:
        """Write the added scalars to the disk."""
        if self._waiting:
            with self.path.open("ab") as file:
                file.write(b"".join(self._waiting))
                file.flush()
                os.fsync(file.fileno())
            self._waiting.clear()


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(content))


def cut_events(folder: Path, epoch: int, step: int) -> None:
    """Remove records after `epoch` (tags `epoch/…`) and after `step` (other tags) from the event files in `folder`.

    An incomplete record and all records after it are removed too.
    """
    for path in sorted(folder.glob("*tfevents*")):
        content = path.read_bytes()
        kept = b"".join(record for record, event in records(content) if _is_before(event, epoch, step))
        if kept != content:
            replace(path, lambda file, kept=kept: file.write(kept))  # type: ignore[misc]


def _is_before(event: Event, epoch: int, step: int) -> bool:
    return all(event.step <= (epoch if value.tag.startswith("epoch/") else step) for value in event.summary.value)


def records(content: bytes) -> Iterator[Tuple[bytes, Event]]:
    """Yield each complete record (length 8 bytes, checksum 4, event, checksum 4) and its event."""
    start = 0
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + 12 + length + 4
        parts = content[start : start + 8], content[start + 12 : end - 4]
        sums = content[start + 8 : start + 12], content[end - 4 : end]
        if end > len(content) or sums != (_checksum(parts[0]), _checksum(parts[1])):
            return
        yield content[start:end], Event.FromString(parts[1])
        start = end
