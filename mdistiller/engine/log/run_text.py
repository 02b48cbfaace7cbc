"""The text of a run: opening lines, one line per epoch, the final table and line; and its summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List

import torch
from yacs.config import CfgNode

from ... import distributed
from ...dataset import Loader
from ...distillers import Distiller
from ...errors import counted
from ...models import InputSpec, library_of, released_teacher
from ...paths import find_file
from ..cfg import PRETRAINED, settings_of
from ..evaluation.cost import Cost
from ..run.environment import machine
from ..run.origin import short_origin
from ..run.progress import Progress
from ..speed.memory import memory_figures
from ..speed.precision import Precision

FEW_PER_CLASS = 20  # images; below this, or below FEW_STEPS, a note says so
FEW_STEPS = 2000  # of a whole run


def duration(seconds: float) -> str:
    """Return a number of seconds as text: `75` becomes `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def opening_lines(cfg: CfgNode, distiller: Distiller, train_loader: Loader) -> Iterator[str]:
    """Yield the paths of data and teacher, and notes on the method and the processes."""
    info = train_loader.info
    if info.root:
        yield f"data {info.root.absolute()}"
    if distiller.teacher is not None:
        arch, weights = cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_WEIGHTS
        if weights == PRETRAINED and library_of(arch):
            yield f"teacher {arch} with the weights that its library releases"
        else:
            file = (weights if weights != PRETRAINED else "") or released_teacher(arch, info.name, info.input_size)
            source = f"from {find_file(file).absolute()}" if file else "with the weights that its constructor sets"
            yield f"teacher {arch} {source}"
    own = getattr(distiller.teacher, "own_input", None)
    if own is not None or cfg.DISTILLER.STUDENT_WEIGHTS:
        line = f"input: the student sees {InputSpec(info.input_size, info.mean, info.std).in_words()}"
        if own is not None:
            resized = f", resized ({own.interpolation})" if own.size != info.input_size else ""
            line += f"; the teacher sees {own.in_words()}{resized}"
        yield line
    yield from size_lines(cfg, train_loader)
    if distiller.overrides_forward_test:
        yield (
            f"note: {cfg.DISTILLER.TYPE} overrides forward_test; the saved student is the backbone alone, whose"
            " accuracy is `bare_top1` in metrics.jsonl. To save a head too, set self.head"
        )
    world_size = distributed.get_world_size()
    if world_size > 1:
        yield f"{world_size} processes, each with its share of every batch of {train_loader.batch_size}"
        if cfg.PLUGINS:
            yield (
                "note: a plug-in's loss that relates the images of a batch sees those of one process, unless it"
                " gathers them (mdistiller.distributed.gather_with_grad)"
            )


def size_lines(cfg: CfgNode, train_loader: Loader) -> Iterator[str]:
    """Yield the size of the training set as images per class, steps and images shown; a note if it is very small."""
    counts = torch.as_tensor(train_loader.targets).bincount(minlength=train_loader.info.num_classes)
    fewest, most, epochs = int(counts.min()), int(counts.max()), cfg.SOLVER.EPOCHS
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    num_steps, num_images = len(train_loader), train_loader.num_images
    yield (
        f"{each} images per class, {counted(num_steps, 'step')} per epoch, {counted(epochs, 'epoch')} ×"
        f" {counted(num_images, 'image')} = {epochs * num_images:,} images shown"
    )
    if train_loader.unlabeled is not None:
        more = train_loader.unlabeled
        yield f"{more.num_images:,} images without labels, {more.batch_size} in each batch"
    small = [f"{fewest} images in a class"] if fewest < FEW_PER_CLASS else []
    small += [f"{epochs * num_steps:,} steps in all"] if epochs * num_steps < FEW_STEPS else []
    if small:
        yield f"note: {' and '.join(small)} are few; docs/recipe.md lists starting points by the size of the set"


def first_line(
    cfg: CfgNode, train_loader: Loader, val_loader: Loader, device: torch.device, precision: Precision, folder: Path
) -> str:
    """Return the line that names method, student, data, device and output folder."""
    info = train_loader.info
    return (
        f"{cfg.DISTILLER.TYPE}: student {cfg.DISTILLER.STUDENT}, {info.name}"
        f" ({train_loader.num_images} training and {val_loader.num_images} validation images,"
        f" {info.num_classes} classes, {info.input_size} px), {device}, {precision}, output {folder}"
    )


def resumed_line(progress: Progress, epochs: int, steps_per_epoch: int) -> str:
    """Return the line that says where a resumed run continues."""
    within = f", step {progress.step} of {steps_per_epoch} in the next" if progress.step else ""
    return f"resumed after epoch {progress.epoch} of {epochs}{within}"


def epoch_line(row: Dict[str, Any], epochs: int, total_seconds: float) -> str:
    """Return the line that is printed after an epoch.

    Args:
        row: the epoch's row of metrics.jsonl.
        epochs: the length of the run, in epochs.
        total_seconds: the time of the completed epochs in seconds, for the estimate of the remaining time.
    """
    parts = ", ".join(f"{name[5:]} {row[name]:.3f}" for name in row if name.startswith("loss_"))
    probe = f", probe {row['probe_top1']:.2f}" if "probe_top1" in row else ""
    plain = f", without EMA {row['plain_top1']:.2f}" if "plain_top1" in row else ""
    val = ""
    if "deployed_top1" in row:  # epochs between two evaluations have none
        val = f"  val top-1 {row['deployed_top1']:.2f} top-5 {row['deployed_top5']:.2f}"
    running = f", running statistics {row['running_top1']:.2f}" if "running_top1" in row else ""
    left = (epochs - row["epoch"]) * total_seconds / row["epoch"]
    return (
        f"epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.5g}  loss {row['loss']:.3f} ({parts})"
        f"  train {row['train_top1']:.2f}{val}{probe}{running}{plain}"
        f"  {row['images_per_second']:.0f} images/s  {duration(left)} left"
    )


def summary_of(
    name: str,
    cfg: CfgNode,
    train_loader: Loader,
    val_loader: Loader,
    progress: Progress,
    teacher_accuracy: Dict[str, float],
    device: torch.device,
    precision: Precision,
    origin: Dict[str, Any],
    cost: Cost,
) -> Dict[str, Any]:
    """Return the content of summary.json; accuracies in percent. `teacher_accuracy` is empty without a teacher."""
    return {
        "name": name,
        "method": cfg.DISTILLER.TYPE,
        "student": cfg.DISTILLER.STUDENT,
        "teacher": cfg.DISTILLER.TEACHER if teacher_accuracy else None,
        "dataset": cfg.DATASET.TYPE,
        "num_classes": train_loader.info.num_classes,
        "train_images": train_loader.num_images,
        "val_images": val_loader.num_images,
        "epochs": progress.epoch,
        "batch_size": cfg.SOLVER.BATCH_SIZE,
        "processes": distributed.get_world_size(),
        "seed": cfg.EXPERIMENT.SEED,
        "last": progress.last,
        "best": progress.best,
        "teacher_accuracy": teacher_accuracy,
        "images_per_second": progress.images_per_second,
        "seconds": round(progress.total_seconds, 1),
        "peak_memory_mib": memory_figures(device)["peak_memory_mib"],
        "device": str(device),
        "precision": str(precision),  # like `processes`, missing in the machines of earlier versions
        **(progress.machines or [machine(device, precision)])[-1],
        **({"earlier_machines": progress.machines[:-1]} if len(progress.machines) > 1 else {}),
        "deployed": cost._asdict(),
        "origin": short_origin(origin),
        "settings": settings_of(cfg),
    }


def final_table(summary: Dict[str, Any], references: Dict[str, Dict[str, Any]]) -> str:
    """Return a table of the teacher, this run, and the runs that `read_references` returned."""
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
    """Return the last line of a run."""
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
