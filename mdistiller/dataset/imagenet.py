"""The ImageNet sets: names that are reserved, so that asking for one is answered."""

from __future__ import annotations

from typing import NoReturn

from yacs.config import CfgNode

from ..errors import UserError
from .splits import dataset_dict


@dataset_dict.register("imagenet")
@dataset_dict.register("tiny_imagenet")
def not_yet(cfg: CfgNode) -> NoReturn:
    """Say what to do instead."""
    raise UserError(
        f"DATASET.TYPE {cfg.DATASET.TYPE} comes with a later release of this package; until then DATASET.TYPE"
        " imagefolder reads it: set DATASET.ROOT to the folder that holds train/<class>/* and val/<class>/*, and"
        " DATASET.INPUT_SIZE"
    )
