"""What is evaluated before the first step of a run: the teacher, and the student after its linear probe."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

from torch import Tensor, nn

from ...dataset import Loader
from ...distillers import Distiller
from ..run.chance import chance_warning
from ..solver.linear_probe import train_classifier
from ..speed.precision import Precision
from .evaluate import evaluate


def evaluate_teacher(
    distiller: Distiller, name: str, val_loader: Loader, check: Callable[[], None]
) -> Tuple[Dict[str, float], List[str]]:
    """Return the teacher's accuracies in percent, and lines for the user about them.

    Args:
        distiller: the distiller; its teacher is in evaluation mode.
        name: the name of the teacher.
        val_loader: the loader of the validation images.
        check: a function that is called between batches; an exception ends the evaluation.
    """

    def forward(image: Tensor) -> Dict[str, Tensor]:
        return {"deployed": distiller.teacher(distiller.in_memory_format(image))[0]}

    accuracy = evaluate(forward, val_loader, check)
    top1 = accuracy["deployed_top1"]
    warning = chance_warning(top1, val_loader.info.num_classes, val_loader.num_images)
    return accuracy, [f"teacher {name}: top-1 {top1:.2f}", *([warning] if warning else [])]


def probe_student(
    student: nn.Module,
    train_loader: Loader,
    val_loader: Loader,
    precision: Precision,
    max_passes: int,
    check: Callable[[], None],
) -> str:
    """Train the student's classifier alone, see `train_classifier`; return a line for the user with its accuracy."""
    line = train_classifier(student, train_loader, precision, max_passes, check)
    student.eval()
    accuracy: Dict[str, Any] = evaluate(lambda image: {"probe": student(image)[0]}, val_loader, check)
    return f"{line}; top-1 {accuracy['probe_top1']:.2f}"
