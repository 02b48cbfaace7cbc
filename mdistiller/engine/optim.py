"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List

import torch
from torch import nn

from ..errors import UserError

OPTIMIZERS = ("SGD",)


def build_optimizer(cfg: Any, parameters: List[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that `SOLVER` describes."""
    if cfg.SOLVER.TYPE not in OPTIMIZERS:
        raise UserError(f"SOLVER.TYPE is {cfg.SOLVER.TYPE!r}; expected {' or '.join(OPTIMIZERS)}")
    solver = cfg.SOLVER
    options = {"momentum": solver.MOMENTUM, "weight_decay": solver.WEIGHT_DECAY, "nesterov": solver.NESTEROV}
    # fused=True  fails where a parameter's first gradient comes late
    return torch.optim.SGD(parameters, lr=solver.LR, foreach=True, **options)


def _step_decay(cfg: Any, progress: float) -> float:
    # a stage of 150 means: epochs 1 to 150 at the old rate, 151 at the new one
    return cfg.SOLVER.LR_DECAY_RATE ** sum(progress >= stage for stage in cfg.SOLVER.LR_DECAY_STAGES)


def _cosine(cfg: Any, progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress / cfg.SOLVER.EPOCHS))


def _linear(cfg: Any, progress: float) -> float:
    return 1 - progress / cfg.SOLVER.EPOCHS


SCHEDULES: Dict[str, Callable[[Any, float], float]] = {"step": _step_decay, "cosine": _cosine, "linear": _linear}


def learning_rate(cfg: Any, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the training step `step`, counted from 0 over the whole run.

    `step` keeps its rate over an epoch; `cosine` and `linear` fall to 0 step by step. Over the
    first `WARMUP_EPOCHS` the rate is multiplied by a ramp that rises linearly to 1.
    """
    factor = SCHEDULES[cfg.SOLVER.SCHEDULE](cfg, step / steps_per_epoch)
    warmup_steps = cfg.SOLVER.WARMUP_EPOCHS * steps_per_epoch
    if step < warmup_steps:
        factor *= min(1.0, (step + 1) / warmup_steps)  # less than a step is left of a fractional one
    return cfg.SOLVER.LR * factor
