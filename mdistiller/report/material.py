"""The input of all sections: the runs, their teachers, and their outputs on the validation images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

from torch import Tensor

from .blocks import plain
from .observe import Observation
from .runs import Run
from .svg import SERIES
from .teachers import Teacher

TEACHER_COLOR = SERIES[2]
RUN_COLORS = [color for color in SERIES if color != TEACHER_COLOR]


@dataclass(frozen=True)
class Material:
    """The material of a report.

    Attributes:
        runs, teachers, seen: the runs, the teacher of each run and what was seen of each run, in the same order.
        reference: the number of the run that the others are compared with.
    """

    runs: Sequence[Run]
    teachers: Sequence[Teacher]
    seen: Sequence[Observation]
    reference: int

    @property
    def others(self) -> List[int]:
        """Numbers of the runs that are compared with the reference."""
        return [number for number in range(len(self.runs)) if number != self.reference]

    @property
    def in_focus(self) -> List[int]:
        """Numbers of the runs that are shown in detail: `others`, or the only one."""
        return self.others or [self.reference]

    @property
    def classes(self) -> Tuple[str, ...]:
        """The class names, in label order."""
        return tuple(plain(name) for name in self.runs[0].source.info.classes)

    @property
    def num_images(self) -> int:
        """The number of validation images."""
        return len(self.seen[0].target)

    @property
    def with_teacher(self) -> List[int]:
        """Numbers of the runs that could be compared with a teacher."""
        return [number for number, seen in enumerate(self.seen) if seen.teacher is not None]

    @property
    def distinct_teachers(self) -> List[int]:
        """Number of the first run with each of the teachers that were found."""
        first: List[int] = []
        for number in self.with_teacher:
            if all(self.seen[number].teacher is not self.seen[other].teacher for other in first):
                first.append(number)
        return first

    def why_no_teacher(self) -> List[str]:
        """Return why teachers are missing, a sentence each."""
        return list(dict.fromkeys(teacher.why_missing for teacher in self.teachers if teacher.why_missing))

    def color(self, number: int) -> str:
        """Return the color of a run in all drawings."""
        return RUN_COLORS[number % len(RUN_COLORS)]

    def right(self, number: int) -> Tensor:
        """Return which images the student of a run gets right, bool `[n]`."""
        seen = self.seen[number]
        return seen.student.logits.argmax(1) == seen.target


def teacher_right(seen: Observation) -> Tensor:
    """Return which images the teacher of a run gets right, bool `[n]`."""
    assert seen.teacher is not None
    return seen.teacher.logits.argmax(1) == seen.target
