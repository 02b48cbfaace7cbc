"""Accuracy of a student or of any model on labeled images."""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from ..dataset import VAL, DatasetInfo, Splits, get_val_loader
from ..dataset.given import NAME, given_data
from ..dataset.loading.dataset_split import DatasetSplit
from ..dataset.options import read_options
from ..engine.cfg import cfg_from
from ..engine.evaluation.confusion import Confusion
from ..engine.evaluation.evaluate import evaluate as count
from ..engine.networks.teacher_outputs import check_classes
from ..errors import UserError
from ..models._adapt import evaluation_mode, user_code_errors
from ..models._outputs import logits_of
from .data import ONLY_DATASETS, Data, class_names, is_name, read_part, side_of
from .options import nested
from .student import Student, load

SOURCE = "mdistiller.evaluate"


def evaluate(
    model: Union[nn.Module, str, os.PathLike[str]],
    data: Optional[Data] = None,
    *,
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    input_size: Optional[int] = None,
    classes: Optional[Sequence[str]] = None,
    batch_size: Optional[int] = None,
) -> Dict[str, Any]:
    """Evaluate a model on labeled images.

    A `Student` sees each image as in its validation. For a module, the shorter side of a `Dataset`'s image is resized
    to `S`, and its center is cropped, so an image of `S×S` pixels stays as it is. Images of files are prepared as in
    validation: above 64 px, the shorter side is resized to `S / 0.875` first.

    Args:
        model: the path of a student (see `load`), a `Student`, or a module that takes images float32 `[B, 3, S, S]` to
            logits `[B, K]` or `(logits, …)`. It is evaluated on the device of its parameters, in evaluation mode, and
            left in the mode that it had.
        data: a folder with `<class>/<image>`, or with `val/` of this layout; a PyTorch `Dataset` of (image, label); or
            the name of a data set. `None` for the validation images of a student's training.
        mean, std: channel statistics with which images in [0, 1] are normalized for a module, by default 0 and 1; a
            `Student` has its own.
        input_size: `S`, the side of the images in pixels, for a module; by default that of the first image of a
            `Dataset`, and 32 for files.
        classes: the class names in label order, for a `Dataset` that does not name them; by default those of a
            `Student`, otherwise the numbers up to the largest label.
        batch_size: the number of images in a batch; it does not change the result.

    Returns:
        `top1` and `top5` in percent, to two decimals; `num_images`; `per_class`, top-1 in percent by class name (`None`
        for a class without images); `confusion`, a list of K rows of K counts: `confusion[i][j]` images of class i were
        taken for class j.

    Raises:
        UserError: the model or the data cannot be read, or do not fit each other.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load(model)
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}; expected a torch.nn.Module, or the path of a student")
    if isinstance(model, Student) and any(value is not None for value in (mean, std, input_size)):
        raise UserError("mean, std and input_size are for a module; a student sees images as in its training")
    mean, std = (0.0, 0.0, 0.0) if mean is None else mean, (1.0, 1.0, 1.0) if std is None else std
    for key, values in (("mean", mean), ("std", std)):
        if not isinstance(values, (list, tuple)) or len(values) != 3:
            raise UserError(f"{key} is {values!r:.100}; expected three numbers, one for each channel")
    keys: Dict[str, Any] = {"DATASET.TEST.BATCH_SIZE": batch_size, "DATASET.INPUT_SIZE": input_size}
    if isinstance(model, Student):
        info = model.source.info
        mean, std, keys["DATASET.INPUT_SIZE"] = info.mean, info.std, info.input_size
        keys["DATASET.AUGMENT"] = "resized_crop" if model.source.view.margin else "none"
    keys.update({"DATASET.MEAN": list(mean), "DATASET.STD": list(std), "DATASET.CORRUPT": "unchecked"})
    device = next(model.parameters(), torch.zeros(())).device
    loader = _loader(model, data, classes, keys, device)
    confusion = Confusion(loader.info.num_classes)
    network = model.network if isinstance(model, Student) else model

    def forward(image: Tensor) -> Dict[str, Tensor]:
        with user_code_errors("the model cannot take the images", "or give another input_size"):
            output = logits_of(network(image))
        logits = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(logits, Tensor):
            raise UserError(f"the model returns a {type(output).__name__}; expected logits [B, K], or (logits, …)")
        if logits.ndim != 2 or logits.shape[1] != loader.info.num_classes:
            raise UserError(
                f"the model gives logits of the shape {list(logits.shape)} for {len(image)} images; expected one column"
                f" for each of the {loader.info.num_classes} classes of the data; if a Dataset lacks the last classes,"
                " give classes=[...]"
            )
        return {"deployed": logits}

    with evaluation_mode(network):
        accuracy = count(forward, loader, observe=confusion.add)
    return {
        "top1": accuracy["deployed_top1"],
        "top5": accuracy["deployed_top5"],
        "num_images": loader.num_images,
        "per_class": dict(zip(loader.info.classes, confusion.per_class())),
        "confusion": confusion.counts.tolist(),
    }


def _loader(
    model: nn.Module,
    data: Optional[Data],
    classes: Optional[Sequence[str]],
    keys: Dict[str, Any],
    device: torch.device,
) -> Any:
    """Return the loader of the images to evaluate on."""
    if classes is not None and (data is None or isinstance(data, (str, os.PathLike))):
        raise UserError(ONLY_DATASETS)
    if data is None:
        if not isinstance(model, Student):
            raise UserError("data is missing; give a folder, a Dataset, or the name of a data set")
        cfg = model.source.cfg.clone()
        if cfg.DATASET.TYPE == NAME:
            raise UserError("data is missing, and the student's own data were objects in Python; give data=...")
        cfg.defrost()
        cfg.DATASET.TEST.BATCH_SIZE = keys["DATASET.TEST.BATCH_SIZE"]
        loader = get_val_loader(cfg, device)
    elif is_name(data):
        loader = get_val_loader(cfg_from(nested({**keys, "DATASET.TYPE": data}), SOURCE), device)
    else:
        part = read_part(data, "data", VAL)
        names = tuple(class_names(classes, part, otherwise=model.classes if isinstance(model, Student) else ()))

        def make(cfg: CfgNode) -> Splits:
            options = read_options(cfg, side_of(cfg, part))
            assert options.statistics is not None
            info = DatasetInfo(NAME, names, options.input_size, *options.statistics)
            return Splits(part.split, part.split, info, options=options)

        if isinstance(part.split, DatasetSplit):
            keys["DATASET.NUM_WORKERS"] = 0  # a user's Dataset may not allow threads
            keys.setdefault("DATASET.AUGMENT", "none")
        with given_data(make):
            loader = get_val_loader(cfg_from(nested({**keys, "DATASET.TYPE": NAME}), SOURCE), device)
    if isinstance(model, Student):
        check_classes(model.classes, loader.info, model.source.path)
    return loader
