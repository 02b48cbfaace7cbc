"""Logging of a run: the screen, worklog.txt, metrics.jsonl, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, Optional

from yacs.config import CfgNode

from ... import distributed
from ...atomic_files import replace_text, writing_to
from ...errors import UserError, one_line
from ..cfg import dump, experiment_name, to_dict
from ..run.folder import RunFolder
from ..run.progress import Progress
from ..run.records import read_metrics
from ..run.signals import RunStopped
from .tensorboard import EventFile, cut_events
from .wandb_run import start_run

MAX_TAG = 64  # characters; wandb refuses longer tags
# Keys of a row of metrics.jsonl that depend on the machine; the others follow from the configuration.
MACHINE_FIELDS = ("images_per_second", "seconds", "memory_mib", "peak_memory_mib")


@contextmanager
def open_logger(
    folder: RunFolder, cfg: CfgNode, progress: Progress, steps_done: int, resumed: bool
) -> Iterator[RunLogger]:
    """Create the folder of a run and its logger on the main process; close the logger when the run ends.

    An error within the `with` block is logged and raised again. Other processes get a logger that does nothing.

    Args:
        progress: the progress of the run so far; its `wandb_id` is set.
        steps_done: the number of completed steps of the run.
        resumed: whether the files of the folder are kept.
    """
    opened: List[RunLogger] = []
    distributed.run_on_main(lambda: opened.append(_create(folder, cfg, progress, steps_done, resumed)))
    logger = opened[0] if opened else SilentLogger()
    progress.wandb_id = logger.wandb_id
    try:
        yield logger
    except BaseException as error:
        logger.abort(error)
        if isinstance(error, RunStopped):
            distributed.synchronize()  # torchrun ends all processes when the first one ends
        raise


def _create(folder: RunFolder, cfg: CfgNode, progress: Progress, steps_done: int, resumed: bool) -> RunLogger:
    folder.create(resumed)
    replace_text(folder.config, dump(cfg))
    return RunLogger(folder, cfg, progress.epoch, steps_done, progress.wandb_id)


class RunLogger:
    """Writes the numbers and lines of one run to all sinks.

    Args:
        folder: the run's folder; it exists.
        cfg: the resolved configuration.
        start_epoch: the number of completed epochs. Later rows of metrics.jsonl are dropped; the resumed run writes
            them again.
        start_step: the number of completed steps of the run. Later TensorBoard values are dropped too.
        wandb_id: the ID of the Weights & Biases run to continue.

    Attributes:
        wandb_id: the ID of the Weights & Biases run, if there is one.
    """

    def __init__(
        self,
        folder: RunFolder,
        cfg: CfgNode,
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
            rows = read_metrics(self.folder.metrics)  # without a line that a killed process has cut off
            lines = self.folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line, row in zip(lines, rows) if row["epoch"] <= epoch]
            replace_text(self.folder.metrics, "".join(kept))

    def _start_wandb(self, cfg: CfgNode) -> Any:
        """Start a Weights & Biases run; return `None`, after a line, if that fails. It never prompts."""
        try:
            return start_run(
                self.say,
                project=cfg.EXPERIMENT.PROJECT,
                name=experiment_name(cfg),
                tags=[tag.strip()[:MAX_TAG] for tag in cfg.EXPERIMENT.TAG.split(",") if tag.strip()],
                config=to_dict(cfg),
                dir=str(self.folder.path),
                id=self.wandb_id,
                resume="allow",
            )
        except Exception as error:  # wandb raises many types; none of them may end the training
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
        """Write to worklog.txt why the run stopped, and close the sinks."""
        with suppress(UserError, OSError):  # a full disk may be the reason
            if not isinstance(error, SystemExit):  # the trainer has logged RunStopped
                self._note(f"stopped: {type(error).__name__} {error}".rstrip())
            self.flush()
        self._to_wandb(lambda run: run.finish(exit_code=1))

    def say(self, line: str) -> None:
        """Print a line, and write it to worklog.txt with the time."""
        print(line, flush=True)
        self._note(line)

    def _note(self, line: str) -> None:
        with writing_to(self.folder.worklog), self.folder.worklog.open("a", encoding="utf-8") as log:
            for part in line.splitlines():
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {part}\n")

    def steps(self, step: int, values: Dict[str, float]) -> None:
        """Write the scalars of a training step to TensorBoard."""
        for name, value in values.items():
            self.tensorboard.add_scalar(f"step/{name}", value, step)

    def epoch(self, row: Dict[str, Any]) -> None:
        """Write the row of an epoch, with the key `epoch`, to metrics.jsonl, TensorBoard and Weights & Biases."""
        with writing_to(self.folder.metrics), self.folder.metrics.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
            log.flush()
            os.fsync(log.fileno())
        for name, value in row.items():
            if name != "epoch":
                self.tensorboard.add_scalar(f"epoch/{name}", value, row["epoch"])
        self.flush()
        # A resumed run may log an epoch that wandb has already; wandb ignores the second row.
        self._to_wandb(lambda run: run.log(row, step=row["epoch"]))

    def flush(self) -> None:
        """Flush all numbers to the disk; called before a state is saved, so that a resumed run lacks none."""
        with writing_to(self.folder.tensorboard):
            self.tensorboard.flush()

    def finish(self, summary: Dict[str, Any]) -> None:
        """Write summary.json and close the sinks."""
        replace_text(self.folder.summary, json.dumps(summary, indent=2) + "\n")
        self.flush()
        self._to_wandb(lambda run: run.summary.update(summary))
        self._to_wandb(lambda run: run.finish())


class SilentLogger(RunLogger):
    """A logger that does nothing, for processes other than the main one."""

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

    def finish(self, summary: Dict[str, Any]) -> None:
        pass
