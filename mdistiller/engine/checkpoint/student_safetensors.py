"""A student's checkpoint as a safetensors file: the tensors by name, and the rest of the description as JSON.

Tensors of the backbone are named `model.…`, those of the head `head.…`.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, Tuple

import torch

from ...errors import UserError, one_line

STUDENT = "mdistiller.student"  # key in the metadata
MODEL, HEAD = "model.", "head."


def pack_student(checkpoint: Dict[str, Any], half: bool = False) -> Tuple[Dict[str, torch.Tensor], str]:
    """Return the tensors of a described checkpoint by name, and the rest of it as JSON.

    Args:
        checkpoint: the checkpoint, as `describe_student` returns it.
        half: whether to store floating-point tensors as float16, except those with values beyond its range.
    """
    head = checkpoint["head"]
    named = {MODEL + name: tensor for name, tensor in checkpoint["model"].items()}
    if head is not None:
        named.update({HEAD + name: tensor for name, tensor in head["state"].items()})
    rest = {key: value for key, value in checkpoint.items() if key not in ("model", "head")}
    rest["head"] = None if head is None else {"kind": head["kind"], "options": head["options"]}
    return {name: _stored(tensor, half) for name, tensor in named.items()}, json.dumps(rest)


def _stored(tensor: torch.Tensor, half: bool) -> torch.Tensor:
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not (half and tensor.is_floating_point()):
        return tensor
    narrow = tensor.half()
    return narrow if narrow.isfinite().all() else tensor


def unpack_student(tensors: Dict[str, torch.Tensor], metadata: Mapping[str, str], path: Any) -> Dict[str, Any]:
    """Return the checkpoint that `pack_student` split; `tensors` themselves if the metadata describe no student.

    Raises:
        UserError: the metadata are damaged.
    """
    if STUDENT not in metadata:
        return tensors
    try:
        rest = json.loads(metadata[STUDENT])
        head = rest.pop("head")
        if head is not None:
            head = {**head, "state": _below(HEAD, tensors)}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise UserError(f"the metadata of checkpoint {path} are damaged ({reason}); get it again") from None
    return {**rest, "model": _below(MODEL, tensors), "head": head}


def _below(prefix: str, tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
