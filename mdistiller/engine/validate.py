"""Checks of the configuration that need nothing but the configuration: all faults at once, before anything is built."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from .. import distributed
from ..dataset.options import option_faults
from ..distillers import distiller_dict
from ..distillers._base import knows
from ..errors import UserError, refuse
from ..paths import expanded, possible
from ..ranges import MAX_NUMBER
from .cfg import CACHES, CFG, experiment_name
from .cfg.values import leaves, to_dict
from .optim import OPTIMIZERS, SCHEDULES
from .run.save_interval import SaveSchedule
from .speed.precision import pick_device, pick_precision

MAX_COUNT = 10**6  # epochs, or images a batch: more are a slip
MAX_NAME_LENGTH = 255  # characters
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")


def check_settings(cfg: Any) -> None:
    """Raise one UserError with a line for each of `setting_faults`."""
    refuse(setting_faults(cfg))


def setting_faults(cfg: Any) -> List[str]:
    """Return a line for each value, and each combination of values, that cannot work.

    Those of `SOLVER`, `LOG`, `EXPERIMENT` and `DATASET`, and of the section of the distiller that is chosen; names that
    nothing has are `build.name_faults`.
    """
    faults: List[str] = []

    def expect(fine: bool, key: str, expected: str) -> None:
        if not fine:
            section, name = key.rsplit(".", 1)
            faults.append(f"{key} is {cfg[section][name]!r}; expected {expected}")

    solver, log = cfg.SOLVER, cfg.LOG
    least = 2 * distributed.get_world_size()
    each = f" in each of {distributed.get_world_size()} processes" if distributed.get_world_size() > 1 else ""
    enough = f"at least {least}, BatchNorm cannot train on one image{each}"
    expect(least <= solver.BATCH_SIZE, "SOLVER.BATCH_SIZE", enough)
    expect(solver.BATCH_SIZE <= MAX_COUNT, "SOLVER.BATCH_SIZE", f"at most {MAX_COUNT} images")
    expect(1 <= solver.EPOCHS <= MAX_COUNT, "SOLVER.EPOCHS", f"at least 1 and at most {MAX_COUNT}")
    expect(0 < solver.LR <= MAX_NUMBER, "SOLVER.LR", f"a number above 0, at most {MAX_NUMBER:g}")
    expect(solver.SCHEDULE in SCHEDULES, "SOLVER.SCHEDULE", f"one of {', '.join(SCHEDULES)}")
    stages = solver.LR_DECAY_STAGES
    numbers = all(isinstance(stage, (int, float)) and not isinstance(stage, bool) and stage > 0 for stage in stages)
    rising = numbers and list(stages) == sorted(set(stages))
    expect(rising, "SOLVER.LR_DECAY_STAGES", "epochs above 0 in rising order, for example [150, 180, 210]")
    if rising and stages and solver.SCHEDULE == "step" and solver.EPOCHS >= 1:
        # otherwise the rate would never fall, without a word
        expect(
            stages[-1] <= solver.EPOCHS,
            "SOLVER.LR_DECAY_STAGES",
            f"none above SOLVER.EPOCHS, {solver.EPOCHS}: give earlier ones, [] for a constant rate, or"
            " SOLVER.SCHEDULE linear",
        )
    expect(0 < solver.LR_DECAY_RATE <= 1, "SOLVER.LR_DECAY_RATE", "a number above 0 and up to 1")
    expect(
        0 <= solver.WARMUP_EPOCHS <= max(solver.EPOCHS, 0), "SOLVER.WARMUP_EPOCHS", "a number from 0 to SOLVER.EPOCHS"
    )
    expect(0 <= solver.WEIGHT_DECAY <= MAX_NUMBER, "SOLVER.WEIGHT_DECAY", f"a number from 0 on, at most {MAX_NUMBER:g}")
    expect(0 <= solver.MOMENTUM < 1, "SOLVER.MOMENTUM", "a number from 0 to below 1")
    expect(not solver.NESTEROV or solver.MOMENTUM > 0, "SOLVER.NESTEROV", "False where SOLVER.MOMENTUM is 0")
    expect(solver.COMPILE in COMPILE_MODES, "SOLVER.COMPILE", f"one of {', '.join(COMPILE_MODES)}")
    expect(
        _is_interval(solver.CHECKPOINT_EVERY),
        "SOLVER.CHECKPOINT_EVERY",
        "500 steps, 10 minutes or the like; empty for each epoch alone",
    )
    expect(solver.TYPE in OPTIMIZERS, "SOLVER.TYPE", " or ".join(OPTIMIZERS))
    try:
        pick_precision(solver.AMP, pick_device())
    except UserError as error:
        faults.append(str(error))
    expect(log.TENSORBOARD_FREQ >= 1, "LOG.TENSORBOARD_FREQ", "steps, at least 1")
    expect(log.SAVE_CHECKPOINT_FREQ >= 1, "LOG.SAVE_CHECKPOINT_FREQ", "epochs, at least 1")
    expect(0 <= cfg.EXPERIMENT.SEED < 2**63, "EXPERIMENT.SEED", "a whole number from 0 to below 2^63")
    faults += [*place_faults(cfg), *_cache_faults(cfg.TEACHER_CACHE)]
    compiles = solver.COMPILE != "off" and pick_device().type == "cpu"
    if compiles and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        faults.append(f"SOLVER.COMPILE {solver.COMPILE} needs a C++ compiler on a CPU; install g++, or set it to off")
    faults += option_faults(cfg.DATASET)
    name = cfg.DISTILLER.TYPE
    distiller, section = distiller_dict.get(name), cfg.get(name)
    if distiller is not None and knows(distiller, "config_errors", section):
        faults += distiller.config_errors(section, name)
    return faults


def place_faults(cfg: Any) -> Iterator[str]:
    """Yield a line if the output folder cannot be, or is not below LOG.PREFIX."""
    name = experiment_name(cfg)
    if not (cfg.EXPERIMENT.NAME or (cfg.EXPERIMENT.PROJECT and cfg.EXPERIMENT.TAG)):
        yield (
            f"EXPERIMENT.NAME is {cfg.EXPERIMENT.NAME!r}; expected a name for the output folder, or PROJECT and TAG to"
            " make one of"
        )
        return
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts or len(name) > MAX_NAME_LENGTH:
        yield (
            f"EXPERIMENT.NAME (or PROJECT/TAG) is {name!r:.80}; expected a folder below LOG.PREFIX, of at most"
            f" {MAX_NAME_LENGTH} characters: set LOG.PREFIX to write elsewhere"
        )
        return
    try:
        f"{cfg.LOG.PREFIX}/{name}".encode()  # it is written to worklog.txt
        possible(expanded(cfg.LOG.PREFIX) / name)
    except UnicodeEncodeError:
        yield "EXPERIMENT.NAME or LOG.PREFIX is not valid UTF-8; give another name"
    except UserError as error:
        yield f"EXPERIMENT.NAME or LOG.PREFIX: {error}"


def _cache_faults(choice: str) -> Iterator[str]:
    """Yield a line for a word misspelt, which would otherwise become a folder of that name."""
    try:
        folder = expanded(choice)
        if not (choice in CACHES or "/" in f"{choice}{folder}" or (choice and folder.is_dir())):
            yield f"TEACHER_CACHE is {choice!r}; expected off, memory, or a folder such as ./cache"
    except UserError as error:
        yield f"TEACHER_CACHE: {error}"


def _is_interval(text: str) -> bool:
    try:
        SaveSchedule(text)
    except ValueError:
        return False
    return True


# what each process may have otherwise: where it finds things, and what the first alone does
FREE_IN_PROCESSES = (
    *("LOG.", "PLUGINS", "EXPERIMENT.REFERENCE", "DATASET.ROOT", "DATASET.NUM_WORKERS"),
    "DISTILLER.TEACHER_WEIGHTS",
)


def check_same_settings(cfg: Any) -> None:
    """Refuse to train in several processes, perhaps on several machines, that were given different settings."""
    of_all = distributed.all_gather(dict(leaves(to_dict(cfg))))
    differing = [
        f"{key} is {value!r} for process 0, {other.get(key)!r} for process {number}"
        for number, other in enumerate(of_all)
        for key, value in of_all[0].items()
        if other.get(key) != value and not key.startswith(FREE_IN_PROCESSES)
    ]
    if differing:
        raise UserError(f"the processes have different settings ({'; '.join(differing[:3])}); give all the same")


# what a resumed run may have otherwise: what `resuming` compares, where it runs, what is written about it; and
# the trainer, which has aliases, and whose optimizer state tells one update rule from another
FREE_ON_RESUME = (
    *("SOLVER.EPOCHS", "SOLVER.LR_DECAY_STAGES", "SOLVER.TRAINER"),
    *("LOG.", "PLUGINS", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG", "EXPERIMENT.NAME"),
    *("EXPERIMENT.REFERENCE", "DATASET.ROOT", "DATASET.NUM_WORKERS", "DATASET.IN_MEMORY", "DATASET.MEMORY_GB"),
    *("DATASET.TEST.BATCH_SIZE", "DISTILLER.TEACHER_WEIGHTS", "TEACHER_CACHE", "SOLVER.COMPILE"),
    "SOLVER.CHECKPOINT_EVERY",
)


def check_resumable(saved: Any, given: Dict[str, Any], path: str, leave_out: Sequence[str] = ()) -> None:
    """Refuse to continue a run under other settings than it was started with, for those that change its result.

    Args:
        saved: the configuration in the state at `path`, nested dictionaries.
        given: the present one.
        leave_out: keys that are not compared.

    Raises:
        UserError: settings differ.
    """
    free = (*FREE_ON_RESUME, *leave_out)
    # a key that did not exist yet had what is its default now
    before = {**dict(leaves(to_dict(CFG))), **dict(leaves(saved))} if saved else {}
    now = dict(leaves(given))
    changed = [
        f"{key} was {before[key]!r}, now {now[key]!r}"
        for key in before
        if key in now and before[key] != now[key] and not key.startswith(free)
    ]
    if changed:
        raise UserError(f"--resume: {path} was trained with other settings ({'; '.join(changed)}); give those")
