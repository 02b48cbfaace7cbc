"""What a run was started with besides its settings: the data and the teacher's weights, in short.

Digests tell them from others wherever they lie, so a folder or a file may be moved, copied or renamed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Dict, Iterator

from torch import nn

from ...dataset import Loader
from ...errors import UserError
from ..speed.teacher_cache import weights_digest

if TYPE_CHECKING:
    from ..trainer import Trainer

SHOWN = 12  # characters of a digest
GROUPS = (  # of what follows from what: where the number of images differs, so do their labels
    ("classes",),
    *(tuple(f"{name}_{part}" for part in ("images", "labels", "content")) for name in ("train", "val")),
    ("teacher",),
)
WORDS = {
    "train_images": "the number of training images",
    "train_labels": "the digest of the training labels",
    "train_content": "the digest of the training images'",
    "val_images": "the number of validation images",
    "val_labels": "the digest of the validation labels",
    "val_content": "the digest of the validation images'",
    "teacher": "the digest of the teacher's weights",
}


def labels_digest(loader: Loader) -> str:
    """Return a fingerprint of a loader's labels in their order, hexadecimal."""
    return hashlib.sha256(loader.targets.cpu().numpy().tobytes()).hexdigest()


def origin_of(trainer: Trainer) -> Dict[str, Any]:
    """Return what is compared when a run goes on, as plain values; to be called before the teacher is used.

    Keys: `classes`, the names in label order; `train_images` and `val_images`, how many there are; `train_labels` and
    `val_labels`, digests; `train_content` and `val_content`, `KIND: DIGEST` as `Loader.fingerprint` has them;
    `teacher`, a digest of its weights, or None.
    """
    origin: Dict[str, Any] = {"classes": list(trainer.train_loader.info.classes)}
    for name, loader in (("train", trainer.train_loader), ("val", trainer.val_loader)):
        origin[f"{name}_images"] = loader.num_images
        origin[f"{name}_labels"] = labels_digest(loader)
        origin[f"{name}_content"] = ": ".join(loader.fingerprint())
    teacher = trainer.distiller.teacher
    origin["teacher"] = weights_digest(teacher) if isinstance(teacher, nn.Module) else None
    return origin


def is_origin(value: Any) -> bool:
    """Whether a value that was read from a file can be what `origin_of` returned, in this version or another."""
    if not isinstance(value, dict):
        return False
    classes = value.get("classes", [])
    others = [part for key, part in value.items() if key != "classes"]
    return isinstance(classes, list) and all(part is None or isinstance(part, (str, int)) for part in others)


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
    what, before, now = WORDS[key], str(before), str(now)
    if key.endswith("content"):
        (kind, _, before), (other, _, now) = before.partition(": "), now.partition(": ")
        if kind != other:  # the images were held in memory and now are not, or the other way round
            return ""
        what += f" {kind}"
    return f"{what} was {before[:SHOWN]}, now {now[:SHOWN]}"
