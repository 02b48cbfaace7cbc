"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterable, List

import torch
from torch import nn
from yacs.config import CfgNode

OPTIMIZERS = ("SGD",)


def parameter_groups(parameters: List[nn.Parameter], no_decay: Iterable[nn.Parameter]) -> List[Dict[str, Any]]:
    """Return one group with all parameters; if some take no weight decay, two groups, of which theirs is the last.

    Args:
        parameters: all of them.
        no_decay: those that take no weight decay. Others than `parameters` are ignored.
    """
    exempt = {id(parameter) for parameter in no_decay}
    decayed = [parameter for parameter in parameters if id(parameter) not in exempt]
    if len(decayed) == len(parameters):
        return [{"params": parameters}]
    return [{"params": decayed}, {"params": [p for p in parameters if id(p) in exempt], "weight_decay": 0.0}]


def build_optimizer(
    cfg: CfgNode, parameters: List[nn.Parameter], no_decay: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer of the section `SOLVER`; arguments as in `parameter_groups`."""
    solver = cfg.SOLVER
    options = {"momentum": solver.MOMENTUM, "weight_decay": solver.WEIGHT_DECAY, "nesterov": solver.NESTEROV}
    # fused=True fails if the first gradient of a parameter comes after the first step
    return torch.optim.SGD(parameter_groups(parameters, no_decay), lr=solver.LR, foreach=True, **options)


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

    The schedule `step` keeps its rate over an epoch; `cosine` and `linear` fall to 0 step by step. Over the first
    `WARMUP_EPOCHS` the rate is multiplied by a linear ramp from 0 to 1.
    """
    factor = SCHEDULES[cfg.SOLVER.SCHEDULE](cfg, step / steps_per_epoch)
    warmup_steps = cfg.SOLVER.WARMUP_EPOCHS * steps_per_epoch
    if step < warmup_steps:
        factor *= min(1.0, (step + 1) / warmup_steps)  # a fractional number of epochs may end within a step
    return cfg.SOLVER.LR * factor
