"""What an export says about itself, as text in its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, Tuple

from ..dataset.images.decode import View
from ..errors import UserError, one_line

FORMAT = "mdistiller.export"
VERSION = 1
CLASSES, CARD, DESCRIPTION = "classes", "card", "mdistiller"  # keys of the metadata
INPUT, OUTPUT = "image", "logits"


@dataclass(frozen=True)
class Description:
    """The description of an export.

    Attributes:
        classes: names in the order of the logits.
        input_size: side of the square image in pixels.
        margin: how validation prepares an image, see `View`.
        arch: name of the backbone.
        head: kind of the head; empty without one.
        precision: `float32`, `float16` or `int8`.
        made_by: the exporter.
        card: the model card, Markdown, without the proof, which is made of the finished file.
    """

    classes: Tuple[str, ...]
    input_size: int
    margin: bool
    arch: str
    head: str
    precision: str
    made_by: str
    card: str

    @property
    def view(self) -> View:
        """The transform that prepares an image."""
        return View(self.input_size, self.margin)

    def metadata(self) -> Dict[str, str]:
        """Return the text for the file's metadata, by key."""
        values = {key: value for key, value in asdict(self).items() if key not in (CLASSES, CARD)}
        about = json.dumps({"format": FORMAT, "version": VERSION, **values})
        return {CLASSES: json.dumps(list(self.classes)), CARD: self.card, DESCRIPTION: about}


def read_description(metadata: Mapping[str, str], path: Any) -> Description:
    """Return the description in the metadata of a file.

    Raises:
        UserError: there is none, it is damaged, or it is of a later version.
    """
    if DESCRIPTION not in metadata or CLASSES not in metadata:
        raise UserError(
            f"{path} has no metadata {CLASSES!r} and {DESCRIPTION!r}; expected an export by tools/export.py"
        )
    try:
        about, classes = json.loads(metadata[DESCRIPTION]), json.loads(metadata[CLASSES])
        version = about["version"]
        if about["format"] != FORMAT or type(version) is not int:
            raise ValueError("another format")
        if version > VERSION:
            raise UserError(f"{path} has format version {version}; this mdistiller reads up to {VERSION}, upgrade it")
        if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
            raise ValueError("the classes are not names")
        if type(about["input_size"]) is not int or not 1 <= about["input_size"] <= 4096:
            raise ValueError("the image size is not a number of pixels")
        words = {key: str(about[key]) for key in ("arch", "head", "precision", "made_by")}
        return Description(
            tuple(classes), about["input_size"], bool(about["margin"]), card=str(metadata.get(CARD, "")), **words
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(f"the metadata of {path} is damaged ({reason}); export the student again") from None
