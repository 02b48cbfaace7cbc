"""How fast the training loop is: images per second and memory, beside a plain loop and beside the machine's floor."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import tempfile
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch

from ..distillers import distiller_dict
from ..engine.build import build_trainer
from ..engine.cfg import load_cfg
from ..engine.meter import EpochMeter
from ..engine.run.logger import RunLogger
from ..engine.speed.fast_networks import FastNetworks
from ..engine.speed.precision import pick_device, pick_precision
from .baseline import PlainLoop
from .hardware import describe_hardware, measure_peak
from .interleave import Budget, Gate, Side, Slice, run_in_turns
from .methods import Method, Row, choose, describe, markdown, pair_config
from .roofline import Work, step_work
from .synthetic import random_teacher

PART = 0.01  # of the training images, to count a step's work with


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        method: as the tables call it.
        setting: what distinguishes the row besides, `KEY VALUE …`.
        path, overrides: of the configuration.
        warm: whether every round repeats the first epoch, once it has been trained on untimed.
    """

    method: str
    setting: str
    path: str
    overrides: Tuple[str, ...]
    warm: bool

    def cfg(self) -> Any:
        return load_cfg(self.path, self.overrides)


def plan(
    pairs: Sequence[str],
    path: Optional[str],
    methods: Sequence[str],
    settings: Sequence[Sequence[str]],
    overrides: Sequence[str],
    warm: bool,
) -> List[Case]:
    """Return the rows: every pair (or the configuration at `path`) with every method and every setting.

    Args:
        methods: none means SFAKD, or the configuration's own.
        settings: each `KEY VALUE …` on top of `overrides`; none means one row with these alone.

    Raises:
        UserError: an unknown pair, method or key, or a value of the wrong type.
    """
    load_cfg(None, overrides)  # loads PLUGINS, whose methods may be named
    chosen: List[Optional[Method]] = [*choose(methods)] if methods else [None if path else describe("SFAKD")]
    cases = []
    for pair, method, setting in itertools.product(pairs if path is None else [""], chosen, settings or [()]):
        file = path or pair_config(pair, method or describe("SFAKD"))
        options = ["DISTILLER.TYPE", method.type, *method.options] if method else []
        words = (*options, *overrides, *setting)
        cfg = load_cfg(file, words)
        cases.append(Case((method or describe(cfg.DISTILLER.TYPE)).name, " ".join(setting), file, words, warm))
    return cases


def train_ours(case: Case, pipe: Connection) -> None:
    """Train as tools/train.py does, epoch after epoch, without evaluation."""
    trainer = build_trainer(case.cfg())
    trainer.folder.create(resume=False)
    logger = RunLogger(trainer.folder, trainer.cfg)
    epochs = range(1, 2 if case.warm else 1 + trainer.cfg.SOLVER.EPOCHS)
    trainer.distiller.train()
    form = FastNetworks(trainer.distiller, trainer.train_loader, trainer.cfg, trainer.precision, logger.say)

    def train(epoch: int) -> None:
        trainer.step, trainer.meter = 0, EpochMeter(epoch)
        trainer._train_epoch(epoch, logger, form)

    if case.warm:
        train(1)
    trainer.batches = Gate(pipe, trainer.device)(trainer.batches)  # type: ignore[method-assign]
    for epoch in itertools.cycle(epochs):
        train(epoch)


def train_plainly(case: Case, pipe: Connection) -> None:
    """Train in the plain loop."""
    loop = PlainLoop(case.cfg())
    batches = Gate(pipe, loop.device)(loop.loader.__iter__)
    while True:
        loop.train_epoch(batches)


def prepare(case: Case, folder: Path) -> Tuple[Case, Work]:
    """Return `case` with its output in `folder` and a teacher at hand, and what a training step of it costs.

    Raises:
        UserError: whatever keeps it from being trained.
    """
    own = ["LOG.PREFIX", str(folder), "LOG.WANDB", "False", "EXPERIMENT.NAME", "run", "EXPERIMENT.REFERENCE", "[]"]
    cfg = case.cfg()
    if distiller_dict[cfg.DISTILLER.TYPE].needs_teacher and not cfg.DISTILLER.TEACHER_WEIGHTS:
        own += ["DISTILLER.TEACHER_WEIGHTS", random_teacher(cfg, folder)]
    case = case._replace(overrides=(*case.overrides, *own))
    return case, _work(case)


def _work(case: Case) -> Work:
    """Count in float32, on a part of the images."""
    cfg = case.cfg()
    cached = cfg.TEACHER_CACHE != "off"
    precision = pick_precision(cfg.SOLVER.AMP, pick_device())
    cfg.TEACHER_CACHE, cfg.SOLVER.AMP = "off", "off"
    cfg.DATASET.TRAIN_FRACTION = min(PART, cfg.DATASET.TRAIN_FRACTION)
    trainer = build_trainer(cfg)
    trainer._check_losses()
    info, size = trainer.train_loader.info, cfg.SOLVER.BATCH_SIZE
    index = torch.arange(size, device=trainer.device) % trainer.train_loader.num_images
    image = torch.randn(size, 3, info.input_size, info.input_size, device=trainer.device)
    image = image.to(memory_format=torch.channels_last if trainer.distiller.channels_last else torch.contiguous_format)
    batch = {"image": image, "target": trainer.train_loader.targets[index], "index": index, "epoch": 1}
    distiller = trainer.distiller
    known = cached and case.warm and distiller.teacher is not None and "maps" not in distiller.teacher_needs
    return step_work(distiller, batch, precision.dtype or torch.float32, known)


def spread(values: Sequence[float]) -> Dict[str, float]:
    """Return median, quartiles and range."""
    low, median, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": median, "q1": low, "q3": high, "min": min(values), "max": max(values)}


def measure(case: Case, work: Work, baseline: bool, rounds: int, budget: Budget) -> Row:
    """Return the figures of a row, of what `prepare` returned.

    Raises:
        UserError: the baseline cannot be trained.
    """
    cfg, device = case.cfg(), pick_device()
    precision = pick_precision(cfg.SOLVER.AMP, device)
    dtype = precision.dtype or torch.float32
    taught = distiller_dict[cfg.DISTILLER.TYPE].needs_teacher
    with ExitStack() as stack:
        sides = [stack.enter_context(Side("the training loop", train_ours, case))]
        if baseline:
            sides.append(stack.enter_context(Side("the baseline loop", train_plainly, case)))
        (ours, *plain), peaks = run_in_turns(sides, rounds, budget, lambda: measure_peak(device, dtype))
    floors = [work.floor(peak) for peak in peaks]
    return {
        "pair": f"{cfg.DISTILLER.TEACHER} → {cfg.DISTILLER.STUDENT}" if taught else cfg.DISTILLER.STUDENT,
        "method": case.method,
        "setting": case.setting,
        "warm": case.warm,
        "precision": str(precision),
        "batch_size": cfg.SOLVER.BATCH_SIZE,
        **summarise(ours, plain[0] if plain else None),
        "floor": spread([cfg.SOLVER.BATCH_SIZE / seconds for seconds, _ in floors]),
        "of_floor": spread([part.rate * seconds / cfg.SOLVER.BATCH_SIZE for part, (seconds, _) in zip(ours, floors)]),
        "bound": statistics.mode(bound for _, bound in floors),
        "work": work._asdict(),
        "peaks": [peak._asdict() for peak in peaks],
        "slices": {"ours": [part._asdict() for part in ours], "baseline": [p._asdict() for s in plain for p in s]},
    }


def summarise(ours: Sequence[Slice], plain: Optional[Sequence[Slice]]) -> Row:
    """Return images per second, their ratio round by round to those of the other loop, and peak memory in MiB."""
    row: Row = {
        "images_per_second": spread([part.rate for part in ours]),
        "host_mib": max(part.host_mib for part in ours),
        "device_mib": max(part.device_mib for part in ours),
    }
    if plain is not None:
        row["baseline"] = spread([part.rate for part in plain])
        row["ratio"] = spread([mine.rate / theirs.rate for mine, theirs in zip(ours, plain)])
    return row


def benchmark(cases: Sequence[Case], baseline: bool, rounds: int, budget: Budget) -> Tuple[List[Row], str]:
    """Return `(rows, conditions)`; what one of the cases cannot do shows before the first is measured.

    Raises:
        UserError: what cannot be trained.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = []
        for number, case in enumerate(cases, start=1):
            place = Path(folder) / str(number)
            place.mkdir()
            prepared.append(prepare(case, place))
        for number, (case, work) in enumerate(prepared, start=1):
            print(f"{number} of {len(cases)}: {case.path} {case.method} {case.setting}".rstrip(), file=sys.stderr)
            rows.append(measure(case, work, baseline, rounds, budget))
    cfg = cases[0].cfg()
    length = f"{budget.steps} steps" if budget.seconds == math.inf else f"{budget.seconds:g} s"
    conditions = [
        f"{cfg.DATASET.TYPE}, batch {cfg.SOLVER.BATCH_SIZE}, {describe_hardware(pick_device())},"
        f" PyTorch {torch.__version__}; {rounds} interleaved rounds of {length}, medians (quartiles)"
    ]
    if baseline:
        conditions.append(
            "baseline: MDistiller's loop in plain PyTorch, with KD's loss (float32, PIL transforms in 2 workers,"
            " metrics read in every step); ratio and range are of the rounds"
        )
    if cases[0].warm:
        conditions.append("warm: the rounds repeat an epoch that was trained on before")
    conditions.append(
        "memory: peak of the process and its workers, + of the GPU; floor: convolutions and matrix products alone, at"
        " the machine's peak as measured in each round"
    )
    return rows, "; ".join(conditions)


def show(rows: Sequence[Row], conditions: str) -> str:
    """Return `benchmark`'s result in Markdown."""
    header = ["pair", "method", "setting", "precision", "images/s", "baseline", "ratio", "range", "memory, MiB"]
    table = []
    for row in rows:
        ratio = row.get("ratio")
        memory = f"{row['host_mib']:.0f}" + (f" + {row['device_mib']:.0f}" if row["device_mib"] else "")
        table.append(
            [
                *(row["pair"], row["method"], f"`{row['setting']}`" if row["setting"] else "–", row["precision"]),
                _quartiles(row["images_per_second"], "{:.0f}"),
                _quartiles(row["baseline"], "{:.0f}") if ratio else "–",
                _quartiles(ratio, "{:.2f}") if ratio else "–",
                f"{ratio['min']:.2f}–{ratio['max']:.2f}" if ratio else "–",
                memory,
                f"{row['floor']['median']:.0f} ({row['bound']})",
                f"{100 * row['of_floor']['median']:.0f} %",
            ]
        )
    return f"{markdown([*header, 'floor, images/s', 'of the floor'], table)}\n\n{conditions}"


def _quartiles(figures: Dict[str, float], number: str) -> str:
    return f"{number} ({number}–{number})".format(*(figures[key] for key in ("median", "q1", "q3")))
