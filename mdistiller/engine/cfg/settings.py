"""The settings that determine the result of a run, and how they are compared."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Any, Dict, List, Sequence

from yacs.config import CfgNode

from ...distillers._plugins import unread_sections
from ...models import same_model
from .config import CFG
from .values import MAPPINGS, leaves, to_dict

# Prefixes of keys that are not compared: they change a result by rounding at most, or name data and weights that are
# compared by their content, see `run.origin`.
NOT_COMPARED = (
    *("LOG.", "PLUGINS", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG", "EXPERIMENT.NAME"),
    *("EXPERIMENT.REFERENCE", "DATASET.ROOT", "DATASET.NUM_WORKERS", "DATASET.IN_MEMORY", "DATASET.MEMORY_GB"),
    *("DATASET.TEST.BATCH_SIZE", "DISTILLER.TEACHER_WEIGHTS", "TEACHER_CACHE", "SOLVER.COMPILE"),
    *("SOLVER.CHECKPOINT_EVERY", "DISTILLER.TEACHER_CLASSES"),
)
MODELS = ("DISTILLER.TEACHER", "DISTILLER.STUDENT")
FILES = ("DATASET.UNLABELED", "DISTILLER.STUDENT_WEIGHTS")  # compared by name, because their folder may have moved
NOT_SET = "not set"
FROM_DATA = ("INPUT_SIZE", "MEAN", "STD")  # keys of DATASET that the data set determines where they are None
DIGEST_LENGTH = 12  # characters


def settings_of(cfg: CfgNode) -> Dict[str, Any]:
    """Return the values that determine the result by full key, such as `SOLVER.LR`."""
    values = own_leaves(to_dict(cfg), cfg.DISTILLER.TYPE)
    return {key: value for key, value in values.items() if not key.startswith(NOT_COMPARED)}


def own_leaves(config: Dict[str, Any], method: str) -> Dict[str, Any]:
    """Return the values of a configuration by full key, without the sections that a method does not read."""
    unread = tuple(f"{name}." for name in unread_sections(method))
    return {key: value for key, value in leaves(config) if not key.startswith(unread)}


def setting_changes(
    before: Dict[str, Any], now: Dict[str, Any], not_compared: Sequence[str] = NOT_COMPARED
) -> List[str]:
    """Return a phrase such as `SOLVER.LR was 0.1, now 0.05` for each value that differs.

    Args:
        before: values by full key. An earlier version lacks newer keys; it behaved as their present defaults do.
        now: values by full key. Keys that it lacks are not compared, except those of sections without defaults.
        not_compared: prefixes of keys that are not compared.
    """
    before = {**dict(leaves(to_dict(CFG))), **before}
    undeclared = tuple(f"{name}." for name, section in CFG.items() if _is_open(section))
    keys = [key for key in now if key in before or key.startswith(undeclared)]
    keys += [key for key in before if key not in now and key.startswith(undeclared)]
    pairs = (
        (key, before.get(key, NOT_SET), now.get(key, NOT_SET))
        for key in keys
        if not key.startswith(tuple(not_compared))
    )
    return [f"{key} was {old!r}, now {new!r}" for key, old, new in pairs if not _is_same(key, old, new)]


def _is_open(section: Any) -> bool:
    """Return whether a section has no defaults, as that of a plug-in without `DEFAULTS`, and takes any key."""
    return isinstance(section, CfgNode) and section.is_new_allowed()


def _is_same(key: str, before: Any, now: Any) -> bool:
    if key in MODELS:
        return same_model(str(before), str(now))
    if key in FILES:
        return PurePath(str(before)).name == PurePath(str(now)).name
    if key in MAPPINGS:
        return (before or None) == (now or None)
    return bool(before == now)


def settings_digest(settings: Dict[str, Any]) -> str:
    """Return a short hexadecimal digest of what `settings_of` returned."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]
