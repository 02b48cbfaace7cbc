"""What a run was started with besides its settings: digests of the data and of the teacher's weights.

Digests do not depend on paths, so a folder or file may be moved, copied or renamed before a run is resumed.
"""

from __future__ import annotations

import hashlib
from typing import Any, Dict, Iterator, Optional

from torch import nn

from ...dataset import Loader
from ...errors import UserError
from ..speed.teacher_cache import weights_digest

DIGEST_LENGTH = 12  # characters of a digest in a message
GROUPS = (  # only the first difference of a group is reported: with another number of images, labels differ too
    ("classes",),
    *(tuple(f"{name}_{part}" for part in ("images", "labels", "content")) for name in ("train", "val")),
    ("unlabeled_images", "unlabeled_content"),
    ("teacher",),
)
WORDS = {
    "train_images": "the number of training images",
    "train_labels": "the digest of the training labels",
    "train_content": "the digest of the training images'",
    "val_images": "the number of validation images",
    "val_labels": "the digest of the validation labels",
    "val_content": "the digest of the validation images'",
    "unlabeled_images": "the number of images without labels",
    "unlabeled_content": "the digest of the images without labels'",
    "teacher": "the digest of the teacher's weights",
}


def labels_digest(loader: Loader) -> str:
    """Return a hexadecimal digest of the labels of a loader, in index order."""
    return hashlib.sha256(loader.targets.cpu().numpy().tobytes()).hexdigest()


def origin_of(train_loader: Loader, val_loader: Loader, teacher: Optional[nn.Module]) -> Dict[str, Any]:
    """Return what is compared when a run is resumed, as plain values. Call it before the teacher is used.

    Keys: `classes`, the names in label order; `train_images` and `val_images`, the numbers of images; `train_labels`
    and `val_labels`, digests; `train_content` and `val_content`, `KIND: DIGEST` from `Loader.fingerprint`; the same
    for images without labels, `unlabeled_images` and `unlabeled_content`; `teacher`, a digest of its weights, or
    `None`.
    """
    origin = {"classes": list(train_loader.info.classes), **_images("train", train_loader), **origin_of_val(val_loader)}
    if train_loader.unlabeled is not None:
        origin["unlabeled_images"] = train_loader.unlabeled.num_images
        origin["unlabeled_content"] = ": ".join(train_loader.unlabeled.fingerprint())
    origin["teacher"] = weights_digest(teacher) if isinstance(teacher, nn.Module) else None
    return origin


def origin_of_val(val_loader: Loader) -> Dict[str, Any]:
    """Return the part of `origin_of` that describes the validation images."""
    return _images("val", val_loader)


def _images(name: str, loader: Loader) -> Dict[str, Any]:
    return {
        f"{name}_images": loader.num_images,
        f"{name}_labels": labels_digest(loader),
        f"{name}_content": ": ".join(loader.fingerprint()),
    }


def short_origin(origin: Dict[str, Any]) -> Dict[str, Any]:
    """Return what `origin_of` returned without the class names and with short digests, for a summary."""

    def short(value: Any) -> Any:
        kind, separator, text = value.rpartition(": ")
        return f"{kind}{separator}{text[:DIGEST_LENGTH]}"

    return {key: short(value) if isinstance(value, str) else value for key, value in origin.items() if key != "classes"}


def other_images(content: Optional[str], other: Optional[str]) -> bool:
    """Return whether two values of `train_content` or `val_content` are digests of different images.

    Digests of different kinds, such as those of images in memory and of streamed files, cannot be compared.
    """
    (kind, _, digest), (other_kind, _, other_digest) = (str(value).rpartition(": ") for value in (content, other))
    return kind == other_kind and digest != other_digest


def same_images(origin: Dict[str, Any]) -> bool:
    """Return whether the validation images are the training images.

    Only digests of pixels show it: different files may have equal names and sizes. A fraction of the training images
    has another digest than all of them.
    """
    train, val = (str(origin[f"{name}_content"]).rpartition(": ") for name in ("train", "val"))
    return train[2] == val[2] and all("pixels" in kind for kind, _, _ in (train, val))


def is_origin(value: Any) -> bool:
    """Return whether a value from a file has the form that `origin_of` returns."""
    if not isinstance(value, dict):
        return False
    classes = value.get("classes", [])
    others = [part for key, part in value.items() if key != "classes"]
    return isinstance(classes, list) and all(part is None or isinstance(part, (str, int)) for part in others)


def check_origin(saved: Dict[str, Any], now: Dict[str, Any], path: str) -> None:
    """Raise a UserError if data or teacher are not those that the run was started with.

    Args:
        saved: what `origin_of` returned for the run whose state is at `path`. Keys that it lacks are not compared.
        now: what `origin_of` returns for the present run.

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
        if not other_images(before, now):
            return ""
        (kind, _, before), (_, _, now) = before.partition(": "), now.partition(": ")
        what += f" {kind}"
    return f"{what} was {before[:DIGEST_LENGTH]}, now {now[:DIGEST_LENGTH]}"
