"""CIFAR-100: 50,000 training and 10,000 test images of 32×32 px in 100 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from torchvision.datasets import CIFAR100
from yacs.config import CfgNode

from .cifar import cifar
from .loading.splits import Splits, dataset_dict

MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


@dataset_dict.register("cifar100")
def cifar100(cfg: CfgNode) -> Splits:
    """Read `<DATASET.ROOT>/cifar-100-python/`, see `cifar`; labels are the 100 fine ones."""
    return cifar(cfg, CIFAR100, "CIFAR-100", MEAN, STD)
