"""What a run says of itself: some lines first, one per epoch, a table and a line at the end; and its summary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Sequence

import torch

from ... import distributed
from ...errors import UserError
from ...models import released_teacher
from ...paths import find_file, read_text
from ..speed.memory import memory_figures

if TYPE_CHECKING:
    from ..trainer import Trainer


def duration(seconds: float) -> str:
    """`75` → `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def opening_lines(trainer: Trainer, resume: bool) -> Iterator[str]:
    """Yield what is trained on what, and what is to be known of it."""
    cfg, info = trainer.cfg, trainer.train_loader.info
    yield (
        f"{cfg.DISTILLER.TYPE}: student {cfg.DISTILLER.STUDENT}, {info.name}"
        f" ({trainer.train_loader.num_images} training and {trainer.val_loader.num_images} validation images,"
        f" {info.num_classes} classes, {info.input_size} px), {trainer.device}, {trainer.precision},"
        f" output {trainer.folder.path}"
    )
    if info.root:
        yield f"data {info.root.absolute()}"
    if trainer.distiller.teacher is not None:
        weights = cfg.DISTILLER.TEACHER_WEIGHTS or released_teacher(cfg.DISTILLER.TEACHER, info.name, info.input_size)
        if weights:
            yield f"teacher {cfg.DISTILLER.TEACHER} from {find_file(weights).absolute()}"
    if trainer.distiller.tests_otherwise:
        yield (
            f"note: {cfg.DISTILLER.TYPE} tests by a forward_test of its own; the saved student is the bare one, whose"
            " accuracy is `bare` in metrics.jsonl (a method ships more by setting self.head)"
        )
    if distributed.get_world_size() > 1:
        yield f"{distributed.get_world_size()} processes, each with its share of every batch of {trainer.train_loader.batch_size}"
        if cfg.PLUGINS:
            yield (
                "note: a plug-in's loss that relates the images of a batch sees those of one process, unless it"
                " gathers them (mdistiller.distributed.gather_with_grad)"
            )
    if resume:
        within = f", step {trainer.step} of {len(trainer.train_loader)} in the next" if trainer.step else ""
        yield f"resumed after epoch {trainer.epoch} of {cfg.SOLVER.EPOCHS}{within}"


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
        f"epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.5g}  loss {row['loss']:.3f} ({parts})"
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
            content = json.loads(read_text(find_file(path)))
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


def summary_of(trainer: Trainer) -> Dict[str, Any]:
    """Return what summary.json holds; accuracies in percent."""
    cfg = trainer.cfg
    return {
        "name": trainer.name,
        "method": cfg.DISTILLER.TYPE,
        "student": cfg.DISTILLER.STUDENT,
        "teacher": cfg.DISTILLER.TEACHER if trainer.distiller.teacher is not None else None,
        "dataset": cfg.DATASET.TYPE,
        "num_classes": trainer.train_loader.info.num_classes,
        "train_images": trainer.train_loader.num_images,
        "val_images": trainer.val_loader.num_images,
        "epochs": trainer.epoch,
        "batch_size": cfg.SOLVER.BATCH_SIZE,
        "processes": distributed.get_world_size(),
        "seed": cfg.EXPERIMENT.SEED,
        "last": trainer.last,
        "best": trainer.best,
        "teacher_accuracy": trainer.teacher,
        "images_per_second": round(trainer.images / trainer.train_seconds, 1) if trainer.train_seconds else 0.0,
        "seconds": round(trainer.total_seconds, 1),
        "peak_memory_mib": memory_figures(trainer.device)["peak_memory_mib"],
        "device": str(trainer.device),
        "precision": str(trainer.precision),
        "torch": torch.__version__,
    }


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
