"""What a deployed model costs, as text: parameters, MACs, size on disk, images per second."""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path
from typing import Any, List, Mapping, Optional

import torch
from torch import Tensor, nn

from ...distillers import DeployedStudent, Head, has_teacher
from ...errors import UserError, refuse
from ...models import InputSpec, build_model, library_of
from ...paths import find_file
from ..cfg import PRETRAINED
from ..checkpoint import is_described, read_checkpoint
from ..networks.build import input_errors, teacher_input
from ..speed.precision import pick_device
from .cost import deployed_cost

log = logging.getLogger("mdistiller")

BATCH_SIZES = (1, 64)
SECONDS = 0.15  # of each measurement, at least
MAX_SECONDS = 2.0  # that one batch may take


def cost_text(backbone: nn.Module, head: Optional[Head], input_size: int, file: Optional[Path] = None) -> str:
    """Return parameters, MACs of an image, the head's share of both, and the size of a file.

    Args:
        backbone, head: see `DeployedStudent`.
        input_size: side of the image in pixels.
        file: the file of its checkpoint, if there is one.
    """
    cost = deployed_cost(backbone, head, input_size)
    text = f"{cost.parameters:,} parameters, {cost.macs:,} MACs an image"
    if head is not None:
        shares = 100 * cost.head_parameters / cost.parameters, 100 * cost.head_macs / max(1, cost.macs)
        text += f"; head {cost.head_parameters:,} ({shares[0]:.1f} %), {cost.head_macs:,} ({shares[1]:.1f} %)"
    return text + (f"; {file.stat().st_size / 2**20:.2f} MiB on disk" if file else "")


def speed_text(backbone: nn.Module, head: Optional[Head], input_size: int) -> str:
    """Return the images per second in each of `BATCH_SIZES`, in PyTorch and float32, on the device of the model.

    The arguments are those of `cost_text`; the model is in evaluation mode. A batch that would take longer than
    `MAX_SECONDS`, by the speed of the one before it, is left out.
    """
    model = DeployedStudent(backbone, head).eval()
    device = next(model.parameters()).device
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s'[: threads != 1]}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    parts: List[str] = []
    speed = 0.0  # images/s
    for size in BATCH_SIZES:
        if speed and size / speed > MAX_SECONDS:
            parts.append(f"batch {size} takes too long to measure")
            continue
        image = torch.rand(size, 3, input_size, input_size, device=device)
        speed = size / _seconds(model, image.contiguous(memory_format=torch.channels_last))
        parts.append(f"batch {size}: {speed:,.{0 if speed >= 10 else 2}f} images/s")
    return f"{', '.join(parts)} (PyTorch, float32, {where})"


def _seconds(model: nn.Module, image: Tensor) -> float:
    """Return the median time of a forward pass, after one to warm up, unless that was already long."""
    times: List[float] = []
    with torch.inference_mode():
        while not times or (times[0] < MAX_SECONDS and (len(times) < 4 or sum(times[1:]) < SECONDS)):
            start = time.perf_counter()
            model(image)
            if image.is_cuda:
                torch.cuda.synchronize(image.device)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def teacher_lines(
    section: Mapping[str, Any], given: bool, dataset: str, num_classes: int, input_size: int, speed: bool
) -> List[str]:
    """Return lines about a teacher. It is built without its weights, which do not change its cost.

    Args:
        section: the section `DISTILLER`, as in a configuration.
        given: whether the user named the teacher; otherwise a checkpoint did, which must not start code of the user's
            own, and a teacher that cannot be built gives a note and no line.
        dataset, num_classes, input_size: the name of the student's data set, its number of classes and the side of its
            images in pixels; the teacher may see another size.
        speed: whether to measure the teacher's speed.

    Raises:
        UserError: the teacher that the user named cannot be built.
    """
    name = section.get("TEACHER")
    if not isinstance(name, str) or (not given and (not has_teacher(section) or library_of(name) == "user")):
        return []
    constructor = _mapping(section, "TEACHER_ARGS"), _mapping(section, "TEACHER_FEATURES")
    try:
        size = _teacher_size(section, dataset, input_size)
        with torch.random.fork_rng(devices=[]):
            teacher = build_model(name, num_classes, dataset, size, *constructor).eval()
    except UserError as error:
        if given:
            raise
        log.info(f"note: the cost of the teacher is not known here: {error.faults[0]}")
        return []
    teacher.to(pick_device()).to(memory_format=torch.channels_last)
    text = cost_text(teacher, None, size, _weights_file(section))
    return [f"teacher   {name}: {text}", *([f"          {speed_text(teacher, None, size)}"] if speed else [])]


def _mapping(section: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = section.get(key)
    return value if isinstance(value, Mapping) else {}


def _weights_file(section: Mapping[str, Any]) -> Optional[Path]:
    """Return the file of the teacher's weights, if it is on this machine."""
    weights = section.get("TEACHER_WEIGHTS")
    file = find_file(weights) if isinstance(weights, str) and weights not in ("", PRETRAINED) else None
    return file if file is not None and file.is_file() else None


def _teacher_size(section: Mapping[str, Any], dataset: str, input_size: int) -> int:
    """Return the side in pixels of the images that the teacher sees.

    Raises:
        UserError: the section is damaged, or the file of its weights, which may record another size, cannot be read.
    """
    given, weights = section.get("TEACHER_INPUT"), section.get("TEACHER_WEIGHTS", "")
    if not isinstance(weights, str):
        raise UserError(f"DISTILLER.TEACHER_WEIGHTS is {weights!r}; expected a file")
    refuse(filter(None, [input_errors(given)]))
    recorded: Mapping[str, Any] = {}
    if weights not in ("", PRETRAINED) and given is None:
        checkpoint = read_checkpoint(find_file(weights))
        recorded = checkpoint if is_described(checkpoint) else {}
    student = InputSpec(input_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return teacher_input(section, dataset, student, recorded).size
