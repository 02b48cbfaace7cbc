"""Validation of the configuration: every error at once, before data or models are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence

from yacs.config import CfgNode

from .. import distributed
from ..dataset import dataset_dict
from ..dataset.options import option_errors
from ..distillers import distiller_dict
from ..distillers._base import knows, section_owner
from ..distillers._plugins import unread_sections
from ..errors import UserError, refuse
from ..models import check_model
from ..paths import expanded, find_file, validate_path
from ..ranges import MAX_NUMBER
from .cfg import CACHES, CFG, PRETRAINED, Fault, experiment_name, leaves, read_cfg, to_dict
from .networks.build import input_errors
from .networks.teacher_classes import read_outputs
from .resume import check_settings_unchanged, keep_schedule, saved_run
from .run.records import read_references
from .solver.soft_labels import soft_label_errors, unlabeled_errors
from .trainer import trainer_dict
from .validate_solver import error_of, solver_errors, unmet

MAX_NAME_LENGTH = 255  # characters
OPTIONS_OF_METHODS = {  # published methods that are not values of DISTILLER.TYPE
    "DOT": "set DISTILLER.TYPE KD, or another method with cross-entropy, and SOLVER.TRAINER dot",
    "LSKD": "set DISTILLER.TYPE KD or DKD, and KD.LOGIT_STAND True or DKD.LOGIT_STAND True",
    "TTM": "set DISTILLER.TYPE WTTM and WTTM.WEIGHTED False",
}


def load_valid_cfg(
    path: Optional[str] = None, overrides: Sequence[str] = (), resume: bool = False, overwrite: bool = False
) -> CfgNode:
    """Load the configuration of a run as `load_cfg` does, and validate it.

    A resumed run keeps its saved length and decay stages, except where `overrides` give others; see `resume.py`.

    Args:
        path: the path of the YAML file.
        overrides: `KEY VALUE KEY VALUE …`, words of the command line.
        resume, overwrite: the arguments that `Trainer.train` will get.

    Raises:
        UserError: the file cannot be read; or one line for each unknown key, wrong type, value out of range, unknown
            name and impossible combination; or the settings differ from those of the run to resume.
    """
    cfg, faults = read_cfg(path, overrides)
    return validated(cfg, overrides, resume, overwrite, faults)


def validated(
    cfg: CfgNode, overrides: Sequence[str], resume: bool, overwrite: bool, faults: Sequence[Fault] = ()
) -> CfgNode:
    """Return the configuration of a run, validated, with the saved length and decay stages if the run is resumed.

    Args:
        cfg: the configuration; changed in place.
        overrides, resume, overwrite: see `load_valid_cfg`.
        faults: the faults that were found where the configuration was read.

    Raises:
        UserError: see `load_valid_cfg`.
    """
    saved = None if faults or any(_folder_errors(cfg)) else saved_run(cfg, resume, overwrite)
    if saved is not None:
        keep_schedule(cfg, saved, overrides)
    # A rejected value was replaced by its default; report nothing about the default.
    rejected = [re.compile(rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)") for key, _ in faults]
    lines = [line for _, line in faults]
    refuse(lines + [line for line in config_errors(cfg) if not any(key.search(line) for key in rejected)])
    if saved is not None:
        check_settings_unchanged(cfg, saved)
    return cfg


def config_errors(cfg: CfgNode) -> List[str]:
    """Return one line for each error in a configuration that shows before data and models are loaded."""
    return [*_name_errors(cfg), *setting_errors(cfg)]


def _name_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each unknown name, and for each impossible combination of names."""
    for registry, name in (
        (distiller_dict, cfg.DISTILLER.TYPE),
        (trainer_dict, cfg.SOLVER.TRAINER),
        (dataset_dict, cfg.DATASET.TYPE),
    ):
        if name in OPTIONS_OF_METHODS and registry is distiller_dict and name not in distiller_dict:
            yield f"DISTILLER.TYPE {name} is an option of other methods: {OPTIONS_OF_METHODS[name]}"
        else:
            yield from error_of(registry.__getitem__, name)
    distiller = distiller_dict.get(cfg.DISTILLER.TYPE)
    needs_teacher = distiller is not None and distiller.needs_teacher
    for role in ("STUDENT", *(["TEACHER"] if needs_teacher else [])):
        yield from _model_errors(cfg, role)
    if distiller is not None:
        yield from soft_label_errors(cfg, distiller)
        yield from unlabeled_errors(cfg, distiller)
    yield from error_of(read_references, cfg.EXPERIMENT.REFERENCE)
    if cfg.SOLVER.TRAINER in trainer_dict:
        section = cfg.get(cfg.DISTILLER.TYPE, {})
        names = None
        if distiller is not None and knows(distiller, "loss_names", section):
            names = distiller.loss_names(section)
        yield from trainer_dict[cfg.SOLVER.TRAINER].update_rule.config_errors(cfg, names)


def _model_errors(cfg: CfgNode, role: str) -> Iterator[str]:
    """Yield a line for each error in the name, weights and arguments of the `STUDENT` or the `TEACHER`."""
    options = cfg.DISTILLER
    yield from error_of(check_model, options[role], cfg.DATASET.TYPE, cfg.DATASET.INPUT_SIZE)
    weights = options[f"{role}_WEIGHTS"]
    if weights not in ("", PRETRAINED) and not find_file(weights).is_file():
        yield f"DISTILLER.{role}_WEIGHTS: no checkpoint at {weights}; give the path of a .pth file"
    for key, example in (("ARGS", "{img_size: 64}"), ("FEATURES", "{classifier: fc, final_map: layer4}")):
        given = options[f"{role}_{key}"]
        if given is not None and not (isinstance(given, dict) and all(isinstance(name, str) for name in given)):
            yield f"DISTILLER.{role}_{key} is {given!r}; expected names and values, as in '{example}'"
    if role == "TEACHER":
        yield from filter(None, [input_errors(options.TEACHER_INPUT)])
        if options.TEACHER_CLASSES:
            yield from error_of(read_outputs, options.TEACHER_CLASSES)


def check_settings(cfg: CfgNode) -> None:
    """Raise one UserError with a line for each of `setting_errors`."""
    refuse(setting_errors(cfg))


def setting_errors(cfg: CfgNode) -> List[str]:
    """Return one line for each impossible value, or combination of values; `config_errors` also checks names.

    The sections `SOLVER`, `LOG`, `EXPERIMENT` and `DATASET` are checked, and that of the chosen distiller. For a
    plug-in, so are the sections of other distillers that differ from the defaults.
    """
    errors = [*solver_errors(cfg)]
    errors += unmet(
        cfg.LOG,
        (cfg.LOG.TENSORBOARD_FREQ >= 1, "LOG.TENSORBOARD_FREQ", "steps, at least 1"),
        (cfg.LOG.SAVE_CHECKPOINT_FREQ >= 1, "LOG.SAVE_CHECKPOINT_FREQ", "epochs, at least 1"),
    )
    seed = 0 <= cfg.EXPERIMENT.SEED < 2**63
    errors += unmet(cfg.EXPERIMENT, (seed, "EXPERIMENT.SEED", "a whole number from 0 to below 2^63"))
    errors += [*_folder_errors(cfg), *_cache_errors(cfg), *option_errors(cfg.DATASET)]
    chosen = cfg.DISTILLER.TYPE
    unread = unread_sections(chosen)
    read = [name for name in distiller_dict if name not in unread and cfg.get(name) != CFG.get(name)]
    by_class = {distiller_dict[name]: name for name in (*read, chosen) if name in distiller_dict}
    errors += _unused_section(cfg)
    for distiller, name in by_class.items():
        if knows(distiller, "config_errors", cfg.get(name)):
            errors += distiller.config_errors(cfg[name], name)
    return errors


def _unused_section(cfg: CfgNode) -> Iterator[str]:
    """Yield a line if settings are in a section that the constructor, inherited from the library, does not read."""
    name = cfg.DISTILLER.TYPE
    distiller = distiller_dict.get(name)
    if distiller is None or cfg.get(name) == CFG.get(name):
        return
    builder: Any = next(c for c in distiller.__mro__ if "__init__" in vars(c))
    of_library = bool(unread_sections(builder.section))  # a constructor of a plug-in may read any section
    if of_library and builder is not distiller and section_owner(distiller, builder) is builder:
        yield (
            f"{name} inherits the constructor of {builder.__name__}, which reads the section {builder.section}; set"
            f" {builder.section}.KEY instead of {name}.KEY, or give the class DEFAULTS of its own"
        )


def _folder_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield a line if the output folder is impossible or not below LOG.PREFIX."""
    name = experiment_name(cfg)
    if not (cfg.EXPERIMENT.NAME or (cfg.EXPERIMENT.PROJECT and cfg.EXPERIMENT.TAG)):
        yield (
            f"EXPERIMENT.NAME is {cfg.EXPERIMENT.NAME!r}; expected a name for the output folder, or PROJECT and TAG to"
            " make one of"
        )
        return
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts or len(name) > MAX_NAME_LENGTH:
        yield (
            f"EXPERIMENT.NAME (or PROJECT/TAG) is {name!r:.80}; expected a folder below LOG.PREFIX, of at most"
            f" {MAX_NAME_LENGTH} characters: set LOG.PREFIX to write elsewhere"
        )
        return
    try:
        f"{cfg.LOG.PREFIX}/{name}".encode()  # it is written to worklog.txt
        validate_path(expanded(cfg.LOG.PREFIX) / name)
    except UnicodeEncodeError:
        yield "EXPERIMENT.NAME or LOG.PREFIX is not valid UTF-8; give another name"
    except UserError as error:
        yield f"EXPERIMENT.NAME or LOG.PREFIX: {error}"


def _cache_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield a line for each error in the keys of the teacher cache.

    This includes a misspelled `off` or `memory`, which would otherwise be taken as a folder name.
    """
    choice = cfg.TEACHER_CACHE
    yield from unmet(
        cfg,
        (0 <= cfg.TEACHER_CACHE_GB <= MAX_NUMBER, "TEACHER_CACHE_GB", "a number of GiB, or 0 for no limit of its own"),
        (cfg.TEACHER_TOP_LOGITS >= 0, "TEACHER_TOP_LOGITS", "a number of logits, or 0 for all"),
    )
    if choice == "off" and cfg.TEACHER_TOP_LOGITS > 0:
        yield (
            f"TEACHER_TOP_LOGITS is {cfg.TEACHER_TOP_LOGITS!r}; expected 0 with TEACHER_CACHE off: set TEACHER_CACHE to"
            " memory or a folder"
        )
    section = cfg.get(cfg.DISTILLER.TYPE)
    if cfg.TEACHER_TOP_LOGITS > 0 and isinstance(section, dict) and section.get("LOGIT_STAND"):
        yield (
            f"TEACHER_TOP_LOGITS is {cfg.TEACHER_TOP_LOGITS!r}; expected 0 with {cfg.DISTILLER.TYPE}.LOGIT_STAND, which"
            " needs the mean of all logits"
        )
    if cfg.TEACHER_TOP_LOGITS > 0 and getattr(distiller_dict.get(cfg.DISTILLER.TYPE), "needs_all_logits", False):
        yield (
            f"TEACHER_TOP_LOGITS is {cfg.TEACHER_TOP_LOGITS!r}; expected 0 with {cfg.DISTILLER.TYPE}, which compares"
            " the logit of each class with the label's"
        )
    try:
        folder = expanded(choice)
        if not (choice in CACHES or "/" in f"{choice}{folder}" or (choice and folder.is_dir())):
            yield f"TEACHER_CACHE is {choice!r}; expected off, memory, or a folder such as ./cache"
    except UserError as error:
        yield f"TEACHER_CACHE: {error}"


# Keys that may differ between processes, besides `LOG`: paths, which depend on the machine, and what the main process
# does alone.
MAY_DIFFER_BETWEEN_PROCESSES = (
    *("PLUGINS", "EXPERIMENT.REFERENCE", "DATASET.ROOT", "DATASET.UNLABELED", "DATASET.NUM_WORKERS"),
    *("DISTILLER.TEACHER_WEIGHTS", "DISTILLER.STUDENT_WEIGHTS", "DISTILLER.TEACHER_CLASSES"),
)


def check_same_settings(cfg: CfgNode) -> None:
    """Raise a UserError if the processes of a group were given different settings."""
    of_all = distributed.all_gather(dict(leaves(to_dict(cfg))))
    differing = [
        f"{key} is {of_all[0].get(key)!r} for process 0, {other.get(key)!r} for process {number}"
        for number, other in enumerate(of_all)
        for key in {**of_all[0], **other}
        if other.get(key) != of_all[0].get(key)
        and not key.startswith("LOG.")
        and key not in MAY_DIFFER_BETWEEN_PROCESSES
    ]
    if differing:
        raise UserError(f"the processes have different settings ({'; '.join(differing[:3])}); give all the same")
