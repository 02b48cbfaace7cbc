"""The settings that determine the result of a run, and how they are compared."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict, List, Sequence

from yacs.config import CfgNode

from ...distillers._plugins import unread_sections
from .config import CFG
from .values import leaves, to_dict

# Keys that change a result by rounding at most. The data and the teacher's weights, after the choice of its outputs,
# are compared by their content; see `run.origin`.
FREE = (
    *("LOG.", "PLUGINS", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG", "EXPERIMENT.NAME"),
    *("EXPERIMENT.REFERENCE", "DATASET.ROOT", "DATASET.NUM_WORKERS", "DATASET.IN_MEMORY", "DATASET.MEMORY_GB"),
    *("DATASET.TEST.BATCH_SIZE", "DISTILLER.TEACHER_WEIGHTS", "TEACHER_CACHE", "SOLVER.COMPILE"),
    *("SOLVER.CHECKPOINT_EVERY", "DISTILLER.TEACHER_CLASSES"),
)
FROM_DATA = ("INPUT_SIZE", "MEAN", "STD")  # keys of DATASET that the data set determines where they are None
DIGEST_LENGTH = 12  # characters


def settings_of(cfg: CfgNode) -> Dict[str, Any]:
    """Return the values that determine the result by full key, such as `SOLVER.LR`."""
    values = own_leaves(to_dict(cfg), cfg.DISTILLER.TYPE)
    return {key: value for key, value in values.items() if not key.startswith(FREE)}


def own_leaves(config: Dict[str, Any], method: str) -> Dict[str, Any]:
    """Return the values of a configuration by full key, without the sections that a method does not read."""
    unread = tuple(f"{name}." for name in unread_sections(method))
    return {key: value for key, value in leaves(config) if not key.startswith(unread)}


def setting_changes(before: Dict[str, Any], now: Dict[str, Any], free: Sequence[str] = FREE) -> List[str]:
    """Return a phrase such as `SOLVER.LR was 0.1, now 0.05` for each value that differs.

    Args:
        before: values by full key. An earlier version lacks newer keys; it behaved as their present defaults do.
        now: values by full key.
        free: beginnings of keys that are not compared.
    """
    before = {**dict(leaves(to_dict(CFG))), **before}
    return [
        f"{key} was {before[key]!r}, now {value!r}"
        for key, value in now.items()
        if key in before and before[key] != value and not key.startswith(tuple(free))
    ]


def settings_digest(settings: Dict[str, Any]) -> str:
    """Return a short hexadecimal digest of what `settings_of` returned."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]
