"""CRD: "Contrastive Representation Distillation" (2020).

The contrast images of a step are drawn on the device from labels and indices, so that CRD needs no data loader of its
own. They differ from those of well-known code in one point: negatives are drawn with replacement (there without, as
long as there are enough of them), each uniformly from the images of all other classes.

Shapes: `B` batch, `N` training images, `D` embedding dimensions, `K` negatives for each image.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gather_with_grad, local_rows
from ..errors import UserError
from ..ranges import Range, above, at_least, one_of, weights
from ._base import Distiller, register
from ._common import probe

_EPS = 1e-7
_CHANNELS = Range(lambda value: value is None or value >= 1, "1 or more, or None to read it from the model")
_WIDE = 2**62  # the remainder of a number below it is uniform to 1 part in 10¹² for any data set


def contrastive_loss(ratios: Tensor, num_data: int) -> Tensor:
    """Return the scalar noise-contrastive estimate for one anchor network, averaged over the batch.

    Args:
        ratios: `[B, K + 1]`, float32, the positive first: `exp(similarity / temperature) / Z`.
        num_data: `N`; the noise distribution is uniform over the training images.
    """
    noise = (ratios.shape[1] - 1) / num_data
    log_positive = torch.log(ratios[:, 0] / (ratios[:, 0] + noise + _EPS))
    log_negative = torch.log(noise / (ratios[:, 1:] + noise + _EPS))
    return -(log_positive.sum() + log_negative.sum()) / ratios.shape[0]


def similarities(anchors: Tensor, bank: Tensor, contrast_index: Tensor) -> Tensor:
    """Return `[B, K + 1]`: dot products of `anchors [B, D]` with the rows `contrast_index [B, K + 1]` of `bank [N, D]`.

    All `N` products and a look-up: for thousands of negatives that is far less memory traffic than to gather their
    rows (one core, B = 64, N = 50,000, K = 16,384, D = 128, both networks with gradients: 0.07 s, not 1.1 s). At most
    `D` anchors at once, so that the table of products is never larger than the bank.
    """
    chunks = zip(anchors.split(bank.shape[1]), contrast_index.split(bank.shape[1]))
    return torch.cat([(rows @ bank.t()).gather(1, index) for rows, index in chunks])


class ContrastSampler(nn.Module):
    """Draws indices of training images, all in the same or in other classes.

    Args:
        labels: `[N]`, int64, of all training images in index order.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        counts = torch.bincount(labels)
        if counts.max() == len(labels):
            raise UserError("CRD draws negatives from other classes, but all training images are of one class; use KD")
        # a class is one block of `order`, so that the other classes are what is left without it
        for name, table in (
            ("order", labels.argsort(stable=True)),
            ("starts", counts.cumsum(0) - counts),
            ("counts", counts),
        ):
            self.register_buffer(name, table, persistent=False)

    def same_class(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """Return an image of each class in `target [B]`, `[B, 1]`."""
        count = self.counts[target, None]
        return self.order[self.starts[target, None] + _below(count, 1, generator)]

    def other_classes(self, target: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Return `num` images that are not of the class in `target [B]`, `[B, num]`, with replacement."""
        start, count = self.starts[target, None], self.counts[target, None]
        place = _below(len(self.order) - count, num, generator)
        return self.order[place + count * (place >= start)]


def _below(bound: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Return `[B, num]` random numbers from 0 to `bound [B, 1]`, exclusive."""
    return torch.randint(_WIDE, (len(bound), num), generator=generator, device=bound.device) % bound


class ContrastMemory(nn.Module):
    """The latest embeddings of all training images, by student and teacher, and the normalisation constants.

    Args:
        num_data, dim: `N` and `D`.
        temperature: of the similarities.
        momentum: how much of an old embedding stays in an update.
    """

    bank_student: Tensor
    bank_teacher: Tensor
    constants: Tensor

    def __init__(self, num_data: int, dim: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        bound = math.sqrt(3 / dim)
        self.register_buffer("bank_student", torch.empty(num_data, dim).uniform_(-bound, bound))
        self.register_buffer("bank_teacher", torch.empty(num_data, dim).uniform_(-bound, bound))
        self.register_buffer("constants", torch.full((2,), -1.0))  # Z of the two anchors; below 0: not yet known

    def forward(self, student: Tensor, teacher: Tensor, contrast_index: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the ratios `[B, K + 1]` of embeddings `student`, `teacher [B, D]` against the other network's bank.

        The first call estimates `Z`, for good, as `N` times the mean of `exp(similarity / temperature)`.
        """
        scores = [
            torch.exp(similarities(anchors, bank, contrast_index) / self.temperature)
            for anchors, bank in ((student, self.bank_teacher), (teacher, self.bank_student))
        ]
        with torch.no_grad():
            means = gather_with_grad(*(score.mean(1) for score in scores))
            estimates = torch.stack([mean.mean() for mean in means]) * len(self.bank_student)
            self.constants = torch.where(self.constants < 0, estimates, self.constants)
        return scores[0] / self.constants[0], scores[1] / self.constants[1]

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        """Move the rows `index [B]` of the banks towards the embeddings `[B, D]`, and back to length 1."""
        # new tensors: the backward pass still needs the old ones
        self.bank_student = self._updated(self.bank_student, student, index)
        self.bank_teacher = self._updated(self.bank_teacher, teacher, index)

    def _updated(self, bank: Tensor, embeddings: Tensor, index: Tensor) -> Tensor:
        rows = self.momentum * bank[index] + (1 - self.momentum) * embeddings
        return bank.index_copy(0, index, rows / rows.norm(dim=1, keepdim=True))


class Embed(nn.Linear):
    """A linear map of pooled features `[B, C]` to embeddings `[B, D]` of length 1, float32 or more precise."""

    def forward(self, pooled: Tensor) -> Tensor:
        embedding = super().forward(pooled)
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        return embedding / embedding.norm(dim=1, keepdim=True)


@register("CRD")
class CRD(Distiller):
    """Cross-entropy with the labels plus `contrastive_loss` of both networks' embeddings, each as the anchor once.

    Args:
        student, teacher, cfg: see `Distiller`.
        num_data: `N`; `None` where `attach_data` follows.

    A batch may bring its own contrast images, `contrast_index [B, K + 1]` with the positive first, under that name or
    as `contrastive_index` or `sample_idx`; then labels are not needed.
    """

    DEFAULTS = {
        "MODE": "exact",  # the positive: "exact" the image itself | "relax" any image of its class
        "FEAT": {
            "DIM": 128,
            "STUDENT_DIM": None,  # channels of the pooled feature; None: read from the model
            "TEACHER_DIM": None,
        },
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.8},
        "NCE": {"K": 16384, "MOMENTUM": 0.5, "TEMPERATURE": 0.07},
    }
    RANGES = {
        "MODE": one_of("exact", "relax"),
        "FEAT.DIM": at_least(1),
        "FEAT.STUDENT_DIM": _CHANNELS,
        "FEAT.TEACHER_DIM": _CHANNELS,
        "NCE.K": at_least(1),
        "NCE.MOMENTUM": Range(lambda value: 0 <= value < 1, "0 or more, below 1"),
        "NCE.TEMPERATURE": above(0),
        **weights("LOSS.CE_WEIGHT", "LOSS.FEAT_WEIGHT"),
    }
    teacher_needs = ("pooled",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any, num_data: Optional[int] = None) -> None:
        super().__init__(student, teacher)
        options = cfg.CRD
        self.mode = options.MODE
        self.num_negatives = options.NCE.K
        self.ce_weight = options.LOSS.CE_WEIGHT
        self.feat_weight = options.LOSS.FEAT_WEIGHT
        self.embed_student = Embed(_pooled_channels(student, cfg, "STUDENT_DIM"), options.FEAT.DIM)
        self.embed_teacher = Embed(_pooled_channels(teacher, cfg, "TEACHER_DIM"), options.FEAT.DIM)
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
                " give that number as num_data, or none"
            )
        self.sampler = ContrastSampler(labels)
        self.to(self.embed_student.weight.device)  # both, wherever the rest was moved before

    def get_extra_state(self) -> Tensor:
        """Return what continues the epoch's draws: its number and the generator's state, uint8; empty before both."""
        if self._generator is None or self._generator_epoch is None:
            return torch.empty(0, dtype=torch.uint8)
        return torch.cat([torch.tensor([self._generator_epoch]).view(torch.uint8), self._generator.get_state()])

    def set_extra_state(self, state: Tensor) -> None:
        if len(state):
            self._generator_epoch = int(state[:8].clone().view(torch.int64))
            self._generator = torch.Generator(self.embed_student.weight.device)
            self._generator.set_state(state[8:].clone())

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        own = [*self.embed_student.parameters(), *self.embed_teacher.parameters()]
        return [*super().get_learnable_parameters(), *own]

    def get_extra_parameters(self) -> int:
        """Return what the embeddings and the memory banks hold."""
        parameters = [*self.embed_student.parameters(), *self.embed_teacher.parameters()]
        banks = [] if self.memory is None else self.memory.buffers()
        return sum(p.numel() for p in (*parameters, *banks))

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        index = kwargs["index"]
        names = [name for name in ("contrast_index", "contrastive_index", "sample_idx") if name in kwargs]
        contrast_index = kwargs[names[0]] if names else self._draw(target, index, kwargs.get("epoch", 0))
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

    def _draw(self, target: Tensor, index: Tensor, epoch: int) -> Tensor:
        images = len(target)
        target, index = gather_with_grad(target, index)  # of all processes, which draw the same, each for all of them
        if self.sampler is None:
            raise UserError("CRD needs the labels of all training images to draw from; call attach_data(train_loader)")
        if self._generator is None:
            self._generator = torch.Generator(target.device)
        if self._generator_epoch != epoch:  # from seed and epoch alone, so that a resumed run draws the same
            self._generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self._generator_epoch = epoch
        exact = self.mode == "exact"
        positive = index[:, None] if exact else self.sampler.same_class(target, self._generator)
        drawn = torch.cat([positive, self.sampler.other_classes(target, self.num_negatives, self._generator)], dim=1)
        return local_rows(drawn, images)


def _pooled_channels(model: nn.Module, cfg: Any, key: str) -> int:
    channels = probe(model, cfg.DATASET.INPUT_SIZE)[1]["pooled_feat"].shape[1]
    typed = cfg.CRD.FEAT[key]
    if typed not in (None, channels):
        raise UserError(
            f"CRD.FEAT.{key} is {typed}, but the pooled feature has {channels} channels; correct it, or set it to null"
        )
    return channels
