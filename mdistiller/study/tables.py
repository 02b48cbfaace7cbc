"""The results of a study as CSV, with a row for each run, and as Markdown, with a row for each method."""

from __future__ import annotations

import csv
import io
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ..engine.cfg import settings_digest
from ..engine.log.run_text import duration
from .comparison import LEVEL, Difference, Group, Spread
from .grid import Study
from .results import Summary
from .study_file import ALONE

COLUMNS = (
    *("pair", "variant", "method", "seed", "state"),
    *("last_top1", "last_top5", "best_top1", "best_epoch", "teacher_top1"),
    *("epochs", "train_images", "val_images", "seconds", "images_per_second"),
    *("parameters", "macs", "head_parameters", "head_macs"),
    *("settings", "teacher_weights", "precision", "hardware", "mdistiller", "python", "torch", "torchvision"),
)
MACHINE_COLUMNS = ("seconds", "images_per_second", "hardware", "mdistiller", "python", "torch", "torchvision")


def csv_table(study: Study, summaries: Dict[str, Summary], failed: Dict[str, str]) -> str:
    """Return a table with a row for each run of the study, finished or not; accuracies in percent."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in study.all_cells():
        row = {"pair": cell.row.pair, "variant": cell.row.variant, "method": cell.row.method or "teacher"}
        state = "failed" if cell.name in failed else "finished" if cell.name in summaries else "unfinished"
        values = _values(summaries[cell.name]) if state == "finished" else {}
        writer.writerow({**row, "seed": cell.seed, "state": state, **values})
    return text.getvalue()


def _values(summary: Summary) -> Dict[str, Any]:
    last, best = summary["last"], summary["best"]
    return {
        "last_top1": f"{last['deployed_top1']:.2f}",
        "last_top5": f"{last['deployed_top5']:.2f}",
        "best_top1": f"{best['deployed_top1']:.2f}",
        "best_epoch": best["epoch"],
        "teacher_top1": f"{summary['teacher_accuracy']['deployed_top1']:.2f}" if summary["teacher_accuracy"] else "",
        **{key: summary[key] for key in ("epochs", "train_images", "val_images", "seconds", "images_per_second")},
        **summary["deployed"],
        "settings": settings_digest(summary["settings"]),
        "teacher_weights": summary["origin"].get("teacher") or "",
        **{key: summary[key] for key in ("precision", "hardware")},
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
    header = ["method", "seeds", "top-1, last epoch", "top-1, best epoch"]
    header += [f"against {name}" for name in study.compare_to]
    header += ["time of a run", "parameters", "MACs"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    several = len({group.conditions for _, group in mine if group.summaries}) > 1
    for place, group in mine:
        name = f"{group.row.method} ({group.conditions[0]})" if several and group.summaries else group.row.method
        waiting = f" ({len(group.unfinished)} unfinished)" if group.unfinished else ""
        line = [name, f"{len(group.summaries)}{waiting}"]
        if group.summaries:
            by_name = {each.to: each for each in compared.get(place, [])}
            cost = next(iter(group.summaries.values()))["deployed"]
            line += [show_spread(group.spread("last")), show_spread(group.spread("best"))]
            line += [show_difference(by_name[name]) if name in by_name else "" for name in study.compare_to]
            line += [duration(group.seconds), f"{cost['parameters'] / 1e6:.2f} M", f"{cost['macs'] / 1e6:.1f} M"]
        lines.append(line + [""] * (len(header) - len(line)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _notes(mine: Sequence[Tuple[int, Group]]) -> Iterator[str]:
    """Yield the size of the runs, and the teachers that taught them."""
    runs = [summary for _, group in mine for summary in group.summaries.values()]
    if not runs:
        return
    first = runs[0]
    yield (
        f"{first['train_images']} training and {first['val_images']} validation images, {first['num_classes']} classes,"
        f" {first['epochs']} epochs, {first['precision']}; mean ± standard deviation over the seeds, and the paired"
        f" difference with its {LEVEL:.0%} confidence interval (Student's t)."
    )
    teachers = {
        run["origin"]["teacher"]: f"{run['teacher']} {run['teacher_accuracy']['deployed_top1']:.2f}"
        for run in runs
        if run["teacher_accuracy"]
    }
    if teachers:
        several = f" ({len(teachers)} trainings of it; seeds are paired only with the same one)"
        yield f"Teacher: {', '.join(teachers.values())}{several if len(teachers) > 1 else ''}."


def _sentences(mine: Sequence[Tuple[int, Group]], compared: Dict[int, List[Difference]]) -> Iterator[str]:
    lines = []
    for place, group in mine:
        if group.row.method != ALONE:
            lines += [f"- {group.row.method} against {each.to}: {each.verdict}." for each in compared.get(place, [])]
    if lines:
        yield "\n".join(lines)


def show_spread(value: Spread) -> str:
    """Return text such as `71.23 ± 0.20`."""
    return f"{value.mean:.2f}" + (f" ± {value.deviation:.2f}" if value.deviation is not None else "")


def show_difference(value: Difference) -> str:
    """Return text such as `+1.20 (0.40 to 2.00)`."""
    interval = f" ({value.interval[0]:.2f} to {value.interval[1]:.2f})" if value.interval is not None else ""
    return f"{value.mean:+.2f}{interval}"
