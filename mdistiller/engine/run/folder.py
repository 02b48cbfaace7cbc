"""The output folder of a run: the names of its files, and checks so that nothing in it is overwritten unasked."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ... import distributed, torchrun
from ...atomic_files import replace_text, writing_to
from ...errors import UserError, listed
from ...paths import check_not_device, expanded
from ..checkpoint import save
from .lock import check_free, lock_file, locked

LAUNCHER = ".launcher"  # holds the name of the torchrun job that wrote the run; see `torchrun.py`


class RunFolder:
    """`<LOG.PREFIX>/<experiment name>/`.

    Attributes:
        path: the folder, which `create` makes. Other files in it are never touched.
    """

    def __init__(self, prefix: str, experiment_name: str) -> None:
        self.path = expanded(prefix) / experiment_name
        self.latest = self.path / "latest.pth"
        self.previous = self.path / "latest.previous.pth"  # read if latest.pth is damaged or missing
        self.damaged = self.path / "latest.damaged.pth"  # a latest.pth that could not be read
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
        """Return the file of the state after `epoch` that `LOG.SAVE_CHECKPOINT_FREQ` keeps."""
        return self.path / f"epoch_{epoch}.pth"

    def _all_kept(self) -> List[Path]:
        return [path for path in self.path.glob("epoch_*.pth") if re.fullmatch(r"epoch_\d+", path.stem)]

    def remedy(self) -> str:
        """Return what to do if `latest.pth` and the state before it cannot be used, for a message."""
        kept = sorted(self._all_kept(), key=lambda path: path.stat().st_mtime)[-1:]
        others = " or ".join(path.name for path in (self.best, *kept) if path.is_file())
        return f"{f'copy {others} to {self.latest.name}, or ' if others else ''}start again with --overwrite"

    def _present(self) -> List[Path]:
        """Return the files of an earlier run."""
        own = [value for value in vars(self).values() if value != self.path and value.exists()]
        return own + self._all_kept() + self._partial()

    def _partial(self) -> List[Path]:
        """Return files that a killed run was writing."""
        return [*self.path.glob("*.partial"), *self.tensorboard.glob("*.partial")]

    def check(self, resume: bool, overwrite: bool) -> Tuple[bool, bool]:
        """Refuse a folder that this run would harm or cannot resume from.

        Nothing is written. The first launch of a torchrun job removes the `.launcher` of an earlier job.

        Returns:
            The values of `resume` and `overwrite` to use. When torchrun has restarted its workers, their own run is
            resumed whatever the user gave. A run that was killed before it saved anything starts from the beginning.

        Raises:
            UserError: the folder is in use, not writable, holds a run, or has nothing to resume from.
        """
        if torchrun.job_name() and not torchrun.is_restart():
            check_free(self.path)
            with suppress(OSError):  # another job may have had the same name
                (self.path / LAUNCHER).unlink()
        if self._is_restarted():
            resume = self._has_state()
            overwrite = not resume
        elif resume and not overwrite and self._has_saved_nothing():
            resume, overwrite = False, True
        self._refuse(resume, overwrite)
        return resume, overwrite

    def _refuse(self, resume: bool, overwrite: bool) -> None:
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
        # A run that was killed early leaves only the lock file.
        is_run = lock_file(self.path).is_file() or (self.config.is_file() and self.worklog.is_file())
        if present and overwrite and not is_run:
            names = listed(sorted(path.name for path in present), 3)
            raise UserError(f"--overwrite: {self.path} holds {names}, but no run wrote them; move or delete them first")

    def continues(self, resume: bool, overwrite: bool) -> bool:
        """Return whether a run started with these flags resumes from a state in this folder; nothing is changed."""
        return self._has_state() and (self._is_restarted() or (resume and not overwrite))

    def _has_state(self) -> bool:
        return os.path.isfile(self.latest) or os.path.isfile(self.previous)

    def _has_saved_nothing(self) -> bool:
        """Return whether the run in this folder was killed before it saved anything.

        The first epoch is logged before it is saved. More epochs, or a summary, show that checkpoints were removed.
        """
        epochs = self.metrics.read_bytes().count(b"\n") if self.metrics.is_file() else 0
        saved = self.summary.exists() or any(self.path.glob("*.pth"))
        return lock_file(self.path).is_file() and epochs <= 1 and not saved

    def _is_restarted(self) -> bool:
        """Return whether torchrun has restarted its workers and the run in this folder is theirs."""
        return torchrun.is_restart() and self._launcher() == torchrun.job_name()

    def _launcher(self) -> str:
        path = self.path / LAUNCHER
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @contextmanager
    def claim(self, resume: bool, overwrite: bool) -> Iterator[bool]:
        """Check the folder and lock it; yield whether the run resumes. All processes call it, the main one acts.

        Only the folder and its lock file are created, and only if the check passes.
        """
        with ExitStack() as stack:
            yield distributed.run_on_main(lambda: self._claim(stack, resume, overwrite))

    def _claim(self, stack: ExitStack, resume: bool, overwrite: bool) -> bool:
        resume, overwrite = self.check(resume, overwrite)
        stack.enter_context(locked(self.path))
        self._refuse(resume, overwrite)  # again, because another run may have used the folder in between
        return resume

    def create(self, resume: bool) -> None:
        """Make the folder; without `resume`, remove the files of the earlier run that `check` allowed to replace.

        The name of the torchrun job is written last. Until then, the folder may hold the run of another job.
        """
        try:
            for path in self._partial() if resume else self._present():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            self.path.mkdir(parents=True, exist_ok=True)
            if not torchrun.job_name():
                (self.path / LAUNCHER).unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write to {self.path} ({reason}); set LOG.PREFIX to another folder") from None
        if torchrun.job_name():
            replace_text(self.path / LAUNCHER, torchrun.job_name())

    def save_epoch(
        self, student: Optional[Dict[str, Any]], state: Dict[str, Any], epoch: int, improved: bool, keep: bool
    ) -> None:
        """Save what an epoch ends with.

        Args:
            student: the checkpoint of the deployed student, or `None` if it was not evaluated after this epoch.
            state: the training state to resume from.
            epoch: the epoch, counted from 1.
            improved: whether the student is the best one so far.
            keep: whether the state also gets a file of its own.
        """
        if student is not None:
            save(student, self.student_latest)
        if student is not None and improved:
            save(student, self.student_best)
            save(state, self.best)
        if keep:
            save(state, self.kept(epoch))
        self.save_state(state)

    def save_state(self, state: Dict[str, Any]) -> None:
        """Save the state to resume from; the one before stays as `previous`."""
        save(state, self.latest, self.previous)
