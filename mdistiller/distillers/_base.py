"""The base class of all distillers, which hold a student, a frozen teacher and the training losses.

Shapes: `B` batch, `H`/`W` pixels, `N` classes.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import refuse
from ..ranges import Range, no_weight, out_of_range
from ..registry import Registry
from .heads import Head, deployed_logits, eval_logits

distiller_dict: Registry[Type[Distiller]] = Registry("distiller")
OUTPUTS = ("logits", "pooled", "maps")  # of a teacher, for `Distiller.teacher_needs`
_ABSENT = object()


def register(name: str) -> Callable[[Type[Distiller]], Type[Distiller]]:
    """Return a class decorator that registers a distiller as `DISTILLER.TYPE: name`.

    Its `DEFAULTS` become the config section `name`.

    Raises:
        UserError: one line for each declaration of the class that cannot be right.
    """
    add = distiller_dict.register(name)

    def named(distiller: Type[Distiller]) -> Type[Distiller]:
        refuse(f"distiller {name}: {fault}" for fault in _declaration_errors(distiller))
        distiller.section = name
        return add(distiller)

    return named


def _declaration_errors(distiller: Any) -> Iterator[str]:
    """Yield a line for each class attribute that a method declares wrongly, as by a typing error."""
    if not (isinstance(distiller, type) and issubclass(distiller, Distiller)):
        yield f"{distiller!r:.100} is not a subclass of Distiller"
        return
    needs, ranges, defaults = distiller.teacher_needs, vars(distiller).get("RANGES", {}), distiller.DEFAULTS
    if not isinstance(needs, (tuple, list)) or not set(needs) <= set(OUTPUTS):
        yield f"teacher_needs is {needs!r:.100}; expected a tuple of {', '.join(map(repr, OUTPUTS))}"
    if not isinstance(defaults, dict):
        yield f"DEFAULTS is {defaults!r:.100}; expected a dictionary, such as {{'WEIGHT': 1.0}}"
        return
    for key, allowed in ranges.items():
        if not isinstance(allowed, Range):
            yield f"RANGES has {allowed!r:.100} for {key}; expected a range, such as at_least(0)"
        node: Any = defaults
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, dict) else _ABSENT
        if node is _ABSENT:
            yield f"RANGES has {key}, which DEFAULTS lacks; write the same name in both"


class Distiller(nn.Module):
    """Base class of all methods; a method implements `__init__(student, teacher, cfg)` and `forward_train`.

    `engine/validate.py` validates the config section before any model is built, so constructors only read it. They
    check what depends on the two models, such as shapes.

    Args:
        student: the model to train; see `mdistiller.models` for what it returns.
        teacher: a model of the same kind; it is frozen and stays in evaluation mode. `None` if the method needs none.

    Attributes:
        section: the name of the method's config section; `register` sets it.
        DEFAULTS: the method's config section, a plain nested dictionary.
        RANGES: the allowed values by key, such as `LOSS.CE_WEIGHT`. A key without a range may have any value.
        needs_teacher: whether the method uses a teacher; otherwise none is built or loaded.
        teacher_needs: the teacher's outputs that a training step reads: `logits`, `pooled` (the pooled feature) and
            `maps` (stage maps or the final map). By default all of them.
        soft_labels: whether `forward_train` also takes `target` as probabilities `[B, N]`, as mixup, CutMix and label
            smoothing give them; `False` unless the class that defines `forward_train` says so.
        unlabeled: whether `forward_train` also takes images without labels. They have zeros in `target [B, N]`, and
            the other rows are probabilities times a weight; see `engine/solver/soft_labels.py`. `False` unless the
            class that defines `forward_train` says so.
        needs_all_logits: whether the method compares each logit of the teacher with the label's. `TEACHER_TOP_LOGITS`
            is then refused, because it makes all but the largest logits equal.
        channels_last: whether images and weights are in the faster channels_last memory format. `Tensor.view` cannot
            flatten a map in that format, so this is `False` for classes without `@register`, such as MDistiller's.
        head: the module that replaces the student's own classifier in the deployed student; `None` keeps that
            classifier.
    """

    section = ""
    DEFAULTS: Dict[str, Any] = {}
    RANGES: Dict[str, Range] = {}
    needs_teacher = True
    teacher_needs: Tuple[str, ...] = OUTPUTS
    soft_labels = False
    unlabeled = False
    needs_all_logits = False
    channels_last = True
    student: Any
    teacher: Any
    head: Optional[Head]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("teacher_needs", "soft_labels", "unlabeled"):
            if "forward_train" in vars(cls) and name not in vars(cls):
                setattr(cls, name, getattr(Distiller, name))  # the parent's declaration describes its own step only

    def __init__(self, student: nn.Module, teacher: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.student = student
        self.head = None
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        self.teacher = teacher

    def options_of(self, base: Type[Distiller], cfg: Any) -> Any:
        """Return the config section that the constructor of `base` reads for this object; see `section_owner`."""
        return getattr(cfg, section_owner(type(self), base).section)

    @classmethod
    def config_errors(cls, options: Any, section: str) -> Iterator[str]:
        """Yield one line for each error in the method's config section; called before any model is built.

        Args:
            options: the config section; it has the keys of `DEFAULTS`.
            section: the section's name; each line starts with it.
        """
        if knows(cls, "RANGES", options):
            yield from out_of_range(options, cls.RANGES, section)
            definer: Any = next(c for c in cls.__mro__ if "RANGES" in vars(c))
            if cls.DEFAULTS is definer.DEFAULTS:  # otherwise there may be losses that the ranges do not know
                yield from no_weight(options, cls.RANGES, section)

    @classmethod
    def loss_names(cls, options: Any) -> Optional[Tuple[str, ...]]:
        """Return the names of the losses for a config section, or `None` if they are not known in advance."""
        return None

    def train(self, mode: bool = True) -> Distiller:
        """Set the training mode of all modules except the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def in_memory_format(self, image: Tensor) -> Tensor:
        """Return images `[B, 3, H, W]` with the strides that the method expects; see `channels_last`."""
        return image if self.channels_last else image.contiguous()

    @property
    def overrides_forward_test(self) -> bool:
        """Whether the method overrides `forward_test`, so its logits may differ from those of the saved student."""
        return self.head is None and type(self).forward_test is not Distiller.forward_test

    def get_learnable_parameters(self) -> List[nn.Parameter]:
        """Return the parameters that the optimizer updates: those of the student and of the head, if any."""
        parameters = list(self.student.parameters())
        if self.head is not None:
            parameters += self.head.parameters()
        return [p for p in parameters if p.requires_grad]

    def get_no_decay_parameters(self) -> List[nn.Parameter]:
        """Return those of the learnable parameters that take no weight decay; by default none."""
        return []

    def get_extra_parameters(self) -> int:
        """Return the number of parameters that the method adds to student and teacher."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith(("student.", "teacher.")))

    def get_log_values(self) -> Dict[str, float]:
        """Return numbers by name that are logged once an epoch, beside the losses; by default none.

        They become keys of the epoch's row of metrics.jsonl, so a name must not be one of the trainer's, such as `lr`.
        """
        return {}

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Return the student's logits `[B, N]` and the scalar losses by name; the trainer minimizes their sum.

        Args:
            image: the images, `[B, 3, H, W]`, normalized.
            target: the labels, int64 `[B]`; with `soft_labels` perhaps float32 probabilities `[B, N]`, and with
                `unlabeled` perhaps weighted ones.
            kwargs: the other entries of the batch, such as `index [B]`, and `epoch`, counted from 1.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward_train")

    def attach_data(self, train_loader: Any) -> None:
        """Read what the method needs from the training set; called once, before the first step.

        Args:
            train_loader: the loader of the training images. Its `targets` holds the labels of all images in index
                order; a batch's `index` counts in the same order.
        """

    def forward_test(self, image: Tensor) -> Tensor:
        """Return the deployed student's logits `[B, N]`."""
        return deployed_logits(self.student, self.head, image)

    def forward_eval(self, image: Tensor) -> Dict[str, Tensor]:
        """Return logits `[B, N]` by name.

        `deployed` are the logits of `forward_test`. With a head, `probe` are those of the student's own classifier. If
        a method overrides `forward_test` but deploys no head, `bare` are those of the student that is saved.
        """
        if self.overrides_forward_test:
            return {"deployed": self.forward_test(image), "bare": self.student(image)[0]}
        return eval_logits(self.student, self.head, image)

    def forward(self, **kwargs: Any) -> Any:
        """Return `forward_train(**kwargs)` in training mode and `forward_test(image)` otherwise."""
        if self.training:
            return self.forward_train(**kwargs)
        return self.forward_test(kwargs["image"])


def section_owner(distiller: Type[Distiller], base: Type[Distiller]) -> Type[Distiller]:
    """Return the class whose config section the constructor of `base` reads for a distiller.

    It is the nearest class between the two that defines `DEFAULTS` with all keys of `base`, as `{**Base.DEFAULTS, …}`
    has, otherwise `base`.
    """
    between: Any = distiller.__mro__[: distiller.__mro__.index(base)]
    own = (c for c in between if "DEFAULTS" in vars(c) and _has_keys(c.DEFAULTS, base.DEFAULTS))
    return next(own, base)


def knows(distiller: Type[Distiller], hook: str, options: Any) -> bool:
    """Whether `hook` of a class applies to a config section.

    A class may inherit a hook but have a section with other keys. The hook applies if the section has all keys of the
    class that defines the hook.

    Args:
        distiller: the class.
        hook: `RANGES`, `config_errors` or `loss_names`.
        options: the config section.
    """
    definer = next(c for c in distiller.__mro__ if hook in vars(c))
    return _has_keys(options, definer.DEFAULTS)  # type: ignore[attr-defined]


def _has_keys(options: Any, defaults: Dict[str, Any]) -> bool:
    return isinstance(options, dict) and all(
        key in options and (not isinstance(value, dict) or _has_keys(options[key], value))
        for key, value in defaults.items()
    )


@register("NONE")
class Vanilla(Distiller):
    """The student without a teacher, trained by cross-entropy."""

    DEFAULTS: Dict[str, Any] = {}
    needs_teacher = False
    teacher_needs = ()
    soft_labels = True

    def __init__(self, student: nn.Module, teacher: Optional[nn.Module] = None, cfg: Any = None) -> None:
        super().__init__(student)

    @classmethod
    def loss_names(cls, options: Any) -> Tuple[str, ...]:
        return ("loss_ce",)

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits, _ = self.student(image)
        return logits, {"loss_ce": F.cross_entropy(logits.float(), target)}
