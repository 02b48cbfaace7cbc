"""What a deployed model costs: its parameters and the multiply-accumulate operations (MACs) of one image."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...distillers import DeployedStudent, Head


class Cost(NamedTuple):
    """Parameters, and MACs of one image, of a deployed model and of its head alone.

    Attributes:
        parameters: the number of parameters that the deployed logits depend on; a classifier that a head replaces does
            not count.
        macs: the multiply-accumulates of convolutions and matrix products, as PyTorch's `FlopCounterMode` counts them.
        head_parameters, head_macs: the head's part of both; 0 without a head.
    """

    parameters: int
    macs: int
    head_parameters: int
    head_macs: int


def deployed_cost(backbone: nn.Module, head: Optional[Head], input_size: int) -> Cost:
    """Return the cost of a deployed model.

    Args:
        backbone, head: see `DeployedStudent`.
        input_size: side of the image in pixels.
    """
    model = DeployedStudent(backbone, head)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    image = next(iter(parameters.values())).new_zeros(1, 3, input_size, input_size)
    without_grad = {name: p.detach() for name, p in parameters.items()}  # PyTorch 2.4 cannot count with leaf tensors
    # fused attention is not counted on the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(model, without_grad, (image,))
    logits = torch.func.functional_call(model, parameters, (image,))
    gradients = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    for module, mode in modes:
        module.training = mode
    used = {name: p.numel() for (name, p), gradient in zip(parameters.items(), gradients) if gradient is not None}
    flops = counter.get_flop_counts()
    return Cost(
        sum(used.values()),
        counter.get_total_flops() // 2,
        sum(count for name, count in used.items() if name.startswith("head.")),
        sum(flops.get("DeployedStudent.head", {}).values()) // 2,
    )
