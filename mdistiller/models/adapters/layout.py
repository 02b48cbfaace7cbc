"""Tensors of several layouts as maps `[B, C, H, W]`.

Shapes: `B` batch, `C` channels, `H`/`W` height and width, `T` tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Sequence

from torch import Tensor

MAX_PREFIX = 16  # class and register tokens before those of the image


class Layout(NamedTuple):
    """Where a tensor has its channels and positions.

    Attributes:
        kind: `NCHW`, `NHWC`, or `tokens` for `[B, T, C]` with the tokens of the image row by row.
        num_prefix: the number of class and register tokens before those of the image.
        side: the side of the square map, in positions.
    """

    kind: str
    num_prefix: int
    side: int

    @property
    def is_invertible(self) -> bool:
        """Whether the map holds the whole tensor, so that `from_map` exists."""
        return self.num_prefix == 0

    def to_map(self, x: Tensor) -> Tensor:
        """Return `x` as a map `[B, C, H, W]`."""
        if self.kind == "NCHW":
            return x
        if self.kind == "NHWC":
            return x.permute(0, 3, 1, 2)
        return tokens_to_map(x, self.num_prefix)

    def from_map(self, x: Tensor) -> Tensor:
        """Return a map `[B, C, H, W]` in this layout."""
        if self.kind == "NCHW":
            return x
        return x.permute(0, 2, 3, 1) if self.kind == "NHWC" else x.flatten(2).transpose(1, 2)


def tokens_to_map(x: Tensor, num_prefix: int, height: Optional[int] = None) -> Tensor:
    """Lay the tokens `[B, T, C]` out as a map `[B, C, H, W]`, without the first `num_prefix`.

    Args:
        x: the tokens, those of the image row by row.
        num_prefix: the number of class and register tokens before them.
        height: the height of the map, `H`; `None` for a square map.
    """
    rows = height or math.isqrt(x.shape[1] - num_prefix)
    return x[:, num_prefix:].transpose(1, 2).unflatten(2, (rows, -1))


def find_layout(shape: Sequence[int], side: Optional[int]) -> Optional[Layout]:
    """Return the layout of a tensor that can be a square map, or `None`.

    Args:
        shape: the shape of the tensor.
        side: the side of the map before it in the model, which tells how many tokens are not part of the map; `None` if
            there is none.
    """
    if len(shape) == 4:
        if shape[2] == shape[3]:
            return Layout("NCHW", 0, shape[2])
        return Layout("NHWC", 0, shape[1]) if shape[1] == shape[2] else None
    if len(shape) != 3:
        return None
    if side is not None:
        if 0 <= shape[1] - side**2 <= MAX_PREFIX:
            return Layout("tokens", shape[1] - side**2, side)
        root = math.isqrt(shape[1])
        return Layout("tokens", 0, root) if root**2 == shape[1] and root < side else None
    for num_prefix in range(min(MAX_PREFIX, shape[1] - 1) + 1):
        root = math.isqrt(shape[1] - num_prefix)
        if root**2 == shape[1] - num_prefix:
            return Layout("tokens", num_prefix, root)
    return None
