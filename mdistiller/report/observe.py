"""One pass over the validation images: what student and teacher compute for them.

Shapes: `n` images, `B` images of a batch, `K` classes, `m` sampled images, `C` channels, `H`/`W` of the final map,
`S` side in pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..dataset.loading.normalizer import Normalizer
from ..distillers import DeployedStudent
from ..distillers.heads import split_forward
from ..engine.evaluation.eval_checkpoint import note_missing_folder
from ..engine.speed.precision import pick_device, prepare_device
from ..errors import UserError
from ..export.source import val_pixels
from .collect import MAX_PICTURES, GalleryImage, MostConfident, OutputCollector, Outputs, Sample, Spectra, SpectraSum
from .runs import Run
from .teachers import Teacher


@dataclass
class Observation:
    """What was seen of a run.

    Attributes:
        target: the labels, int64 `[n]`.
        sampled: the numbers of the images with features, int64 `[m]`; see `feature_classes`.
        student, teacher: the outputs of the student and of the teacher.
        only_teacher, only_student: images that only one of them gets right, the surest first.
        spectra: the spectra of SFAKD's frequency branch.
        checksum: the checksum of the pixels.
    """

    target: Tensor
    sampled: Tensor
    student: Outputs
    teacher: Optional[Outputs]
    only_teacher: List[GalleryImage]
    only_student: List[GalleryImage]
    spectra: Optional[Spectra]
    checksum: int


def observe(runs: Sequence[Run], teachers: Sequence[Teacher]) -> List[Observation]:
    """Evaluate each run, and each teacher, once on the validation images.

    Raises:
        UserError: the data set cannot be read, or the runs were validated on different images.
    """
    device = pick_device()
    prepare_device(device)
    known: Dict[str, Outputs] = {}
    seen: List[Observation] = []
    for run, teacher in zip(runs, teachers):
        found = _observe(run, teacher, known.get(teacher.key), device)
        if found.teacher is not None:
            known[teacher.key] = found.teacher
        seen.append(found)
        first, size = seen[0], run.source.view == runs[0].source.view
        if not torch.equal(found.target, first.target) or (size and found.checksum != first.checksum):
            raise _other_images(run)
    return seen


def _other_images(run: Run) -> UserError:
    return UserError(
        f"the run {run.folder} was validated on other images than the first run; give runs with the same DATASET.ROOT,"
        " DATASET.VAL_FRACTION and EXPERIMENT.SEED"
    )


@torch.no_grad()
def _observe(run: Run, teacher: Teacher, known: Optional[Outputs], device: torch.device) -> Observation:
    student = run.source.student.to(device).to(memory_format=torch.channels_last)
    model = teacher.model if known is None else None
    if model is not None:
        model = model.to(device).to(memory_format=torch.channels_last)
    normalize = Normalizer(run.source.info, device)
    note_missing_folder(run.source.cfg, run.source.checkpoint)
    try:
        num_images, batches = val_pixels(run.source)
    except UserError as error:
        raise UserError(
            f"the validation images of the run {run.folder} cannot be read: {error} (--set DATASET.ROOT FOLDER names"
            " another place)"
        ) from None
    if known is not None and len(known.logits) != num_images:
        raise _other_images(run)
    sample, own, taught = Sample(run.source.info.num_classes), OutputCollector(), OutputCollector()
    targets = []
    spectra = SpectraSum(student)
    only_teacher, only_student = MostConfident(MAX_PICTURES), MostConfident(MAX_PICTURES)
    checksum, start = 0, 0
    for pixels, target in batches:
        image = normalize(pixels.to(device))
        logits, pooled, final_map = student_outputs(student, image)
        targets.append(target.cpu())
        chosen = sample.choose(targets[-1], start)
        logits = own.add(logits, pooled, chosen)
        spectra.add(final_map)
        checksum = zlib.crc32(pixels.numpy().tobytes(), checksum)
        reference: Optional[Tensor] = None
        if model is not None:
            output, feats = model(image)
            reference = taught.add(output, feats.get("pooled_feat"), chosen)
        elif known is not None:
            reference = known.logits[start : start + len(target)]
        if reference is not None:
            for one, other, gallery in ((reference, logits, only_teacher), (logits, reference, only_student)):
                gallery.add(one, other, targets[-1], pixels, start)
        start += len(target)
    return Observation(
        torch.cat(targets),
        torch.tensor(sample.numbers),
        own.outputs(),
        known if model is None else taught.outputs(),
        only_teacher.images(),
        only_student.images(),
        spectra.means(),
        checksum,
    )


def student_outputs(student: DeployedStudent, image: Tensor) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """Return logits `[B, K]`, pooled feature `[B, C]` and final map of a deployed student.

    With a head, the feature is the one that the teacher's classifier consumes.
    """
    if student.head is None:
        logits, feats = student.backbone(image)
        return logits, feats.get("pooled_feat"), feats.get("final_map")
    final_map, _ = split_forward(student.backbone, image)
    output = student.head(final_map)
    return output.logits, output.pooled, final_map
