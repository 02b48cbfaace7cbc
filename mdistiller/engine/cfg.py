"""The configuration: every key with its default, and how files and overrides change it.

A file may name another with `_BASE_: path` (relative to itself, or a shipped one), whose values it then changes. Each
distiller's own section comes from the `DEFAULTS` beside its code; the distillers that `PLUGINS` names are loaded before
anything else is read.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import yaml
from yacs.config import CfgNode as CN

from ..distillers import distiller_dict
from ..distillers._plugins import is_file, load, plugin_list
from ..errors import UserError, did_you_mean, refuse
from ..paths import anywhere, find_config
from .cfg_files import read_file
from .cfg_sections import add_sections, complete
from .cfg_values import from_word, leaves, to_dict, typed, undeclared


class Config(CN):
    """A `CfgNode` that merges as this module does, for scripts written for MDistiller."""

    def merge_from_file(self, cfg_filename: str) -> None:
        """Change the configuration by a YAML file, `_BASE_` and `PLUGINS` included."""
        content = read_file(find_config(cfg_filename))
        _plug_in(self, content.pop("PLUGINS", []))
        refuse(line for _, line in _merge(self, CFG, content, str(cfg_filename)))

    def merge_from_list(self, cfg_list: Sequence[str]) -> None:
        """Change the configuration by `KEY VALUE` pairs, values as words of a command line."""
        merge_overrides(self, [str(part) for part in cfg_list])


CFG = Config()

CFG.EXPERIMENT = CN()
CFG.EXPERIMENT.PROJECT = "distill"
CFG.EXPERIMENT.NAME = ""  # output folder below LOG.PREFIX; empty: PROJECT/TAG
CFG.EXPERIMENT.TAG = "default"
CFG.EXPERIMENT.SEED = 0
CFG.EXPERIMENT.REFERENCE = []  # summary.json files of other runs, listed in the final table

CFG.DATASET = CN()
CFG.DATASET.TYPE = "cifar100"
CFG.DATASET.ROOT = ""  # empty: the data set's own folder below data/
CFG.DATASET.NUM_WORKERS = 2
CFG.DATASET.INPUT_SIZE = None  # side in pixels; None: the data set's own
CFG.DATASET.MEAN = None  # of images in [0, 1]; None: known or measured once
CFG.DATASET.STD = None
CFG.DATASET.TRAIN_FRACTION = 1.0  # class-balanced part of the training set, in (0, 1]
CFG.DATASET.VAL_FRACTION = 0.0  # class-balanced part of train/ to validate on where there is no val/, in [0, 1)
CFG.DATASET.AUGMENT = "auto"  # auto | pad_crop | resized_crop | rotate_flip | none
CFG.DATASET.PADDING = 4  # pixels, of pad_crop
CFG.DATASET.ROTATION = 20.0  # largest angle of rotate_flip, degrees
CFG.DATASET.FLIP = True  # mirror half of the training images (not with AUGMENT none); False for digits, text, arrows
CFG.DATASET.IN_MEMORY = "auto"  # auto | yes | no
CFG.DATASET.MEMORY_GB = 2.0  # what auto may fill with images, GiB
CFG.DATASET.CORRUPT = "refuse"  # refuse | skip | unchecked: pictures that cannot be read
CFG.DATASET.TEST = CN()
CFG.DATASET.TEST.BATCH_SIZE = None  # None: 256 images of 32 px, or as many pixels of larger ones, at least 64

CFG.DISTILLER = CN()
CFG.DISTILLER.TYPE = "NONE"
CFG.DISTILLER.TEACHER = "ResNet50"
CFG.DISTILLER.STUDENT = "resnet32"
CFG.DISTILLER.TEACHER_WEIGHTS = ""  # checkpoint; empty: the released one of that name

CFG.SOLVER = CN()
CFG.SOLVER.TRAINER = "base"
CFG.SOLVER.BATCH_SIZE = 64
CFG.SOLVER.EPOCHS = 240
CFG.SOLVER.LR = 0.05
CFG.SOLVER.SCHEDULE = "step"  # step | cosine | linear
CFG.SOLVER.LR_DECAY_STAGES = [150, 180, 210]  # epochs after which the rate falls
CFG.SOLVER.LR_DECAY_RATE = 0.1
CFG.SOLVER.WARMUP_EPOCHS = 0.0  # linear rise of the rate from 0, before the schedule's own value
CFG.SOLVER.WEIGHT_DECAY = 0.0001
CFG.SOLVER.MOMENTUM = 0.9
CFG.SOLVER.NESTEROV = False
CFG.SOLVER.TYPE = "SGD"
CFG.SOLVER.DOT = CN()
CFG.SOLVER.DOT.DELTA = 0.075  # by which trainer dot parts the momenta of task and distillation
CFG.SOLVER.AMP = "auto"  # auto | off | bf16 | fp16
CFG.SOLVER.COMPILE = "off"  # off | default | reduce-overhead | max-autotune: torch.compile's mode
CFG.SOLVER.SYNC_BN = True  # whether BatchNorm sees the images of all processes
CFG.SOLVER.CHECKPOINT_EVERY = ""  # "500 steps" | "10 minutes", besides after each epoch

CFG.LOG = CN()
CFG.LOG.TENSORBOARD_FREQ = 500  # steps
CFG.LOG.SAVE_CHECKPOINT_FREQ = 40  # epochs between the checkpoints that are kept
CFG.LOG.PREFIX = "./output"
CFG.LOG.WANDB = True

CACHES = ("off", "memory")
CFG.TEACHER_CACHE = "off"  # off | memory | a folder: where the teacher's logits or pooled features are kept

CFG.PLUGINS = []  # files and modules with distillers of one's own

UNKNOWN = "unknown config key"
Fault = Tuple[str, str]  # the key, and the line that says what is wrong with it

LIBRARY_SECTIONS = tuple(CFG)
add_sections(CFG, LIBRARY_SECTIONS)

COMMAND_LINE = "the command line"  # as the source of a value, in messages


def show_cfg(cfg: CN) -> None:
    """Print the resolved configuration: the distiller's own section, not those of the others."""
    others = set(distiller_dict) - {cfg.DISTILLER.TYPE}
    print(CN({name: section for name, section in cfg.items() if name not in others}))


def load_cfg(path: Optional[str] = None, overrides: Sequence[str] = ()) -> CN:
    """Return the defaults, changed by the YAML file at `path`, then by `overrides` (`KEY VALUE KEY VALUE …`).

    Raises:
        UserError: a missing or malformed file; or a line for each unknown key, each value of the wrong type, and an
            override without a value.
    """
    cfg, faults = read_cfg(path, overrides)
    refuse(line for _, line in faults)
    return cfg


def read_cfg(path: Optional[str] = None, overrides: Sequence[str] = ()) -> Tuple[CN, List[Fault]]:
    """Return what `load_cfg` does, as far as it can be read, and what is wrong with the rest."""
    content = {} if path is None else read_file(find_config(path))
    plugins = content.pop("PLUGINS", [])
    cfg = CFG.clone()
    # before the file's other keys, which they may define; those of the command line stand in place of the file's
    _plug_in(cfg, dict(_pairs(overrides)).get("PLUGINS", plugins))
    faults = list(_merge(cfg, CFG, content, str(path)))
    return cfg, faults + _merge_pairs(cfg, overrides)


def merge_known(cfg: CN, change: Dict[str, Any], source: str) -> None:
    """Change `cfg` in place by nested dictionaries that another version may have written: unknown keys are dropped."""
    faults = _merge(cfg, CFG, change, source)
    refuse(line for _, line in faults if not line.startswith(UNKNOWN))


def merge_overrides(cfg: CN, overrides: Sequence[str]) -> None:
    """Change `cfg` in place by `KEY VALUE` pairs; values are YAML, except texts, which are taken unchanged."""
    refuse(line for _, line in _merge_pairs(cfg, overrides))


def _merge_pairs(cfg: CN, overrides: Sequence[str]) -> List[Fault]:
    faults: List[Fault] = []
    if len(overrides) % 2:
        lone = overrides[-1]
        example = "expected KEY VALUE pairs, for example SOLVER.LR 0.1"
        faults.append((lone, f"override {lone!r} has no value; {example}"))
    pairs = _pairs(overrides)
    for key, value in pairs:
        if key == "PLUGINS":
            _plug_in(cfg, value)
    for key, value in pairs:
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        faults += _merge(cfg, CFG, nested, COMMAND_LINE)
    return faults


def _pairs(overrides: Sequence[str]) -> List[Tuple[str, Any]]:
    pairs: List[Tuple[str, Any]] = []
    for key, text in zip(overrides[::2], overrides[1::2]):
        value = from_word(text, _default(key), key)
        pairs.append((key, plugin_list(value, COMMAND_LINE) if key == "PLUGINS" else value))
    return pairs


def _default(key: str) -> Any:
    node: Any = CFG
    for part in key.split("."):
        node = node.get(part) if isinstance(node, CN) else None
    return node


def _plug_in(cfg: CN, plugins: List[str]) -> None:
    load(plugins)
    add_sections(CFG, LIBRARY_SECTIONS)
    complete(cfg, CFG)
    cfg.PLUGINS = plugins


def _merge(cfg: CN, defaults: CN, change: Dict[str, Any], source: str, prefix: str = "") -> Iterator[Fault]:
    """Change `cfg` where that can be, and yield what cannot."""
    for key, value in change.items():
        name = f"{prefix}{key}"
        if key not in cfg and not cfg.is_new_allowed():
            yield name, f"{UNKNOWN} {name} in {source}{did_you_mean(name, dict(leaves(CFG)))}"
        elif key in cfg and isinstance(cfg[key], CN):
            if isinstance(value, dict):
                yield from _merge(cfg[key], defaults.get(key, cfg[key]), value, source, f"{name}.")
            else:
                yield name, f"{name} in {source} is a section, given {value!r}; set its keys, {name}.KEY VALUE"
        elif key not in defaults:
            cfg[key] = undeclared(value)
        else:
            try:
                cfg[key] = typed(value, defaults[key], name, source)
            except UserError as error:
                yield name, str(error)


def resolved(cfg: CN, **dataset: Any) -> CN:
    """Return a frozen copy of `cfg` with what the data set settled (`ROOT`, `INPUT_SIZE`, `MEAN`, `STD`) written in.

    Its paths no longer depend on the working directory, so that the run's config.yaml and checkpoints work from any
    other. `LOG.PREFIX` stays as it is: a run writes below the directory that it is started in.
    """
    cfg = cfg.clone()
    for key, value in dataset.items():
        cfg.DATASET[key] = list(value) if isinstance(value, tuple) else value
    for section, key in ((cfg.DATASET, "ROOT"), (cfg.DISTILLER, "TEACHER_WEIGHTS")):
        section[key] = section[key] and anywhere(section[key])
    if cfg.TEACHER_CACHE not in CACHES:
        cfg.TEACHER_CACHE = anywhere(cfg.TEACHER_CACHE)
    cfg.EXPERIMENT.REFERENCE = [anywhere(path) for path in cfg.EXPERIMENT.REFERENCE]
    cfg.PLUGINS = [anywhere(plugin) if is_file(plugin) else plugin for plugin in cfg.PLUGINS]
    cfg.freeze()
    return cfg


def dump(cfg: CN) -> str:
    """Return the configuration as YAML that `load_cfg` reads back."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False)


def experiment_name(cfg: CN) -> str:
    """Return the run's name, hence its folder: `EXPERIMENT.NAME`, or upstream's `PROJECT/TAG` when that is empty."""
    return cfg.EXPERIMENT.NAME or f"{cfg.EXPERIMENT.PROJECT}/{cfg.EXPERIMENT.TAG}"
