"""Checkpoint files: reading without executing code, checksums, atomic writing.

The checksums are those of the zip archive that `torch.save` writes, so any zip tool can check them.
"""

from __future__ import annotations

import copy
import errno
import os
import pickle
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, Any, Dict, Optional

import torch

from ...atomic_files import replace
from ...errors import UserError, memory_shortage
from ...paths import find_file
from .foreign_weights import allow_arguments, is_safetensors, read_safetensors
from .numpy_scalars import allow_numpy_scalars

MAX_PICKLE_BYTES = 256 * 2**20  # bytes; the pickled part is far smaller, but a compressed one could unpack to any size

# errors of a damaged archive, whose offsets may point anywhere; any other OSError is one of the disk or the system
OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW)

allow_numpy_scalars()
allow_arguments()


class DamagedCheckpoint(UserError):
    """A file that is truncated, damaged, or not a checkpoint. Reading it again will not help."""


def read_checkpoint(path: str | os.PathLike[str]) -> Dict[str, Any]:
    """Load a PyTorch or safetensors checkpoint onto the CPU.

    Only tensors and plain values are accepted; nothing is executed.

    Raises:
        DamagedCheckpoint: the file is truncated, damaged, of another kind, or would run code.
        UserError: the file is missing or cannot be read, or there is not enough memory.
    """
    path = find_file(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of a .pth file (see download_ckpts/README.md)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickle protocols
            if is_safetensors(path):
                return read_safetensors(path)
            _check_sums(path)
            with open(path, "rb") as file:  # a file, because torch.load would guess the format from a name
                content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}); fix its permissions") from None
    except zipfile.BadZipFile as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({_reason(error)}); get it again") from None
    except pickle.UnpicklingError as error:
        reason = _reason(error)
        if "operand" in reason:  # bytes of another kind of file
            raise DamagedCheckpoint(
                f"checkpoint {path} is truncated or not a PyTorch file ({reason}); get it again"
            ) from None
        raise DamagedCheckpoint(f"checkpoint {path} refused: {reason}; save it as tensors and plain values") from None
    except Exception as error:  # damaged bytes can make the unpickler raise any type
        reason = _reason(error)
        if memory_shortage(error) or (isinstance(error, OSError) and error.errno not in (None, *OF_CONTENT)):
            raise UserError(f"checkpoint {path} cannot be read ({reason}); the file is unchanged, try again") from None
        raise DamagedCheckpoint(
            f"checkpoint {path} is truncated or not a PyTorch file ({reason}); get it again"
        ) from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DamagedCheckpoint(f"checkpoint {path} holds a {kind}; expected a dictionary with the key 'model'")
    return content


def _check_sums(path: Path) -> None:
    """Check the CRC-32 of each entry of the archive, which `torch.load` does not do; 0 means that there is none."""
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
    """Return the first sentence of PyTorch's multi-line message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "Unsupported" in line] or lines or [type(error).__name__]
    return telling[0].split(". ")[0].rstrip(".")[:160]


def save(content: Dict[str, Any], path: Path, previous: Optional[Path] = None) -> None:
    """Write `content` to `path` atomically, with tensors on the CPU, so that any machine can load it.

    See `atomic_files.replace`.
    """
    replace(path, partial(_save, on_cpu(content)), previous)


def on_cpu(content: Any) -> Any:
    """Return nested dictionaries, lists and tuples with their tensors on the CPU."""
    if isinstance(content, torch.Tensor):
        return content.cpu()
    if isinstance(content, dict):
        moved = copy.copy(content)  # with the attributes of a module's state dict
        moved.update((key, on_cpu(value)) for key, value in content.items())
        return moved
    return type(content)(map(on_cpu, content)) if type(content) in (list, tuple) else content


def _save(content: Dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # the writer turns Ctrl-C into a RuntimeError
            raise KeyboardInterrupt from None
        raise
