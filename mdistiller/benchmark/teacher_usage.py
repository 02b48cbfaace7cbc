"""What a distiller uses of its teacher, seen in a step.

Shapes: `B` batch, `H`/`W` pixels, `N` classes.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Set, Tuple

import torch
from torch import Tensor, nn

from ..distillers import Distiller

KINDS = {"feats": "maps", "preact_feats": "maps", "final_map": "maps", "pooled_feat": "pooled"}


class _Noting(Tensor):
    """A tensor that notes when an operation uses it; what comes out is a plain one."""

    note: Callable[[], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument in (*args, *(kwargs or {}).values()):
            for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
                if isinstance(tensor, _Noting):
                    tensor.note()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Watched(nn.Module):
    """A model that says which kinds of its outputs were used.

    Attributes:
        used: of `logits`, `pooled` and `maps`, those that took part in an operation.
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
        """Return `(logits [B, N], feats)` of `image [B, 3, H, W]`, as every model does."""
        logits, feats = self.model(image)
        return self._watch(logits, "logits"), {key: self._watch(feats[key], kind) for key, kind in KINDS.items()}

    def _watch(self, value: Any, kind: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._watch(entry, kind) for entry in value]
        noting = value.as_subclass(_Noting)
        noting.note = lambda: self.used.add(kind)
        return noting


def used_outputs(build: Callable[[nn.Module], Distiller], teacher: nn.Module, batch: Dict[str, Any]) -> Tuple[str, ...]:
    """Return what a step of the distiller `build(teacher)` uses: of `logits`, `pooled` and `maps`, in that order."""
    watched = Watched(teacher)
    distiller = build(watched).train()
    watched.used.clear()  # of the probes that read shapes
    distiller(**batch)
    return tuple(kind for kind in ("logits", "pooled", "maps") if kind in watched.used)
