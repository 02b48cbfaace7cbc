"""Values of the configuration: parsing words of the command line, converting types, listing all keys."""

from __future__ import annotations

import ast
from typing import Any, Dict, Iterator, Tuple

import yaml
from yacs.config import CfgNode as CN

from ...errors import UserError
from .yaml_files import parse

# Keys whose values are mappings, not sections.
MAPPINGS = (
    *(f"DISTILLER.{role}_{kind}" for role in ("TEACHER", "STUDENT") for kind in ("ARGS", "FEATURES")),
    "DISTILLER.TEACHER_INPUT",
)
TYPE_NAMES = {bool: "boolean", int: "whole number", float: "number", str: "text", list: "list", tuple: "list"}

# YAML 1.1 parses `off` and `no` as False, and `yes` as True. The string that is meant, by key and boolean.
BOOLEAN_WORDS: Dict[Tuple[str, Any], str] = {
    ("SOLVER.AMP", False): "off",
    ("SOLVER.COMPILE", False): "off",
    ("SOLVER.COMPILE", True): "default",
    ("TEACHER_CACHE", False): "off",
    ("TEACHER_CACHE", True): "memory",
    ("DATASET.IN_MEMORY", False): "no",
    ("DATASET.IN_MEMORY", True): "yes",
}


def from_word(text: str, default: Any, name: str) -> Any:
    """Parse a command-line value as YAML; string-typed keys are taken verbatim."""
    parsed = _parsed(text)
    if not isinstance(default, str):
        return parsed
    # verbatim, except words that YAML reads as booleans
    return BOOLEAN_WORDS.get((name, parsed), text) if isinstance(parsed, bool) else text


def _parsed(text: str) -> Any:
    try:
        # An empty word is an empty string and None is null; YAML would read null and the string "None".
        return {"": "", "None": None}[text] if text in ("", "None") else parse(text)
    except yaml.YAMLError:
        return text


def typed(value: Any, default: Any, name: str, source: str) -> Any:
    """Convert `value` to the type of `default`; a float accepts an int, and `1e-4`, which YAML 1.1 reads as a string.

    Args:
        name, source: the key and where the value comes from, for messages.

    Raises:
        UserError: the value has another type.
    """
    if default is None:
        return list(value) if isinstance(value, tuple) else value
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    elif isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return list(value)
    elif isinstance(default, str) and isinstance(value, (str, int, float, bool)):
        # a number can be a name
        return value if isinstance(value, str) else BOOLEAN_WORDS.get((name, value), str(value))
    elif type(value) is type(default):
        return value
    kind = TYPE_NAMES[type(default)]
    raise UserError(f"{name} in {source} is {value!r}; expected a {kind}, for example {default!r}")


def undeclared(value: Any) -> Any:
    """Convert the value of a key without a default; strings such as `1e-4` are read as Python literals, as in yacs."""
    if isinstance(value, dict):
        section = CN(new_allowed=True)
        section.update({str(key): undeclared(entry) for key, entry in value.items()})
        return section
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def leaves(node: Dict[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Yield each `(key, value)` of a configuration or of nested dictionaries, with full keys such as `SOLVER.LR`."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in MAPPINGS:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def to_dict(node: Any) -> Any:
    """Return a configuration as plain nested dictionaries, lists and scalars."""
    if isinstance(node, dict):
        return {key: to_dict(value) for key, value in node.items()}
    return [to_dict(value) for value in node] if isinstance(node, (list, tuple)) else node
