"""Checkpoints: read without executing anything, written whole or not at all, checked against their checksums.

The checksums are those of the zip archive that `torch.save` makes, so that any tool can check them, or ignore them.

A deployed student is one dictionary of tensors and plain values:
`format`, `version`, `model` (the bare student's state_dict), `head` (`kind`, `options`, `state`; None without one),
`arch`, `dataset`, `classes`, `input_size`, `mean`, `std`, `epoch`, `accuracy` (percent, by name), `config`.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, Any, Dict, Optional

import torch

from ...atomic_files import replace
from ...errors import UserError
from ...paths import find_file
from .foreign_weights import allow_arguments, is_safetensors, read_safetensors
from .numpy_scalars import allow_numpy_scalars

FORMAT = "mdistiller.student"
VERSION = 1
MAX_PICKLE_BYTES = 256 * 2**20  # bytes; what is not tensors is far less, but a few bytes may unpack to any number

allow_numpy_scalars()
allow_arguments()


def read_checkpoint(path: str | os.PathLike[str]) -> Dict[str, Any]:
    """Load a checkpoint, of PyTorch or safetensors, onto the CPU.

    Only tensors and plain values are accepted, nothing in it is executed.

    Raises:
        UserError: no such file, a truncated, damaged or foreign file, or one that wants to run code.
    """
    path = find_file(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of a .pth file (see download_ckpts/README.md)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on unusual pickle protocols: what matters here is whether it loads
            if is_safetensors(path):
                return read_safetensors(path)
            _check_sums(path)
            with open(path, "rb") as file:  # its name would choose the format
                content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}); fix its permissions") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"checkpoint {path} is damaged ({_reason(error)}); get it again") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"checkpoint {path} refused: {_reason(error)}; save it as tensors and plain values") from None
    except Exception as error:  # damaged bytes can make the reader raise anything
        reason = _reason(error)
        raise UserError(f"checkpoint {path} is truncated or not a PyTorch file ({reason}); get it again") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"checkpoint {path} holds a {kind}; expected a dictionary with the key 'model'")
    return content


def _check_sums(path: Path) -> None:
    """Compare an archive's entries with their CRC-32s, which `torch.load` does not; 0 stands where there is none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
                    raise zipfile.BadZipFile(f"{entry.file_size} bytes of values, at most {MAX_PICKLE_BYTES} are read")
                if entry.CRC != 0:
                    with archive.open(entry) as file:
                        while file.read(1 << 20):
                            pass


def _reason(error: Exception) -> str:
    """The first sentence of torch's multi-line advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "Unsupported" in line] or lines or [type(error).__name__]
    return telling[0].split(". ")[0].rstrip(".")[:160]


def save(content: Dict[str, Any], path: Path, previous: Optional[Path] = None) -> None:
    """Write `content` to `path` so that there is never half a file under that name; see `safe_files.replace`."""
    replace(path, partial(_save, content), previous)


def _save(content: Dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # closing a file that is cut off hides Ctrl-C
            raise KeyboardInterrupt from None
        raise
