"""The section `DATASET` of the configuration: validation, and conversion to `Options`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Iterator, Optional, Sequence, Tuple

from yacs.config import CfgNode

from ..errors import did_you_mean, refuse
from ..ranges import MAX_NUMBER, Range, at_least, is_number, out_of_range, whole
from .augment.epoch_plan import derive_seed

CHOICES = {
    "AUGMENT": ("auto", "pad_crop", "resized_crop", "rotate_flip", "none"),
    "POLICY": ("none", "rand_augment", "trivial_augment"),
    "IN_MEMORY": ("auto", "yes", "no"),
    "CORRUPT": ("refuse", "skip", "unchecked"),
}
SIZE = whole(1, 4096, "the side in pixels, a whole number")
COUNT = whole(1, 10**6)
SEED = whole(0, 2**63 - 1)
RANGES = {
    "INPUT_SIZE": Range(lambda value: value is None or value in SIZE, SIZE.expected),
    "TRAIN_FRACTION": Range(lambda value: 0 < value <= 1, "a number above 0 and up to 1 (1 = all)"),
    "FRACTION_SEED": Range(lambda value: value is None or value in SEED, SEED.expected),
    "VAL_FRACTION": Range(lambda value: 0 <= value < 1, "a number from 0 (none) to below 1"),
    "TEST.BATCH_SIZE": Range(lambda value: value is None or value in COUNT, COUNT.expected),
    "PADDING": at_least(0),
    "POLICY_OPS": whole(1, 16),
    "POLICY_MAGNITUDE": whole(0, 30),
    "ERASING": Range(lambda value: 0 <= value <= 1, "a probability from 0 (never) to 1"),
    "MIXUP": at_least(0),
    "CUTMIX": at_least(0),
    "VIEWS": whole(0, 1000, "the views of an image, a whole number"),
    "VIEWS_SEED": Range(lambda value: value is None or value in SEED, SEED.expected),
    "UNLABELED_RATIO": Range(lambda value: 0 < value <= 1000, "a number above 0 and up to 1000"),
    "ROTATION": Range(lambda value: 0 <= value <= 180, "degrees from 0 to 180"),
    "NUM_WORKERS": whole(0, 512),
    "MEMORY_GB": at_least(0),
}
DEFAULT_SIZE = 32  # px, of data sets of the user's own
MAX_PAD_CROP_SIZE = 64  # px; larger images get the ImageNet recipe with AUGMENT auto

Channels = Tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """The options of the loaders.

    Attributes:
        batch_size, test_batch_size: images per batch in training and validation.
        input_size: side of the square image that a model sees, in pixels.
        augment: "pad_crop", "resized_crop", "rotate_flip" or "none" ("auto" is resolved).
        padding: zeros on each side before the random crop, in pixels.
        in_memory: "auto", "yes" or "no".
        memory_gb: limit for "auto", in GiB.
        num_workers: processes that read a streamed set, or threads that decode a set into memory.
        train_fraction: fraction of the training set that is used, in (0, 1].
        fraction_seed: seed of the choice of that fraction.
        seed: seed of order and augmentation.
        statistics: `(mean, std)` of images scaled to [0, 1], if given.
        corrupt: how to treat images that cannot be read: "refuse", "skip" or "unchecked".
        val_fraction: fraction of the training images to validate on if there is no validation set, in [0, 1).
        flip: whether training mirrors half of the images.
        rotation: the largest angle of "rotate_flip", in degrees.
        policy: "none", "rand_augment" or "trivial_augment".
        policy_ops, policy_magnitude: number and strength of RandAugment's operations.
        erasing: probability that a box of an image is erased.
        mixup, cutmix: α of the Beta(α, α) distribution of the mixing proportion; 0 for no mixing.
        views: fixed views of each training image; 0 for fresh changes in each epoch.
        views_seed: seed of the fixed views.
        unlabeled: folder of images without labels, or an empty string.
        unlabeled_ratio: number of unlabeled images in a batch for each labeled one.
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
    fraction_seed: int
    seed: int
    statistics: Optional[Tuple[Channels, Channels]]
    corrupt: str = "refuse"
    val_fraction: float = 0.0
    flip: bool = True
    rotation: float = 0.0
    policy: str = "none"
    policy_ops: int = 2
    policy_magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    views: int = 0
    views_seed: int = 0
    unlabeled: str = ""
    unlabeled_ratio: float = 1.0

    def of_unlabeled(self) -> Options:
        """Return the options of the loader of images without labels."""
        batch_size = max(1, round(self.unlabeled_ratio * self.batch_size))
        return replace(self, batch_size=batch_size, seed=derive_seed("unlabeled", self.seed))

    @property
    def changes_single_images(self) -> bool:
        """Whether training images are changed one by one, in worker processes."""
        return self.policy != "none" or self.erasing > 0

    def fits_in_memory(self, num_images: int) -> bool:
        """Return whether images are kept in memory as uint8 instead of streamed.

        Args:
            num_images: the number of all images that are loaded: training, validation and unlabeled ones.
        """
        if self.augment == "resized_crop" or self.changes_single_images:  # needs whole images, or worker processes
            return False
        side = self.input_size + 2 * self.padding
        fits = num_images * side * side * 3 <= self.memory_gb * 2**30
        return self.in_memory == "yes" or (self.in_memory == "auto" and fits)


def option_errors(data: Any, own_size: Optional[int] = None) -> Iterator[str]:
    """Yield one line for each error in the section `DATASET`.

    Args:
        data: the section.
        own_size: side of the data set's images in pixels, used if INPUT_SIZE is `None`; `None` if unknown.
    """
    for key, known in CHOICES.items():
        if _word(data[key]) not in known:
            yield f"DATASET.{key} is {data[key]!r}{did_you_mean(data[key], known)}"
    yield from out_of_range(data, RANGES, "DATASET")
    yield from _statistics_errors(data.MEAN, data.STD)
    size = own_size if data.INPUT_SIZE is None else data.INPUT_SIZE
    if size in SIZE and _word(data.IN_MEMORY) == "yes" and _augment(data.AUGMENT, size) == "resized_crop":
        yield (
            "DATASET.IN_MEMORY yes cannot be combined with DATASET.AUGMENT resized_crop, which needs whole images;"
            " set IN_MEMORY to no or AUGMENT to pad_crop"
        )
    if _word(data.IN_MEMORY) == "yes" and (data.POLICY != "none" or data.ERASING):
        changed = f"POLICY {data.POLICY}" if data.POLICY != "none" else f"ERASING {data.ERASING}"
        yield (
            f"DATASET.IN_MEMORY yes cannot be combined with DATASET.{changed}, for which worker processes read the"
            " images; set IN_MEMORY to auto"
        )
    yield from _view_errors(data, _augment(data.AUGMENT, size) if size in SIZE else data.AUGMENT)
    if size in SIZE and _augment(data.AUGMENT, size) == "pad_crop" and size <= data.PADDING <= MAX_NUMBER:
        yield f"DATASET.PADDING is {data.PADDING!r}; expected less than the image's side, {size} pixels"


def read_options(cfg: CfgNode, own_size: int) -> Options:
    """Validate the configuration and convert it to `Options`.

    Args:
        cfg: the configuration.
        own_size: side of the data set's images in pixels, used if INPUT_SIZE is `None`.

    Raises:
        UserError: one line for each value that is out of range.
    """
    data = cfg.DATASET
    faults = list(option_errors(data, own_size))
    if cfg.SOLVER.BATCH_SIZE < 2:
        faults.append(f"SOLVER.BATCH_SIZE is {cfg.SOLVER.BATCH_SIZE}; BatchNorm needs at least 2 images a batch")
    refuse(faults)
    size = own_size if data.INPUT_SIZE is None else data.INPUT_SIZE
    augment = _augment(data.AUGMENT, size)
    return Options(
        batch_size=cfg.SOLVER.BATCH_SIZE,
        test_batch_size=_test_batch_size(data.TEST.BATCH_SIZE, size),
        input_size=size,
        augment=augment,
        padding=data.PADDING if augment == "pad_crop" else 0,
        in_memory=_word(data.IN_MEMORY),
        memory_gb=float(data.MEMORY_GB),
        num_workers=data.NUM_WORKERS,
        train_fraction=float(data.TRAIN_FRACTION),
        fraction_seed=int(cfg.EXPERIMENT.SEED if data.FRACTION_SEED is None else data.FRACTION_SEED),
        seed=int(cfg.EXPERIMENT.SEED),
        statistics=None if data.MEAN is None else (_channels(data.MEAN), _channels(data.STD)),
        corrupt=data.CORRUPT,
        val_fraction=float(data.VAL_FRACTION),
        flip=data.FLIP,
        rotation=float(data.ROTATION) if augment == "rotate_flip" else 0.0,
        policy=data.POLICY,
        policy_ops=data.POLICY_OPS,
        policy_magnitude=data.POLICY_MAGNITUDE,
        erasing=float(data.ERASING),
        mixup=float(data.MIXUP),
        cutmix=float(data.CUTMIX),
        views=data.VIEWS,
        views_seed=int(cfg.EXPERIMENT.SEED if data.VIEWS_SEED is None else data.VIEWS_SEED),
        unlabeled=data.UNLABELED,
        unlabeled_ratio=float(data.UNLABELED_RATIO),
    )


def _view_errors(data: Any, augment: str) -> Iterator[str]:
    if not data.VIEWS:
        return
    amount = {"none": 0, "pad_crop": data.PADDING or data.FLIP, "rotate_flip": data.ROTATION or data.FLIP}
    if not (amount.get(augment, 1) or data.POLICY != "none" or data.ERASING):
        yield (
            f"DATASET.VIEWS is {data.VIEWS!r}; expected 0 with DATASET.AUGMENT {augment} and no random changes, because"
            " all views of an image would be equal: set VIEWS to 0, or choose an augmentation"
        )
    for key in ("MIXUP", "CUTMIX"):
        if data[key]:
            yield (
                f"DATASET.VIEWS is {data.VIEWS!r}; expected 0 with DATASET.{key} {data[key]!r}: images are mixed"
                " differently in each step, so their views do not stay fixed"
            )


def _word(given: Any) -> Any:
    """Undo YAML's conversion of yes and no to booleans."""
    if isinstance(given, bool):
        return "yes" if given else "no"
    return given


def _augment(given: str, size: int) -> str:
    return given if given != "auto" else "pad_crop" if size <= MAX_PAD_CROP_SIZE else "resized_crop"


def _test_batch_size(given: Optional[int], size: int) -> int:
    # fills a GPU with small images, and fits into its memory with large ones
    return max(64, 256 * 32**2 // size**2) if given is None else given


def _statistics_errors(mean: Any, std: Any) -> Iterator[str]:
    if (mean is None) != (std is None):
        yield f"DATASET.{'STD' if mean is None else 'MEAN'} is given alone; give both MEAN and STD, or neither"
    for key, given, least in (("MEAN", mean, 0.0), ("STD", std, 1e-6)):
        try:
            channels = None if given is None else _channels(given)
        except (TypeError, ValueError, OverflowError):
            yield f"DATASET.{key} is {given!r}; give three numbers, one each for red, green and blue"
        else:
            if channels and not all(least <= value <= 1 for value in channels):
                yield (
                    f"DATASET.{key} is {given!r}; give the values of images scaled to [0, 1], from {least:g} on"
                    " (divide 8-bit ones by 255)"
                )


def _channels(given: Sequence[Any]) -> Channels:
    if not (isinstance(given, (list, tuple)) and all(map(is_number, given))):
        raise TypeError("no list of numbers")  # for example a string of three digits, or a set
    red, green, blue = map(float, given)
    return red, green, blue
