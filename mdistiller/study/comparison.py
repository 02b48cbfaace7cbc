"""What a study's runs say: means over seeds, and paired differences with confidence intervals."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .grid import Cell, Row, Study
from .results import Summary

LEVEL = 0.95  # of the confidence intervals


class Spread(NamedTuple):
    """Mean and sample standard deviation of `n` values; the deviation is `None` for one value."""

    mean: float
    deviation: Optional[float]
    n: int


class Difference(NamedTuple):
    """The mean difference of two rows over the seeds that both have, in percentage points of the last top-1.

    Attributes:
        to: method of the other row.
        mean: this row's accuracy minus the other's.
        interval: of the mean at `LEVEL`, by Student's t over the paired differences; `None` with fewer than two seeds.
        n: number of seeds.
    """

    to: str
    mean: float
    interval: Optional[Tuple[float, float]]
    n: int

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.interval is None:
            return "one seed says nothing"
        if self.interval[0] > 0:
            return "helps"
        if self.interval[1] < 0:
            return "hurts"
        return f"no difference seen with {self.n} seeds"


class Group(NamedTuple):
    """The finished runs of a row that ran under the same conditions.

    Attributes:
        row: pair, variant and method.
        conditions: what the settings leave open: the precision that was used, the validation images, the processes.
        summaries: by seed.
        unfinished: seeds of the row without a result under any conditions.
    """

    row: Row
    conditions: Tuple[Any, ...]
    summaries: Dict[int, Summary]
    unfinished: Tuple[int, ...]

    def spread(self, part: str, key: str = "deployed_top1") -> Spread:
        """Return mean and deviation of an accuracy in percent; `part` is "last" or "best"."""
        return spread([summary[part][key] for summary in self.summaries.values()])

    @property
    def seconds(self) -> float:
        """Mean duration of a run."""
        return statistics.mean(summary["seconds"] for summary in self.summaries.values())


def spread(values: Sequence[float]) -> Spread:
    """Return mean, sample standard deviation and number of values."""
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def conditions_of(summary: Summary) -> Tuple[Any, ...]:
    """Return what must be equal for two results to be averaged or compared, beside their settings."""
    origin = summary["origin"]
    return (summary["precision"], summary.get("processes", 1), origin.get("val_labels"), origin.get("val_content"))


def groups(study: Study, summaries: Dict[str, Summary]) -> List[Group]:
    """Return the groups of finished runs in the order of the study's rows.

    A row without a finished run has one group without summaries.
    """
    cells: Dict[Row, List[Cell]] = {}
    for cell in study.cells:
        cells.setdefault(cell.row, []).append(cell)
    found = []
    for row in study.rows():
        by_conditions: Dict[Tuple[Any, ...], Dict[int, Summary]] = {}
        for cell in cells[row]:
            if cell.name in summaries:
                summary = summaries[cell.name]
                by_conditions.setdefault(conditions_of(summary), {})[cell.seed] = summary
        unfinished = tuple(cell.seed for cell in cells[row] if cell.name not in summaries)
        for conditions, by_seed in (by_conditions or {(): {}}).items():
            found.append(Group(row, conditions, dict(sorted(by_seed.items())), unfinished))
    return found


def difference(group: Group, other: Group) -> Optional[Difference]:
    """Return the paired difference of two groups, or `None` without a common seed.

    A seed counts if both runs had the same teacher, or one of them had none.
    """
    values = []
    for seed, summary in group.summaries.items():
        teachers = {summary["origin"].get("teacher")}
        if seed in other.summaries:
            teachers.add(other.summaries[seed]["origin"].get("teacher"))
            if len(teachers - {None}) < 2:
                values.append(summary["last"]["deployed_top1"] - other.summaries[seed]["last"]["deployed_top1"])
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

    Compared are groups of the same pair and variant under the same conditions.
    """
    result: Dict[int, List[Difference]] = {}
    for place, group in enumerate(found):
        for name in study.compare_to:
            for other in found:
                same = other.row.block == group.row.block and other.conditions == group.conditions
                if same and other.row.method == name != group.row.method:
                    result.setdefault(place, []).extend(filter(None, [difference(group, other)]))
    return result
