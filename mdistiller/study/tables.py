"""The results of a study as CSV, with a row for each run, and as Markdown, with a row for each method."""

from __future__ import annotations

import csv
import io
import math
import statistics
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ..engine.cfg import settings_digest
from .comparison import LEVEL, MIN_SEEDS, Difference, Group, Spread, labels, spread, teacher_accuracies
from .grid import Study
from .results import Summary
from .study_file import ALONE

ESCAPED_BAR = "\\|"  # of Markdown, within a table
EXTRA_ACCURACIES = {  # columns that appear where runs have these figures
    "running_top1": "running statistics",
    "plain_top1": "without EMA",
    "probe_top1": "bare student's probe",
}
COLUMNS = (
    *("pair", "variant", "method", "seed", "state"),
    *("last_top1", "last_top5", "best_top1", "best_epoch", "teacher_top1", *EXTRA_ACCURACIES),
    *("epochs", "train_images", "val_images", "seconds", "epoch_seconds", "images_per_second"),
    *("parameters", "macs", "head_parameters", "head_macs"),
    *("settings", "teacher_weights", "train_labels", "train_content", "val_content"),
    *("precision", "processes", "hardware", "mdistiller", "commit", "python", "torch", "torchvision"),
)
MACHINE_COLUMNS = (
    *("seconds", "epoch_seconds", "images_per_second"),
    *("hardware", "mdistiller", "commit", "python", "torch", "torchvision"),
)


def csv_table(study: Study, summaries: Dict[str, Summary], failed: Dict[str, str]) -> str:
    """Return a table with a row for each run of the study, finished or not; accuracies in percent."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for cell in study.all_cells():
        row = {"pair": cell.row.pair, "variant": cell.row.variant, "method": cell.row.method or "teacher"}
        state = "failed" if cell.name in failed else "finished" if cell.name in summaries else "unfinished"
        values = _values(summaries[cell.name]) if state == "finished" else {}
        writer.writerow({**row, "seed": cell.seed, "state": state, **values})
    return text.getvalue()


def _values(summary: Summary) -> Dict[str, Any]:
    last, best, origin = summary["last"], summary["best"], summary["origin"]
    settings = {key: value for key, value in summary["settings"].items() if key != "EXPERIMENT.SEED"}
    return {
        "last_top1": f"{last['deployed_top1']:.2f}",
        "last_top5": f"{last['deployed_top5']:.2f}",
        "best_top1": f"{best['deployed_top1']:.2f}",
        "best_epoch": best["epoch"],
        "teacher_top1": f"{summary['teacher_accuracy']['deployed_top1']:.2f}" if summary["teacher_accuracy"] else "",
        **{key: f"{last[key]:.2f}" for key in EXTRA_ACCURACIES if key in last},
        **{key: summary[key] for key in ("epochs", "train_images", "val_images", "seconds", "images_per_second")},
        "epoch_seconds": summary.get("epoch_seconds", ""),
        **summary["deployed"],
        "settings": settings_digest(settings),
        "teacher_weights": origin.get("teacher") or "",
        **{key: origin.get(key, "") for key in ("train_labels", "train_content", "val_content")},
        **{key: summary[key] for key in ("precision", "hardware")},
        "processes": summary.get("processes", 1),
        **summary["versions"],
    }


def markdown_tables(
    study: Study,
    found: Sequence[Group],
    compared: Dict[int, List[Difference]],
    summaries: Dict[str, Summary],
    failed: Dict[str, str],
) -> str:
    """Return a table for each pair and variant, with a sentence for each comparison; accuracies in percent."""
    blocks = list(dict.fromkeys(group.row.block for group in found))
    parts = [f"# {study.name}"]
    for block in blocks:
        mine = [(place, group) for place, group in enumerate(found) if group.row.block == block]
        parts += [f"## {block}", *_notes(mine), _table(study, mine, compared), *_sentences(mine, compared)]
    finished = sum(cell.name in summaries for cell in study.cells)
    if finished < len(study.cells):
        parts.append(f"Unfinished: {finished} of {len(study.cells)} runs are done.")
    parts += [f"Failed: {name}: {reason}" for name, reason in failed.items()]
    return "\n\n".join(parts) + "\n"


def _table(study: Study, mine: Sequence[Tuple[int, Group]], compared: Dict[int, List[Difference]]) -> str:
    extra = {key: title for key, title in EXTRA_ACCURACIES.items() if any(g.values("last", key) for _, g in mine)}
    header = ["method", "seeds", "top-1, last epoch", "each seed", *extra.values(), "top-1, best epoch"]
    header += [f"against {name}" for name in study.compare_to]
    header += ["s/epoch", "parameters", "MACs"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for (place, group), name in zip(mine, labels([group for _, group in mine])):
        waiting = f" ({len(group.unfinished)} unfinished)" if group.unfinished else ""
        line = [name, f"{len(group.summaries)}{waiting}"]
        if group.summaries:
            cost = next(iter(group.summaries.values()))["deployed"]
            last = group.values("last")
            line += [show_spread(spread(last)), ", ".join(f"{value:.2f}" for value in last)]
            line += [
                show_spread(spread(values)) if values else "" for values in (group.values("last", k) for k in extra)
            ]
            line += [show_spread(spread(group.values("best")))]
            for name in study.compare_to:
                line.append("; ".join(show_difference(each) for each in compared.get(place, []) if each.to == name))
            line += [f"{group.epoch_seconds:.0f}" if group.epoch_seconds else ""]
            line += [f"{cost['parameters'] / 1e6:.2f} M", f"{cost['macs'] / 1e6:.1f} M"]
        lines.append(line + [""] * (len(header) - len(line)))
    return "\n".join(f"| {' | '.join(text.replace('|', ESCAPED_BAR) for text in line)} |" for line in lines)


def _notes(mine: Sequence[Tuple[int, Group]]) -> Iterator[str]:
    """Yield the size of the runs, what the columns are, the teachers, and the machines."""
    runs = [summary for _, group in mine for summary in group.summaries.values()]
    if not runs:
        return
    first = runs[0]
    share = statistics.mean(run["last"]["deployed_top1"] for run in runs) / 100
    error = 100 * math.sqrt(share * (1 - share) / first["val_images"])
    yield (
        f"{_each(runs, 'train_images')} training and {_each(runs, 'val_images')} validation images,"
        f" {first['num_classes']} classes, {_each(runs, 'epochs')} epochs, {_each(runs, 'precision')}."
    )
    yield (
        "Top-1 accuracy in percent, mean ± standard deviation over the seeds. *Against*: the paired difference with its"
        f" {LEVEL:.0%} confidence interval (Student's t). The finite number of validation images, which all runs share,"
        f" gives each accuracy a standard error of {error:.1f} points. *s/epoch*: median over the training epochs,"
        " without evaluation."
    )
    accuracies = teacher_accuracies(runs)
    if accuracies:
        models = {str(run["origin"].get("teacher")): run["teacher"] for run in runs}
        names = [f"{models[digest]} {top1:.2f} (weights {digest[:6]})" for digest, top1 in accuracies.items()]
        yield f"Teacher: {', '.join(names)}." + (" Only runs with the same weights are paired." if names[1:] else "")
    machines = {f"{run['hardware']}, PyTorch {run['versions']['torch']}" for run in runs}
    yield f"Measured on {'; '.join(sorted(machines))}."


def _each(runs: Sequence[Summary], key: str) -> str:
    """Return the values that runs have for a key, such as `10,000`, or `30 or 60`."""
    values = dict.fromkeys(run[key] for run in runs)
    return " or ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)


def _sentences(mine: Sequence[Tuple[int, Group]], compared: Dict[int, List[Difference]]) -> Iterator[str]:
    lines, few = [], False
    for (place, group), name in zip(mine, labels([group for _, group in mine])):
        for each in compared.get(place, []) if group.row.method != ALONE else []:
            if each.n < MIN_SEEDS:
                few = True
            else:
                lines.append(f"- {name} against {each.to}: {each.verdict}, {show_difference(each)}, {each.n} seeds.")
    if few:
        lines.append(f"- No conclusion is drawn from comparisons over fewer than {MIN_SEEDS} seeds.")
    if lines:
        yield "\n".join(lines)


def show_spread(value: Spread) -> str:
    """Return text such as `71.23 ± 0.20`."""
    return f"{value.mean:.2f}" + (f" ± {value.deviation:.2f}" if value.deviation is not None else "")


def show_difference(value: Difference) -> str:
    """Return text such as `+1.20 (0.40 to 2.00)`."""
    interval = f" ({_bound(value.interval[0])} to {_bound(value.interval[1])})" if value.interval is not None else ""
    return f"{value.mean:+.2f}{interval}"


def _bound(value: float) -> str:
    """Return a bound of an interval with two decimals, or four if they would hide its sign."""
    return f"{value:.2f}" if abs(value) >= 0.005 else f"{value:.4f}"
