"""The networks in the form in which training steps run them: a frozen teacher, perhaps cached; compiled parts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import nn

from ...dataset.loading.loader import Batch, Loader
from ...distillers import Distiller
from ...models import ClassifierModel
from .fold_batchnorm import inference_form
from .precision import Precision
from .teacher_cache import CachedTeacher, open_cache, weights_digest


class TrainingForm:
    """Changes a distiller while an epoch is trained, and changes it back.

    The teacher is replaced by its inference form, or by what the cache knows of it, unless it is in training mode, has
    hooks, or serves a method written for MDistiller. With `SOLVER.COMPILE` the teacher is compiled, and on a GPU the
    student and its head. Evaluation, checkpoints and what a method does before the first step see all as it was built.

    Args:
        distiller: in training mode.
        loader: of the training images.
        cfg: the resolved configuration.
        precision: of the steps.
        say: takes a line for the user.
    """

    def __init__(
        self, distiller: Distiller, loader: Loader, cfg: Any, precision: Precision, say: Callable[[str], None]
    ) -> None:
        self._distiller = distiller
        self._loader = loader
        self._teacher: Any = distiller.teacher
        self._cache: Optional[CachedTeacher] = None
        self._compiled: List[Tuple[nn.Module, str, Any]] = []  # module, name of a method, what stands for it
        mode = None if cfg.SOLVER.COMPILE == "off" else cfg.SOLVER.COMPILE
        if mode and loader.device.type != "cpu":  # there, BatchNorm's gradient becomes slower, the student by a quarter
            self._compiled = [
                (module, name, torch.compile(getattr(module, name), mode=mode, dynamic=False))
                for module, name in _parts(distiller)
            ]
        reason = _why_as_built(distiller)
        if distiller.teacher is not None and not reason:
            try:
                self._teacher, folded = inference_form(distiller.teacher, loader.info.input_size, precision.dtype)
            except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # a model in a way of its own
                reason = " ".join(str(error).split())[:120] or type(error).__name__
        if distiller.teacher is None or reason:
            if cfg.TEACHER_CACHE != "off" and reason:
                say(f"teacher cache: none, the teacher runs as it was built ({reason})")
            return
        dtype = "float32" if precision.dtype is None else str(precision.dtype).split(".")[-1]
        say(f"teacher in inference form: {folded} BatchNorms folded, convolutions in {dtype}")
        if mode:
            self._teacher.compile(mode=mode)
        if cfg.TEACHER_CACHE != "off":
            self._cache = self._open(cfg, precision, say)
            self._teacher = self._cache or self._teacher

    def _open(self, cfg: Any, precision: Precision, say: Callable[[str], None]) -> Optional[CachedTeacher]:
        teacher, loader, needs = self._distiller.teacher, self._loader, self._distiller.teacher_needs
        if loader.num_variants is None:
            say(f"teacher cache: none, DATASET.AUGMENT {loader.augment} makes countless forms of an image")
            return None
        if not set(needs) <= {"logits", "pooled"}:
            say(f"teacher cache: none, {cfg.DISTILLER.TYPE} reads the teacher's maps; the teacher runs in each step")
            return None
        info = loader.info
        with torch.no_grad():
            logits, feats = teacher(torch.zeros(2, 3, info.input_size, info.input_size, device=loader.device))
        vectors = {"logits": logits, "pooled": feats.get("pooled_feat")}
        about: Dict[str, Any] = {
            "name": cfg.DISTILLER.TEACHER,
            "weights": weights_digest(teacher),
            "images": loader.digest(),
            "input_size": info.input_size,
            "mean": list(info.mean),
            "std": list(info.std),
            "augmentation": f"{loader.augment} {loader.padding}{'' if loader.flip else ' no flip'}",
            "precision": f"{precision} on {loader.device.type}",  # a GPU's float32 convolutions may be of TF32
        }
        read = {need: vector.shape[1] for need, vector in vectors.items() if need in needs}
        return open_cache(cfg.TEACHER_CACHE, self._teacher, read, loader, precision, about, say)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Change the distiller within a `with` block."""
        loaded = self._distiller.teacher
        self._distiller.teacher = self._teacher
        for module, name, compiled in self._compiled:
            setattr(module, name, compiled)  # hides the class's method
        try:
            yield
        finally:
            self._distiller.teacher = loaded
            for module, name, _ in self._compiled:
                delattr(module, name)

    def serve(self, batches: Iterator[Batch], start_step: int = 0) -> Iterator[Batch]:
        """Pass on this epoch's batches from number `start_step` (from 0) on, with what the cache says of them."""
        if self._cache is not None:
            batches = self._cache.serve(self._loader, batches, start_step)
        return _marked(batches) if self._compiled else batches


def _marked(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        torch.compiler.cudagraph_mark_step_begin()  # what a graph gave in the step before may be overwritten
        yield batch


def _why_as_built(distiller: Distiller) -> str:
    """Return why the teacher must not be replaced by a copy; empty if it may be."""
    modules = [] if distiller.teacher is None else list(distiller.teacher.modules())
    if any(module.training for module in modules):
        return "it is in training mode"
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return "it has hooks"
    return "" if distiller.channels_last else "the method was written for MDistiller, and may look inside it"


def _parts(distiller: Distiller) -> List[Tuple[nn.Module, str]]:
    """Return the trained networks, each with the method that does its work."""
    student = distiller.student
    parts: List[Tuple[nn.Module, str]] = [
        (student, "forward_stages" if isinstance(student, ClassifierModel) else "forward")
    ]
    return parts if distiller.head is None else [*parts, (distiller.head, "forward")]
