"""The faster forms in which training steps run the networks: a folded or cached teacher, and faster parts."""

from __future__ import annotations

import copy
import re
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from ... import distributed
from ...dataset.loading.loader import Batch, Loader
from ...distillers import Distiller
from ...errors import UserError, counted, one_line
from ...models import ClassifierModel, own_input_of
from ...models.adapters.hooked import HookedModel
from .fold_batchnorm import fold_batchnorm
from .precision import Precision
from .small_maps import faster_convolutions
from .teacher_cache import CachedTeacher, open_cache, weights_digest
from .top_logits import TopLogits

Say = Callable[[str], None]


def check_top_logits(distiller: Distiller, loader: Loader, cfg: CfgNode) -> None:
    """Raise a UserError if `TEACHER_TOP_LOGITS` needs a cache that the settings rule out."""
    reason = _needs_cache(distiller, loader, cfg) and _why_no_cache(distiller, loader, cfg)
    if reason:
        raise _without_cache(cfg, reason)


def _needs_cache(distiller: Distiller, loader: Loader, cfg: CfgNode) -> bool:
    """Whether the teacher's logits are reduced, which only a cache does."""
    return "logits" in distiller.teacher_needs and 0 < cfg.TEACHER_TOP_LOGITS < loader.info.num_classes


def _without_cache(cfg: CfgNode, reason: str) -> UserError:
    return UserError(
        f"TEACHER_TOP_LOGITS is {cfg.TEACHER_TOP_LOGITS}, but there is no teacher cache ({reason}), and all logits give"
        " another loss; make the cache possible, or set TEACHER_TOP_LOGITS 0"
    )


def _why_no_cache(distiller: Distiller, loader: Loader, cfg: CfgNode) -> str:
    """Return why the settings rule out a cache, or an empty string."""
    if loader.num_variants is None:
        remedy = "" if loader.mixes else "; DATASET.VIEWS 10 would fix ten of them"
        return f"{loader.unlimited_by} makes countless forms of an image{remedy}"
    if not set(distiller.teacher_needs) <= {"logits", "pooled"}:
        return f"{cfg.DISTILLER.TYPE} reads the teacher's maps; the teacher runs in each step"
    return ""


class FastNetworks:
    """Replaces a distiller's networks by faster forms while an epoch is trained.

    The teacher is replaced by a copy with folded BatchNorms, or by its cached outputs. It stays as built if it is in
    training mode, has hooks, or serves a method that was written for MDistiller. With `SOLVER.COMPILE`, a teacher that
    is neither as built nor cached is compiled and, on a GPU, the student and its head. On a CPU with AMX, all of them
    convolve small maps faster. Evaluation, checkpoints and everything before the first step use the networks as built.

    Args:
        distiller: the distiller, in training mode.
        loader: the loader of the training images.
        cfg: the resolved configuration.
        precision: the precision of the training steps.
        say: a function that receives lines for the user.

    Raises:
        UserError: the loss depends on a cache, by `TEACHER_TOP_LOGITS`, and there is none.
    """

    def __init__(self, distiller: Distiller, loader: Loader, cfg: CfgNode, precision: Precision, say: Say) -> None:
        self._distiller = distiller
        self._loader = loader
        self._teacher: Any = distiller.teacher
        self._cache: Optional[CachedTeacher] = None
        self._faster: List[Tuple[nn.Module, str, Any]] = []  # module, method name, function in its place
        mode = None if cfg.SOLVER.COMPILE == "off" else cfg.SOLVER.COMPILE
        # on the CPU, compiling slows BatchNorm's gradient: students by a quarter
        self._compiles_student = mode is not None and loader.device.type != "cpu"
        compiled = trained_parts(distiller) if self._compiles_student else []
        folded = distiller.teacher is not None and self._fold_teacher(cfg, precision, say)
        if folded and cfg.TEACHER_CACHE != "off":
            self._cache = self._open_cache(cfg, precision, say)
        if self._cache is None and _needs_cache(distiller, loader, cfg):
            raise _without_cache(cfg, "the line above says why")
        if folded and mode and self._cache is None:
            compiled.append((self._teacher, "forward"))
        for module, name in compiled:
            if isinstance(module, HookedModel):
                say(f"note: {module.adapted_name} is not compiled: its outputs are taken by hooks")
            else:
                self._faster.append((module, name, torch.compile(getattr(module, name), mode=mode, dynamic=False)))
        if mode and not compiled:
            say("note: SOLVER.COMPILE has no effect: on a CPU it compiles the teacher only, if that is not cached")
        if distiller.channels_last:
            parts = [distiller, self._teacher] if self._teacher is not None else [distiller]
            self._faster += faster_convolutions(parts, precision)
        self._teacher = self._cache or self._teacher
        if distiller.teacher is None and cfg.TEACHER_CACHE != "off":
            say(f"note: TEACHER_CACHE has no effect: {cfg.DISTILLER.TYPE} has no teacher")
        if loader.views is not None and self._cache is None:
            say(
                f"note: without a teacher cache, DATASET.VIEWS {loader.views.number} saves no time, and limits the"
                " augmentation; set TEACHER_CACHE, or DATASET.VIEWS 0"
            )

    def _fold_teacher(self, cfg: CfgNode, precision: Precision, say: Say) -> bool:
        """Replace the teacher by a folded copy; return whether that was possible."""
        teacher = self._distiller.teacher
        reason = _why_as_built(self._distiller)
        if not reason:
            try:
                self._teacher, num_folded = fold_batchnorm(teacher, self._loader.info.input_size, precision.dtype)
            except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # of a user's own model
                reason = one_line(error)
        if reason:
            if cfg.TEACHER_CACHE != "off":
                say(f"teacher cache: none, the teacher runs as it was built ({reason})")
            if cfg.SOLVER.COMPILE != "off":
                say(f"note: the teacher is not compiled: it runs as it was built ({reason})")
            return False
        dtype = "float32" if precision.dtype is None else str(precision.dtype).split(".")[-1]
        say(f"teacher in inference form: {counted(num_folded, 'BatchNorm')} folded, convolutions in {dtype}")
        return True

    def _open_cache(self, cfg: CfgNode, precision: Precision, say: Say) -> Optional[CachedTeacher]:
        teacher, loader, needs = self._distiller.teacher, self._loader, self._distiller.teacher_needs
        reason = _why_no_cache(self._distiller, loader, cfg)
        if reason:
            say(f"teacher cache: none, {reason}")
            return None
        info = loader.info
        noise = torch.randn(2, 3, info.input_size, info.input_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            vectors = _vectors(teacher, noise.to(loader.device))
        widths = {need: vector.shape[1] for need, vector in vectors.items() if need in needs}
        top = None
        if 0 < cfg.TEACHER_TOP_LOGITS < widths.get("logits", 0):
            top = TopLogits(widths["logits"], cfg.TEACHER_TOP_LOGITS)
            say(
                f"note: {widths['logits'] - top.number} of {widths['logits']} classes share the rest of the teacher's"
                " probability evenly, which changes the loss; docs/speed.md has the error by number and temperature"
            )
        elif cfg.TEACHER_TOP_LOGITS and "logits" not in widths:
            say(f"note: TEACHER_TOP_LOGITS has no effect: {cfg.DISTILLER.TYPE} does not read the teacher's logits")
        about: Dict[str, Any] = {
            "name": re.sub(r"[^\w.-]+", "_", cfg.DISTILLER.TEACHER),
            "weights": weights_digest(teacher),
            "outputs": distributed.run_on_main(partial(_fingerprint, teacher, noise)),
            "images": loader.digest(),
            "input_size": info.input_size,
            "mean": list(info.mean),
            "std": list(info.std),
            "augmentation": loader.forms,
            "precision": f"{precision} on {loader.device.type}",  # on a GPU, float32 convolutions may use TF32
        }
        given = {
            "arguments": cfg.DISTILLER.TEACHER_ARGS,
            "features": cfg.DISTILLER.TEACHER_FEATURES,
            "input": own_input_of(teacher),
        }
        if loader.unlabeled is not None:
            about["unlabeled_images"] = loader.unlabeled.digest()
        about.update({f"teacher_{key}": value for key, value in given.items() if value})
        return open_cache(
            cfg.TEACHER_CACHE, self._teacher, widths, loader, precision, about, say, cfg.TEACHER_CACHE_GB, top
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the faster forms in the distiller within a `with` block."""
        teacher_as_built = self._distiller.teacher
        self._distiller.teacher = self._teacher
        for module, name, function in self._faster:
            setattr(module, name, function)  # hides the class's method
        try:
            yield
        finally:
            self._distiller.teacher = teacher_as_built
            for module, name, _ in self._faster:
                delattr(module, name)

    def begin_step(self) -> None:
        """Let CUDA graphs overwrite the outputs and gradients of the step before; call it without gradients in use."""
        if self._compiles_student:
            torch.compiler.cudagraph_mark_step_begin()

    def micro_batch_in_use(self, batch: Batch, rows: slice) -> ContextManager[None]:
        """Look up the teacher's outputs for a micro-batch of the batch in use, within a `with` block.

        Args:
            batch: the entries of its images.
            rows: the positions of these images in the batch.
        """
        return nullcontext() if self._cache is None else self._cache.micro_batch_in_use(batch["image"], rows)

    def serve(self, batches: Iterator[Batch], start_step: int = 0) -> Iterator[Batch]:
        """Yield this epoch's batches from step `start_step` (from 0) on, after looking up their teacher outputs."""
        if self._cache is not None:
            batches = self._cache.serve(self._loader, batches, start_step)
        return batches


@torch.no_grad()
def _fingerprint(teacher: nn.Module, image: Tensor) -> List[float]:
    """Return a few outputs, relative to the largest one and rounded to 0.01, to detect that model code has changed.

    They are computed on the CPU, because a GPU chooses its algorithms by their speed.
    """
    found: List[float] = []
    for vector in _vectors(copy.deepcopy(teacher).cpu(), image).values():
        if vector is not None:
            largest = vector.abs().max()
            relative = vector[:, :8] / largest.clamp_min(1e-12)
            found += [float(f"{float(largest):.1e}"), *(round(value, 2) + 0.0 for value in relative.flatten().tolist())]
    return found


def _vectors(teacher: nn.Module, image: Tensor) -> Dict[str, Any]:
    logits, feats = teacher(image)
    return {"logits": logits, "pooled": feats.get("pooled_feat")}


def _why_as_built(distiller: Distiller) -> str:
    """Return why the teacher must not be replaced by a copy, or an empty string if it may be."""
    modules = list(distiller.teacher.modules())
    if any(module.training for module in modules):
        return "it is in training mode"
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return "it has hooks"
    return "" if distiller.channels_last else "the method was written for MDistiller, and may look inside it"


def trained_parts(distiller: Distiller) -> List[Tuple[nn.Module, str]]:
    """Return the student and its head, if any, each with the name of the method that computes its outputs."""
    student = distiller.student
    parts: List[Tuple[nn.Module, str]] = [
        (student, "forward_stages" if isinstance(student, ClassifierModel) else "forward")
    ]
    return parts if distiller.head is None else [*parts, (distiller.head, "forward")]
