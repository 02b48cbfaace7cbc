"""Images as Python programs hold them: Pillow's, arrays and tensors, in one form.

Shapes: `H`/`W` pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from ...errors import UserError

EXPECTED = (
    "expected a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W] or [1, H, W], uint8 from 0 to 255 or"
    " floating point from 0 to 1"
)


def as_picture(image: Any, what: str = "the image") -> Image.Image:
    """Return an image as one of Pillow: unchanged, or made of an array or tensor.

    Args:
        image: a Pillow image of at most 8 bits a channel; an array `[H, W, 3]`, `[H, W, 1]` or `[H, W]`; or a tensor
            `[3, H, W]`, `[1, H, W]` or `[H, W]`. Arrays and tensors are uint8, or floating point in [0, 1], which is
            rounded to 1/255.
        what: the name of the image, given in error messages.

    Raises:
        UserError: it has another type, shape or range.
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":  # 16 or 32 bits per channel; conversion to RGB would clip, not scale
            raise UserError(f"{what} has more than 8 bits a channel, mode {image.mode}; convert it to 8 bits")
        return image
    if isinstance(image, torch.Tensor):
        given = image.detach().cpu()
        if given.dtype == torch.bfloat16:  # NumPy has no such type
            given = given.float()
        pixels = given.permute(1, 2, 0).numpy() if given.ndim == 3 else given.numpy()
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise UserError(f"{what} is a {type(image).__name__}; {EXPECTED}")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3))) or 0 in pixels.shape:
        raise UserError(f"{what} has the shape {list(image.shape)}; {EXPECTED}")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:  # not a number is refused too
            raise UserError(
                f"{what} has values from {low:.3g} to {high:.3g}; {EXPECTED}: leave the normalization to mdistiller"
            )
        pixels = np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"{what} has the type {pixels.dtype}; {EXPECTED}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))
