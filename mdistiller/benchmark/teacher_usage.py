"""Find which of its teacher's outputs a distiller uses, by running one step.

Shapes: `B` batch, `H`/`W` pixels, `N` classes.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Set, Tuple

import torch
from torch import Tensor, nn

from ..distillers import Distiller

OUTPUT_KINDS = {"feats": "maps", "preact_feats": "maps", "final_map": "maps", "pooled_feat": "pooled"}


class _RecordingTensor(Tensor):
    """A tensor that records when an operation uses it. The results of operations are plain tensors."""

    record: Callable[[], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument in (*args, *(kwargs or {}).values()):
            for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
                if isinstance(tensor, _RecordingTensor):
                    tensor.record()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class TeacherUsage(nn.Module):
    """Wraps a model and records which kinds of its outputs are used.

    Attributes:
        used: the kinds of outputs that took part in an operation, out of `logits`, `pooled` and `maps`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.used: Set[str] = set()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, image: Tensor) -> Tuple[Tensor, Dict[str, Any]]:
        """Return `(logits [B, N], feats)` for `image [B, 3, H, W]`, as every model does."""
        logits, feats = self.model(image)
        return self._wrap(logits, "logits"), {key: self._wrap(feats[key], kind) for key, kind in OUTPUT_KINDS.items()}

    def _wrap(self, value: Any, kind: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._wrap(entry, kind) for entry in value]
        recording = value.as_subclass(_RecordingTensor)
        recording.record = lambda: self.used.add(kind)
        return recording


def used_outputs(build: Callable[[nn.Module], Distiller], teacher: nn.Module, batch: Dict[str, Any]) -> Tuple[str, ...]:
    """Return what a step of the distiller `build(teacher)` uses out of `logits`, `pooled` and `maps`, in that order."""
    usage = TeacherUsage(teacher)
    distiller = build(usage).train()
    usage.used.clear()  # building a distiller may read the shapes of outputs
    distiller(**batch)
    return tuple(kind for kind in ("logits", "pooled", "maps") if kind in usage.used)
