"""Evaluation of the student within a training run, and the checkpoint of the student that was evaluated.

The weights are those of the average with `SOLVER.EMA`, the BatchNorm statistics re-estimated with `SOLVER.PRECISE_BN`.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Dict, Iterable, Optional

from yacs.config import CfgNode

from ...dataset import Batch, Loader
from ...distillers import DeployedStudent, Distiller
from ..cfg import to_dict
from ..checkpoint import describe_student
from ..run.progress import Progress
from ..solver.data_parallel import average_statistics
from ..solver.ema import StudentAverage
from ..speed.precision import Precision
from .evaluate import evaluate
from .precise_bn import Statistics, estimate_statistics, eval_with, replaced_buffers


class StudentEvaluation:
    """Evaluates a distiller's student.

    Args:
        distiller: the distiller, after its training steps; it is left in evaluation mode.
        average: the average of the student's weights; `None` without one.
        val_loader: the loader of the images to evaluate on.
        sample: a function that returns as many training batches as its argument says, for BatchNorm statistics.
        precision: the precision of the training steps.
        cfg: the resolved configuration.
        check: a function that is called between batches; an exception ends the evaluation.

    Attributes:
        statistics: the BatchNorm statistics of the last evaluation, where they were re-estimated.
    """

    def __init__(
        self,
        distiller: Distiller,
        average: Optional[StudentAverage],
        val_loader: Loader,
        sample: Callable[[int], Iterable[Batch]],
        precision: Precision,
        cfg: CfgNode,
        check: Callable[[], None],
    ) -> None:
        self.distiller = distiller
        self.average = average
        self.val_loader = val_loader
        self.sample = sample
        self.precision = precision
        self.cfg = cfg
        self.check = check
        self.statistics: Statistics = {}

    def __call__(self) -> Dict[str, float]:
        """Return top-1 and top-5 in percent by name.

        With an average of the weights, the accuracies are those of the average, and `plain` is the trained student's.
        """
        accuracy = self._evaluate()
        if self.average is not None:
            plain = {f"plain_top{k}": accuracy[f"deployed_top{k}"] for k in (1, 5)}
            with self.average.in_place():
                accuracy = {**self._evaluate(), **plain}
        return accuracy

    def _evaluate(self) -> Dict[str, float]:
        average_statistics(self.distiller)
        if self.cfg.SOLVER.PRECISE_BN:
            batches = self.sample(self.cfg.SOLVER.PRECISE_BN)
            self.statistics = estimate_statistics(self.distiller, batches, self.precision, self.check)
        self.distiller.eval()
        forward = partial(eval_with, self.distiller, self.statistics, self.cfg.SOLVER.PRECISE_BN_COMPARE)
        return evaluate(forward, self.val_loader, self.check)

    def checkpoint(self, progress: Progress) -> Dict[str, Any]:
        """Return the checkpoint of the deployed student as it was in the last evaluation, with its accuracies."""
        last = progress.last
        accuracy = {name: value for name, value in last.items() if not name.startswith(("running_", "plain_"))}
        if self.distiller.overrides_forward_test:
            accuracy = {f"deployed_top{k}": last[f"bare_top{k}"] for k in (1, 5)}
        with ExitStack() as stack:
            if self.average is not None:
                stack.enter_context(self.average.in_place())
            stack.enter_context(replaced_buffers(self.distiller, self.statistics))
            return describe_student(
                DeployedStudent(self.distiller.student, self.distiller.head),
                self.cfg.DISTILLER.STUDENT,
                self.val_loader.info,
                accuracy,
                progress.epoch,
                to_dict(self.cfg),
            )
