"""The output folder of a run: claimed without overwriting anything, and the names of the files in it."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, List, Tuple

from ... import torchrun
from ...atomic_files import replace_text, writing_to
from ...errors import UserError
from ...paths import check_not_device, expanded
from .lock import check_free, lock_file, locked

LAUNCHER = ".launcher"  # whose run it is, for a torchrun that restarts its workers


class RunFolder:
    """`<LOG.PREFIX>/<experiment name>/`.

    Attributes:
        path: the folder; it exists only after `create`. What else lies in it is never touched.
    """

    def __init__(self, prefix: str, experiment_name: str) -> None:
        self.path = expanded(prefix) / experiment_name
        self.latest = self.path / "latest.pth"
        self.previous = self.path / "latest.previous.pth"  # in its place if it cannot be read
        self.damaged = self.path / "latest.damaged.pth"  # one that could not
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
        return own + list(self.path.glob("epoch_*.pth")) + self._partial()

    def _partial(self) -> List[Path]:
        """What was being written when a run was killed."""
        return [*self.path.glob("*.partial"), *self.tensorboard.glob("*.partial")]

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse, before anything is built, a folder that this run would harm or cannot continue."""
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other; give one of them")
        check_free(self.path)
        for path in (self.metrics, self.worklog, self.config):
            with writing_to(path):
                check_not_device(path)
        present = self._present()
        if resume and not self._has_state():
            remedy = "start again with --overwrite" if present else "start without --resume"
            raise UserError(f"--resume: no run to continue, {self.latest} does not exist; {remedy}")
        if present and not (resume or overwrite):
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite,"
                " or name this one with EXPERIMENT.NAME my_run"
            )
        # the lock alone: a run that was killed before it wrote more
        ours = lock_file(self.path).is_file() or (self.config.is_file() and self.worklog.is_file())
        if present and overwrite and not ours:
            names = ", ".join(sorted(path.name for path in present)[:3])
            raise UserError(f"--overwrite: {self.path} holds {names}, but not of a run; move them away yourself")

    def checked(self, resume: bool, overwrite: bool) -> Tuple[bool, bool]:
        """`check`, and return `(resume, overwrite)` as they are to be.

        Where torchrun has restarted its workers, their own run goes on; that of another torchrun, or of none, is left
        to what the user gave. A run to resume that was killed before it saved anything starts from its beginning.
        """
        if torchrun.name() and not torchrun.is_restart():
            check_free(self.path)
            with suppress(OSError):  # a name that was given to another torchrun too
                (self.path / LAUNCHER).unlink()
        if self._is_restarted():
            resume = self._has_state()
            overwrite = not resume
        elif resume and not overwrite and lock_file(self.path).is_file() and not any(self.path.glob("*.pth")):
            resume, overwrite = False, True
        self.check(resume, overwrite)
        return resume, overwrite

    def continues(self, resume: bool, overwrite: bool) -> bool:
        """Whether a run that is started like this goes on from a state in this folder; nothing is changed."""
        return self._has_state() and (self._is_restarted() or (resume and not overwrite))

    def _has_state(self) -> bool:
        return os.path.isfile(self.latest) or os.path.isfile(self.previous)

    def _is_restarted(self) -> bool:
        """Whether torchrun has restarted its workers, and the run in this folder is theirs."""
        return torchrun.is_restart() and self._launcher() == torchrun.name()

    def _launcher(self) -> str:
        path = self.path / LAUNCHER
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @contextmanager
    def claimed(self, resume: bool, overwrite: bool) -> Iterator[None]:
        """`check`, and keep other runs out; nothing is written but the lock."""
        self.check(resume, overwrite)
        with locked(self.path):
            self.check(resume, overwrite)  # again: another run may have come and gone in between
            yield

    def create(self, resume: bool) -> None:
        """Make the folder; without `resume`, the files of an earlier run (which `check` let pass) are removed.

        The launcher's name comes last: until then, what lies here may be another's run.
        """
        try:
            for path in self._partial() if resume else self._present():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            self.path.mkdir(parents=True, exist_ok=True)
            if not torchrun.name():
                (self.path / LAUNCHER).unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write to {self.path} ({reason}); set LOG.PREFIX to another folder") from None
        if torchrun.name():
            replace_text(self.path / LAUNCHER, torchrun.name())
