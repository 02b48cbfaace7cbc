"""CIFAR-10: 50,000 training and 10,000 test images of 32×32 px in 10 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from torchvision.datasets import CIFAR10
from yacs.config import CfgNode

from .cifar import cifar
from .loading.splits import Splits, dataset_dict

# over all pixels of the training images; the usual published values
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


@dataset_dict.register("cifar10")
def cifar10(cfg: CfgNode) -> Splits:
    """Read `<DATASET.ROOT>/cifar-10-batches-py/`, see `cifar`."""
    return cifar(cfg, CIFAR10, "CIFAR-10", MEAN, STD)
