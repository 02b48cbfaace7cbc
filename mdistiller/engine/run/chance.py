"""Whether a teacher's accuracy is that of guessing."""

from __future__ import annotations

import math


def chance_warning(top1: float, num_classes: int, num_images: int) -> str:
    """Return a warning if a teacher's accuracy is at chance level; otherwise an empty string.

    Chance is `p = 1 / num_classes`, the accuracy of a random guess. Its standard error over `n` images is
    `sqrt(p (1 - p) / n)`. An accuracy up to three standard errors above chance is at chance level: a guess exceeds that
    in about one of 700 cases. With few images, three standard errors are large. The limit is then a quarter of
    the way from chance to 100 %, so that a usable teacher causes no warning.

    Args:
        top1: the teacher's accuracy in percent.
        num_classes: the number of classes of the data set.
        num_images: the number of images on which the accuracy was measured.
    """
    chance = 1 / num_classes
    margin = min(3 * math.sqrt(chance * (1 - chance) / num_images), (1 - chance) / 4)
    if top1 > 100 * (chance + margin):
        return ""
    return (
        f"warning: teacher top-1 {top1:.1f} % is chance level for {num_classes} classes; its classes may be in another"
        " order (DISTILLER.TEACHER_CLASSES), it may expect another size or normalization (DISTILLER.TEACHER_INPUT), or"
        " its weights may be wrong (DISTILLER.TEACHER_WEIGHTS)"
    )
