"""Whether results of a study come from the validation images that this machine has."""

from __future__ import annotations

import json
from typing import Dict, List, Tuple

from yacs.config import CfgNode

from ..dataset import get_val_loader
from ..engine.cfg import to_dict
from ..engine.networks.build import with_student_input
from ..engine.run.origin import origin_of_val, other_images, short_origin
from ..errors import UserError
from .results import Summary

TRAIN_ONLY = (  # keys of DATASET that change no validation image
    *("TRAIN_FRACTION", "FRACTION_SEED", "FLIP", "PADDING", "ROTATION", "MIXUP", "CUTMIX", "VIEWS", "VIEWS_SEED"),
    *("UNLABELED", "UNLABELED_RATIO"),
)


class ValidationImages:
    """Compares the validation images of results with those on this machine.

    Images are read once for all runs that validate on the same ones.
    """

    def __init__(self) -> None:
        self._known: Dict[str, Tuple[Dict[str, str], str]] = {}  # by settings of the data

    def missing(self, cfg: CfgNode) -> str:
        """Return the reason why the validation images that `cfg` names cannot be read here, or an empty string."""
        return self._origin(cfg)[1]

    def _origin(self, cfg: CfgNode) -> Tuple[Dict[str, str], str]:
        """Return the digests of the validation images, or why they cannot be read."""
        data = {name: value for name, value in to_dict(cfg.DATASET).items() if name not in TRAIN_ONLY}
        models = cfg.DISTILLER
        student = (models.STUDENT, models.STUDENT_WEIGHTS) if models.STUDENT_WEIGHTS else None  # may set the image size
        key = json.dumps([data, student], sort_keys=True)
        if key not in self._known:
            try:
                loader = get_val_loader(with_student_input(cfg), "cpu")
                self._known[key] = short_origin(origin_of_val(loader)), ""
            except UserError as error:
                self._known[key] = {}, error.faults[0]
        return self._known[key]

    def changes(self, cfg: CfgNode, summary: Summary) -> List[str]:
        """Return in what the validation images of a result differ from those that `cfg` names.

        Images that cannot be read here are not compared; see `missing`.
        """
        now, before = self._origin(cfg)[0], summary["origin"]
        if not now:
            return []
        changes = []
        if before.get("val_labels", now["val_labels"]) != now["val_labels"]:
            changes.append(f"the digest of the validation labels was {before['val_labels']}, now {now['val_labels']}")
        if other_images(before.get("val_content"), now["val_content"]):
            kind, _, was = before["val_content"].rpartition(": ")
            found = now["val_content"].rpartition(": ")[2]
            changes.append(f"the digest of the validation images' {kind} was {was}, now {found}")
        return changes
