"""Whether results of a study come from the validation images that this machine has."""

from __future__ import annotations

import json
from typing import Dict, List

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

    Attributes:
        missing: the reason why images cannot be read here; empty if they can.
    """

    def __init__(self) -> None:
        self.missing = ""
        self._known: Dict[str, Dict[str, str]] = {}  # by settings of the data

    def changes(self, cfg: CfgNode, summary: Summary) -> List[str]:
        """Return in what the validation images of a result differ from those that `cfg` names."""
        data = {name: value for name, value in to_dict(cfg.DATASET).items() if name not in TRAIN_ONLY}
        models = cfg.DISTILLER
        student = (models.STUDENT, models.STUDENT_WEIGHTS) if models.STUDENT_WEIGHTS else None  # may set the image size
        key = json.dumps([data, student], sort_keys=True)
        if key not in self._known:
            try:
                self._known[key] = short_origin(origin_of_val(get_val_loader(with_student_input(cfg), "cpu")))
            except UserError as error:
                self._known[key], self.missing = {}, error.faults[0]
        now, before = self._known[key], summary["origin"]
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
