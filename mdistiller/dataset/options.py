"""The `DATASET` part of the config, read and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple

from yacs.config import CfgNode

from ..errors import UserError, did_you_mean

AUGMENTATIONS = ("auto", "pad_crop", "resized_crop", "none")
MEMORY_CHOICES = ("auto", "yes", "no")
LARGEST_PAD_CROP = 64  # px: above, "auto" means the ImageNet recipe

Channels = Tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """What the loaders need of the config.

    Attributes:
        batch_size, test_batch_size: images a batch, in training and in validation.
        input_size: side of the square image that a model sees, in pixels.
        augment: "pad_crop", "resized_crop" or "none" ("auto" is resolved).
        padding: zeros on each side before the random crop, in pixels.
        in_memory: "auto", "yes" or "no".
        memory_gb: what "auto" may hold in memory, in GiB.
        num_workers: processes that read a streamed set, threads that decode one into memory.
        train_fraction: part of the training set in use, in (0, 1].
        seed: of the order, the augmentation and the part.
        statistics: the given `(mean, std)` of images scaled to [0, 1], or None.
    """

    batch_size: int
    test_batch_size: int
    input_size: int
    augment: str
    padding: int
    in_memory: str
    memory_gb: float
    num_workers: int
    train_fraction: float
    seed: int
    statistics: Optional[Tuple[Channels, Channels]]

    def fits_in_memory(self, num_images: int) -> bool:
        """Whether `num_images` (training and validation) are held as uint8 in memory rather than streamed."""
        if self.augment == "resized_crop":  # crops the whole picture, which a copy of fixed size no longer holds
            return False
        side = self.input_size + 2 * self.padding
        fits = num_images * side * side * 3 <= self.memory_gb * 2**30
        return self.in_memory == "yes" or (self.in_memory == "auto" and fits)


def read_options(cfg: CfgNode, own_size: int) -> Options:
    """Read and check the config; `own_size` is the data set's own image side in pixels, where INPUT_SIZE is None.

    Raises:
        UserError: a value is out of range, in one line.
    """
    data = cfg.DATASET
    size = own_size if data.INPUT_SIZE is None else data.INPUT_SIZE
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"DATASET.INPUT_SIZE is {size!r}; give the side in pixels, a whole number from 1 on")
    augment = _choice("DATASET.AUGMENT", data.AUGMENT, AUGMENTATIONS)
    if augment == "auto":
        augment = "pad_crop" if size <= LARGEST_PAD_CROP else "resized_crop"
    in_memory = {True: "yes", False: "no"}.get(data.IN_MEMORY, data.IN_MEMORY)  # YAML reads a bare yes as True
    if augment == "resized_crop" and in_memory == "yes":
        raise UserError(
            "DATASET.IN_MEMORY yes does not go with DATASET.AUGMENT resized_crop, which needs the whole pictures;"
            " set IN_MEMORY to no or AUGMENT to pad_crop"
        )
    if cfg.SOLVER.BATCH_SIZE < 2:
        raise UserError(f"SOLVER.BATCH_SIZE is {cfg.SOLVER.BATCH_SIZE}; BatchNorm needs at least 2 images a batch")
    if not 0 < data.TRAIN_FRACTION <= 1:
        raise UserError(f"DATASET.TRAIN_FRACTION is {data.TRAIN_FRACTION}; give a number above 0 and up to 1 (1 = all)")
    return Options(
        batch_size=cfg.SOLVER.BATCH_SIZE,
        test_batch_size=_test_batch_size(data.TEST.BATCH_SIZE, size),
        input_size=size,
        augment=augment,
        padding=_at_least(0, "DATASET.PADDING", data.PADDING) if augment == "pad_crop" else 0,
        in_memory=_choice("DATASET.IN_MEMORY", in_memory, MEMORY_CHOICES),
        memory_gb=float(data.MEMORY_GB),
        num_workers=_at_least(0, "DATASET.NUM_WORKERS", data.NUM_WORKERS),
        train_fraction=float(data.TRAIN_FRACTION),
        seed=int(cfg.EXPERIMENT.SEED),
        statistics=_statistics(data.MEAN, data.STD),
    )


def _at_least(least: int, key: str, value: int) -> int:
    if value < least:
        raise UserError(f"{key} is {value}; give a whole number from {least} on")
    return value


def _test_batch_size(given: Optional[int], size: int) -> int:
    if given is None:  # large enough to fill a GPU with small images, small enough for its memory with large ones
        return max(64, 256 * 32**2 // size**2)
    if not isinstance(given, int):
        raise UserError(f"DATASET.TEST.BATCH_SIZE is {given!r}; give a whole number from 1 on")
    return _at_least(1, "DATASET.TEST.BATCH_SIZE", given)


def _choice(key: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise UserError(f"{key} is {value!r}{did_you_mean(value, known)}")
    return str(value)


def _statistics(mean: Any, std: Any) -> Optional[Tuple[Channels, Channels]]:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError(
            f"DATASET.{'STD' if mean is None else 'MEAN'} is given alone; give both MEAN and STD, or neither"
        )
    return _channels("DATASET.MEAN", mean, 0.0), _channels("DATASET.STD", std, 1e-6)


def _channels(key: str, given: Any, least: float) -> Channels:
    try:
        red, green, blue = (float(value) for value in given)
    except (TypeError, ValueError):
        raise UserError(f"{key} is {given!r}; give three numbers, one each for red, green and blue") from None
    if not all(least <= value <= 1 for value in (red, green, blue)):
        raise UserError(f"{key} is {given!r}; give the values of images scaled to [0, 1] (divide 8-bit ones by 255)")
    return red, green, blue
