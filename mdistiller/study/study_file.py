"""The YAML file of a study: its keys, and their validation.

Placeholders `{pair}`, `{teacher}` and `{student}` in a `_BASE_` stand for the names of the pair and its models:

    PAIRS:                                     # the models of each pair, by its name
      vgg13_vgg8: {TEACHER: vgg13, STUDENT: vgg8}
    TEACHER:                                   # how each teacher is trained, once; default: released weights
      _BASE_: cifar100/vanilla/{teacher}
    ALONE:                                     # the student alone, at the same schedule
      _BASE_: cifar100/vanilla/{student}
    METHODS:                                   # a configuration each, by name
      KD:
        _BASE_: cifar100/kd/{pair}
      SFAKD, hard mask:
        _BASE_: cifar100/sfakd/{pair}
        SFAKD: {MASK: {TYPE: hard}}
        SEEDS: [0]                             # in place of the study's
    VARIANTS:                                  # settings to run all of that with, by name; optional
      10 %: {DATASET: {TRAIN_FRACTION: 0.1}}
    SEEDS: [0, 1, 2]
    THREADS: 1                                 # CPU threads of a run
    TEACHER_CACHE: true                        # whether the runs share a cache of the teachers' outputs
    SETTINGS:                                  # of every run
      SOLVER: {EPOCHS: 30}
    COMPARE_TO: [student alone, KD]            # the methods that the others are compared with
    SHARE: [main]                              # studies beside the output whose teachers and runs are used; optional
    SUMMARIES: [main.jsonl]                    # results of other studies or machines, relative to this file; optional

The settings of a run are, later ones first: `KEY VALUE` pairs of the command line, the variant, the method's own,
`SETTINGS`, the file that `_BASE_` names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator

from ..engine.cfg.yaml_files import read_file
from ..errors import did_you_mean, refuse

ALONE = "student alone"  # the name of its row
TYPES: Dict[str, type] = {
    "PAIRS": dict,
    "TEACHER": dict,
    "ALONE": dict,
    "METHODS": dict,
    "VARIANTS": dict,
    "SEEDS": list,
    "THREADS": int,
    "TEACHER_CACHE": bool,
    "SETTINGS": dict,
    "COMPARE_TO": list,
    "SHARE": list,
    "SUMMARIES": list,
}
NAMES = {dict: "a section", list: "a list", int: "a whole number", bool: "true or false"}
REQUIRED = ("PAIRS", "ALONE", "METHODS")
NAMED = ("PAIRS", "METHODS", "VARIANTS")  # sections whose entries are sections too
MAX_THREADS = 256
DEFAULTS: Dict[str, Any] = {
    "SEEDS": [0],
    "THREADS": 1,
    "TEACHER_CACHE": True,
    "VARIANTS": {"": {}},
    "SETTINGS": {},
    "SHARE": [],
    "SUMMARIES": [],
}

Content = Dict[str, Any]


def read_content(file: Path) -> Content:
    """Return the content of a study's file, with the defaults of missing keys.

    Raises:
        UserError: the file is missing or not YAML; or one line for each wrong or missing key.
    """
    content = {**DEFAULTS, **read_file(file)}
    errors = list(_type_errors(content)) or list(_value_errors(content))
    refuse(f"{file}: {line}" for line in errors)
    return content


def _type_errors(content: Content) -> Iterator[str]:
    for key, value in content.items():
        if key not in TYPES:
            yield f"unknown key {key}{did_you_mean(key, TYPES)}"
        elif type(value) is not TYPES[key]:
            yield f"{key} is {value!r:.80}; expected {NAMES[TYPES[key]]}"
        elif key in NAMED:
            for name, entry in content[key].items():
                if not isinstance(entry, dict):
                    yield f"{key}: {name} is {entry!r:.80}; expected settings, such as SOLVER: {{LR: 0.1}}"
                elif not isinstance(name, str):
                    yield f"{key}: the name {name!r:.80} is not text; write it in quotes"
    for key in REQUIRED:
        if key not in content or (key in NAMED and not content[key]):
            yield f"{key} is missing; a study has at least {', '.join(REQUIRED)}"


def _value_errors(content: Content) -> Iterator[str]:
    for name, models in content["PAIRS"].items():
        if set(models) != {"TEACHER", "STUDENT"} or not all(isinstance(model, str) for model in models.values()):
            yield f"PAIRS: {name} is {models!r:.80}; expected {{TEACHER: model, STUDENT: model}}"
    if not content["VARIANTS"]:
        yield "VARIANTS is empty; leave it out, or name settings"
    if not 1 <= content["THREADS"] <= MAX_THREADS:
        yield f"THREADS is {content['THREADS']}; expected 1 to {MAX_THREADS}"
    for key, what in (("SUMMARIES", "file names"), ("SHARE", "names of studies")):
        for name in content[key]:
            if not isinstance(name, str):
                yield f"{key} has {name!r:.80}; expected {what}"
    if "SEEDS" in content.get("TEACHER", ()):
        yield "TEACHER has SEEDS, but teachers are trained with seed 0; leave it out"
    if ALONE in content["METHODS"]:
        yield f"METHODS has {ALONE!r}, which is a row of every study; describe it in ALONE"
    sections = {"": content, "ALONE: ": content["ALONE"]}
    sections.update({f"METHODS: {name}: ": method for name, method in content["METHODS"].items()})
    for where, section in sections.items():
        seeds = section.get("SEEDS", [0])
        whole = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
        if not (whole and seeds and len(set(seeds)) == len(seeds)):
            yield f"{where}SEEDS is {seeds!r:.80}; expected different whole numbers from 0 on, such as [0, 1, 2]"
