"""Compare all methods: the teacher outputs that each uses, its extra parameters, its step time, and its accuracy."""

from __future__ import annotations

import inspect
import re
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

from torch import nn
from yacs.config import CfgNode

from ..dataset import Batch, get_dataset
from ..distillers import Distiller, Vanilla, distiller_dict
from ..distillers._plugins import build_distiller
from ..engine.build import build_trainer, seed_everything
from ..engine.cfg import load_cfg, resolved
from ..engine.run.environment import describe_hardware
from ..engine.run.signals import StopSignals
from ..engine.speed.precision import pick_device, prepare_device
from ..engine.trainer import Trainer, trainer_dict
from ..engine.validate import check_settings
from ..errors import UserError, did_you_mean
from ..models import build_model
from ..paths import find_file
from .hardware import synchronize_device
from .interleave import spread
from .teacher_usage import used_outputs

Row = Dict[str, Any]

CONFIGS = Path("configs/cifar100")
EPOCH = 30  # of the measured steps, after the warm-up of every method


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
        name: the method's name in the literature.
        paper: the title and the year of its paper; empty without a paper.
        type: the value of `DISTILLER.TYPE` that selects it.
        options: the settings `KEY VALUE …`, for a method that is an option of another method.
    """

    name: str
    paper: str
    type: str
    options: Tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The method's settings in a configuration, in Markdown."""
        return ", ".join([f"`{self.type}`", *(f"`{k} {v}`" for k, v in zip(self.options[::2], self.options[1::2]))])


METHODS_BY_OPTION = (
    Method(
        "LSKD",
        "Logit Standardization in Knowledge Distillation (2024)",
        "KD",
        ("KD.LOGIT_STAND", "True", "KD.TEMPERATURE", "2.0", "KD.LOSS.KD_WEIGHT", "9.0"),
    ),
    Method("DOT", "DOT: A Distillation-Oriented Trainer (2023)", "KD", ("SOLVER.TRAINER", "dot")),
    Method(
        "hard cut after the idea of FAM",
        "Frequency Attention for Knowledge Distillation (2024)",
        "SFAKD",
        ("SFAKD.MASK.TYPE", "hard"),
    ),
)


def describe(type_name: str) -> Method:
    """Return the method of a `DISTILLER.TYPE`, described by its module's docstring: `NAME: … "Title" (year …`."""
    module = inspect.getmodule(distiller_dict[type_name])
    text = " ".join((module.__doc__ or "").split()) if module else ""
    found = re.match(r'(?:(\S+): )?.*?"([^"]+)" \((\d{4})', text)
    if distiller_dict[type_name] is Vanilla or found is None:
        return Method("student alone" if type_name == "NONE" else distiller_dict[type_name].__name__, "", type_name)
    name, title, year = found.groups()
    return Method(name or type_name, f"{title} ({year})", type_name)


def choose(names: Sequence[str] = ()) -> List[Method]:
    """Return the methods with these names or types, or all methods without names.

    Raises:
        UserError: a name is unknown.
    """
    types = {distiller: name for name, distiller in reversed(list(distiller_dict.items()))}  # one name for each class
    methods = [describe(name) for name in reversed(list(types.values()))] + list(METHODS_BY_OPTION)
    known = {**{method.type: method for method in reversed(methods)}, **{method.name: method for method in methods}}
    for name in names:
        if name not in known:
            raise UserError(f"unknown method {name!r}{did_you_mean(name, known)}")
    return [known[name] for name in names] or methods


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def pair_config(pair: str, method: Method) -> str:
    """Return the path of the method's configuration for a CIFAR-100 pair, or of SFAKD's if the method has none.

    Raises:
        UserError: the pair is unknown.
    """
    folder = find_file(CONFIGS)
    known = [path.stem for path in (folder / "sfakd").glob("*.yaml")]
    if pair not in known:
        raise UserError(f"unknown pair {pair!r}{did_you_mean(pair, known)}")
    own = folder / method.type.lower() / f"{pair}.yaml"
    return str(own if own.is_file() else folder / "sfakd" / own.name)


def cost_table(
    pair: str, methods: Sequence[Method], overrides: Sequence[str], rounds: int = 7, steps: int = 4
) -> Tuple[List[Row], str]:
    """Compare the costs of methods.

    The methods train from fresh weights, in turns of `steps` steps, for `rounds` rounds. A step time is the median over
    the rounds of the ratio to KD's time in the same round; its spread is the quartiles.

    Returns:
        rows with the used teacher outputs, the extra parameters and the step time of each method, and the conditions.
    """
    device = pick_device()
    prepare_device(device)
    kd = describe("KD")
    configs = []
    for method in (kd, *methods):
        options = ["DISTILLER.TYPE", method.type, "DATASET.TYPE", "fashion_demo", *method.options, *overrides]
        configs.append(load_cfg(pair_config(pair, method), options))
        check_settings(configs[-1])
    train_loader, _, num_data, num_classes = get_dataset(configs[0], device)
    info = train_loader.info
    batches = list(islice(train_loader, steps))
    models = (configs[0].DISTILLER.TEACHER, configs[0].DISTILLER.STUDENT)
    teacher = build_model(models[0], num_classes, info.name, info.input_size).to(device)

    def make_distiller(cfg: CfgNode, teacher: nn.Module) -> Distiller:
        seed_everything(cfg.EXPERIMENT.SEED)
        student = build_model(models[1], num_classes, info.name, info.input_size).to(device)
        distiller = build_distiller(cfg.DISTILLER.TYPE, student, teacher, cfg, num_data)
        distiller.attach_data(train_loader)
        return distiller.to(device).train()

    rows: List[Row] = []
    trainers: List[Trainer] = []
    for method, cfg in zip((kd, *methods), configs):
        print(f"building {method.name}", file=sys.stderr)
        cfg = resolved(cfg, INPUT_SIZE=info.input_size)
        needs = used_outputs(partial(make_distiller, cfg), teacher, {**batches[0], "epoch": EPOCH})
        distiller = make_distiller(cfg, teacher)
        trainer = trainer_dict[cfg.SOLVER.TRAINER](method.name, distiller, train_loader, None, cfg)
        trainer.prepare()
        trainers.append(trainer)
        extra = distiller.get_extra_parameters()
        rows.append({"method": method.name, "paper": method.paper, "key": method.key, "needs": needs, "extra": extra})
    times = _interleaved_times(trainers, batches, rounds)
    for index, row in enumerate(rows):
        ratios = [round_times[index] / round_times[0] for round_times in times]
        found = spread(ratios)
        row["step_time"], row["spread"] = found["median"], [found["q1"], found["q3"]]
    milliseconds = 1000 * statistics.median(round_times[0] for round_times in times) / len(batches)
    conditions = (
        f"{models[0]} → {models[1]}, {info.name} ({num_data} images), batch {train_loader.batch_size},"
        f" {trainers[0].precision}, {describe_hardware(device)}; {rounds} interleaved rounds of {len(batches)}"
        f" steps, median (quartiles); KD's step took {milliseconds:.0f} ms"
    )
    return rows[1:], conditions


def _interleaved_times(trainers: Sequence[Trainer], batches: Sequence[Batch], rounds: int) -> List[List[float]]:
    """Train on `batches` with each trainer, in each round; return the seconds by round and trainer."""

    def seconds(trainer: Trainer) -> float:
        assert trainer.step.networks is not None
        started = time.perf_counter()
        with trainer.step.networks.in_place():
            for step, batch in enumerate(batches):
                trainer.train_step(trainer.in_memory_format(batch), EPOCH, step, len(trainer.train_loader))
        synchronize_device(trainer.device)
        return time.perf_counter() - started

    for trainer in trainers:
        seconds(trainer)  # the first steps tune kernels and fill caches
    times = []
    for number in range(rounds):
        order = list(enumerate(trainers))[:: -1 if number % 2 else 1]  # so that none always comes first
        times.append([took for _, took in sorted((place, seconds(trainer)) for place, trainer in order)])
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return times


def show_costs(rows: Sequence[Row], conditions: str) -> str:
    """Return the result of `cost_table` in Markdown."""
    header = ["method", "paper", "config", "needs of the teacher", "extra parameters", "step time / KD"]
    table = [
        [
            *(row[name] or "–" for name in ("method", "paper", "key")),
            ", ".join(row["needs"]) or "–",
            f"{row['extra']:,}",
            f"{row['step_time']:.2f} ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})",
        ]
        for row in rows
    ]
    return f"{markdown(header, table)}\n\n{conditions}"


def train_each(methods: Sequence[Method], epochs: int, overrides: Sequence[str]) -> Tuple[List[Row], str]:
    """Train each method for a few epochs, by default resnet8 with the demo's images and teacher.

    The run folders are temporary.

    Returns:
        rows with the run's summary of each method, and the conditions.
    """
    rows: List[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            own = ["DISTILLER.TYPE", method.type, "SOLVER.EPOCHS", str(epochs), "EXPERIMENT.REFERENCE", "[]"]
            where = ["EXPERIMENT.NAME", method.name, "LOG.PREFIX", folder]
            cfg = load_cfg("configs/demo/sfakd.yaml", [*own, *method.options, *overrides, *where])
            with redirect_stdout(sys.stderr):
                trainer = build_trainer(cfg)
                trainer.stop = StopSignals(())  # the run folder is removed, so there is no point in saving a state
                summary = trainer.train()
            rows.append({**method._asdict(), "key": method.key, "summary": summary})
    last = rows[-1]["summary"]
    conditions = (
        f"{last['dataset']}: {last['train_images']} training and {last['val_images']} validation images,"
        f" {last['num_classes']} classes; student {last['student']}, {epochs} epochs, seed {last['seed']},"
        f" {last['precision']}"
    )
    return rows, conditions


def show_learning(rows: Sequence[Row], conditions: str) -> str:
    """Return the result of `train_each` in Markdown."""
    table = []
    for row in rows:
        summary = row["summary"]
        chance = 100 / summary["num_classes"]
        top1 = summary["last"]["deployed_top1"]
        table.append([row["name"], row["key"], f"{top1:.2f}", f"{chance:.2f}", f"{top1 / chance:.1f}"])
    return f"{markdown(['method', 'config', 'last top-1, %', 'chance, %', 'times chance'], table)}\n\n{conditions}"
