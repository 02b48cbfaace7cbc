"""What a run says of itself: a line per epoch, a table and a line at the end."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Sequence

from ..errors import UserError
from ..paths import find_file, text_of


def duration(seconds: float) -> str:
    """`75` → `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def epoch_line(row: Dict[str, Any], epochs: int, total_seconds: float) -> str:
    """Return the screen's line of one epoch.

    Args:
        row: the epoch's row of metrics.jsonl.
        epochs: of the whole run.
        total_seconds: what the epochs so far took, for the estimate of what is left.
    """
    parts = ", ".join(f"{name[5:]} {row[name]:.3f}" for name in row if name.startswith("loss_"))
    probe = f", probe {row['probe_top1']:.2f}" if "probe_top1" in row else ""
    left = (epochs - row["epoch"]) * total_seconds / row["epoch"]
    return (
        f"epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.3g}  loss {row['loss']:.3f} ({parts})"
        f"  train {row['train_top1']:.2f}  val top-1 {row['deployed_top1']:.2f} top-5 {row['deployed_top5']:.2f}{probe}"
        f"  {row['images_per_second']:.0f} images/s  {duration(left)} left"
    )


def read_references(paths: Sequence[str]) -> Dict[str, Dict[str, Any]]:
    """Return other runs' summaries by path, for `final_table`.

    Raises:
        UserError: a file is missing or is not the summary.json of a run.
    """
    summaries = {}
    for path in paths:
        try:
            content = json.loads(text_of(find_file(path)))
            for part, key in (("last", "deployed_top1"), ("last", "deployed_top5"), ("best", "deployed_top1")):
                content[part][key] = float(content[part][key])
            for key in ("student", "method"):
                if not (isinstance(content[key], str) and content[key].isprintable()):
                    raise TypeError(f"{key} is no name")
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"EXPERIMENT.REFERENCE {path} is not the summary.json of a run ({type(error).__name__}: {error})"
            ) from None
        summaries[path] = content
    return summaries


def final_table(summary: Dict[str, Any], references: Dict[str, Dict[str, Any]]) -> str:
    """Return a table of the teacher, this run, and the runs it is compared with (`read_references`)."""
    rows: List[List[str]] = [["validation accuracy, %", "top-1 last", "top-1 best", "top-5 last", "source"]]
    if summary["teacher_accuracy"]:
        top1, top5 = (f"{summary['teacher_accuracy'][f'deployed_top{k}']:.2f}" for k in (1, 5))
        rows.append([f"teacher {summary['teacher']}", top1, "", top5, "its checkpoint"])
    for source, run in [("this run", summary), *((f"reference run {p}", r) for p, r in references.items())]:
        label = "alone" if run["method"] == "NONE" else run["method"]
        last, best = run["last"], run["best"]
        accuracies = [last["deployed_top1"], best["deployed_top1"], last["deployed_top5"]]
        rows.append([f"student {run['student']}, {label}", *(f"{a:.2f}" for a in accuracies), source])
    widths = [max(map(len, column)) for column in zip(*rows)]
    aligned = []
    for first, *numbers, source in rows:
        cells = [first.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:])), source]
        aligned.append("  ".join(cells).rstrip())
    return "\n".join(["", *aligned, ""])


def final_line(summary: Dict[str, Any]) -> str:
    """Return the one line that closes a run."""
    last, best, teacher = summary["last"], summary["best"], summary["teacher_accuracy"]
    parts = [
        f"last top-1 {last['deployed_top1']:.2f} top-5 {last['deployed_top5']:.2f}",
        f"best top-1 {best['deployed_top1']:.2f} top-5 {best['deployed_top5']:.2f} (epoch {best['epoch']})",
        f"teacher top-1 {teacher['deployed_top1']:.2f}" if teacher else "no teacher",
        f"{summary['images_per_second']:.0f} images/s",
        f"peak memory {summary['peak_memory_mib']} MiB",
        duration(summary["seconds"]),
    ]
    return "done: " + " | ".join(parts)
