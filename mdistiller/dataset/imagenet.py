"""ImageNet-1k: 1.28 million training and 50,000 validation images in 1000 classes (Russakovsky et al., 2015)."""

from __future__ import annotations

from yacs.config import CfgNode

from .. import paths
from .folders.layout import find_parts
from .info import DatasetInfo
from .loading.splits import Splits, dataset_dict
from .options import read_options

FOLDER = "imagenet"
SIZE = 224  # px
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LAYOUT = (
    "expected ImageNet (ILSVRC 2012) as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG in data/imagenet/ or DATASET.ROOT,"
    " the validation images sorted into the folders of their classes"
)


@dataset_dict.register("imagenet")
def imagenet(cfg: CfgNode) -> Splits:
    """Find the images below `DATASET.ROOT`, by default `imagenet/` of the data folder.

    The recipe of the published tables: training takes random resized crops of 224 px, mirrored half the time;
    validation resizes the shorter side to 256 px and takes the centre. A class is a folder; labels go by the sorted
    names, as in torchvision's weights. Any number of classes will do, and for evaluation `val/` alone; where there is
    none, `DATASET.VAL_FRACTION` of the training images.

    Raises:
        UserError: what is missing, in one line.
    """
    options = read_options(cfg, own_size=SIZE)
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else paths.data_root() / FOLDER
    classes, find_train, find_val = find_parts(root, options.val_fraction, LAYOUT)
    mean, std = options.statistics or (MEAN, STD)
    info = DatasetInfo("imagenet", tuple(classes), options.input_size, mean, std, root)
    return Splits(find_train, find_val(), info, options.val_fraction)
