"""Where a run's numbers go: the screen, worklog.txt, metrics.jsonl, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional

from ...atomic_files import replace_text, writing_to
from ...errors import UserError
from ..cfg import experiment_name, to_dict
from .folder import RunFolder
from .tensorboard import EventFile, cut_events
from .wandb_run import one_line, start_run

# what a row of metrics.jsonl says of the machine; everything else follows from the configuration
MACHINE_FIELDS = ("images_per_second", "seconds", "memory_mib", "peak_memory_mib")


class RunLogger:
    """All sinks of one run.

    Args:
        folder: the run's folder; it exists.
        cfg: the resolved configuration.
        start_epoch: epochs already done; rows of metrics.jsonl beyond are dropped, they will be written again.
        start_step: steps already done in all; so are TensorBoard's numbers of later ones.
        wandb_id: of the wandb run to continue.

    Attributes:
        wandb_id: of the run that is logged to, if any.
    """

    def __init__(
        self,
        folder: RunFolder,
        cfg: Any,
        start_epoch: int = 0,
        start_step: int = 0,
        wandb_id: Optional[str] = None,
    ) -> None:
        self.folder = folder
        self.wandb_id = wandb_id
        self._drop_rows_after(start_epoch)
        with writing_to(folder.tensorboard):
            cut_events(folder.tensorboard, start_epoch, start_step)
            self.tensorboard = EventFile(folder.tensorboard)
        self.wandb = self._start_wandb(cfg) if cfg.LOG.WANDB else None
        self.wandb_id = getattr(self.wandb, "id", None) or wandb_id

    def _drop_rows_after(self, epoch: int) -> None:
        if self.folder.metrics.is_file():
            lines = self.folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last may have been cut off in the middle
            kept = [line for line, number in zip(whole, self._epochs(whole)) if number <= epoch]
            replace_text(self.folder.metrics, "".join(kept))

    def _epochs(self, lines: List[str]) -> List[int]:
        try:
            return [int(json.loads(line)["epoch"]) for line in lines]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.folder.metrics} holds a line that is not a row of this run; fix or remove the line"
            ) from None

    def _start_wandb(self, cfg: Any) -> Any:
        """Return a wandb run; `None`, after a line, when wandb cannot start. It never asks, and never costs the run."""
        try:
            return start_run(
                self.say,
                project=cfg.EXPERIMENT.PROJECT,
                name=experiment_name(cfg),
                tags=[tag.strip() for tag in cfg.EXPERIMENT.TAG.split(",")],
                config=to_dict(cfg),
                dir=str(self.folder.path),
                id=self.wandb_id,
                resume="allow",
            )
        except Exception as error:  # a logging service must not cost a training run, whatever it raises
            self.say(f"wandb: off for this run ({one_line(error)})")
            return None

    def _to_wandb(self, call: Callable[[Any], Any]) -> None:
        try:
            if self.wandb is not None:
                call(self.wandb)
        except Exception as error:  # as above
            self.wandb = None
            self.say(f"wandb: off from now on ({one_line(error)})")

    def abort(self, error: BaseException) -> None:
        """Keep in worklog.txt why the run stopped, and close the sinks."""
        with suppress(UserError, OSError):  # the disk may be what stopped it
            if not isinstance(error, SystemExit):  # which the trainer has told
                self._note(f"stopped: {type(error).__name__} {error}".rstrip())
            self.flush()
        self._to_wandb(lambda run: run.finish(exit_code=1))

    def say(self, line: str) -> None:
        """Print a line, and keep it in worklog.txt with the time."""
        print(line, flush=True)
        self._note(line)

    def _note(self, line: str) -> None:
        with writing_to(self.folder.worklog), self.folder.worklog.open("a", encoding="utf-8") as log:
            for part in line.splitlines():
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {part}\n")

    def steps(self, step: int, values: Dict[str, float]) -> None:
        """Scalars of the training step `step`, for TensorBoard."""
        for name, value in values.items():
            self.tensorboard.add_scalar(f"step/{name}", value, step)

    def epoch(self, row: Dict[str, Any]) -> None:
        """One epoch's row, `epoch` among its keys, for every machine-readable sink."""
        with writing_to(self.folder.metrics), self.folder.metrics.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
            log.flush()
            os.fsync(log.fileno())
        for name, value in row.items():
            if name != "epoch":
                self.tensorboard.add_scalar(f"epoch/{name}", value, row["epoch"])
        self.flush()
        # wandb takes no second row for a step that it has
        self._to_wandb(lambda run: run.log(row, step=row["epoch"]))

    def flush(self) -> None:
        """Have the disk keep every number so far: before the state, so that a resumed run lacks none."""
        with writing_to(self.folder.tensorboard):
            self.tensorboard.flush()

    def close(self, summary: Dict[str, Any]) -> None:
        """Write summary.json, and close the sinks."""
        replace_text(self.folder.summary, json.dumps(summary, indent=2) + "\n")
        self.flush()
        self._to_wandb(lambda run: run.summary.update(summary))
        self._to_wandb(lambda run: run.finish())


class SilentLogger(RunLogger):
    """No sinks, for the processes that are not the first."""

    def __init__(self) -> None:
        self.wandb_id = None

    def abort(self, error: BaseException) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def steps(self, step: int, values: Dict[str, float]) -> None:
        pass

    def epoch(self, row: Dict[str, Any]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self, summary: Dict[str, Any]) -> None:
        pass
