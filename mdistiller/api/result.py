"""What a run in Python returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Union

from torch import nn

from ..engine.run.records import read_metrics
from .student import Student, load


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        summary: the content of summary.json: accuracies in percent (`best`, `last`,
            `teacher_accuracy`), cost, speed, versions.
        folder: the folder of the run, with checkpoints, worklog, metrics and configuration.
        model: the student's backbone, not trained, if it was given as an object; or the name of your own code.
    """

    summary: Dict[str, Any] = field(repr=False)
    folder: Path
    model: Union[nn.Module, str, None] = field(default=None, repr=False)

    @property
    def student(self) -> Path:
        """The checkpoint of the student after its best epoch, which is chosen on the validation images."""
        return self.folder / "student_best.pth"

    @property
    def history(self) -> List[Dict[str, Any]]:
        """One row for each epoch: `epoch`, `lr`, the losses, accuracies in percent, `seconds`; see docs/python.md."""
        return read_metrics(self.folder / "metrics.jsonl")

    def load(self, last: bool = False) -> Student:
        """Return the trained student of the best epoch, or of the last one."""
        return load(self.folder / "student_latest.pth" if last else self.student, self.model)
