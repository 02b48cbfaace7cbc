"""What a run was started with besides its settings: the data and the teacher's weights, in short.

Digests tell them from others wherever they lie, so a folder or a file may be moved, copied or renamed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Dict, Iterator

from ..dataset import Loader
from ..errors import UserError
from .teacher_cache import weights_digest

if TYPE_CHECKING:
    from .trainer import Trainer

SHOWN = 12  # characters of a digest
GROUPS = (  # of what follows from what: where the number of images differs, so do their labels
    ("classes",),
    *(tuple(f"{name}_{part}" for part in ("images", "labels", "content")) for name in ("train", "val")),
    ("teacher",),
)
WORDS = {
    "train_images": "the number of training images",
    "train_labels": "the digest of the training labels",
    "train_content": "the training images'",
    "val_images": "the number of validation images",
    "val_labels": "the digest of the validation labels",
    "val_content": "the validation images'",
    "teacher": "the digest of the teacher's weights",
}


def labels_digest(loader: Loader) -> str:
    """Return a fingerprint of a loader's labels in their order, hexadecimal."""
    return hashlib.sha256(loader.targets.cpu().numpy().tobytes()).hexdigest()


def origin_of(trainer: Trainer) -> Dict[str, Any]:
    """Return what is compared when a run goes on, as plain values; to be called before the teacher is used.

    `classes`, in label order; for `train` and `val` the number of images, `_images`, a digest of the labels, `_labels`,
    and one of the images, `_content`, with what it was made of; `teacher`, a digest of its weights, or None.
    """
    origin: Dict[str, Any] = {"classes": list(trainer.train_loader.info.classes)}
    for name, loader in (("train", trainer.train_loader), ("val", trainer.val_loader)):
        origin[f"{name}_images"] = loader.num_images
        origin[f"{name}_labels"] = labels_digest(loader)
        origin[f"{name}_content"] = list(loader.fingerprint())
    teacher = trainer.distiller.teacher
    origin["teacher"] = None if teacher is None else weights_digest(teacher)
    return origin


def is_origin(value: Any) -> bool:
    """Whether a value read from a file can be what `origin_of` returned, perhaps of another version."""
    return isinstance(value, dict) and all(isinstance(part, (str, int, list, type(None))) for part in value.values())


def check_origin(saved: Dict[str, Any], now: Dict[str, Any], path: str) -> None:
    """Refuse to continue a run on other data, or with another teacher, than it was started with.

    Args:
        saved: what `origin_of` returned for the run whose state is at `path`. What it lacks is not compared: states of
            earlier versions have less.
        now: what it returns for the present one.

    Raises:
        UserError: they differ.
    """
    differing = list(_differences(saved, now))
    if differing:
        raise UserError(
            f"--resume: {path} was trained with other data or another teacher ({'; '.join(differing)}); give those that"
            " the run was started with, which config.yaml beside it names, or start a new run (EXPERIMENT.NAME)"
        )


def _differences(saved: Dict[str, Any], now: Dict[str, Any]) -> Iterator[str]:
    """Yield the first difference in each of `GROUPS`."""
    for keys in GROUPS:
        found = [_difference(key, saved[key], now[key]) for key in keys if key in saved and key in now]
        yield from list(filter(None, found))[:1]


def _difference(key: str, before: Any, now: Any) -> str:
    if before == now:
        return ""
    if key == "classes":
        if len(before) != len(now):
            return f"the number of classes was {len(before)}, now {len(now)}"
        label = next(label for label, names in enumerate(zip(before, now)) if names[0] != names[1])
        return f"class {label} was {before[label]!r}, now {now[label]!r}"
    if key.endswith("content"):
        if before[0] != now[0]:  # held in memory then, streamed now
            return ""
        return f"the digest of {WORDS[key]} {before[0]} was {before[1][:SHOWN]}, now {now[1][:SHOWN]}"
    return f"{WORDS[key]} was {str(before)[:SHOWN]}, now {str(now)[:SHOWN]}"
