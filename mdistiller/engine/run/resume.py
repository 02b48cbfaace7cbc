"""The settings of a resumed run: those of the saved one; its length and its stages may change, on request.

`SOLVER.EPOCHS` and `SOLVER.LR_DECAY_STAGES` are those of the saved run unless the command line gives others. Those may
change the epochs to come, never the ones that are done. All other settings that change a result must be the same.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ... import distributed
from ...errors import UserError
from ..cfg import experiment_name, merge_known
from ..cfg.values import leaves, to_dict
from ..checkpoint import read_checkpoint
from ..optim import learning_rate
from ..validate import check_resumable
from .folder import RunFolder

log = logging.getLogger("mdistiller")

SCHEDULE = ("EPOCHS", "LR_DECAY_STAGES")  # of SOLVER: what may change
SETTLED = ("INPUT_SIZE", "MEAN", "STD")  # of DATASET: what the data set says where they are None


def find_latest(folder: RunFolder) -> Tuple[Dict[str, Any], str]:
    """Return the last state in `folder` and an empty text; if it is damaged or missing, the one before and the reason.

    Raises:
        UserError: neither can be read.
    """
    try:
        if folder.latest.is_file():
            return read_checkpoint(folder.latest), ""
        fault = f"{folder.latest} is missing"  # stopped between the two renames of a save
    except UserError as error:
        fault = str(error).partition(";")[0]
    try:
        return read_checkpoint(folder.previous), fault
    except UserError:
        raise UserError(
            f"--resume: {fault}, and {folder.previous.name} cannot be read either; copy {folder.best.name} or an"
            f" epoch_N.pth to {folder.latest.name}, or start again with --overwrite"
        ) from None


class SavedRun(NamedTuple):
    """What is known of a run that goes on before anything is built.

    Attributes:
        path: of its state, for messages.
        config: its configuration, nested dictionaries.
        epoch: how many epochs are done.
    """

    path: str
    config: Dict[str, Any]
    epoch: int


def saved_run(cfg: Any, resume: bool, overwrite: bool) -> Optional[SavedRun]:
    """Return the run that `cfg` continues, if it continues one.

    Args:
        cfg: names the run's folder.
        resume, overwrite: as `Trainer.train` is to be called.

    Raises:
        UserError: its state cannot be read.
    """
    folder = RunFolder(cfg.LOG.PREFIX, experiment_name(cfg))

    def read() -> Any:
        if not folder.continues(resume, overwrite):
            return None
        state = find_latest(folder)[0]
        return state.get("config"), state.get("epoch")

    found = distributed.run_on_main(read)
    if found is None or not isinstance(found[0], dict) or type(found[1]) is not int:
        return None  # nothing to continue, or a state that `run_state.restore` refuses
    return SavedRun(str(folder.latest), *found)


def keep_schedule(cfg: Any, saved: SavedRun, overrides: Sequence[str]) -> None:
    """Change length and stages of `cfg`, in place, to those of the saved run, except where `overrides` give them.

    Args:
        overrides: `KEY VALUE KEY VALUE …`, words of the command line.

    Raises:
        UserError: the length given there is less than what is done.
    """
    before = dict(leaves(saved.config))
    for name in SCHEDULE:
        key, given = f"SOLVER.{name}", cfg.SOLVER[name]
        if key in before and before[key] != given and key not in overrides[::2]:
            merge_known(cfg, {"SOLVER": {name: before[key]}}, "the saved run")
            log.info(
                f"note: {key} stays {before[key]}, that of the saved run; the configuration has {given}, give {key} on"
                " the command line to change it"
            )
    if cfg.SOLVER.EPOCHS >= 1:  # else it is no length
        _check_length(cfg, before.get("SOLVER.EPOCHS"), saved.epoch, saved.path)


def check_early(cfg: Any, saved: SavedRun) -> None:
    """Compare the settings with those of the saved run, before data are read: all but what the data are to settle.

    Raises:
        UserError: settings differ.
    """
    unsettled = [f"DATASET.{name}" for name in SETTLED if cfg.DATASET[name] is None]
    check_resumable(saved.config, to_dict(cfg), saved.path, leave_out=unsettled)


def schedule_changes(cfg: Any, saved: Any, epoch: int, step: int, steps: int, path: str) -> List[str]:
    """Return a note on how the length or the stages of a resumed run differ from the saved ones; none if they do not.

    Args:
        cfg: the present configuration.
        saved: that of the state at `path`, nested dictionaries.
        epoch, step: epochs done, and steps of the next.
        steps: of an epoch.

    Raises:
        UserError: more than the new length is done, or a stage that was passed has changed.
    """
    old = cfg.clone()
    old.defrost()
    for name in SCHEDULE:
        before = dict(leaves(saved or {})).get(f"SOLVER.{name}", cfg.SOLVER[name])
        merge_known(old, {"SOLVER": {name: before}}, path)
    changes = [
        f"SOLVER.{name} was {old.SOLVER[name]}, is now {cfg.SOLVER[name]}"
        for name in SCHEDULE
        if old.SOLVER[name] != cfg.SOLVER[name]
    ]
    if not changes:
        return []
    done = epoch + step / steps
    _check_length(cfg, old.SOLVER.EPOCHS, done, path)
    passed, now = ([s for s in each.SOLVER.LR_DECAY_STAGES if s <= done] for each in (old, cfg))
    if cfg.SOLVER.SCHEDULE == "step" and passed != now:
        raise UserError(
            f"--resume: SOLVER.LR_DECAY_STAGES was {old.SOLVER.LR_DECAY_STAGES}, is now {cfg.SOLVER.LR_DECAY_STAGES},"
            f" but {path} has {done:.4g} epochs done; only later stages can change, keep {passed} up to there"
        )
    return [f"note: {'; '.join(changes)}; {_rates(old, cfg, epoch * steps + step, steps)}"]


def _check_length(cfg: Any, before: Any, done: float, path: str) -> None:
    if done > cfg.SOLVER.EPOCHS:
        raise UserError(
            f"--resume: SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS}, but {path} has {done:.4g} epochs done; give at least"
            f" {math.ceil(done)}, or leave it out to keep {before}"
        )


def _rates(old: Any, new: Any, step: int, steps: int) -> str:
    """Say what the change does to the learning rate of the run's step `step`, counted from 0."""
    if step >= new.SOLVER.EPOCHS * steps:
        return "nothing is left to train"
    after = f"{learning_rate(new, step, steps):.5g}"
    if step >= old.SOLVER.EPOCHS * steps:
        return f"the learning rate of the last step was {learning_rate(old, step - 1, steps):.5g}, the next has {after}"
    return f"the learning rate of the next step was {learning_rate(old, step, steps):.5g}, is now {after}"
