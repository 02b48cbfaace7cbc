"""The keyword options of `mdistiller.distill`, and the configuration that they stand for."""

from __future__ import annotations

import os
from collections import Counter
from copy import deepcopy
from typing import Any, Dict, Iterator, Mapping, Tuple

from ..distillers._plugins import plugin_list
from ..engine.cfg.values import MAPPINGS
from ..errors import UserError, did_you_mean, listed, refuse

SOURCE = "mdistiller.distill"
EXPECTED = "expected values by key, such as {'SFAKD.SIGMA': 0.2}"

OPTIONS = {
    "epochs": "SOLVER.EPOCHS",
    "batch_size": "SOLVER.BATCH_SIZE",
    "lr": "SOLVER.LR",
    "optimizer": "SOLVER.TYPE",
    "schedule": "SOLVER.SCHEDULE",
    "warmup_epochs": "SOLVER.WARMUP_EPOCHS",
    "weight_decay": "SOLVER.WEIGHT_DECAY",
    "momentum": "SOLVER.MOMENTUM",
    "amp": "SOLVER.AMP",
    "ema": "SOLVER.EMA",
    "label_smoothing": "SOLVER.LABEL_SMOOTHING",
    "checkpoint_every": "SOLVER.CHECKPOINT_EVERY",
    "eval_every": "SOLVER.EVAL_EVERY",
    "seed": "EXPERIMENT.SEED",
    "input_size": "DATASET.INPUT_SIZE",
    "mean": "DATASET.MEAN",
    "std": "DATASET.STD",
    "augment": "DATASET.AUGMENT",
    "flip": "DATASET.FLIP",
    "mixup": "DATASET.MIXUP",
    "cutmix": "DATASET.CUTMIX",
    "val_fraction": "DATASET.VAL_FRACTION",
    "num_workers": "DATASET.NUM_WORKERS",
    "teacher_weights": "DISTILLER.TEACHER_WEIGHTS",
    "teacher_input": "DISTILLER.TEACHER_INPUT",
    "teacher_classes": "DISTILLER.TEACHER_CLASSES",
    "student_weights": "DISTILLER.STUDENT_WEIGHTS",
    "teacher_cache": "TEACHER_CACHE",
    "wandb": "LOG.WANDB",
}
# Unlike the configuration's, so that any number of epochs is a whole schedule, and nothing leaves the machine.
DEFAULTS: Dict[str, Any] = {"SOLVER.SCHEDULE": "cosine", "LOG.WANDB": False}
ARGUMENTS = {
    "DISTILLER.TYPE": "method",
    "DISTILLER.STUDENT": "student",
    "DISTILLER.TEACHER": "teacher",
    "DATASET.TYPE": "train_data",
    "LOG.PREFIX": "output",
    "EXPERIMENT.NAME": "output",
}


def given_keys(options: Mapping[str, Any], settings: Mapping[str, Any]) -> Dict[str, Any]:
    """Return values by configuration key, such as `SOLVER.EPOCHS`.

    Args:
        options: the values of options, by their names in `OPTIONS`.
        settings: further values, by configuration key; sections may also be mappings, as in a YAML file.

    Raises:
        UserError: one line for each unknown option, and for each key that is given twice or by an argument.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"settings is {settings!r:.200}; {EXPECTED}")
    flat = list(_flat(settings))
    repeated = [key for key, count in Counter(key for key, _ in flat).items() if count > 1]
    if repeated:
        raise UserError(f"settings gives {listed(repeated)} more than once; give each key once")
    refuse(_faults(options, dict(flat)))
    values = {**{OPTIONS[name]: value for name, value in options.items()}, **dict(flat)}
    return {
        key: os.fspath(value) if isinstance(value, os.PathLike) else deepcopy(value) for key, value in values.items()
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Yield the values of settings by full key; a section may be given as a mapping, as in a YAML file."""
    for key, value in settings.items():
        if not isinstance(key, str):
            raise UserError(f"settings has the key {prefix}{key!r:.100}; {EXPECTED}")
        if isinstance(value, Mapping) and f"{prefix}{key}" not in MAPPINGS:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _faults(options: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    for name in options:
        if name not in OPTIONS:
            yield f"unknown option {name!r}{did_you_mean(name, OPTIONS)}; other keys go to settings={{'KEY': value}}"
        elif OPTIONS[name] in settings:
            yield f"{name} and settings[{OPTIONS[name]!r}] are the same key; give one of them"
    for key in settings:
        if key in ARGUMENTS:
            yield f"settings has {key!r}, which the argument {ARGUMENTS[key]} sets; give that instead"


def output_keys(output: str | os.PathLike[str]) -> Dict[str, Any]:
    """Return the keys of the output folder.

    Raises:
        UserError: `output` does not end in a name.
    """
    if not isinstance(output, (str, os.PathLike)):
        raise UserError(f"output is a {type(output).__name__}; expected the path of a folder")
    parent, name = os.path.split(os.fspath(output).rstrip("/"))
    if name in ("", ".", ".."):
        raise UserError(f"output is {os.fspath(output)!r}; expected a folder with a name, such as 'output/my_run'")
    return {"LOG.PREFIX": parent or ".", "EXPERIMENT.NAME": name}


def nested(keys: Mapping[str, Any]) -> Dict[str, Any]:
    """Return values by full key as nested dictionaries, as a YAML file has them.

    Raises:
        UserError: a key is given as a value and as a section.
    """
    content: Dict[str, Any] = {}
    for key, value in keys.items():
        *sections, last = key.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(
                    f"settings gives {section} both as a value and as a section, in {key}; give one of them"
                )
        node[last] = plugin_list(value, SOURCE) if key == "PLUGINS" else value
    return content


def as_words(keys: Mapping[str, Any]) -> Tuple[str, ...]:
    """Return `KEY VALUE …`, as on the command line, to say which keys were given."""
    return tuple(word for key, value in keys.items() for word in (key, str(value)))
