"""Convolutions of small maps on a CPU with AMX.

AMX multiplies blocks of 16 pixels, and PyTorch's kernels take them from one row of the output. A map that is 4 pixels
wide leaves three quarters of each block empty. Here, the images of a batch lie side by side in one wide map, with zeros
between them. Each output is the same sum of products.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, Iterable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import Precision, cpu_has

MAX_WIDTH = 7  # of the output, in pixels; from 8 on, as much time is lost as gained


def faster_convolutions(
    models: Iterable[nn.Module], precision: Precision
) -> List[Tuple[nn.Module, str, Callable[..., Tensor]]]:
    """Return replacements for methods of the convolutions in `models`: module, name and function of each.

    There are none without AMX, or in another precision than bfloat16.
    """
    if precision.device_type != "cpu" or precision.dtype is not torch.bfloat16 or not cpu_has("amx_bf16"):
        return []
    modules = dict.fromkeys(module for model in models for module in model.modules())  # each once
    convolutions = [module for module in modules if type(module) is nn.Conv2d and _is_suitable(module)]
    return [(module, "_conv_forward", partial(convolve, module)) for module in convolutions]


def _is_suitable(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size != (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and 2 * conv.padding[1] + conv.stride[1] >= _kernel_width(conv)  # the kernel reaches the end of a row
        and conv.padding[1] < _kernel_width(conv)  # no column of the output lies in the padding alone
    )


def _kernel_width(conv: nn.Conv2d) -> int:
    return conv.dilation[1] * (conv.kernel_size[1] - 1) + 1


def convolve(conv: nn.Conv2d, image: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Return what `conv` returns for maps `[B, C, H, W]`."""
    batch, channels, height, width = image.shape
    padding, stride = int(conv.padding[1]), conv.stride[1]
    width_out = (width + 2 * padding - _kernel_width(conv)) // stride + 1
    if batch == 1 or not 0 < width_out <= MAX_WIDTH:
        return F.conv2d(image, weight, bias, conv.stride, conv.padding, conv.dilation)
    gap = padding + -(width + padding) % stride  # zeros after each image, so that a step of the kernel begins the next
    row = F.pad(image, (0, gap)).permute(2, 0, 3, 1).reshape(1, height, -1, channels).permute(0, 3, 1, 2)
    output = F.conv2d(row, weight, bias, conv.stride, conv.padding, conv.dilation)[0]
    pitch = (width + gap) // stride  # columns of the output from one image to the next
    images = output[..., : batch * pitch].unflatten(-1, (batch, pitch))[..., :width_out]  # [C, H, B, W]
    return images.permute(2, 0, 1, 3).contiguous(memory_format=torch.channels_last)
