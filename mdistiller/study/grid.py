"""The runs of a study: every method with every pair of models, variant and seed."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from yacs.config import CfgNode

from ..engine.cfg import CFG, cfg_from
from ..engine.cfg.yaml_files import base_file, merged, read_file
from ..engine.validate import config_errors
from ..errors import UserError, did_you_mean, listed, refuse
from ..paths import find_config
from .study_file import ALONE, Content, read_content

DECIDERS = "PAIRS, TEACHER, METHODS, SEEDS and --output"


@dataclass(frozen=True)
class Row:
    """What the runs of a table's row have in common; they differ in the seed."""

    pair: str
    variant: str
    method: str

    @property
    def block(self) -> str:
        """The name of its part of the table."""
        return f"{self.pair}, {self.variant}" if self.variant else self.pair


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        row: the row of its result. For a teacher `pair` is its model, `variant` and `method` are empty.
        seed: the value of `EXPERIMENT.SEED`.
        cfg: its configuration. `EXPERIMENT.NAME`, such as `vgg13_vgg8/KD/seed0`, is unique within the study.
        teacher: the name of the cell that trains its teacher; empty if no cell does.
    """

    row: Row
    seed: int
    cfg: CfgNode
    teacher: str = ""

    @property
    def name(self) -> str:
        """Its folder below those of the study's runs."""
        return str(self.cfg.EXPERIMENT.NAME)


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Attributes:
        name: the name of the study's file, without the suffix.
        teachers: the runs that come before the others.
        cells: the other runs, seed by seed, so that an unfinished study has all methods of a seed to compare.
        compare_to: the methods that the others are compared with.
        threads: the number of CPU threads of a run.
        teacher_cache: whether the runs share a cache of the teachers' outputs.
        share: names of studies whose folders, beside this one's, have teachers and runs to use.
        summaries: files with the results of runs of other studies, or on other machines.
    """

    name: str
    teachers: Tuple[Cell, ...]
    cells: Tuple[Cell, ...]
    compare_to: Tuple[str, ...]
    threads: int
    teacher_cache: bool
    share: Tuple[str, ...]
    summaries: Tuple[Path, ...]

    def all_cells(self) -> Tuple[Cell, ...]:
        """Return the teachers' cells and the others, in the order in which they run."""
        return self.teachers + self.cells

    def rows(self) -> List[Row]:
        """Return the rows, grouped by pair and variant, in the order of the file."""
        rows = list(dict.fromkeys(cell.row for cell in self.cells))
        pairs = list(dict.fromkeys(row.pair for row in rows))
        variants = list(dict.fromkeys(row.variant for row in rows))
        return sorted(rows, key=lambda row: (pairs.index(row.pair), variants.index(row.variant)))


def read_study(path: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study and build the configuration of each of its runs.

    Args:
        path: the path of the study's file, or the name of a shipped one such as `studies/main`; see `study_file`.
        overrides: `KEY VALUE …`, for every run.

    Raises:
        UserError: the file is missing or malformed, or the configuration of a run is invalid.
    """
    file = find_config(path)
    content = read_content(file)
    teachers, cells = _build(content, file, overrides)
    methods = [ALONE, *content["METHODS"]]
    compare_to = content.get("COMPARE_TO", [name for name in (ALONE, "KD") if name in methods])
    for name in compare_to:
        if name not in methods:
            raise UserError(f"{file}: COMPARE_TO names {name!r}, which is not a method{did_you_mean(name, methods)}")
    summaries = tuple(Path(os.path.normpath(file.parent / path)) for path in content["SUMMARIES"])
    return Study(
        file.stem,
        teachers,
        cells,
        tuple(compare_to),
        content["THREADS"],
        content["TEACHER_CACHE"],
        tuple(content["SHARE"]),
        summaries,
    )


def _build(content: Content, file: Path, overrides: Sequence[str]) -> Tuple[Tuple[Cell, ...], Tuple[Cell, ...]]:
    """Return the teachers' cells and the others.

    Raises:
        UserError: a configuration is invalid; one line for each error, whatever the number of runs that have it.
    """
    builder = _Builder(file, content["SETTINGS"], overrides)
    teachers: Dict[str, Cell] = {}
    for models in content["PAIRS"].values() if "TEACHER" in content else ():
        name = models["TEACHER"]
        if name not in teachers:
            row = Row(name, "", "")
            alone = {"DISTILLER": {"TYPE": "NONE", "STUDENT": name}}
            teachers[name] = builder.cell(row, 0, content["TEACHER"], models, {}, alone)
    methods = {ALONE: content["ALONE"], **content["METHODS"]}
    seeds_of = {name: method.get("SEEDS", content["SEEDS"]) for name, method in methods.items()}
    all_seeds = dict.fromkeys(seed for seeds in seeds_of.values() for seed in seeds)
    cells = []
    for seed, pair, variant, method in product(all_seeds, content["PAIRS"], content["VARIANTS"], methods):
        if seed in seeds_of[method]:
            models = content["PAIRS"][pair]
            known = {"TYPE": "NONE", "STUDENT": models["STUDENT"]} if method == ALONE else models
            teacher = teachers.get(models["TEACHER"]) if method != ALONE else None
            cells.append(
                builder.cell(
                    Row(pair, variant, method),
                    seed,
                    methods[method],
                    models,
                    content["VARIANTS"][variant],
                    {"DISTILLER": known},
                    teacher.name if teacher else "",
                )
            )
    builder.refuse()
    return tuple(teachers.values()), tuple(cells)


class _Builder:
    """Builds cells, and collects the errors in their configurations."""

    def __init__(self, file: Path, settings: Dict[str, Any], overrides: Sequence[str]) -> None:
        self.file = file
        self.settings = settings
        self.overrides = overrides
        self.rows: Dict[str, Row] = {}  # by folder in lower case, as file systems may not tell KD from kd
        self.errors: Dict[str, List[str]] = defaultdict(list)  # names of cells by message

    def cell(
        self,
        row: Row,
        seed: int,
        own: Dict[str, Any],
        models: Dict[str, str],
        variant: Dict[str, Any],
        known: Dict[str, Any],
        teacher: str = "",
    ) -> Cell:
        """Return a cell; `known` are settings that follow from its place in the grid, and that nothing else may set."""
        folder = "/".join(re.sub(r"[^\w.+-]+", "_", part) for part in (row.pair, row.variant, row.method) if part)
        if self.rows.setdefault(folder.lower(), row) != row:
            raise UserError(f"{self.file}: two rows would have the folder {folder}; rename one")
        name = f"{folder}/seed{seed}"
        placeholders = {"pair": row.pair, "teacher": models["TEACHER"], "student": models["STUDENT"]}
        base = re.sub(r"\{(\w+)\}", lambda found: placeholders.get(found[1], found[0]), str(own.get("_BASE_", "")))
        own = {key: value for key, value in own.items() if key not in ("_BASE_", "SEEDS")}
        known = merged(known, {"EXPERIMENT": {"NAME": name, "SEED": seed}, "LOG": {"PREFIX": CFG.LOG.PREFIX}})
        if teacher:
            known = merged(known, {"DISTILLER": {"TEACHER_WEIGHTS": ""}})
        start = merged(read_file(base_file(self.file, base)) if base else {}, {"LOG": {"WANDB": False}})
        given = merged(self.settings, own, variant)
        try:
            cfg = cfg_from(merged(start, given, known), str(self.file), self.overrides)
        except UserError as error:
            for line in error.faults:
                self.errors[line].append(name)
            return Cell(row, seed, CfgNode({"EXPERIMENT": {"NAME": name}}), teacher)
        for line in (*_replaced(known, given), *_replaced(known, cfg), *config_errors(cfg)):
            self.errors[line].append(name)
        return Cell(row, seed, cfg, teacher)

    def refuse(self) -> None:
        """Raise a UserError with one line for each error that was found."""
        lines = []
        for line, names in self.errors.items():
            lines.append(f"{line} (in the run {listed(names, 1)})")
        refuse(lines)


def _replaced(known: Dict[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each setting of the grid that `given` has with another value."""
    for section, settings in known.items():
        own = given.get(section) or {}
        if not isinstance(own, Mapping):
            yield f"{section} is {own!r:.80}; expected a section, such as {section}: {{KEY: VALUE}}"
            continue
        for key, value in settings.items():
            other = own.get(key, value)
            if other != value:
                yield f"{section}.{key} is {other}, but a study sets it from {DECIDERS}; remove it"
