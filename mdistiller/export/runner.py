"""Runs students in every form: checkpoints and exports.

Shapes: `B` batch, `S` side in pixels, `K` classes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Tuple

import numpy as np
import torch
from torch import Tensor

from ..dataset.images.decode import View
from ..dataset.loading.normalizer import Normalizer
from ..errors import UserError, one_line
from .source import Source, to_input

RunFloat = Callable[[np.ndarray], np.ndarray]  # float32 [B, 3, S, S] in [0, 1] to logits [B, K]


@dataclass(frozen=True)
class Runner:
    """A student that is ready to run.

    Attributes:
        path: the path of its file.
        classes: the K class names.
        view: the transform that prepares an image.
        run: a function that takes images uint8 [B, S, S, 3] to logits float32 [B, K].
    """

    path: Path
    classes: Tuple[str, ...]
    view: View
    run: Callable[[Tensor], Tensor]


def source_runner(source: Source) -> Runner:
    """Return a runner that computes what validation does: the same normalization, in PyTorch and float32."""
    normalize = Normalizer(source.info, torch.device("cpu"))
    # the memory format of training, so that rounding is the same
    student = copy.deepcopy(source.student).to(memory_format=torch.channels_last)

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return student(normalize(pixels))

    return Runner(source.path, source.info.classes, source.view, run)


def checked_runner(path: Path, classes: Tuple[str, ...], view: View, run_float: RunFloat) -> Runner:
    """Return a runner for a loaded export, after one run on black images.

    The runner raises a UserError if the export fails, or does not return one logit a class.

    Args:
        path, classes, view: see `Runner`.
        run_float: a function that runs the export.

    Raises:
        UserError: the run fails, or does not return one logit a class.
    """

    def run(pixels: Tensor) -> Tensor:
        problem: Any = None
        try:
            logits = torch.from_numpy(np.asarray(run_float(to_input(pixels).numpy())))
            if logits.shape != (len(pixels), len(classes)):
                problem = f"logits of the shape {list(logits.shape)}"
        except Exception as error:  # a damaged program can raise any type
            problem = error
        if problem is None:
            return logits
        reason = one_line(problem)
        what = f"{reason} for {len(pixels)} images and {len(classes)} classes"
        raise UserError(f"{path} cannot run ({what}); export the student again")

    run(torch.zeros(2, view.size, view.size, 3, dtype=torch.uint8))
    return Runner(path, classes, view, run)
