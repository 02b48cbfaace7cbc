"""CRD: "Contrastive Representation Distillation" (2020).

The contrast images of a step are sampled on the device from labels and indices, so CRD needs no special data loader.
There is one difference from RepDistiller and MDistiller: negatives are sampled with replacement, each uniformly from
the images of all other classes. They sample without replacement if there are enough images.

Shapes: `B` batch, `N` training images, `D` embedding dimensions, `K` negatives for each image.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..distributed import gather_with_grad, local_rows
from ..errors import UserError
from ..ranges import Range, above, at_least, one_of, weights
from ._base import Distiller, register
from ._common import blank_outputs, image_size
from ._contrast import ContrastMemory, ContrastSampler

EPS = 1e-7  # keeps quotients finite
CHANNELS = Range(lambda value: value is None or value >= 1, "1 or more, or None to read it from the model")


def contrastive_loss(ratios: Tensor, num_data: int) -> Tensor:
    """Return the scalar noise-contrastive estimation (NCE) loss for one anchor network, averaged over the batch.

    Args:
        ratios: the ratios `exp(similarity / temperature) / Z`, `[B, K + 1]`, float32, the positive first.
        num_data: the number of training images, `N`; the noise distribution is uniform over them.
    """
    noise = (ratios.shape[1] - 1) / num_data
    log_positive = torch.log(ratios[:, 0] / (ratios[:, 0] + noise + EPS))
    log_negative = torch.log(noise / (ratios[:, 1:] + noise + EPS))
    return -(log_positive.sum() + log_negative.sum()) / ratios.shape[0]


class Embed(nn.Linear):
    """A linear map of pooled features `[B, C]` to embeddings `[B, D]` of length 1, at least float32."""

    def forward(self, pooled: Tensor) -> Tensor:
        embedding = super().forward(pooled)
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        return embedding / embedding.norm(dim=1, keepdim=True)


@register("CRD")
class CRD(Distiller):
    """Cross-entropy with the labels plus `contrastive_loss` with each of the two networks as the anchor.

    A batch may contain its own contrast images, `contrast_index [B, K + 1]` with the positive first. The names
    `contrastive_index` and `sample_idx` are also accepted. The labels of the training set are then not needed.

    Args:
        student, teacher, cfg: see `Distiller`.
        num_data: the number of training images, `N`; `None` if `attach_data` is called later.
    """

    DEFAULTS = {
        "MODE": "exact",  # the positive: "exact" the image itself | "relax" any image of its class
        "FEAT": {
            "DIM": 128,  # dimensions of the embedding
            "STUDENT_DIM": None,  # channels of the pooled feature; None: read from the model
            "TEACHER_DIM": None,  # as STUDENT_DIM
        },
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.8},
        "NCE": {
            "K": 16384,  # negatives per image
            "MOMENTUM": 0.5,  # momentum of the memory banks
            "TEMPERATURE": 0.07,  # temperature of the contrastive loss
        },
    }
    RANGES = {
        "MODE": one_of("exact", "relax"),
        "FEAT.DIM": at_least(1),
        "FEAT.STUDENT_DIM": CHANNELS,
        "FEAT.TEACHER_DIM": CHANNELS,
        "NCE.K": at_least(1),
        "NCE.MOMENTUM": Range(lambda value: 0 <= value < 1, "0 or more, below 1"),
        "NCE.TEMPERATURE": above(0),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("pooled",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode, num_data: Optional[int] = None) -> None:
        super().__init__(student, teacher)
        options = self.options_of(CRD, cfg)
        self.mode = options.MODE
        self.num_negatives = options.NCE.K
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        self.embed_student = Embed(_pooled_channels(student, cfg, options.FEAT, "STUDENT_DIM"), options.FEAT.DIM)
        self.embed_teacher = Embed(_pooled_channels(teacher, cfg, options.FEAT, "TEACHER_DIM"), options.FEAT.DIM)
        self._memory_options = (options.FEAT.DIM, options.NCE.TEMPERATURE, options.NCE.MOMENTUM)
        self.memory = None if num_data is None else ContrastMemory(num_data, *self._memory_options)
        self.sampler: Optional[ContrastSampler] = None
        self.seed = cfg.EXPERIMENT.SEED
        self._generator: Optional[torch.Generator] = None
        self._generator_epoch: Optional[int] = None

    def attach_data(self, train_loader: Any) -> None:
        labels = torch.as_tensor(train_loader.targets).cpu()
        if self.memory is None:
            self.memory = ContrastMemory(len(labels), *self._memory_options)
        elif len(self.memory.bank_student) != len(labels):
            raise UserError(
                f"CRD was built for {len(self.memory.bank_student)} training images, the data set has {len(labels)};"
                " set num_data to that number, or leave it out"
            )
        self.sampler = ContrastSampler(labels)
        self.to(self.embed_student.weight.device)  # memory and sampler are new, the rest may have been moved already

    def get_extra_state(self) -> Tensor:
        """Return epoch and generator state as uint8, to resume within an epoch; empty before the first epoch."""
        if self._generator is None or self._generator_epoch is None:
            return torch.empty(0, dtype=torch.uint8)
        return torch.cat([torch.tensor([self._generator_epoch]).view(torch.uint8), self._generator.get_state()])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        generator = torch.Generator(self.embed_student.weight.device)
        # a state of another length is from another type of device; `contrast_images` then seeds a new generator
        if len(state) == 8 + len(generator.get_state()):
            self._generator_epoch = int(state[:8].clone().view(torch.int64))
            self._generator = generator
            self._generator.set_state(state[8:].clone())

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        own = [*self.embed_student.parameters(), *self.embed_teacher.parameters()]
        return [*super().get_learnable_parameters(), *own]

    def get_extra_parameters(self) -> int:
        """Return the number of values in the embeddings and in the memory banks."""
        banks = [] if self.memory is None else self.memory.buffers()
        return super().get_extra_parameters() + sum(bank.numel() for bank in banks)

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        index = kwargs["index"]
        names = [name for name in ("contrast_index", "contrastive_index", "sample_idx") if name in kwargs]
        contrast_index = kwargs[names[0]] if names else self.contrast_images(target, index, kwargs.get("epoch", 0))
        if self.memory is None:
            raise UserError("CRD does not know the number of training images; call attach_data(train_loader) first")
        logits, feats_student = self.student(image)
        with torch.no_grad():
            _, feats_teacher = self.teacher(image)
        student = self.embed_student(feats_student["pooled_feat"])
        teacher = self.embed_teacher(feats_teacher["pooled_feat"])
        with torch.autocast(image.device.type, enabled=False):
            num_data = len(self.memory.bank_student)
            loss = sum(contrastive_loss(ratios, num_data) for ratios in self.memory(student, teacher, contrast_index))
            self.memory.update(*gather_with_grad(student, teacher, index))
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits.float(), target),
            "loss_kd": self.feat_weight * loss,
        }

    def contrast_images(self, target: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Return the indices `[B, K + 1]` of contrast images, the positive first.

        Args:
            target: the labels `[B]`, int64.
            index: the indices of the images `[B]`, int64.
            epoch: the epoch, which seeds the generator together with `EXPERIMENT.SEED`.
        """
        if self.sampler is None:
            raise UserError("CRD samples from the labels of all training images; call attach_data(train_loader) first")
        batch_size = len(target)
        target, index = gather_with_grad(target, index)  # every process samples for all processes, with the same result
        if self._generator is None:
            self._generator = torch.Generator(target.device)
        if self._generator_epoch != epoch:  # seeded by seed and epoch only, so a resumed run samples the same images
            self._generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._generator_epoch = epoch
        exact = self.mode == "exact"
        positive = index[:, None] if exact else self.sampler.same_class(target, self._generator)
        negatives = self.sampler.other_classes(target, self.num_negatives, self._generator)
        return local_rows(torch.cat([positive, negatives], dim=1), batch_size)


def _pooled_channels(model: nn.Module, cfg: CfgNode, options: CfgNode, key: str) -> int:
    channels = blank_outputs(model, image_size(cfg))[1]["pooled_feat"].shape[1]
    given = options[key]
    if given not in (None, channels):
        raise UserError(
            f"CRD.FEAT.{key} is {given}, but the pooled feature has {channels} channels; correct it, or set it to null"
        )
    return channels
