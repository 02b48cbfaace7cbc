"""The distiller: a student, a frozen teacher, a training loss, and what is deployed afterwards.

Shapes: `B` batch, `H`/`W` pixels, `N` classes.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import refuse
from ..ranges import Range, out_of_range
from ..registry import Registry
from .heads import Head, deployed_logits, eval_logits

distiller_dict: Registry[Type[Distiller]] = Registry("distiller")


def register(name: str) -> Callable[[Type[Distiller]], Type[Distiller]]:
    """Class decorator: the distiller becomes `DISTILLER.TYPE: name`, its `DEFAULTS` the config section `name`."""
    return distiller_dict.register(name)


class Distiller(nn.Module):
    """Base of all methods; a method implements `__init__(student, teacher, cfg)` and `forward_train`.

    Args:
        student: a model of the contract in `mdistiller.models`; it is trained.
        teacher: another one; it is frozen and stays in evaluation mode. `None` for methods that need none.

    Attributes:
        DEFAULTS: the method's config section, a plain nested dictionary.
        RANGES: what the values of that section may be, by key (`LOSS.CE_WEIGHT`); no key has to be there.
        needs_teacher: whether the teacher is built and loaded at all.
        teacher_needs: what a step reads of the teacher's outputs: `logits`, `pooled` (the pooled feature) and `maps`
            (stage maps or the final map); all of it unless a method says less.
        channels_last: whether images and weights come in channels_last strides, the faster ones, in which
            `Tensor.view` cannot flatten a map; `False` for a class that is not registered by its own file, as in
            MDistiller's.
        head: what replaces the student's own classifier when the student is deployed; `None` keeps that classifier.
    """

    DEFAULTS: Dict[str, Any] = {}
    RANGES: Dict[str, Range] = {}
    needs_teacher = True
    teacher_needs: Tuple[str, ...] = ("logits", "pooled", "maps")
    channels_last = True
    student: Any
    teacher: Any
    head: Optional[Head]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward_train" in vars(cls) and "teacher_needs" not in vars(cls):
            cls.teacher_needs = Distiller.teacher_needs  # what a parent's step reads says nothing about this one

    def __init__(self, student: nn.Module, teacher: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.student = student
        self.head = None
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        self.teacher = teacher

    @classmethod
    def faults(cls, options: Any, section: str) -> Iterator[str]:
        """Yield a line for each fault of the method's config section, before any model is there.

        Args:
            options: the section; it has the keys of `DEFAULTS`.
            section: its name, with which each line begins.
        """
        if knows(cls, "RANGES", options):
            yield from out_of_range(options, cls.RANGES, section)

    @classmethod
    def loss_names(cls, options: Any) -> Optional[Tuple[str, ...]]:
        """Return the names of the losses under these options; `None` where only a step can tell."""
        return None

    @classmethod
    def checked(cls, cfg: Any, section: str) -> Any:
        """Return the config section of that name; for a constructor, which calls it on its own class.

        Raises:
            UserError: a line for each of its `faults`.
        """
        options = getattr(cfg, section)
        refuse(cls.faults(options, section))
        return options

    def train(self, mode: bool = True) -> Distiller:
        """Set the training mode of everything but the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @property
    def tests_otherwise(self) -> bool:
        """Whether `forward_test` gives something else than the student that is saved."""
        return self.head is None and type(self).forward_test is not Distiller.forward_test

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        """Return what the optimizer updates: the student, and the head where there is one."""
        parameters = list(self.student.parameters())
        if self.head is not None:
            parameters += self.head.parameters()
        return [p for p in parameters if p.requires_grad]

    def get_extra_parameters(self) -> int:
        """Return how many parameters the method adds to the student's."""
        return 0 if self.head is None else sum(p.numel() for p in self.head.parameters())

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Return the student's logits `[B, N]` and named scalar losses; the trainer minimises their sum.

        Args:
            image: `[B, 3, H, W]`, normalised.
            target: `[B]`, int64 labels.
            kwargs: the rest of the batch (`index [B]`, …) and `epoch`, counted from 1.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward_train")

    def attach_data(self, train_loader: Any) -> None:
        """Take what the method needs to know of the training set; called once, before the first step.

        Args:
            train_loader: has `targets [N]`, all labels in index order; a batch's `index` counts in the same order.
        """

    def forward_test(self, image: Tensor) -> Tensor:
        """Return the deployed student's logits `[B, N]`."""
        return deployed_logits(self.student, self.head, image)

    def forward_eval(self, image: Tensor) -> Dict[str, Tensor]:
        """Return logits `[B, N]` by name.

        `deployed`: those of `forward_test`. With a head also `probe`, the student's own classifier's. Where a method
        tests by a `forward_test` of its own but ships no head, also `bare`, those of the student that is saved.
        """
        if self.tests_otherwise:
            return {"deployed": self.forward_test(image), "bare": self.student(image)[0]}
        return eval_logits(self.student, self.head, image)

    def forward(self, **kwargs: Any) -> Any:
        """`forward_train(**batch)` in training mode, `forward_test(image)` otherwise."""
        if self.training:
            return self.forward_train(**kwargs)
        return self.forward_test(kwargs["image"])


def knows(distiller: Type[Distiller], hook: str, options: Any) -> bool:
    """Whether a class's `RANGES`, `faults` or `loss_names` can judge a section: it has the keys they were written for.

    A class may inherit them, and have a section of its own with other keys.
    """
    author = next(c for c in distiller.__mro__ if hook in vars(c))
    return _has_keys(options, author.DEFAULTS)  # type: ignore[attr-defined]


def _has_keys(options: Any, defaults: Dict[str, Any]) -> bool:
    return isinstance(options, dict) and all(
        key in options and (not isinstance(value, dict) or _has_keys(options[key], value))
        for key, value in defaults.items()
    )


@register("NONE")
class Vanilla(Distiller):
    """The student alone, trained by cross-entropy."""

    DEFAULTS: Dict[str, Any] = {}
    needs_teacher = False
    teacher_needs = ()

    def __init__(self, student: nn.Module, teacher: Optional[nn.Module] = None, cfg: Any = None) -> None:
        super().__init__(student)

    @classmethod
    def loss_names(cls, options: Any) -> Tuple[str, ...]:
        return ("loss_ce",)

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits, _ = self.student(image)
        return logits, {"loss_ce": F.cross_entropy(logits.float(), target)}
