"""The settings of a resumed run: those of the saved run, except its length and decay stages on request.

`SOLVER.EPOCHS` and `SOLVER.LR_DECAY_STAGES` keep their saved values unless the command line gives others. New values
may change the epochs to come, never the completed ones. Every other setting that changes a result must stay the same.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from yacs.config import CfgNode

from .. import distributed
from ..distillers._plugins import unread_sections
from ..errors import UserError
from .cfg import FROM_DATA, NOT_COMPARED, experiment_name, leaves, merge_known, setting_changes, to_dict
from .run.folder import RunFolder
from .run.saved_state import find_latest
from .solver.optim import learning_rate

log = logging.getLogger("mdistiller")

SCHEDULE = ("EPOCHS", "LR_DECAY_STAGES")  # keys of SOLVER that may change
# SOLVER.TRAINER has aliases; the optimizer's state tells one update rule from another.
NOT_COMPARED_ON_RESUME = (
    *NOT_COMPARED,
    *("SOLVER.EPOCHS", "SOLVER.LR_DECAY_STAGES", "SOLVER.TRAINER", "DISTILLER.STUDENT_WEIGHTS"),
)


class SavedRun(NamedTuple):
    """What is known about a run to resume before data and models are loaded.

    Attributes:
        path: the path of its training state, named in error messages.
        config: its configuration, as nested dictionaries.
        epoch: the number of completed epochs.
    """

    path: str
    config: Dict[str, Any]
    epoch: int


def saved_run(cfg: CfgNode, resume: bool, overwrite: bool) -> Optional[SavedRun]:
    """Return the run that `cfg` resumes, or `None`.

    Args:
        cfg: the configuration, which gives the folder of the run.
        resume, overwrite: the arguments that `Trainer.train` will get.

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
        return None  # nothing to resume, or a state that `TrainingState.restore` will refuse
    return SavedRun(str(folder.latest), *found)


def keep_schedule(cfg: CfgNode, saved: SavedRun, overrides: Sequence[str]) -> None:
    """Set length and decay stages of `cfg`, in place, to those of the saved run, except where `overrides` give them.

    Args:
        overrides: `KEY VALUE KEY VALUE …`, words of the command line.

    Raises:
        UserError: the given length is less than the completed epochs.
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
    if cfg.SOLVER.EPOCHS >= 1:  # otherwise validation rejects it
        _check_length(cfg, before.get("SOLVER.EPOCHS"), saved.epoch, saved.path)


def check_settings_unchanged(cfg: CfgNode, saved: SavedRun) -> None:
    """Compare the settings with those of the saved run before data are read, except those that the data will determine.

    Raises:
        UserError: settings differ.
    """
    undetermined = [f"DATASET.{name}" for name in FROM_DATA if cfg.DATASET[name] is None]
    check_same_config(saved.config, to_dict(cfg), saved.path, leave_out=undetermined)


def schedule_changes(cfg: CfgNode, saved: Any, epoch: int, step: int, steps: int, path: str) -> List[str]:
    """Return a note if length or decay stages of a resumed run differ from the saved ones, otherwise an empty list.

    Args:
        cfg: the present configuration.
        saved: the configuration in the state at `path`, as nested dictionaries.
        epoch, step: the number of completed epochs, and the number of completed steps of the next one.
        steps: the number of steps per epoch.

    Raises:
        UserError: more epochs are completed than the new length allows, or a stage that it has passed has changed.
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
            f" but {path} has completed {done:.4g} epochs; only later stages can change, so keep {passed}"
        )
    at = epoch * steps + step
    return [f"note: {'; '.join(changes)}; {_rates(old, cfg, at, steps)}{_difference(old, cfg, at, steps)}"]


def _check_length(cfg: CfgNode, before: Any, done: float, path: str) -> None:
    if done > cfg.SOLVER.EPOCHS:
        raise UserError(
            f"--resume: SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS}, but {path} has completed {done:.4g} epochs; give at least"
            f" {math.ceil(done)}, or leave it out to keep {before}"
        )


def _rates(old: CfgNode, new: CfgNode, step: int, steps: int) -> str:
    """Describe what the change does to the learning rate of step `step`, counted from 0 over the run."""
    if step >= new.SOLVER.EPOCHS * steps:
        return "nothing is left to train"
    after = f"{learning_rate(new, step, steps):.5g}"
    if step >= old.SOLVER.EPOCHS * steps:
        return f"the learning rate of the last step was {learning_rate(old, step - 1, steps):.5g}, the next has {after}"
    return f"the learning rate of the next step was {learning_rate(old, step, steps):.5g}, is now {after}"


def _difference(old: CfgNode, new: CfgNode, step: int, steps: int) -> str:
    """Return what to say if completed steps had other rates than the new settings would have given them."""
    if step >= new.SOLVER.EPOCHS * steps:
        return ""
    done = range(0, step, max(1, steps // 2))  # a rate changes in each step, or between epochs
    if all(learning_rate(old, number, steps) == learning_rate(new, number, steps) for number in done):
        return ""
    return (
        "; the completed epochs used the earlier learning rates, so the result differs from that of a run with the new"
        " settings from the start"
    )


def check_same_config(saved: Any, given: Dict[str, Any], path: str, leave_out: Sequence[str] = ()) -> None:
    """Raise a UserError if settings that change the result differ from those that the run was started with.

    Args:
        saved: the configuration in the state at `path`, as nested dictionaries.
        given: the present configuration.
        leave_out: the keys that are not compared.

    Raises:
        UserError: settings differ.
    """
    if not saved:
        return
    unread = (f"{name}." for name in unread_sections(given["DISTILLER"]["TYPE"]))
    not_compared = (*NOT_COMPARED_ON_RESUME, *leave_out, *unread)
    before, now = dict(leaves(saved)), dict(leaves(given))
    if before.get("DATASET.UNLABELED") and now["DATASET.UNLABELED"]:  # its content is compared later
        before["DATASET.UNLABELED"] = now["DATASET.UNLABELED"]
    changed = setting_changes(before, now, not_compared)
    if changed:
        raise UserError(
            f"--resume: {path} was trained with other settings ({'; '.join(changed)}); give the earlier values, or"
            " start a new run (EXPERIMENT.NAME)"
        )
