"""Weights in the files of other training programs: timm, torchvision, PyTorch Lightning, MDistiller, safetensors.

`load_weights` removes prefixes of layer names such as `module.` and `model.`.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import posixpath
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
from torch import nn

from ...errors import UserError
from ...models import load_weights
from .student_safetensors import unpack_student

WEIGHTS = ("model", "module", "state_dict", "model_state_dict", "net", "network")  # of a state_dict
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")  # exponential moving averages
PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
PATH_MODULES = ("pathlib", "pathlib._local")  # the latter in Python 3.13
MAX_HEADER_BYTES = 100_000_000  # bytes, by the definition of the safetensors format

log = logging.getLogger("mdistiller")


def allow_arguments() -> None:
    """Let `torch.load(weights_only=True)` read an `argparse.Namespace`, which many programs save with the weights.

    It is plain data. Paths in it become strings.
    """
    paths = [_path_of(module, name) for module in PATH_MODULES for name in PATHS]
    torch.serialization.add_safe_globals([argparse.Namespace, *paths])


def _path_of(module: str, name: str) -> Callable[..., str]:
    def path(*parts: str) -> str:
        if not all(isinstance(part, str) for part in parts):
            raise pickle.UnpicklingError(f"Unsupported path of {parts!r}")
        return posixpath.join("", *parts) or "."

    path.__module__, path.__name__, path.__qualname__ = module, name, name  # the name that the unpickler looks up
    return path


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like a safetensors file: header length (8 bytes, little endian), then JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start.endswith(b"{") and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def read_safetensors(path: Path) -> Dict[str, Any]:
    """Return the tensors of a safetensors file by name, on the CPU, or the checkpoint of an exported student.

    Raises:
        UserError: the file is damaged, or the package safetensors is missing.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(f"checkpoint {path} is a safetensors file; run: pip install safetensors") from None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is a damaged safetensors file ({error}); get it again") from None
    return unpack_student(tensors, metadata, path)


def weights_of(checkpoint: Dict[str, Any], path: str | os.PathLike[str]) -> Dict[str, torch.Tensor]:
    """Return the state_dict of the model in a checkpoint: the dictionary itself, or one below `WEIGHTS` or `AVERAGED`.

    Averaged weights have precedence, as in timm's loader.

    Raises:
        UserError: the checkpoint holds no state_dict or several, or is a training state of this library.
    """
    return _find(checkpoint, path)[1]


def load_checkpoint(
    model: nn.Module,
    checkpoint: Dict[str, Any],
    path: str | os.PathLike[str],
    fresh_classifier: Optional[str] = None,
) -> None:
    """Load the weights of a checkpoint into `model`; a note says if they are averaged ones.

    Args:
        model, checkpoint, path: the model to load into, the checkpoint that `read_checkpoint` returned, and the
            checkpoint's path, named in error messages.
        fresh_classifier: see `load_weights`.

    Raises:
        UserError: see `weights_of` and `load_weights`.
    """
    key, state = _find(checkpoint, path)
    others = [other for other, _ in _states(checkpoint) if other != key]
    if others:
        rest = ", ".join(map(repr, others))
        log.info(f"note: {path} has weights below {key!r} and {rest}; {key!r}, the average, is used")
    load_weights(model, state, str(path), fresh_classifier)


def _find(checkpoint: Dict[str, Any], path: str | os.PathLike[str]) -> Tuple[str, Dict[str, torch.Tensor]]:
    if "distiller" in checkpoint and "optimizer" in checkpoint:
        raise UserError(
            f"{path} is a training state for --resume; give student_latest.pth or student_best.pth from the same folder"
        )
    found = dict(_states(checkpoint))
    averaged = {key: state for key, state in found.items() if set(key.split(".")) & set(AVERAGED)}
    choice = averaged or found
    if not choice:
        raise UserError(
            f"checkpoint {path} holds no model weights (keys: {', '.join(map(str, list(checkpoint)[:6]))});"
            " expected a state_dict below the key 'model'"
        )
    if len(choice) > 1:
        raise UserError(
            f"checkpoint {path} holds several models, below {', '.join(map(repr, choice))}; save the one to use in a"
            ' file of its own: torch.save({"model": state_dict}, file)'
        )
    return next(iter(choice.items()))


def _states(content: Any, place: str = "") -> Iterator[Tuple[str, Dict[str, torch.Tensor]]]:
    """Yield `(path of keys joined by dots, state_dict)` for each state_dict below such keys."""
    if not (isinstance(content, dict) and content):
        return
    nested = [key for key in (*WEIGHTS, *AVERAGED) if isinstance(content.get(key), dict)]
    for key in nested:
        yield from _states(content[key], f"{place}.{key}" if place else key)
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors and not nested:  # other entries may be an epoch or an extra state
        yield place, tensors
