"""The configuration node, and how YAML files and overrides change it.

The defaults of the library are in `defaults.py`; each distiller adds a section from the `DEFAULTS` in its own file.
Distillers that `PLUGINS` names are loaded before anything else is read, because they add keys.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import yaml
from yacs.config import CfgNode as CN

from ...distillers import distiller_dict
from ...distillers._plugins import is_file, load, plugin_list
from ...errors import UserError, did_you_mean, refuse
from ...models import portable_name
from ...paths import find_config, portable_path
from .defaults import DEFAULTS
from .method_defaults import add_sections, complete
from .values import from_word, leaves, to_dict, typed, undeclared
from .yaml_files import read_file


class Config(CN):
    """A `CfgNode` with the merge methods of this module, for scripts written for MDistiller."""

    def merge_from_file(self, cfg_filename: str) -> None:
        """Merge a YAML file, with its `_BASE_` and `PLUGINS`."""
        content = read_file(find_config(cfg_filename))
        _plug_in(self, content.pop("PLUGINS", []))
        refuse(line for _, line in _merge(self, CFG, content, str(cfg_filename)))

    def merge_from_list(self, cfg_list: Sequence[str]) -> None:
        """Merge `KEY VALUE` pairs; values are words of a command line."""
        merge_overrides(self, [str(part) for part in cfg_list])


CFG = Config()
CFG.update(DEFAULTS)
PRETRAINED = "pretrained"  # value of TEACHER_WEIGHTS, STUDENT_WEIGHTS and TEACHER_INPUT: what the library releases
IMAGENET_CLASSES = "imagenet"  # value of TEACHER_CLASSES: those of ImageNet-1k
CACHES = ("off", "memory")  # values of TEACHER_CACHE that are not a folder

UNKNOWN = "unknown config key"
Fault = Tuple[str, str]  # a key and its error message

LIBRARY_SECTIONS = tuple(CFG)
add_sections(CFG, LIBRARY_SECTIONS)

COMMAND_LINE = "the command line"  # source of a value, in messages


def show_cfg(cfg: CN) -> None:
    """Print the configuration without the sections of other distillers."""
    others = set(distiller_dict) - {cfg.DISTILLER.TYPE}
    print(CN({name: section for name, section in cfg.items() if name not in others}))


def load_cfg(path: Optional[str] = None, overrides: Sequence[str] = ()) -> CN:
    """Load the configuration: the defaults, then the YAML file at `path`, then `overrides` (`KEY VALUE KEY VALUE …`).

    Raises:
        UserError: the file is missing or malformed; or one line for each unknown key, each value of a wrong type, and
            an override without a value.
    """
    cfg, faults = read_cfg(path, overrides)
    refuse(line for _, line in faults)
    return cfg


def read_cfg(path: Optional[str] = None, overrides: Sequence[str] = ()) -> Tuple[CN, List[Fault]]:
    """Return the configuration, without the entries that are wrong, and a fault for each of them."""
    content = {} if path is None else read_file(find_config(path))
    return _read(content, str(path), overrides)


def cfg_from(content: Dict[str, Any], source: str, overrides: Sequence[str] = ()) -> CN:
    """Return the configuration of nested dictionaries, as `load_cfg` does for a file.

    Args:
        content: the content of a file, as `yaml_files.read_file` returns it.
        source: the path of that file, named in error messages.
        overrides: the values that override the content, `KEY VALUE KEY VALUE …`.

    Raises:
        UserError: one line for each unknown key, each value of a wrong type, and an override without a value.
    """
    cfg, faults = _read(content, source, overrides)
    refuse(line for _, line in faults)
    return cfg


def _read(content: Dict[str, Any], source: str, overrides: Sequence[str]) -> Tuple[CN, List[Fault]]:
    settings = {key: value for key, value in content.items() if key != "PLUGINS"}
    cfg = CFG.clone()
    # Plug-ins come first, because they define keys. PLUGINS on the command line replaces that of the file.
    _plug_in(cfg, dict(_pairs(overrides)).get("PLUGINS", content.get("PLUGINS", [])))
    faults = list(_merge(cfg, CFG, settings, source))
    return cfg, faults + _merge_pairs(cfg, overrides)


def merge_known(cfg: CN, change: Dict[str, Any], source: str) -> None:
    """Merge nested dictionaries into `cfg`, in place. Unknown keys, of another version, are dropped."""
    faults = _merge(cfg, CFG, change, source)
    refuse(line for _, line in faults if not line.startswith(UNKNOWN))


def merge_overrides(cfg: CN, overrides: Sequence[str]) -> None:
    """Merge `KEY VALUE` pairs into `cfg`, in place. Values are YAML; string-typed keys take them verbatim."""
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
    """Merge the valid entries of `change` into `cfg`, in place; yield a fault for each other entry."""
    for key, value in change.items():
        name = f"{prefix}{key}"
        if "." in str(key) and name in dict(leaves(CFG)):
            yield name, f"{name} in {source} is written with a dot; write {_nested(name)}"
        elif key not in cfg and not cfg.is_new_allowed():
            section = [f"{prefix}{known}" for known in defaults]
            yield name, f"{UNKNOWN} {name} in {source}{did_you_mean(name, dict(leaves(CFG)), instead=section)}"
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


def _nested(name: str) -> str:
    """Return the YAML form of a full key, such as `SOLVER: {LR: …}`."""
    *sections, key = name.split(".")
    return "".join(f"{section}: {{" for section in sections) + f"{key}: …" + "}" * len(sections)


def resolved(cfg: CN, **dataset: Any) -> CN:
    """Return a frozen copy of `cfg` with the values that the data set determines (`ROOT`, `INPUT_SIZE`, `MEAN`, `STD`).

    Paths become absolute, so that config.yaml and checkpoints of the run work from any directory. `LOG.PREFIX` stays
    relative: a run writes below the directory that it is started in.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in dataset.items():
        cfg.DATASET[key] = list(value) if isinstance(value, tuple) else value
    for key in ("ROOT", "UNLABELED"):
        cfg.DATASET[key] = cfg.DATASET[key] and portable_path(cfg.DATASET[key])
    for role in ("TEACHER", "STUDENT"):
        cfg.DISTILLER[role] = portable_name(cfg.DISTILLER[role])
        weights = cfg.DISTILLER[f"{role}_WEIGHTS"]
        cfg.DISTILLER[f"{role}_WEIGHTS"] = portable_path(weights) if weights not in ("", PRETRAINED) else weights
    if cfg.DISTILLER.TEACHER_CLASSES not in ("", IMAGENET_CLASSES):
        cfg.DISTILLER.TEACHER_CLASSES = portable_path(cfg.DISTILLER.TEACHER_CLASSES)
    if cfg.TEACHER_CACHE not in CACHES:
        cfg.TEACHER_CACHE = portable_path(cfg.TEACHER_CACHE)
    cfg.EXPERIMENT.REFERENCE = [portable_path(path) for path in cfg.EXPERIMENT.REFERENCE]
    cfg.PLUGINS = [portable_path(plugin) if is_file(plugin) else plugin for plugin in cfg.PLUGINS]
    cfg.freeze()
    return cfg


def dump(cfg: CN) -> str:
    """Return the configuration as YAML that `load_cfg` reads back."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False)


def experiment_name(cfg: CN) -> str:
    """Return the name of the run and its folder: `EXPERIMENT.NAME`, or MDistiller's `PROJECT/TAG` if that is empty."""
    return cfg.EXPERIMENT.NAME or f"{cfg.EXPERIMENT.PROJECT}/{cfg.EXPERIMENT.TAG}"
