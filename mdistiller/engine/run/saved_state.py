"""The training state of a run as a file: which one to resume from, and whether its content is a training state."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any, Callable, Dict, Tuple

import torch

from ...atomic_files import writing_to
from ...errors import UserError
from ..checkpoint import DamagedCheckpoint, read_checkpoint
from .folder import RunFolder
from .origin import is_origin
from .progress import is_count
from .random_state import KEYS as RANDOM_KEYS

log = logging.getLogger("mdistiller")


def find_latest(folder: RunFolder) -> Tuple[Dict[str, Any], str]:
    """Return the last state in `folder` and an empty string, or the state before it and why the last one is not used.

    Raises:
        UserError: both are missing or damaged, or one that is not damaged cannot be read now.
    """
    try:
        if folder.latest.is_file():
            return read_checkpoint(folder.latest), ""
        fault = f"{folder.latest} is missing"  # the process was killed between the two renames of a save
    except DamagedCheckpoint as error:
        fault = str(error).partition(";")[0]
    with suppress(DamagedCheckpoint):
        if folder.previous.is_file():
            return read_checkpoint(folder.previous), fault
    raise UserError(f"--resume: {fault}, and {folder.previous.name} cannot be read either; {folder.remedy()}")


def read_latest(folder: RunFolder) -> Dict[str, Any]:
    """Return the last state in `folder`; if that is damaged or missing, the one before it, after a note.

    A damaged file is renamed, so that the next save does not move it over the good one.

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


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_optional_count(value: Any) -> bool:
    return value is None or is_count(value)


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    if not all(isinstance(entry, dict) for entry in value["state"].values()):
        return False
    return isinstance(groups, list) and all(
        isinstance(group, dict) and "params" in group and isinstance(group.get("lr"), float) for group in groups
    )


def _are_random_states(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(state, dict) and set(RANDOM_KEYS) <= set(state) for state in value)
    )


def _are_statistics(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and all(isinstance(t, torch.Tensor) for t in part.values()) for part in value)
        and all(set(part) == set(value[0]) for part in value)
    )


# Keys of a training state besides those of `Progress`. `ema` is there with SOLVER.EMA only; the earliest states lack
# `precision`.
REQUIRED: Dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("distiller", "scaler", "meter", "config"), _is_dict),
    "optimizer": _is_optimizer,
    "random": _are_random_states,
    "statistics": _are_statistics,
    "origin": is_origin,
    "num_steps": _is_optional_count,
}
OPTIONAL: Dict[str, Callable[[Any], bool]] = {"ema": _is_dict, "precision": lambda value: isinstance(value, str)}


def check_state(state: Dict[str, Any]) -> None:
    """Check the types of what a training state holds, except the fields of `Progress`, which checks them itself.

    Raises:
        ValueError: a key is missing or has an impossible value.
    """
    for key, is_valid in {**REQUIRED, **OPTIONAL}.items():
        if key not in state and key in REQUIRED:
            raise ValueError(f"its {key} is missing")
        if key in state and not is_valid(state[key]):
            raise ValueError(f"its {key} is {state[key]!r:.60}")
