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
    """Find the images below `DATASET.ROOT`, by default `imagenet/` in the data folder.

    The recipe is that of the published tables. Training uses random resized crops of 224 px and flips; validation
    resizes the shorter side to 256 px and crops the center. A class is a folder; labels follow the sorted names, as in
    torchvision's weights. Any number of classes is accepted. Evaluation needs only `val/`, or
    `DATASET.VAL_FRACTION` of the training images.

    Raises:
        UserError: a folder is missing or has another layout.
    """
    options = read_options(cfg, own_size=SIZE)
    root = paths.find_file(cfg.DATASET.ROOT) if cfg.DATASET.ROOT else paths.data_root() / FOLDER
    classes, find_train, find_val = find_parts(root, options.val_fraction, LAYOUT)
    mean, std = options.statistics or (MEAN, STD)
    info = DatasetInfo("imagenet", tuple(classes), options.input_size, mean, std, root)
    return Splits(find_train, find_val(), info, options.val_fraction, options)
