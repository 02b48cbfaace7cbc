"""The state of a run: what a resumed one needs to end as if it had never been interrupted, and what is deployed."""

from __future__ import annotations

import logging
import os
import random
from typing import TYPE_CHECKING, Any, Callable, Dict, List

import numpy as np
import torch

from ... import distributed
from ...atomic_files import writing_to
from ...distillers import DeployedStudent
from ...errors import UserError
from ..cfg import to_dict
from ..checkpoint import describe_student, save
from ..data_parallel import own_statistics
from ..meter import EpochMeter
from ..validate import check_resumable
from .folder import RunFolder
from .origin import check_origin, is_origin
from .resume import find_latest, schedule_changes

if TYPE_CHECKING:
    from ..trainer import Trainer

log = logging.getLogger("mdistiller")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def _are_accuracies(value: Any) -> bool:
    # none before the first epoch's end
    return isinstance(value, dict) and (not value or "deployed_top1" in value) and all(map(_is_seconds, value.values()))


def _are_dicts(values: List[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


MAX_COUNT = 2**53  # images, or steps

# attributes of a trainer that are plain values, and what they may be
PLAIN: Dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("epoch", "step", "images"), _is_count),
    **dict.fromkeys(("train_seconds", "total_seconds", "epoch_seconds"), _is_seconds),
    **dict.fromkeys(("best", "last"), _are_accuracies),
    "wandb_id": lambda value: value is None or isinstance(value, str),
}
# what a state says besides, where it does: older ones lack some
ABOUT: Dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("num_images", "num_steps"), lambda value: value is None or _is_count(value)),
    **dict.fromkeys(("distiller", "optimizer", "scaler", "meter", "config"), lambda value: isinstance(value, dict)),
    "origin": is_origin,
    "random": lambda value: _are_dicts(value if isinstance(value, list) else [value]),  # one, before there were more
}


def capture(trainer: Trainer) -> Dict[str, Any]:
    """Return the state between two steps; not the teacher, which is frozen and has its own file.

    The loaders' random numbers follow from seed and epoch, and so need nothing. Several processes capture together.
    """
    weights = {k: v for k, v in trainer.distiller.state_dict().items() if not k.startswith("teacher.")}
    return {
        "distiller": weights,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "meter": trainer.meter.state(),
        **{name: getattr(trainer, name) for name in PLAIN},
        "origin": trainer.origin,
        "random": distributed.all_gather(random_state(trainer.device)),
        "statistics": distributed.all_gather({k: v.cpu() for k, v in own_statistics(trainer.distiller).items()}),
        "num_steps": _num_steps(trainer),
        "config": to_dict(trainer.cfg),
    }


def deployed(trainer: Trainer) -> Dict[str, Any]:
    """Return the checkpoint of the student as it is, with the accuracies just measured."""
    distiller, accuracy = trainer.distiller, trainer.last
    if distiller.tests_otherwise:
        accuracy = {f"deployed_top{k}": trainer.last[f"bare_top{k}"] for k in (1, 5)}
    return describe_student(
        DeployedStudent(distiller.student, distiller.head),
        trainer.cfg.DISTILLER.STUDENT,
        trainer.train_loader.info,
        accuracy,
        trainer.epoch,
        to_dict(trainer.cfg),
    )


def restore(trainer: Trainer, state: Dict[str, Any]) -> List[str]:
    """Put a trainer, built from the same configuration, where `capture` found it.

    Returns:
        Notes for the user, on a length or stages that the configuration changes. The saved state then has them too.

    Raises:
        UserError: the state is of another configuration, other data, another teacher, or not one.
    """
    path = trainer.folder.latest
    for name, fits in {**PLAIN, **ABOUT}.items():
        if name in state and not fits(state[name]):
            raise UserError(
                f"--resume: {path} is not a valid training state: its {name} is {state[name]!r:.60}; copy"
                f" {trainer.folder.best.name} or an epoch_N.pth to {path.name}, or start again with --overwrite"
            )
    saved, given = state.get("config"), to_dict(trainer.cfg)
    # mean and std may be measured: where the images differ, so do they, and that is the reason to give
    check_resumable(saved, given, str(path), leave_out=["DATASET.MEAN", "DATASET.STD"])
    check_origin(_origin_in(state), trainer.origin, str(path))
    check_resumable(saved, given, str(path))
    steps = _num_steps(trainer)
    if state.get("num_steps", steps) != steps:
        raise UserError(
            f"--resume: {path} has epochs of {state['num_steps']} steps, with {distributed.get_world_size()} processes they have"
            f" {steps}, because a short last batch is dropped; give the {len(state['random'])} that it was started with"
        )
    try:
        missing, unexpected = trainer.distiller.load_state_dict(state["distiller"], strict=False)
        missing = [key for key in missing if not key.startswith("teacher.")]
        if missing or unexpected:
            raise ValueError(f"weights differ, first {(missing + unexpected)[0]}")
        trainer.distiller.load_state_dict(_statistics(state.get("statistics", [{}])), strict=False)
        options = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
        trainer.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(trainer.optimizer.param_groups, options):
            group.update(own)  # they follow from the configuration, which is known to be the same
        trainer.scaler.load_state_dict(state["scaler"])
        for name in PLAIN:
            setattr(trainer, name, state[name])
        if steps is not None and trainer.step > steps:
            raise ValueError(f"step is {trainer.step}, an epoch has {steps}")
        trainer.meter = EpochMeter(trainer.epoch + 1)
        trainer.meter.load(state["meter"], trainer.device)
        # a state of before there were several processes has one; a process that was not there then has its seed's
        states = state["random"] if isinstance(state["random"], list) else [state["random"]]
        if distributed.get_rank() < len(states):
            set_random_state(states[distributed.get_rank()], trainer.device)
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--resume: {path} is not a state of this configuration ({type(error).__name__}:"
            f" {reason}); give the configuration that the run was started with"
        ) from None
    if steps is None:
        return []
    notes = schedule_changes(trainer.cfg, saved, trainer.epoch, trainer.step, steps, str(path))
    if notes:  # else a run that ends before its next save would go on by the old schedule
        changed = {**state, "config": given}
        distributed.run_on_main(lambda: save(changed, path, trainer.folder.previous))
    return notes


def _origin_in(state: Dict[str, Any]) -> Dict[str, Any]:
    """Return what a state says of data and teacher; before there was more, it had the number of training images."""
    known = {"train_images": state.get("num_images"), **state.get("origin", {})}
    return {key: value for key, value in known.items() if value is not None}


def _statistics(of_processes: List[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
    """Return this process's running means and variances; where other processes made them, the mean over these."""
    if len(of_processes) == distributed.get_world_size():
        return of_processes[distributed.get_rank()]
    return {key: torch.stack([part[key] for part in of_processes]).mean(0) for key in of_processes[0]}


def _num_steps(trainer: Trainer) -> Any:
    return None if trainer.train_loader is None else len(trainer.train_loader)


def read_latest(folder: RunFolder) -> Dict[str, Any]:
    """Return the last state in `folder`; if that is damaged or missing, the one before, and a note says so.

    A damaged file is put aside, so that it never takes the place of the good one.

    Raises:
        UserError: neither can be read.
    """
    state, fault = find_latest(folder)
    if not fault:
        return state
    if folder.latest.is_file():
        with writing_to(folder.damaged):
            os.replace(folder.latest, folder.damaged)
        fault += f", kept as {folder.damaged.name}"
    log.info(f"note: {fault}; resuming from {folder.previous.name}")
    return state


def random_state(device: torch.device) -> Dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's generators, as tensors and plain values."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states() if device.type == "cuda" else [],
    }


def set_random_state(state: Dict[str, Any], device: torch.device) -> None:
    """Set what `random_state` returned."""
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        if distributed.get_world_size() > 1:
            torch.cuda.set_rng_state(state["cuda"][0])
        else:
            torch.cuda.set_rng_state_all(state["cuda"])


def _cuda_states() -> List[torch.Tensor]:
    # each process has its own device, and leaves those of the others alone
    return [torch.cuda.get_rng_state()] if distributed.get_world_size() > 1 else torch.cuda.get_rng_state_all()
