"""Logits as the largest few of them and the probability of all other classes together.

"TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (2022) and "A Fast Knowledge Distillation
Framework for Visual Recognition" (2022) store a teacher's outputs in this way, and divide the rest evenly.

Shapes: `n` images, `N` classes, `k` logits that are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BASE = 2048  # float16 has every whole number up to this one


class TopLogits:
    """Encodes logits as rows of fewer values, which float16 holds, and decodes them.

    The decoded logits of the `k` most probable classes are exact, up to the rounding of the table. All other classes
    get one logit, such that their probabilities at temperature 1 add up to what they were. So the softmax at
    temperature 1 is exact for the `k` classes. At another temperature it is an approximation, because the other classes
    are not equally probable.

    Args:
        num_classes: the number of classes, `N`.
        number: the number of classes with exact logits, `k`, below `N`.

    Attributes:
        width: the number of values of a row.
    """

    def __init__(self, num_classes: int, number: int) -> None:
        assert 0 < number < num_classes, (number, num_classes)
        self.num_classes = num_classes
        self.number = number
        self._digits = 1 if num_classes <= BASE else 2  # of a class in base 2048: for up to 4 million classes
        self.width = number * (1 + self._digits) + 1

    def encode(self, logits: Tensor) -> Tensor:
        """Return rows `[n, width]`: the largest logits, their classes, and the logit of every other class.

        Args:
            logits: the logits, `[n, N]`, float32 or float64.
        """
        largest, classes = logits.topk(self.number)
        others = logits.scatter(1, classes, -math.inf)
        other = others.logsumexp(1, keepdim=True) - math.log(self.num_classes - self.number)
        digits = [classes % BASE, classes // BASE][: self._digits]
        return torch.cat([largest, *(digit.to(logits.dtype) for digit in digits), other], dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """Return the logits `[n, N]` of rows that `encode` returned, in the type of the rows."""
        largest, *digits, other = rows.split([self.number] * (1 + self._digits) + [1], dim=1)
        classes = sum(digit.long() * BASE**place for place, digit in enumerate(digits))
        return other.repeat(1, self.num_classes).scatter(1, classes, largest)
