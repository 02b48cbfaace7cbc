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
from typing import IO, Any, Dict, List, Optional

import torch

from ..dataset.info import DatasetInfo
from ..distillers import DeployedStudent, head_dict
from ..errors import UserError
from ..models import build_model, find_model
from ..paths import find_file
from ..registry import UnknownName
from .foreign_weights import allow_arguments, is_safetensors, load_checkpoint, read_safetensors
from .numpy_scalars import allow_numpy_scalars
from .safe_files import replace

FORMAT = "mdistiller.student"
VERSION = 1
MOST_PICKLED = 256 * 2**20  # bytes; what is not tensors is far less, but a few bytes may unpack to any number

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
                if entry.filename.endswith("data.pkl") and entry.file_size > MOST_PICKLED:
                    raise zipfile.BadZipFile(f"{entry.file_size} bytes of values, at most {MOST_PICKLED} are read")
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


def describe_student(
    student: DeployedStudent,
    arch: str,
    info: DatasetInfo,
    accuracy: Dict[str, float],
    epoch: int,
    config: Dict[str, Any],
) -> Dict[str, Any]:
    """Return the deployed student as the dictionary that the module's docstring lists."""
    head = student.head
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": student.backbone.state_dict(),
        "head": None if head is None else {"kind": head.kind, "options": head.options, "state": head.state_dict()},
        "arch": arch,
        "dataset": info.name,
        "classes": list(info.classes),
        "input_size": info.input_size,
        "mean": list(info.mean),
        "std": list(info.std),
        "epoch": epoch,
        "accuracy": accuracy,
        "config": config,
    }


DESCRIPTION = {
    "version": int,
    "model": dict,
    "arch": str,
    "dataset": str,
    "classes": list,
    "input_size": int,
    "mean": list,
    "std": list,
    "epoch": int,
    "accuracy": dict,
    "config": dict,
}


def is_described(checkpoint: Dict[str, Any]) -> bool:
    """Whether a checkpoint says itself what it holds.

    Raises:
        UserError: it begins to, but parts of it are missing, or it is of a later version.
    """
    if checkpoint.get("format") != FORMAT:
        return False
    version = checkpoint.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"the checkpoint has format version {version}; this mdistiller reads up to {VERSION}, upgrade it"
        )
    lacking = [key for key, kind in DESCRIPTION.items() if not isinstance(checkpoint.get(key), kind)]
    head = checkpoint.get("head")
    whole = not lacking and (
        isinstance(checkpoint["config"].get("DATASET"), dict)
        and all(isinstance(name, str) for name in plugins_of(checkpoint))
        and "deployed_top1" in checkpoint["accuracy"]
        and all(isinstance(value, (int, float)) for value in checkpoint["accuracy"].values())
        and checkpoint["input_size"] >= 1
        and (head is None or (isinstance(head, dict) and {"kind", "options", "state"} <= set(head)))
        and (head is None or isinstance(head["kind"], str))
    )
    if not whole:
        parts = ", ".join(lacking or ["config, accuracy or head"])
        raise UserError(f"the checkpoint's description is damaged ({parts}); get the file again")
    return True


def plugins_of(checkpoint: Dict[str, Any]) -> List[Any]:
    """Return what the configuration of a described checkpoint names as PLUGINS; `[None]` if that is no list."""
    given = checkpoint["config"].get("PLUGINS", [])
    return given if isinstance(given, list) else [None]


def check_known(checkpoint: Dict[str, Any], arch: str, dataset: str, input_size: Optional[int]) -> None:
    """Check that a model `arch` is registered for a data set; see `find_model`.

    Raises:
        UserError: it is not; the message names the plug-ins with which the checkpoint was trained, if there were any.
    """
    try:
        find_model(arch, dataset, input_size)
    except UnknownName as error:
        remedy = _plugins_to_load(checkpoint) if is_described(checkpoint) and checkpoint["arch"] == arch else ""
        if not remedy:
            raise
        raise UserError(f"the checkpoint's model {arch!r} is not known here; {remedy}") from error


def _plugins_to_load(checkpoint: Dict[str, Any]) -> str:
    """Return what to do where a plug-in is missing: nothing is loaded unasked, since a checkpoint is data."""
    plugins = ", ".join(plugins_of(checkpoint))
    return f'if you trust it, load what it was trained with: PLUGINS "[{plugins}]"' if plugins else ""


def load_student(
    checkpoint: Dict[str, Any],
    arch: str,
    num_classes: int,
    path: str | os.PathLike[str],
    dataset: str = "cifar100",
    input_size: Optional[int] = None,
) -> DeployedStudent:
    """Build the deployed student of a checkpoint; without a description: the bare model `arch`.

    Args:
        checkpoint: what `read_checkpoint` returned.
        arch: the model's name; one that the checkpoint contradicts is refused.
        num_classes: outputs of the classifier.
        path: named in messages.
        dataset, input_size: what a checkpoint without a description is for; they choose among models of one name.
    """
    described = is_described(checkpoint)
    if described and checkpoint["arch"] != arch:
        raise UserError(f"checkpoint {path} holds a {checkpoint['arch']}, not a {arch}; give -m {checkpoint['arch']}")
    if described:
        dataset, input_size = checkpoint["dataset"], checkpoint["input_size"]
    check_known(checkpoint, arch, dataset, input_size)
    backbone = build_model(arch, num_classes, dataset, input_size)
    load_checkpoint(backbone, checkpoint, path)
    saved = checkpoint.get("head") if described else None
    if saved is None:
        return DeployedStudent(backbone)
    if saved["kind"] not in head_dict:
        remedy = _plugins_to_load(checkpoint) or "install it"
        raise UserError(f"checkpoint {path} needs the head {saved['kind']!r}, which no distiller here has; {remedy}")
    try:
        head = head_dict[saved["kind"]](**saved["options"])
        head.load_state_dict(saved["state"])
    except Exception as error:  # options are data: a damaged one can make the constructor raise anything
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the head in checkpoint {path} is damaged ({reason}); get the file again") from None
    return DeployedStudent(backbone, head)
