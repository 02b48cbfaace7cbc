"""BatchNorms that keep the statistics of the student's pretrained weights (`SOLVER.FREEZE_BN`).

They normalize with these statistics in training too, as a linear probe does; their weights and biases are trained.
Small batches of other images have other statistics, which would change the features of the pretrained network.
"""

from __future__ import annotations

from typing import Any, Dict, Type

from torch import nn


class _Frozen(nn.modules.batchnorm._BatchNorm):
    def train(self, mode: bool = True) -> Any:
        return super().train(False)


class _Frozen1d(_Frozen, nn.BatchNorm1d):
    pass


class _Frozen2d(_Frozen, nn.BatchNorm2d):
    pass


class _Frozen3d(_Frozen, nn.BatchNorm3d):
    pass


KINDS: Dict[Type[nn.Module], Type[nn.Module]] = {
    nn.BatchNorm1d: _Frozen1d,
    nn.BatchNorm2d: _Frozen2d,
    nn.BatchNorm3d: _Frozen3d,
}


def freeze_statistics(model: nn.Module) -> int:
    """Let the BatchNorms of a model stay in evaluation mode, in place; return their number.

    The class of each is replaced by a subclass of it, so copies are frozen too. Keys of the state_dict stay.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        kind: Any = type(norm)
        norm.__class__ = KINDS.get(kind) or type(kind.__name__, (_Frozen, kind), {"__module__": kind.__module__})
        norm.eval()
    return len(norms)
