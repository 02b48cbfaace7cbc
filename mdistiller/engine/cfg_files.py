"""YAML files of the configuration, as nested dictionaries; a file may change another that its `_BASE_` names."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Dict, Tuple

import yaml

from ..distillers._plugins import plugin_list
from ..errors import UserError
from ..paths import CLONE, text_of, usable
from .plain_yaml import parse


def read_file(path: Path, seen: Tuple[Path, ...] = ()) -> Dict[str, Any]:
    """Return the YAML file as a dictionary, merged over the files that `_BASE_` names; `PLUGINS` as a list of texts.

    Args:
        path: of the file.
        seen: the files that lead to this one, for the circle that they may close.

    Raises:
        UserError: a missing or malformed file.
    """
    real = Path(os.path.realpath(path))
    if real in seen:
        raise UserError(f"{path}: _BASE_ leads back to the file itself; break the circle")
    try:
        content = parse(text_of(path))
    except OSError as error:
        raise UserError(f"config {path} cannot be read ({error.strerror}){_similar_configs(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"config {path} holds a {type(content).__name__}; expected sections such as SOLVER:")
    if "PLUGINS" in content:
        content["PLUGINS"] = plugin_list(content["PLUGINS"], str(path), path.parent)
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    return _over(read_file(usable(path.parent / str(base)), (*seen, real)), content)


def _similar_configs(path: Path) -> str:
    shipped = CLONE / "configs"
    # beside it or among ours; the nearest folder that exists may be a home folder or a whole disk: no search below it
    files = [*path.parent.glob("*.yaml"), *(shipped.rglob("*.yaml") if shipped.is_dir() else ())]
    known = {file.stem: file for file in reversed(files) if file != path}
    near = difflib.get_close_matches(path.stem, list(known), n=3)
    return f"; did you mean {' or '.join(str(known[n]) for n in near)}?" if near else "; give the path of a YAML file"


def _over(base: Dict[str, Any], change: Dict[str, Any]) -> Dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged
