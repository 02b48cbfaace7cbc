"""The configuration: every key with its default, and how YAML files and the command line change it."""

from .config import (
    CACHES,
    CFG,
    PRETRAINED,
    Config,
    dump,
    experiment_name,
    load_cfg,
    merge_known,
    merge_overrides,
    read_cfg,
    resolved,
    show_cfg,
)
from .values import leaves, to_dict

__all__ = [
    "CACHES",
    "CFG",
    "PRETRAINED",
    "Config",
    "dump",
    "experiment_name",
    "leaves",
    "load_cfg",
    "merge_known",
    "merge_overrides",
    "read_cfg",
    "resolved",
    "show_cfg",
    "to_dict",
]
