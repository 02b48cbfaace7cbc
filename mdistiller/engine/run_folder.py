"""The output folder of a run: claimed without overwriting anything, and the names of the files in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List

from ..errors import UserError


class RunFolder:
    """`<LOG.PREFIX>/<experiment name>/`.

    Attributes:
        path: the folder; it exists only after `create`. What else lies in it is never touched.
    """

    def __init__(self, prefix: str, experiment_name: str) -> None:
        self.path = Path(prefix).expanduser() / experiment_name
        self.latest = self.path / "latest.pth"
        self.best = self.path / "best.pth"
        self.nonfinite = self.path / "nonfinite.pth"
        self.student_latest = self.path / "student_latest.pth"
        self.student_best = self.path / "student_best.pth"
        self.config = self.path / "config.yaml"
        self.worklog = self.path / "worklog.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.tensorboard = self.path / "train.events"
        self.wandb = self.path / "wandb"

    def kept(self, epoch: int) -> Path:
        """The full state after `epoch`, one of those that `LOG.SAVE_CHECKPOINT_FREQ` keeps."""
        return self.path / f"epoch_{epoch}.pth"

    def _present(self) -> List[Path]:
        """What an earlier run left."""
        own = [value for value in vars(self).values() if value != self.path and value.exists()]
        return own + list(self.path.glob("epoch_*.pth")) + list(self.path.glob("*.partial"))

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse, before anything is built, a folder that this run would harm or cannot continue."""
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other; give one of them")
        present = self._present()
        if resume and not self.latest.is_file():
            remedy = "no epoch was finished, start again with --overwrite" if present else "start without --resume"
            raise UserError(f"--resume: no run to continue, {self.latest} does not exist; {remedy}")
        if present and not (resume or overwrite):
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite,"
                " or name this one with EXPERIMENT.NAME my_run"
            )
        if present and overwrite and not (self.config.is_file() and self.worklog.is_file()):
            names = ", ".join(sorted(path.name for path in present)[:3])
            raise UserError(f"--overwrite: {self.path} holds {names}, but not of a run; move them away yourself")

    def create(self, resume: bool) -> None:
        """Make the folder; without `resume`, the files of an earlier run (which `check` let pass) are removed."""
        try:
            for path in [] if resume else self._present():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write to {self.path} ({reason}); set LOG.PREFIX to another folder") from None
