"""YAML files of the configuration, read as nested dictionaries; `_BASE_` names a file that another one changes."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Dict, Tuple

import yaml

from ...distillers._plugins import plugin_list
from ...errors import UserError, one_line
from ...paths import expanded, read_text, shipped_config, shipped_configs, user_path

MAX_VALUES = 100_000  # values in a configuration; the largest shipped one has fewer than 100


DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader, except that duplicate keys are errors, and only decimal digits are whole numbers.

    Dates, and what YAML 1.1 takes for whole numbers, such as `010`, `12:30` and `2024_01_15`, stay strings.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, DECIMAL if tag == "tag:yaml.org,2002:int" else pattern)
            for tag, pattern in resolvers
            if tag != "tag:yaml.org,2002:timestamp"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {name} is given twice", key.start_mark)
            seen.update({name} - {None})
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:  # merges (<<) of merges
            raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)


def parse(text: str) -> Any:
    """Parse YAML text into dictionaries, lists and scalars.

    Raises:
        yaml.YAMLError: the text is not YAML, has tags, or expands to more than 100,000 values. An anchor (&) that
            contains itself expands without end.
    """
    try:
        content = _Loader(text).get_single_data()
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise yaml.YAMLError(str(error)) from None
    left, parts = [content], 0
    while left:
        node = left.pop()
        parts += 1
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if parts + len(left) > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values; an anchor (&) may lead back to itself: write it out")
    return content


def read_file(path: Path, seen: Tuple[Path, ...] = ()) -> Dict[str, Any]:
    """Read a YAML file as a dictionary, merged over the files that `_BASE_` names; `PLUGINS` becomes a list of strings.

    Args:
        path: the path of the YAML file.
        seen: the files whose `_BASE_` led here; `path` must not be among them.

    Raises:
        UserError: the file is missing or malformed.
    """
    real = Path(os.path.realpath(path))
    if real in seen:
        raise UserError(f"{path}: _BASE_ leads back to the file itself; break the circle")
    try:
        content = parse(read_text(path))
    except OSError as error:
        raise UserError(f"config {path} cannot be read ({error.strerror}){_similar_configs(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid YAML: {one_line(error)}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"config {path} holds a {type(content).__name__}; expected sections such as SOLVER:")
    if "PLUGINS" in content:
        content["PLUGINS"] = plugin_list(content["PLUGINS"], str(path), path.parent)
    base = content.pop("_BASE_", None)
    if base is None:
        return content
    return merged(read_file(base_file(path, str(base)), (*seen, real)), content)


def base_file(path: Path, base: str) -> Path:
    """Return the file that `_BASE_` in `path` names, relative to `path` or among the shipped configurations."""
    named = expanded(base)
    beside = user_path(path.parent / named)
    for file in (beside, Path(f"{beside}.yaml")):
        if file.exists() and not file.is_dir():
            return file
    return shipped_config(named) or beside


def _similar_configs(path: Path) -> str:
    # Search the folder of the file and the shipped configurations only; folders above may be a whole disk.
    form = "configs/{}.yaml" if path.suffix == ".yaml" else "{}"
    shipped = {name: form.format(name) for name in shipped_configs()}
    stems = {name.rpartition("/")[2]: text for name, text in reversed(list(shipped.items()))}
    known = {**stems, **shipped, **{file.stem: str(file) for file in path.parent.glob("*.yaml") if file != path}}
    wanted = path.with_suffix("") if path.suffix == ".yaml" else path
    for name in (wanted.as_posix().rpartition("configs/")[2], wanted.name):
        near = difflib.get_close_matches(name, list(known), n=3)
        if near:
            return f"; did you mean {' or '.join(dict.fromkeys(known[n] for n in near))}?"
    return "; give the path of a YAML file, or the name of a shipped one such as demo/sfakd"


def merged(base: Dict[str, Any], *changes: Dict[str, Any]) -> Dict[str, Any]:
    """Return `base` with the entries of nested dictionaries replaced by those of each change, in order."""
    result = dict(base)
    for change in changes:
        for key, value in change.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result
