"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterable, List, Mapping

import torch
from torch import nn
from yacs.config import CfgNode

from ...errors import UserError, did_you_mean, one_line
from .parameter_groups import parameter_groups

OPTIMIZERS = ("SGD", "AdamW")


def build_optimizer(
    cfg: CfgNode,
    parameters: List[nn.Parameter],
    no_decay: Iterable[nn.Parameter] = (),
    lr_scales: Mapping[nn.Parameter, float] = {},
) -> torch.optim.Optimizer:
    """Build the optimizer of the section `SOLVER`; the other arguments are those of `parameter_groups`.

    Raises:
        UserError: `SOLVER.TYPE` is unknown, or its library does not support the settings.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(parameters, no_decay, lr_scales)
    options: Dict[str, Any] = {"lr": solver.LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.TYPE == "SGD":
        # fused=True fails if the first gradient of a parameter comes after the first step
        return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, foreach=True, **options)
    if solver.BETAS is not None:
        options["betas"] = tuple(solver.BETAS)
    if solver.EPS > 0:
        options["eps"] = solver.EPS
    if solver.TYPE == "AdamW":
        _check_betas(solver, 2)
        return torch.optim.AdamW(groups, foreach=True, **options)
    return _build_timms(solver, groups, momentum=solver.MOMENTUM, **options)


def _check_betas(solver: CfgNode, number: int) -> None:
    if solver.BETAS is not None and len(solver.BETAS) != number:
        raise UserError(f"SOLVER.BETAS is {solver.BETAS}; SOLVER.TYPE {solver.TYPE} has {number}")


def _build_timms(solver: CfgNode, groups: List[Dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """Build an optimizer of timm by its name in upper or lower case; timm ignores a momentum that it does not need."""
    name = solver.TYPE
    try:
        from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
    except ImportError:
        raise UserError(
            f"SOLVER.TYPE is {name!r}; expected {' or '.join(OPTIMIZERS)}, or, after pip install 'timm>=1.0.12', the"
            " name of an optimizer of timm.optim, such as lamb"
        ) from None
    known, chosen = [str(each) for each in list_optimizers()], name.lower()
    own = [other for other in OPTIMIZERS if other.lower() == chosen]  # timm's sgd has another momentum
    if own or chosen not in known:
        raise UserError(
            f"SOLVER.TYPE is {name!r}; expected {' or '.join(OPTIMIZERS)}, or the name of an optimizer of timm.optim"
            f"{did_you_mean(name, own or [*OPTIMIZERS, *known])}"
        )
    info = get_optimizer_info(chosen)
    if info.second_order:
        raise UserError(f"SOLVER.TYPE {name} needs second derivatives, which are not computed here; give another")
    if chosen.startswith("kron"):
        raise UserError(f"SOLVER.TYPE {name} does not save all of its state, so runs cannot be resumed; give another")
    for key in ("betas", "eps"):
        if key in options and not getattr(info, f"has_{key}"):
            raise UserError(f"SOLVER.{key.upper()} is given, but SOLVER.TYPE {name} has none; leave it out")
    if info.has_betas:
        _check_betas(solver, info.num_betas)
    try:
        return create_optimizer_v2(groups, opt=chosen, **options)
    except Exception as error:  # of a library that the optimizer needs, or of values that it refuses
        reason = one_line(error)
        raise UserError(f"SOLVER.TYPE {name} cannot be used with these settings of SOLVER: {reason}") from None


def check_optimizer(cfg: CfgNode) -> None:
    """Raise a UserError if the optimizer of the section `SOLVER` cannot be built."""
    build_optimizer(cfg, [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group: `rate`, times the group's `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"] if "lr_scale" in group else rate


def _step_decay(cfg: CfgNode, progress: float) -> float:
    # Stage 150: epochs 1 to 150 have the old rate, epoch 151 has the new one.
    return cfg.SOLVER.LR_DECAY_RATE ** sum(progress >= stage for stage in cfg.SOLVER.LR_DECAY_STAGES)


def _cosine(cfg: CfgNode, progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress / cfg.SOLVER.EPOCHS))


def _linear(cfg: CfgNode, progress: float) -> float:
    return 1 - progress / cfg.SOLVER.EPOCHS


SCHEDULES: Dict[str, Callable[[CfgNode, float], float]] = {"step": _step_decay, "cosine": _cosine, "linear": _linear}


def learning_rate(cfg: CfgNode, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the training step `step`, counted from 0 over the whole run.

    The schedule `step` lowers the rate at given epochs; `cosine` and `linear` lower it in every step, towards 0. Over
    the first `WARMUP_EPOCHS` the rate is multiplied by a linear ramp from 0 to 1.
    """
    factor = SCHEDULES[cfg.SOLVER.SCHEDULE](cfg, step / steps_per_epoch)
    warmup_steps = cfg.SOLVER.WARMUP_EPOCHS * steps_per_epoch
    if step < warmup_steps:
        factor *= min(1.0, (step + 1) / warmup_steps)  # a fractional number of epochs may end within a step
    return cfg.SOLVER.LR * factor
