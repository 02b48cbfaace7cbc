"""What a study's runs say: means over seeds, and paired differences with confidence intervals."""

from __future__ import annotations

import statistics
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ..engine.run.origin import other_images
from .grid import Cell, Row, Study
from .results import Summary

LEVEL = 0.95  # of the confidence intervals
MIN_SEEDS = 3  # for a statement


class Spread(NamedTuple):
    """Mean and sample standard deviation of `n` values; the deviation is `None` for one value."""

    mean: float
    deviation: Optional[float]
    n: int


class Difference(NamedTuple):
    """The mean difference of two rows over the seeds that both have, in percentage points of the last top-1.

    Attributes:
        to: the method of the other row.
        mean: this row's accuracy minus the other's.
        interval: the confidence interval of the mean at `LEVEL`, by Student's t over the paired differences; `None`
            with fewer than two seeds.
        n: the number of seeds.
    """

    to: str
    mean: float
    interval: Optional[Tuple[float, float]]
    n: int

    @property
    def verdict(self) -> str:
        """The conclusion that the interval supports."""
        if self.interval is None or self.n < MIN_SEEDS:
            return "too few seeds"
        if self.interval[0] > 0:
            return "helps"
        if self.interval[1] < 0:
            return "hurts"
        return "no difference seen"


class Conditions(NamedTuple):
    """Conditions that the settings do not fix, but that must be equal for results to be averaged.

    Attributes:
        precision: the precision of the training; all of them if the run was resumed in another one.
        device: the kind of device, such as `cpu` or `cuda`.
        processes: the number of processes; all of them if the run was resumed with another number.
        train_images: the number of training images.
        train_labels, train_content: digests of the training images; `None` if each seed draws its own part of them.
        val_labels, val_content: digests of the validation images.
        teacher: the digest of the teacher's weights, or `None`.
    """

    precision: str
    device: str
    processes: str
    train_images: int
    train_labels: Optional[str]
    train_content: Optional[str]
    val_labels: Optional[str]
    val_content: Optional[str]
    teacher: Optional[str]

    def averaged_with(self, other: Conditions) -> bool:
        """Whether results may be averaged."""
        return self.comparable(other) and self.teacher == other.teacher and self.same_training(other)

    def comparable(self, other: Conditions) -> bool:
        """Whether results may be compared, if their training images and teachers are the same."""
        same = (self.precision, self.device, self.processes) == (other.precision, other.device, other.processes)
        return same and self.same_validation(other)

    def same_training(self, other: Conditions) -> bool:
        """Whether the runs learned from the same images, as far as their digests can tell."""
        mine, theirs = ((each.train_images, each.train_labels) for each in (self, other))
        return mine == theirs and not other_images(self.train_content, other.train_content)

    def same_validation(self, other: Conditions) -> bool:
        """Whether the runs were evaluated on the same images, as far as their digests can tell."""
        return self.val_labels == other.val_labels and not other_images(self.val_content, other.val_content)


class Group(NamedTuple):
    """The finished runs of a row that ran under the same conditions.

    Attributes:
        row: the pair, the variant and the method.
        conditions: the conditions of the runs; `None` without a finished run.
        summaries: the summaries of the runs, by seed.
        unfinished: the seeds of the row without a result under any conditions.
    """

    row: Row
    conditions: Optional[Conditions]
    summaries: Dict[int, Summary]
    unfinished: Tuple[int, ...]

    def values(self, part: str, key: str = "deployed_top1") -> List[float]:
        """Return an accuracy of each run in percent; `part` is "last" or "best"."""
        return [summary[part][key] for summary in self.summaries.values() if key in summary[part]]

    @property
    def epoch_seconds(self) -> Optional[float]:
        """Median duration of an epoch without its evaluation, if it is known."""
        known = [summary["epoch_seconds"] for summary in self.summaries.values() if summary.get("epoch_seconds")]
        return statistics.median(known) if known else None


def spread(values: Sequence[float]) -> Spread:
    """Return mean, sample standard deviation and number of values."""
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def conditions_of(summary: Summary) -> Conditions:
    """Return what must be equal for two results to be averaged, beside their settings."""
    origin, settings = summary["origin"], summary["settings"]
    parts = [*summary.get("earlier_machines", []), {"processes": 1, **summary}]
    precision, processes = (
        " then ".join(dict.fromkeys(str(part[key]) for part in parts if key in part))
        for key in ("precision", "processes")
    )
    own_part = settings.get("DATASET.TRAIN_FRACTION", 1) < 1 and settings.get("DATASET.FRACTION_SEED") is None
    return Conditions(
        precision,
        summary.get("device", "cpu").partition(":")[0],
        processes,
        summary["train_images"],
        *(None if own_part else origin.get(key) for key in ("train_labels", "train_content")),
        *(origin.get(key) for key in ("val_labels", "val_content", "teacher")),
    )


def teacher_accuracies(summaries: Iterable[Summary]) -> Dict[str, float]:
    """Return the top-1 of each teacher in percent, by the digest of its weights.

    Runs on a GPU may measure slightly different values; the result is one of them, their lower median.
    """
    measured: Dict[str, List[float]] = {}
    for summary in summaries:
        if summary["teacher_accuracy"]:
            values = measured.setdefault(str(summary["origin"].get("teacher")), [])
            values.append(summary["teacher_accuracy"]["deployed_top1"])
    return {digest: statistics.median_low(values) for digest, values in measured.items()}


def groups(study: Study, summaries: Dict[str, Summary]) -> List[Group]:
    """Return the groups of finished runs in the order of the study's rows.

    A row without a finished run has one group without summaries.
    """
    cells: Dict[Row, List[Cell]] = {}
    for cell in study.cells:
        cells.setdefault(cell.row, []).append(cell)
    found = []
    for row in study.rows():
        by_conditions: Dict[Optional[Conditions], Dict[int, Summary]] = {}
        for cell in cells[row]:
            if cell.name in summaries:
                summary = summaries[cell.name]
                own = conditions_of(summary)
                same = next((each for each in by_conditions if each is not None and own.averaged_with(each)), own)
                by_conditions.setdefault(same, {})[cell.seed] = summary
        unfinished = tuple(cell.seed for cell in cells[row] if cell.name not in summaries)
        for conditions, by_seed in (by_conditions or {None: {}}).items():
            found.append(Group(row, conditions, dict(sorted(by_seed.items())), unfinished))
    return found


def difference(group: Group, other: Group) -> Optional[Difference]:
    """Return the paired difference of two groups, or `None` without a common seed.

    A seed counts if both runs had the same training images, and the same teacher unless one of them had none.
    """
    values = []
    for seed in sorted(group.summaries.keys() & other.summaries.keys()):
        one, two = group.summaries[seed], other.summaries[seed]
        teachers = {run["origin"].get("teacher") for run in (one, two)} - {None}
        labels = {run["origin"].get("train_labels") for run in (one, two)}
        content = (run["origin"].get("train_content") for run in (one, two))
        if len(teachers) < 2 and len(labels) == 1 and not other_images(*content):
            values.append(one["last"]["deployed_top1"] - two["last"]["deployed_top1"])
    return paired(other.row.method, values) if values else None


def paired(to: str, values: Sequence[float]) -> Difference:
    """Return the mean of paired differences with its confidence interval.

    Raises:
        ImportError: SciPy is not installed.
    """
    mean, deviation, n = spread(values)
    if deviation is None:
        return Difference(to, mean, None, n)
    from scipy import stats

    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * deviation / n**0.5
    return Difference(to, mean, (mean - half, mean + half), n)


def differences(study: Study, found: Sequence[Group]) -> Dict[int, List[Difference]]:
    """Return the differences of each group, by its place in `found`, to the methods of `Study.compare_to`.

    Compared are groups of the same pair and variant under comparable conditions.
    """
    result: Dict[int, List[Difference]] = {}
    for place, group in enumerate(found):
        for name in study.compare_to:
            for other in found:
                if not (group.conditions and other.conditions and group.conditions.comparable(other.conditions)):
                    continue
                if other.row.block == group.row.block and other.row.method == name != group.row.method:
                    result.setdefault(place, []).extend(filter(None, [difference(group, other)]))
    return result


def labels(found: Sequence[Group]) -> List[str]:
    """Return the method of each group, with the conditions that tell it from others of its pair and variant."""
    return [_label(group, [other for other in found if other.row.block == group.row.block]) for group in found]


def _label(group: Group, block: Sequence[Group]) -> str:
    mine = group.conditions
    others = [other.conditions for other in block if other.conditions]
    if mine is None:
        return group.row.method
    parts = [mine.precision] if len({each.precision for each in others}) > 1 else []
    if len({each.device for each in others}) > 1:
        parts.append(mine.device)
    if len({each.processes for each in others}) > 1:
        parts.append("1 process" if mine.processes == "1" else f"{mine.processes} processes")
    if len({each.train_images for each in others}) > 1:
        parts.append(f"{mine.train_images:,} training images")
    elif not all(mine.same_training(each) for each in others):
        differ = any(other_images(mine.train_content, each.train_content) for each in others)
        parts.append(
            f"training images {_digest(mine.train_content)}" if differ else f"labels {_digest(mine.train_labels)}"
        )
    if not all(mine.same_validation(each) for each in others):
        parts.append(f"validation images {_digest(mine.val_content)}")
    if mine.teacher and len({each.teacher for each in others} - {None}) > 1:
        parts.append(f"teacher {_digest(mine.teacher)}")
    return f"{group.row.method} ({', '.join(parts)})" if parts else group.row.method


def _digest(text: Optional[str]) -> str:
    return "unknown" if text is None else text.rpartition(": ")[2][:6]
