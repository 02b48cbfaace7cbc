"""The output folder of a run: claimed without overwriting anything, and the names of the files in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import UserError


class RunFolder:
    """`<LOG.PREFIX>/<experiment name>/`.

    Attributes:
        path: the folder; it exists only after `create`.
    """

    def __init__(self, prefix: str, experiment_name: str) -> None:
        self.path = Path(prefix).expanduser() / experiment_name
        self.latest = self.path / "latest.pth"
        self.best = self.path / "best.pth"
        self.student_latest = self.path / "student_latest.pth"
        self.student_best = self.path / "student_best.pth"
        self.config = self.path / "config.yaml"
        self.worklog = self.path / "worklog.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.tensorboard = self.path / "train.events"

    def kept(self, epoch: int) -> Path:
        """The full state after `epoch`, one of those that `LOG.SAVE_CHECKPOINT_FREQ` keeps."""
        return self.path / f"epoch_{epoch}.pth"

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse, before anything is built, a folder that this run would harm or cannot continue."""
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other; give one of them")
        if resume and not self.latest.is_file():
            raise UserError(f"--resume: no run to continue, {self.latest} does not exist; start without --resume")
        occupied = self.path.is_dir() and any(self.path.iterdir())
        if occupied and not (resume or overwrite):
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite,"
                " or name this one with EXPERIMENT.NAME my_run"
            )
        if overwrite and occupied and not self.config.is_file():
            raise UserError(
                f"--overwrite: {self.path} holds other files and no run (no config.yaml); empty it yourself"
            )

    def create(self, resume: bool) -> None:
        """Make the folder; without `resume`, an earlier run in it (which `check` let pass) is removed."""
        try:
            if not resume and self.path.is_dir():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"cannot write to {self.path} ({reason}); set LOG.PREFIX to another folder") from None
