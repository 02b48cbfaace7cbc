"""Measure the training loop: images per second and memory, compared with a baseline loop and a roofline model."""

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
from ..engine.log.logger import RunLogger
from ..engine.run.environment import describe_hardware
from ..engine.speed.precision import pick_device, pick_precision
from .baseline import BaselineLoop
from .hardware import measure_peak
from .interleave import BatchGate, LoopProcess, TurnBudget, TurnResult, run_interleaved, spread
from .methods import Method, Row, choose, describe, markdown, pair_config
from .roofline import Cost, step_cost
from .synthetic import save_random_teacher

COST_FRACTION = 0.01  # of the training images, loaded to measure the cost of a step


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        method: the method's name in the tables.
        setting: the settings `KEY VALUE …` of this row only.
        path, overrides: the path of the configuration, and the settings `KEY VALUE …` that override it.
        warm: whether every round repeats the first epoch, after one untimed pass over it.
    """

    method: str
    setting: str
    path: str
    overrides: Tuple[str, ...]
    warm: bool

    def cfg(self) -> Any:
        return load_cfg(self.path, self.overrides)


def make_cases(
    pairs: Sequence[str],
    path: Optional[str],
    methods: Sequence[str],
    settings: Sequence[Sequence[str]],
    overrides: Sequence[str],
    warm: bool,
) -> List[Case]:
    """Return one row for every combination of pair (or the configuration at `path`), method and setting.

    Args:
        pairs: the names of CIFAR-100 pairs of teacher and student.
        path: the path of a configuration, in place of the pairs.
        methods: the names or types of the methods; if empty, SFAKD, or the method of the configuration at `path`.
        settings: the settings to compare, each `KEY VALUE …`, applied after `overrides`; if empty, one row with
            `overrides` only.
        overrides: the settings `KEY VALUE …` for all rows.
        warm: see `Case`.

    Raises:
        UserError: a pair, method or key is unknown, or a value has the wrong type.
    """
    load_cfg(None, overrides)  # loads PLUGINS, so that `methods` can name their methods
    chosen: List[Optional[Method]] = [*choose(methods)] if methods else [None if path else describe("SFAKD")]
    cases = []
    for pair, method, setting in itertools.product(pairs if path is None else [""], chosen, settings or [()]):
        file = path or pair_config(pair, method or describe("SFAKD"))
        options = ["DISTILLER.TYPE", method.type, *method.options] if method else []
        words = (*options, *overrides, *setting)
        cfg = load_cfg(file, words)
        cases.append(Case((method or describe(cfg.DISTILLER.TYPE)).name, " ".join(setting), file, words, warm))
    return cases


def run_trainer(case: Case, pipe: Connection) -> None:
    """Train like tools/train.py, but without end and without evaluation."""
    trainer = build_trainer(case.cfg())
    trainer.folder.create(resume=False)
    trainer.logger = RunLogger(trainer.folder, trainer.cfg)
    trainer.prepare()
    if case.warm:
        trainer.train_epoch(1)
    gated = BatchGate(pipe, trainer.device)(trainer.batches)
    for epoch in itertools.cycle(range(1, 2 if case.warm else 1 + trainer.cfg.SOLVER.EPOCHS)):
        trainer.start_epoch(epoch)
        trainer.train_epoch(epoch, gated())


def run_baseline(case: Case, pipe: Connection) -> None:
    """Train with the baseline loop, without end."""
    loop = BaselineLoop(case.cfg())
    batches = BatchGate(pipe, loop.device)(loop.loader.__iter__)
    while True:
        loop.train_epoch(batches)


def prepare(case: Case, folder: Path) -> Tuple[Case, Cost]:
    """Return `case` with its output in `folder` and an existing teacher, and the cost of a training step.

    Raises:
        UserError: the case cannot be trained.
    """
    own = ["LOG.PREFIX", str(folder), "LOG.WANDB", "False", "EXPERIMENT.NAME", "run", "EXPERIMENT.REFERENCE", "[]"]
    cfg = case.cfg()
    if distiller_dict[cfg.DISTILLER.TYPE].needs_teacher and not cfg.DISTILLER.TEACHER_WEIGHTS:
        own += ["DISTILLER.TEACHER_WEIGHTS", save_random_teacher(cfg, folder), "DISTILLER.TEACHER_CLASSES", ""]
    case = case._replace(overrides=(*case.overrides, *own))
    return case, _step_cost(case)


def _step_cost(case: Case) -> Cost:
    """Return the cost of a step, measured in float32 and with few images loaded."""
    cfg = case.cfg()
    cached = cfg.TEACHER_CACHE != "off"
    precision = pick_precision(cfg.SOLVER.AMP, pick_device())
    cfg.TEACHER_CACHE, cfg.TEACHER_TOP_LOGITS, cfg.SOLVER.AMP = "off", 0, "off"
    cfg.DATASET.TRAIN_FRACTION = min(COST_FRACTION, cfg.DATASET.TRAIN_FRACTION)
    trainer = build_trainer(cfg)
    trainer.step.check_losses(1)
    info, size = trainer.train_loader.info, cfg.SOLVER.BATCH_SIZE
    index = torch.arange(size, device=trainer.device) % trainer.train_loader.num_images
    image = torch.randn(size, 3, info.input_size, info.input_size, device=trainer.device)
    image = image.to(memory_format=torch.channels_last if trainer.distiller.channels_last else torch.contiguous_format)
    targets = trainer.train_loader.targets
    target = targets[index.to(targets.device)].to(trainer.device)
    batch = {"image": image, "target": target, "index": index, "epoch": 1}
    distiller = trainer.distiller
    teacher_cached = cached and case.warm and distiller.teacher is not None and "maps" not in distiller.teacher_needs
    return step_cost(distiller, batch, precision.dtype or torch.float32, teacher_cached)


def measure(case: Case, cost: Cost, baseline: bool, rounds: int, budget: TurnBudget) -> Row:
    """Measure a case and return its row.

    Args:
        case, cost: the case and the cost of its training step, as `prepare` returns them.
        baseline: whether to run the baseline loop too.
        rounds: the number of turns of each loop.
        budget: the length of a turn.

    Raises:
        UserError: the baseline cannot be trained.
    """
    cfg, device = case.cfg(), pick_device()
    precision = pick_precision(cfg.SOLVER.AMP, device)
    dtype = precision.dtype or torch.float32
    has_teacher = distiller_dict[cfg.DISTILLER.TYPE].needs_teacher
    with ExitStack() as stack:
        loops = [stack.enter_context(LoopProcess("the training loop", run_trainer, case))]
        if baseline:
            loops.append(stack.enter_context(LoopProcess("the baseline loop", run_baseline, case)))
        (ours, *others), peaks = run_interleaved(loops, rounds, budget, lambda: measure_peak(device, dtype))
    baseline_turns = others[0] if others else None
    batch_size = cfg.SOLVER.BATCH_SIZE
    bounds = [cost.min_seconds(peak) for peak in peaks]
    rooflines = [batch_size / seconds for seconds, _ in bounds]
    return {
        "pair": f"{cfg.DISTILLER.TEACHER} → {cfg.DISTILLER.STUDENT}" if has_teacher else cfg.DISTILLER.STUDENT,
        "method": case.method,
        "setting": case.setting,
        "warm": case.warm,
        "precision": str(precision),
        "batch_size": batch_size,
        **summarize(ours, baseline_turns),
        "roofline": spread(rooflines),
        "of_roofline": spread([turn.rate / roofline for turn, roofline in zip(ours, rooflines)]),
        "bound": statistics.mode(bound for _, bound in bounds),
        "cost": cost._asdict(),
        "peaks": [peak._asdict() for peak in peaks],
        "turns": {"ours": _as_dicts(ours), "baseline": _as_dicts(baseline_turns or [])},
    }


def _as_dicts(turns: Sequence[TurnResult]) -> List[Dict[str, Any]]:
    return [turn._asdict() for turn in turns]


def summarize(ours: Sequence[TurnResult], baseline: Optional[Sequence[TurnResult]]) -> Row:
    """Return images per second, their ratio to the baseline's in the same round, and peak memory in MiB."""
    row: Row = {
        "images_per_second": spread([turn.rate for turn in ours]),
        "host_mib": max(turn.host_mib for turn in ours),
        "device_mib": max(turn.device_mib for turn in ours),
    }
    if baseline is not None:
        row["baseline"] = spread([turn.rate for turn in baseline])
        row["ratio"] = spread([a.rate / b.rate for a, b in zip(ours, baseline)])
    return row


def benchmark(cases: Sequence[Case], baseline: bool, rounds: int, budget: TurnBudget) -> Tuple[List[Row], str]:
    """Measure all cases; return their rows and the conditions.

    Raises:
        UserError: a case cannot be trained. This is checked for all cases before the first measurement.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = []
        for number, case in enumerate(cases, start=1):
            place = Path(folder) / str(number)
            place.mkdir()
            prepared.append(prepare(case, place))
        for number, (case, cost) in enumerate(prepared, start=1):
            print(f"{number} of {len(cases)}: {case.path} {case.method} {case.setting}".rstrip(), file=sys.stderr)
            rows.append(measure(case, cost, baseline, rounds, budget))
    cfg = cases[0].cfg()
    length = f"{budget.steps} steps" if budget.seconds == math.inf else f"{budget.seconds:g} s"
    conditions = [
        f"{cfg.DATASET.TYPE}, batch {cfg.SOLVER.BATCH_SIZE}, {describe_hardware(pick_device())},"
        f" PyTorch {torch.__version__}; {rounds} interleaved rounds of {length}, medians (quartiles)"
    ]
    if baseline:
        conditions.append(
            "baseline: MDistiller's loop in plain PyTorch, with KD's loss (float32, PIL transforms in 2 workers,"
            " metrics read in every step); ratio and range are over the rounds"
        )
    if cases[0].warm:
        conditions.append("warm: the rounds repeat one epoch, after an untimed pass over it")
    conditions.append(
        "memory: peak of the process and its workers, + of the GPU; roofline: only convolutions and matrix products, at"
        " the machine's peak rates, measured in each round"
    )
    return rows, "; ".join(conditions)


def show(rows: Sequence[Row], conditions: str) -> str:
    """Return the result of `benchmark` in Markdown."""
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
                f"{row['roofline']['median']:.0f} ({row['bound']})",
                f"{100 * row['of_roofline']['median']:.0f} %",
            ]
        )
    return f"{markdown([*header, 'roofline, images/s', 'of roofline'], table)}\n\n{conditions}"


def _quartiles(stats: Dict[str, float], number: str) -> str:
    return f"{number} ({number}–{number})".format(*(stats[key] for key in ("median", "q1", "q3")))
