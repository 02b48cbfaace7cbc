"""Images that only the teacher, or only the student, gets right."""

from __future__ import annotations

import base64
import io
from typing import List, Sequence

from PIL import Image
from torch import Tensor

from ..blocks import Gallery, Note, Picture, Section
from ..collect import GalleryImage
from ..material import Material, teacher_right

MAX_SIDE = 128  # pixels; larger images are made smaller
SHARP_SIDE = 64  # below this, pixels are shown as squares


def images_section(material: Material) -> Section:
    """Return the galleries."""
    section = Section(
        "images",
        "Images",
        "Images that only the teacher or only the student gets right. Labels can be wrong: check before you conclude.",
    )
    section.blocks += [Note(why) for why in material.why_no_teacher()]
    for number in material.in_focus:
        if number in material.with_teacher:
            section.blocks += _galleries(material, number)
    return section


def _galleries(material: Material, number: int) -> List[Gallery]:
    seen, label = material.seen[number], material.runs[number].label
    assert seen.teacher is not None
    teacher = f"the teacher {material.teachers[number].label}"
    student_right, taught_right = material.right(number), teacher_right(seen)
    galleries = []
    for who, other, shown, chosen in (
        (teacher, label, seen.only_teacher, taught_right & ~student_right),
        (label, teacher, seen.only_student, student_right & ~taught_right),
    ):
        count = int(chosen.sum())
        how = f" The {len(shown)} with the highest confidence are shown." if count > len(shown) else ""
        if shown:
            how += " Below each: its label, then what teacher (T) and student (S) say, with their probabilities."
        galleries.append(
            Gallery(
                f"Only {who} is right",
                [_picture(material, number, image) for image in shown],
                f"{count:,} of {material.num_images:,} validation images are classified correctly by {who} and not by"
                f" {other}.{how}",
            )
        )
    return galleries


def _picture(material: Material, number: int, image: GalleryImage) -> Picture:
    seen, names = material.seen[number], material.classes
    assert seen.teacher is not None
    label = names[int(seen.target[image.number])]
    guesses = [_guess(output.logits[image.number], names) for output in (seen.teacher, seen.student)]
    lines = [label, f"T: {guesses[0]}", f"S: {guesses[1]}"]
    alt = f"Validation image {image.number} of class {label}; teacher: {guesses[0]}, student: {guesses[1]}"
    return Picture(data_address(image.pixels), alt, lines, pixelated=image.pixels.shape[0] < SHARP_SIDE)


def _guess(logits: Tensor, names: Sequence[str]) -> str:
    probability, label = logits.softmax(0).max(0)
    return f"{names[int(label)]} {100 * probability:.0f}\u00a0%"


def data_address(pixels: Tensor) -> str:
    """Return an image uint8 `[S, S, 3]` as a `data:` address: PNG if it is small, otherwise JPEG of `MAX_SIDE`."""
    image, buffer = Image.fromarray(pixels.numpy()), io.BytesIO()
    kind = "png" if max(image.size) < SHARP_SIDE else "jpeg"
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(buffer, format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
