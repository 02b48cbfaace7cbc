"""The configuration: every key with its default, and how YAML files and the command line change it."""

from .config import (
    CACHES,
    CFG,
    IMAGENET_CLASSES,
    PRETRAINED,
    Config,
    Fault,
    cfg_from,
    dump,
    experiment_name,
    load_cfg,
    merge_known,
    merge_overrides,
    read_cfg,
    resolved,
    show_cfg,
)
from .settings import FROM_DATA, NOT_COMPARED, own_leaves, setting_changes, settings_digest, settings_of
from .values import leaves, to_dict

__all__ = [
    "CACHES",
    "CFG",
    "FROM_DATA",
    "IMAGENET_CLASSES",
    "NOT_COMPARED",
    "PRETRAINED",
    "Config",
    "Fault",
    "cfg_from",
    "dump",
    "experiment_name",
    "leaves",
    "load_cfg",
    "merge_known",
    "merge_overrides",
    "own_leaves",
    "read_cfg",
    "resolved",
    "setting_changes",
    "settings_digest",
    "settings_of",
    "show_cfg",
    "to_dict",
]
