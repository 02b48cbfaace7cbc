"""Validation of the section `SOLVER`; `validate.py` calls it."""

from __future__ import annotations

import os
import shutil
from typing import Any, Callable, Iterator, Tuple

from yacs.config import CfgNode

from .. import distributed
from ..errors import UserError
from ..models import library_of
from ..ranges import MAX_NUMBER, is_number
from .run.save_interval import SaveInterval
from .solver.optim import SCHEDULES, check_optimizer
from .speed.precision import pick_device, pick_precision

MAX_EPOCHS_OR_IMAGES = 10**6  # epochs, or images in a batch
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile
COMPILE_MODES = ("off", "default", *CUDA_GRAPHS)


def solver_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield one line for each impossible value, or combination of values, in the section `SOLVER`."""
    yield from _solver_errors(cfg.SOLVER)
    yield from _optimizer_errors(cfg)
    yield from _schedule_errors(cfg.SOLVER)
    yield from _device_errors(cfg.SOLVER)
    student = cfg.DISTILLER.STUDENT
    if cfg.SOLVER.FREEZE_BN and not cfg.DISTILLER.STUDENT_WEIGHTS and library_of(student) != "user":
        yield (
            f"SOLVER.FREEZE_BN is True, but {student} starts from random weights, without trained BatchNorm statistics;"
            " set DISTILLER.STUDENT_WEIGHTS, or SOLVER.FREEZE_BN False"
        )


def error_of(call: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    """Yield the message of the UserError that a call raises, if it raises one."""
    try:
        call(*arguments)
    except UserError as error:
        yield str(error)


def unmet(section: CfgNode, *rules: Tuple[bool, str, str]) -> Iterator[str]:
    """Yield a line for each of the rules `(met, key, expected value)` that is not met."""
    for met, key, expected in rules:
        if not met:
            yield f"{key} is {section[key.rpartition('.')[2]]!r}; expected {expected}"


def _solver_errors(solver: CfgNode) -> Iterator[str]:
    world_size = distributed.get_world_size()
    least, each = 2 * world_size, f" in each of {world_size} processes" if world_size > 1 else ""
    yield from unmet(
        solver,
        (
            least <= solver.BATCH_SIZE,
            "SOLVER.BATCH_SIZE",
            f"at least {least}, because BatchNorm cannot train on one image{each}",
        ),
        (solver.BATCH_SIZE <= MAX_EPOCHS_OR_IMAGES, "SOLVER.BATCH_SIZE", f"at most {MAX_EPOCHS_OR_IMAGES} images"),
        (1 <= solver.EPOCHS <= MAX_EPOCHS_OR_IMAGES, "SOLVER.EPOCHS", f"at least 1 and at most {MAX_EPOCHS_OR_IMAGES}"),
        (
            1 <= solver.EVAL_EVERY <= MAX_EPOCHS_OR_IMAGES,
            "SOLVER.EVAL_EVERY",
            f"a number of epochs, at least 1 and at most {MAX_EPOCHS_OR_IMAGES}",
        ),
        (0 < solver.LR <= MAX_NUMBER, "SOLVER.LR", f"a number above 0, at most {MAX_NUMBER:g}"),
        (
            0 <= solver.WEIGHT_DECAY <= MAX_NUMBER,
            "SOLVER.WEIGHT_DECAY",
            f"a number from 0 to {MAX_NUMBER:g}",
        ),
        (0 <= solver.MOMENTUM < 1, "SOLVER.MOMENTUM", "a number from 0 to below 1"),
        (solver.PRECISE_BN >= 0, "SOLVER.PRECISE_BN", "a number of batches, an integer of at least 0"),
        (
            not (solver.PRECISE_BN and solver.FREEZE_BN),
            "SOLVER.PRECISE_BN",
            "0 with SOLVER.FREEZE_BN True, which keeps the statistics",
        ),
        (
            not solver.PRECISE_BN_COMPARE or solver.PRECISE_BN > 0,
            "SOLVER.PRECISE_BN_COMPARE",
            "False where SOLVER.PRECISE_BN is 0",
        ),
        (
            _is_interval(solver.CHECKPOINT_EVERY),
            "SOLVER.CHECKPOINT_EVERY",
            "500 steps, 10 minutes or the like; empty to save after each epoch only",
        ),
    )


def _optimizer_errors(cfg: CfgNode) -> Iterator[str]:
    solver, betas = cfg.SOLVER, cfg.SOLVER.BETAS
    are_betas = isinstance(betas, list) and all(is_number(beta) and 0 <= beta < 1 for beta in betas)
    is_sgd = solver.TYPE == "SGD"
    errors = list(
        unmet(
            solver,
            (betas is None or are_betas, "SOLVER.BETAS", "numbers from 0 to below 1, as in [0.9, 0.999], or None"),
            (0 <= solver.EPS <= MAX_NUMBER, "SOLVER.EPS", "a number above 0, or 0 for the optimizer's default"),
            (not is_sgd or betas is None, "SOLVER.BETAS", "None with SOLVER.TYPE SGD, which has SOLVER.MOMENTUM"),
            (not is_sgd or solver.EPS == 0, "SOLVER.EPS", "0 with SOLVER.TYPE SGD, which has none"),
            (
                not (is_sgd and solver.NESTEROV) or solver.MOMENTUM > 0,
                "SOLVER.NESTEROV",
                "False where SOLVER.MOMENTUM is 0",
            ),
            (is_sgd or not solver.NESTEROV, "SOLVER.NESTEROV", f"False with SOLVER.TYPE {solver.TYPE}"),
            (0 <= solver.LABEL_SMOOTHING < 1, "SOLVER.LABEL_SMOOTHING", "a number from 0 (hard labels) to below 1"),
            (0 <= solver.EMA < 1, "SOLVER.EMA", "a decay from 0 (no average) to below 1, for example 0.999"),
            (0 <= solver.CLIP_GRAD_NORM <= MAX_NUMBER, "SOLVER.CLIP_GRAD_NORM", "a norm above 0, or 0 for no limit"),
            (0 < solver.LAYER_DECAY <= 1, "SOLVER.LAYER_DECAY", "a number above 0 and up to 1 (1 = one rate for all)"),
            (
                0 < solver.BACKBONE_LR_FACTOR <= 1,
                "SOLVER.BACKBONE_LR_FACTOR",
                "a number above 0 and up to 1 (1 = the rate of the classifier)",
            ),
            (
                0 <= solver.PROBE_EPOCHS <= MAX_EPOCHS_OR_IMAGES,
                "SOLVER.PROBE_EPOCHS",
                f"a number of passes from 0 (no probe) to {MAX_EPOCHS_OR_IMAGES}",
            ),
        )
    )
    yield from errors
    if not errors and 0 < solver.LR <= MAX_NUMBER and solver.WEIGHT_DECAY >= 0 and 0 <= solver.MOMENTUM < 1:
        yield from error_of(check_optimizer, cfg)
    most = solver.BATCH_SIZE // (2 * distributed.get_world_size())
    if not 1 <= solver.ACCUMULATE <= max(1, most):
        each = " in each process" if distributed.get_world_size() > 1 else ""
        yield (
            f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}; expected 1 to {max(1, most)} micro-batches of at least 2"
            f" images{each}, for SOLVER.BATCH_SIZE {solver.BATCH_SIZE}"
        )


def _schedule_errors(solver: CfgNode) -> Iterator[str]:
    stages = list(solver.LR_DECAY_STAGES)
    positive = all(isinstance(stage, (int, float)) and not isinstance(stage, bool) and stage > 0 for stage in stages)
    rising = positive and stages == sorted(set(stages))
    warmup = 0 <= solver.WARMUP_EPOCHS <= max(solver.EPOCHS, 0)
    yield from unmet(
        solver,
        (solver.SCHEDULE in SCHEDULES, "SOLVER.SCHEDULE", f"one of {', '.join(SCHEDULES)}"),
        (rising, "SOLVER.LR_DECAY_STAGES", "epochs above 0 in rising order, for example [150, 180, 210]"),
        (0 < solver.LR_DECAY_RATE <= 1, "SOLVER.LR_DECAY_RATE", "a number above 0 and up to 1"),
        (warmup, "SOLVER.WARMUP_EPOCHS", "a number from 0 to SOLVER.EPOCHS"),
    )
    if rising and stages and solver.SCHEDULE == "step" and 1 <= solver.EPOCHS < stages[-1]:
        # Otherwise the last decay would silently never happen. A stage at EPOCHS is for a run that is continued later.
        yield (
            f"SOLVER.LR_DECAY_STAGES is {solver.LR_DECAY_STAGES!r}; expected none above SOLVER.EPOCHS,"
            f" {solver.EPOCHS}: give earlier ones, [] for a constant rate, or SOLVER.SCHEDULE linear"
        )


def _device_errors(solver: CfgNode) -> Iterator[str]:
    """Yield a line for each setting that this machine cannot run."""
    yield from unmet(solver, (solver.COMPILE in COMPILE_MODES, "SOLVER.COMPILE", f"one of {', '.join(COMPILE_MODES)}"))
    yield from error_of(pick_precision, solver.AMP, pick_device())
    on_gpu = pick_device().type == "cuda"
    if on_gpu and solver.COMPILE in CUDA_GRAPHS and solver.ACCUMULATE > 1:  # the parts overwrite each other's gradients
        yield f"SOLVER.COMPILE is {solver.COMPILE} with SOLVER.ACCUMULATE {solver.ACCUMULATE}; expected default or off"
    if solver.COMPILE != "off":
        compilers = {
            "cpu": ("C++", "g++", os.environ.get("CXX") or "g++", "clang++"),
            "cuda": ("C", "gcc", os.environ.get("CC") or "gcc", "clang"),
        }
        language, usual, *names = compilers[pick_device().type]
        if not any(map(shutil.which, names)):
            yield f"SOLVER.COMPILE {solver.COMPILE} needs a {language} compiler; install {usual}, or set it to off"


def _is_interval(text: str) -> bool:
    try:
        SaveInterval(text)
    except ValueError:
        return False
    return True
