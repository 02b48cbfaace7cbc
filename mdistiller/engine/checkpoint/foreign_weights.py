"""Weights that other training programs wrote: where in a file they are, and what else such a file may hold.

Read are the training files of timm, torchvision, PyTorch Lightning, MDistiller and their like, and safetensors files.
Wrappers in the names of layers (`module.`, `model.`, …) are `load_weights`' part.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import posixpath
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import torch
from torch import nn

from ...errors import UserError
from ...models import load_weights

WEIGHTS = ("model", "module", "state_dict", "model_state_dict", "net", "network")  # keys of a state_dict
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")  # keys of an exponential moving average's
PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
PATH_MODULES = ("pathlib", "pathlib._local")  # the latter in Python 3.13
MAX_HEADER_BYTES = 100_000_000  # bytes, by the definition of the safetensors format

log = logging.getLogger("mdistiller")


def allow_arguments() -> None:
    """Let `torch.load(weights_only=True)` read the command line's arguments that training programs save.

    That is an `argparse.Namespace`, which is plain data. The paths in it are read as texts.
    """
    paths = [_path_of(module, name) for module in PATH_MODULES for name in PATHS]
    torch.serialization.add_safe_globals([argparse.Namespace, *paths])


def _path_of(module: str, name: str) -> Callable[..., str]:
    def path(*parts: str) -> str:
        if not all(isinstance(part, str) for part in parts):
            raise pickle.UnpicklingError(f"Unsupported path of {parts!r}")
        return posixpath.join("", *parts) or "."

    path.__module__, path.__name__, path.__qualname__ = module, name, name  # where the reader looks it up
    return path


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: the header's length (8 bytes, little endian), and JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start.endswith(b"{") and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def read_safetensors(path: Path) -> Dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Raises:
        UserError: the file is damaged, or the package safetensors is missing.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"checkpoint {path} is a safetensors file; run: pip install safetensors") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is a damaged safetensors file ({error}); get it again") from None


def weights_of(checkpoint: Dict[str, Any], path: str | os.PathLike[str]) -> Dict[str, torch.Tensor]:
    """Return the model's state_dict in a checkpoint: the dictionary itself, or what lies below `WEIGHTS` or `AVERAGED`.

    Where there are averaged weights, they are taken and the others are not, as by timm's own loader.

    Raises:
        UserError: there is none, or several, or the file is a training state of this library.
    """
    return _find(checkpoint, path)[1]


def load_checkpoint(model: nn.Module, checkpoint: Dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Load `weights_of` a checkpoint into `model`, with a note if they are averaged ones.

    Raises:
        UserError: see `weights_of` and `load_weights`.
    """
    key, state = _find(checkpoint, path)
    others = [other for other, _ in _states(checkpoint) if other != key]
    if others:
        rest = ", ".join(map(repr, others))
        log.info(f"note: {path} has weights below {key!r} and {rest}; {key!r}, the average, is used")
    load_weights(model, state, str(path))


def _find(checkpoint: Dict[str, Any], path: str | os.PathLike[str]) -> Tuple[str, Dict[str, torch.Tensor]]:
    if "distiller" in checkpoint and "optimizer" in checkpoint:
        raise UserError(
            f"{path} is a training state, to resume from; give the student_latest.pth or _best.pth beside it"
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
    """Yield `(keys to it, joined by dots, state_dict)` of each state_dict below keys that name one."""
    if not (isinstance(content, dict) and content):
        return
    nested = [key for key in (*WEIGHTS, *AVERAGED) if isinstance(content.get(key), dict)]
    for key in nested:
        yield from _states(content[key], f"{place}.{key}" if place else key)
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors and not nested:  # beside them there may be an epoch, or an extra state
        yield place, tensors
